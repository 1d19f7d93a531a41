"""The hierarchical RNN (Wichrowska et al. 2017): a GRU a parameter, a tensor and a problem."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from learned_opt import _coordinates, _draws
from learned_opt.base import LearnedOptimizer
from learned_opt.optimizers._tensors import map_tensors

_NUM_SCALES = 4
_NUM_INPUTS = 3 * _NUM_SCALES
_MAX_LOG_RATE = 33.0
# Beyond it, squares are not finite. No loss whose gradients are as large is being minimized.
_MAX_GRADIENT = 1e15
# sigmoid(2.2) is about 0.9.
_GATE_BIAS, _INPUT_DECAY_BIAS, _SCALE_DECAY_BIAS, _RATE_MOMENTUM = 2.2, 2.2, 3.2, 3.2


class TensorState(NamedTuple):
  """State of the n coordinates of one tensor.

  Attributes:
    h: outputs of the RNN of each coordinate, ``[n, hidden_size]``.
    means: running means of the gradients on four time scales, ``[n, 4]``.
    squares: running means of the squares of these means, ``[n, 4]``.
    input_decay: d_1, of the shortest of the time scales, ``[n]``.
    scale_decay: delta, of `squares`, ``[n]``.
    log_rate: eta, the logarithm of the learning rate, ``[n]``.
  """

  h: jax.Array
  means: jax.Array
  squares: jax.Array
  input_decay: jax.Array
  scale_decay: jax.Array
  log_rate: jax.Array


class HierarchicalRNNState(NamedTuple):
  """Optimizer state.

  Attributes:
    tensors: the params' tree, with a `TensorState` in the place of a tensor.
    of_tensors: outputs of the RNN of each tensor, ``[tensors, tensor_size]``.
    of_problem: outputs of the RNN of the problem, ``[problem_size]``.
  """

  tensors: Any
  of_tensors: jax.Array
  of_problem: jax.Array


def hierarchical_rnn(
  hidden_size: int = 10,
  tensor_size: int = 20,
  problem_size: int = 20,
  initial_rates: tuple[float, float] = (1e-6, 1e-2),
  seed: int = 0,
) -> LearnedOptimizer:
  """A GRU for each coordinate, steered by one for each tensor, steered by one for the problem.

  A coordinate keeps running means of its gradient on four time scales, and of their squares, with
  decays that its GRU decides. The GRU sees the scaled means s_j, products of neighbouring ones, how
  the squares compare across time scales, and the coordinate's learning rate beside the mean of all.
  Directions are linear in its output and in the s_j, and have mean square 1 in each tensor:

      eta* = eta + w_lr . h + b,   update = -exp(eta* + o) d / sqrt(mean_tensor d^2),

  eta the logarithm of a learning rate that follows eta* with a learned momentum. A tensor's GRU
  sees the means over its coordinates, the problem's those over tensors, and what they found in the
  step before is an additional bias of the GRUs below.

  Source: Wichrowska et al. (2017), "Learned optimizers that scale and generalize"; the constants
  are those of its released code, but for the problem's GRU, which there sees the last tensor alone.
  Gradients are not evaluated at another place than the parameters ("attention" there, off by
  default).

  Args:
    hidden_size: units of a coordinate's GRU.
    tensor_size: units of a tensor's GRU.
    problem_size: units of the problem's GRU.
    initial_rates: between which learning rates start, log-uniformly: half of the logarithm is drawn
      for each tensor, half for each coordinate.
    seed: of these draws. As optax hands no key over, all problems of equal shapes start with the
      same rates.

  Returns:
    The architecture. Its transformations compute in the dtype of the meta-params, and clip
    gradients at 1e15.

  Raises:
    ValueError: if a size is not positive, or `initial_rates` are not two rates in order.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.hierarchical_rnn()
    >>> def first_update(key, params):
    ...   tx = architecture.optimizer(architecture.init(key))
    ...   return tx.update(params, tx.init(params), params)[0]
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> jax.eval_shape(first_update, jax.random.key(0), params)["w"].shape
    (3, 2)
  """
  sizes = {"hidden_size": hidden_size, "tensor_size": tensor_size, "problem_size": problem_size}
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")
  low, high = map(float, initial_rates)
  if not 0 < low <= high < math.inf:
    raise ValueError(f"initial_rates must be two positive numbers in order, got {initial_rates}")
  return _hierarchical_rnn(hidden_size, tensor_size, problem_size, (low, high), int(seed))


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _hierarchical_rnn(
  hidden_size: int,
  tensor_size: int,
  problem_size: int,
  initial_rates: tuple[float, float],
  seed: int,
) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    return _init(key, hidden_size, tensor_size, problem_size)

  def optimizer(meta_params: Any) -> optax.GradientTransformationExtraArgs:
    dtype = meta_params["output"]["direction"].dtype

    def init_fn(params):
      _coordinates.count(params)
      start = meta_params["start"]
      leaves, treedef = jax.tree.flatten(params)
      rates = _initial_log_rates(leaves, initial_rates, seed, dtype)
      return HierarchicalRNNState(
        treedef.unflatten(_zero_state(rate, start["parameter"]) for rate in rates),
        _repeat(start["tensor"], len(rates)),
        jnp.array(start["problem"]),
      )

    def update_fn(updates, state, params=None, **extra_args):
      del extra_args
      _coordinates.check_gradients(updates, params)
      leaves, treedef = jax.tree.flatten(updates)
      tensors = treedef.flatten_up_to(state.tensors)
      _check_sizes(leaves, tensors)
      grads = [jnp.ravel(leaf).astype(dtype) for leaf in leaves]
      steps, tensors, of_tensors, of_problem = _step(
        meta_params, grads, tensors, state.of_tensors, state.of_problem
      )
      state = HierarchicalRNNState(treedef.unflatten(tensors), of_tensors, of_problem)
      like = leaves if params is None else jax.tree.leaves(params)
      return treedef.unflatten(
        step.reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf))
        for step, leaf in zip(steps, like, strict=True)
      ), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  config = FrozenDict(
    hidden_size=hidden_size,
    tensor_size=tensor_size,
    problem_size=problem_size,
    initial_rates=initial_rates,
    seed=seed,
  )
  return LearnedOptimizer(init, optimizer, "hierarchical_rnn", config)


# --- Where meta-params and states start.


def _init(key: chex.PRNGKey, hidden: int, tensor: int, problem: int) -> chex.ArrayTree:
  keys = iter(jax.random.split(key, 20))

  def normal(*shape: int, scale: float = 0.5) -> jax.Array:
    return scale / math.sqrt(shape[0]) * _draws.normal(next(keys), shape, np.float32)

  def constant(value: float) -> jax.Array:
    return jnp.full((), value, np.float32)

  def affine(inputs: int, outputs: int) -> dict[str, jax.Array]:
    return {"kernel": normal(inputs, outputs), "bias": jnp.zeros(outputs, np.float32)}

  def gru(inputs: int, size: int) -> dict[str, dict[str, jax.Array]]:
    gates = {
      "kernel": normal(inputs + size, 2 * size),
      "bias": jnp.full(2 * size, _GATE_BIAS, np.float32),
    }
    return {"gates": gates, "candidate": affine(inputs + size, size)}

  def start(size: int) -> jax.Array:
    return _draws.uniform(next(keys), (size,), np.float32, -1.0, 1.0)

  return {
    "parameter": gru(_NUM_INPUTS, hidden),
    "tensor": gru(hidden + _NUM_INPUTS, tensor),
    "problem": gru(tensor, problem),
    "tensor_to_parameter": affine(tensor, 3 * hidden),
    "problem_to_parameter": affine(problem, 3 * hidden),
    "problem_to_tensor": affine(problem, 3 * tensor),
    "start": {"parameter": start(hidden), "tensor": start(tensor), "problem": start(problem)},
    "output": {
      "direction": normal(hidden),
      "scaled": 1 / _NUM_SCALES + normal(_NUM_SCALES, scale=0.1),
      "input_decay": {"kernel": normal(hidden), "bias": constant(_INPUT_DECAY_BIAS)},
      "scale_decay": {"kernel": normal(hidden), "bias": constant(_SCALE_DECAY_BIAS)},
      "rate": {"kernel": jnp.zeros(hidden, np.float32), "bias": constant(0.0)},
      "rate_momentum": constant(_RATE_MOMENTUM),
      "rate_offset": constant(-1.0),
    },
  }


def _initial_log_rates(
  params: Sequence[jax.Array], initial_rates: tuple[float, float], seed: int, dtype: np.dtype
) -> list[jax.Array]:
  """eta_0 of each coordinate, ``[n]`` for each tensor."""
  low, high = (math.log(rate) / 2 for rate in initial_rates)
  draw = functools.partial(jax.random.uniform, minval=low, maxval=high, dtype=dtype)
  key, rates = jax.random.key(seed), []
  for index, leaf in enumerate(params):
    of_tensor, of_coordinates = jax.random.split(jax.random.fold_in(key, index))
    rates.append(draw(of_tensor) + draw(of_coordinates, (math.prod(jnp.shape(leaf)),)))
  return rates


def _zero_state(log_rate: jax.Array, h: jax.Array) -> TensorState:
  (n,) = log_rate.shape
  zeros = functools.partial(jnp.zeros, dtype=h.dtype)
  # With decays of zero, the first step forgets the zeros that the means start with.
  return TensorState(
    _repeat(h, n),
    zeros((n, _NUM_SCALES)),
    zeros((n, _NUM_SCALES)),
    zeros(n),
    zeros(n),
    log_rate,
  )


def _repeat(row: jax.Array, number: int) -> jax.Array:
  """``[size] -> [number, size]``, in a buffer of its own."""
  return jnp.zeros((number, 1), row.dtype) + row[None]


def _check_sizes(grads: Sequence[jax.Array], tensors: Sequence[TensorState]) -> None:
  found = [jnp.size(grad) for grad in grads]
  expected = [tensor.log_rate.size for tensor in tensors]
  if found != expected:
    raise ValueError(
      f"updates have {sum(found)} coordinates, but the optimizer's state was made for "
      f"{sum(expected)}, or for tensors of other sizes: call tx.init with the params that these "
      "gradients belong to"
    )


# --- One step.


def _step(
  meta_params: Any,
  grads: list[jax.Array],
  tensors: list[TensorState],
  of_tensors: jax.Array,
  of_problem: jax.Array,
) -> tuple[list[jax.Array], list[TensorState], jax.Array, jax.Array]:
  """The updates, which are *added*, and the next of all else, for a ``[n]`` gradient a tensor."""
  if not grads:
    return [], [], of_tensors, of_problem
  rates = [tensor.log_rate for tensor in tensors]
  mean_rate = jnp.sum(jnp.stack(list(map(jnp.sum, rates)))) / max(1, sum(r.size for r in rates))
  from_problem = _affine(meta_params["problem_to_parameter"], of_problem)
  biases = _affine(meta_params["tensor_to_parameter"], of_tensors) + from_problem[None]
  outputs, tensors = map_tensors(
    _step_tensor, (meta_params, mean_rate), list(zip(grads, biases, strict=True)), tensors
  )
  updates, summaries = zip(*outputs, strict=True)
  bias = _affine(meta_params["problem_to_tensor"], of_problem)
  of_tensors = _gru(meta_params["tensor"], jnp.stack(summaries), of_tensors, bias[None])
  of_problem = _gru(meta_params["problem"], jnp.mean(of_tensors, axis=0), of_problem)
  return list(updates), tensors, of_tensors, of_problem


def _step_tensor(
  shared: tuple[Any, jax.Array], inputs: tuple[jax.Array, jax.Array], state: TensorState
) -> tuple[tuple[jax.Array, jax.Array], TensorState]:
  """The updates ``[n]`` of one tensor, what its RNN sees, and the next state."""
  (meta_params, mean_rate), (grad, bias) = shared, inputs
  output = meta_params["output"]
  means, squares = _running_means(jnp.clip(grad, -_MAX_GRADIENT, _MAX_GRADIENT), state)
  scaled = jnp.arcsinh(means / jnp.sqrt(squares + 1e-16))
  features = _features(scaled, squares, state.log_rate - mean_rate)
  h = _gru(meta_params["parameter"], features, state.h, bias[None])
  direction = h @ output["direction"] + scaled @ output["scaled"]
  size = jnp.sqrt(_mean(jnp.square(direction)) + 1e-16)
  log_rate = _straight_through_clip(state.log_rate + _affine(output["rate"], h))
  momentum = jax.nn.sigmoid(output["rate_momentum"])
  new_state = TensorState(
    h,
    means,
    squares,
    jax.nn.sigmoid(_affine(output["input_decay"], h)),
    jax.nn.sigmoid(_affine(output["scale_decay"], h)),
    momentum * state.log_rate + (1.0 - momentum) * log_rate,
  )
  update = -jnp.exp(log_rate + output["rate_offset"]) * direction / size
  return (update, _mean(jnp.concatenate([h, features], axis=1))), new_state


def _features(scaled: jax.Array, squares: jax.Array, relative_rate: jax.Array) -> jax.Array:
  """The 12 inputs of each coordinate's RNN, ``[n, 12]``."""
  log_squares = jnp.log(squares + 1e-16)
  parts = [
    scaled,
    scaled[:, :-1] * scaled[:, 1:],
    log_squares - jnp.mean(log_squares, axis=1, keepdims=True),
    relative_rate[:, None],
  ]
  return jnp.concatenate(parts, axis=1)


def _running_means(grad: jax.Array, state: TensorState) -> tuple[jax.Array, jax.Array]:
  """The gradient's means on each time scale, twice as long as the one before; and their squares."""
  # d, d^1/2, d^1/4, d^1/8; the root has an infinite derivative at the zero that decays start with.
  positive = state.input_decay > 0
  decay = jnp.where(positive, state.input_decay, 1.0)
  powers = jnp.stack([decay ** (0.5**j) for j in range(_NUM_SCALES)], axis=1)
  decays = jnp.where(positive[:, None], powers, 0.0)
  means = decays * state.means + (1.0 - decays) * grad[:, None]
  delta = state.scale_decay[:, None]
  squares = delta * state.squares + (1.0 - delta) * (jnp.square(means) + 1e-12)
  return means, squares


def _gru(weights: Any, x: jax.Array, h: jax.Array, bias: jax.Array | None = None) -> jax.Array:
  """A GRU with an additional bias ``[..., 3 H]`` for its reset, update and candidate."""
  size = h.shape[-1]
  gate_bias, candidate_bias = (0.0, 0.0) if bias is None else jnp.split(bias, [2 * size], axis=-1)
  gates = jax.nn.sigmoid(_affine(weights["gates"], jnp.concatenate([x, h], -1)) + gate_bias)
  reset, keep = jnp.split(gates, 2, axis=-1)
  candidate = _affine(weights["candidate"], jnp.concatenate([x, reset * h], -1)) + candidate_bias
  return keep * h + (1.0 - keep) * jnp.tanh(candidate)


def _affine(weights: Any, x: jax.Array) -> jax.Array:
  product = x @ weights["kernel"]
  return product + jnp.broadcast_to(weights["bias"], product.shape)


def _mean(x: jax.Array) -> jax.Array:
  """Over the coordinates of a tensor; 0 if there are none."""
  return jnp.sum(x, axis=0) / max(1, x.shape[0])


def _straight_through_clip(log_rate: jax.Array) -> jax.Array:
  """Clipped, with the derivative of what is not: a rate at its limit can still be learned."""
  clipped = jnp.clip(log_rate, -_MAX_LOG_RATE, _MAX_LOG_RATE)
  return log_rate + jax.lax.stop_gradient(clipped - log_rate)
