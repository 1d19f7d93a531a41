"""The RNN-MLP (Metz et al. 2020): an LSTM for each tensor beside a network for each parameter."""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from learned_opt import _draws
from learned_opt.base import LearnedOptimizer
from learned_opt.kernels.lstm import CellState
from learned_opt.optimizers import _features, _scheduler
from learned_opt.optimizers._mlp import apply_mlp, check_mlp_options, init_mlp
from learned_opt.optimizers._tensors import (
  check_tensors,
  filled_positions,
  init_tree,
  map_tensors,
  row_numbers,
  update_tree,
)
from learned_opt.optimizers._velo_rule import clip_param

_DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
_LOSS_DECAY = 0.9
_CLIP_DECAY = 0.99
_MAX_SIZES = 10.0
# What the LSTM sees of a tensor itself, what comes back of all LSTMs and of the network, and what
# the network gets of the LSTM.
_NUM_STATISTICS, _FROM_LSTMS, _FROM_NETWORK, _TO_NETWORK = 18, 18, 16, 17
_MAX_RANK = 4
_NUM_FEATURES = 3 + 4 * len(_DECAYS)
_NUM_SHARED = len(_features.TIME_SCALES) + 3 + _TO_NETWORK


class TensorState(NamedTuple):
  """What is kept of one tensor.

  Attributes:
    momenta: running means of the gradients, ``[5, *shape]``.
    squares: running means of their squares, ``[5, *shape]``.
    from_network: ``[16]``, the mean over the tensor of what its network told the LSTM.
  """

  momenta: jax.Array
  squares: jax.Array
  from_network: jax.Array


class LossState(NamedTuple):
  """Running means, without a correction of their bias.

  Attributes:
    mean: scalar, of the losses.
    variance: scalar, of their squared distances to it.
  """

  mean: jax.Array
  variance: jax.Array


class RNNMLPState(NamedTuple):
  """Optimizer state.

  Attributes:
    step: int32 scalar, the number of updates so far.
    tensors: the params' tree, with a `TensorState` in the place of a tensor.
    cells: of the LSTM, ``[tensors, lstm_size]`` arrays; tensors without coordinates have none.
    from_lstms: ``[18]``, the mean of what the LSTMs told one another.
    losses: what was seen of the losses.
    gradient_size: scalar, running mean of the gradients' root mean square.
  """

  step: jax.Array
  tensors: Any
  cells: CellState
  from_lstms: jax.Array
  losses: LossState
  gradient_size: jax.Array


def rnn_mlp(
  lstm_size: int = 64,
  num_layers: int = 2,
  hidden_size: int = 32,
  exp_scale: float = 1e-3,
  output_scale: float = 1e-3,
) -> LearnedOptimizer:
  """An LSTM for each tensor and a network for each coordinate, which tell one another things.

  The LSTM sees 18 statistics of its tensor and of the loss, the mean of 18 numbers that the LSTMs
  of all tensors gave in the step before, and the mean of 16 that the network gave. The network sees
  23 numbers of a coordinate, each divided by its root mean square over the tensor: the gradient,
  the parameter and its logarithm, and five momenta and averages of squares; what tells the time,
  the size of the tensor and its number of neighbours; and 17 numbers of the LSTM. Of its outputs
  d and s,

      update = -output_scale d exp(exp_scale s).

  Gradients are clipped to ten times a running mean of their root mean square.

  Source: Metz et al. (2020), "Tasks, stability, architecture, and compute"; the constants are those
  of its released code, which can be told of validation losses, too: this one behaves as that does
  before the first of them.

  Args:
    lstm_size: units of the LSTM.
    num_layers: hidden layers of the network.
    hidden_size: units of each.
    exp_scale: factor of the output in the exponent.
    output_scale: factor of the update.

  Returns:
    The architecture. Its transformations read the params and the loss: ``tx.update(grads, state,
    params, value=loss)``. They keep ten arrays of the size of the params.

  Raises:
    ValueError: if a size is not positive or a factor not finite.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.rnn_mlp()
    >>> def first_update(key, params):
    ...   tx = architecture.optimizer(architecture.init(key))
    ...   return tx.update(params, tx.init(params), params, value=1.0)[0]
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> jax.eval_shape(first_update, jax.random.key(0), params)["w"].shape
    (3, 2)
  """
  check_mlp_options(num_layers, hidden_size, exp_scale=exp_scale, output_scale=output_scale)
  if lstm_size < 1:
    raise ValueError(f"lstm_size must be at least 1, got {lstm_size}")
  return _rnn_mlp(lstm_size, num_layers, hidden_size, float(exp_scale), float(output_scale))


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _rnn_mlp(
  lstm_size: int, num_layers: int, hidden_size: int, exp_scale: float, output_scale: float
) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    layers_key, network_key, *start_keys = jax.random.split(key, 4)
    num_inputs = _FROM_LSTMS + _FROM_NETWORK + _NUM_STATISTICS
    layers = {
      "lstm": (num_inputs + lstm_size, 4 * lstm_size),
      "to_lstms": (lstm_size, _FROM_LSTMS),
      "to_network": (lstm_size, _TO_NETWORK),
    }
    start = {name: jnp.zeros(lstm_size, np.float32) for name in CellState._fields}
    sizes = {"from_lstms": _FROM_LSTMS, "from_network": _FROM_NETWORK}
    for k, (name, size) in zip(start_keys, sizes.items(), strict=True):
      start[name] = _draws.truncated_normal(k, (size,), np.float32) / math.sqrt(size)
    network = init_mlp(
      network_key, _NUM_FEATURES + _NUM_SHARED, num_layers * (hidden_size,), 2 + _FROM_NETWORK
    )
    return {"start": start, "network": network, **_scheduler.init_layers(layers_key, layers)}

  def optimizer(meta_params: Any) -> optax.GradientTransformationExtraArgs:
    start = meta_params["start"]
    dtype = start["h"].dtype
    zeros = functools.partial(jnp.zeros, dtype=dtype)

    def init_tensor(shape):
      by_decay = len(_DECAYS), *shape
      from_network = zeros(_FROM_NETWORK) + start["from_network"]
      return TensorState(zeros(by_decay), zeros(by_decay), from_network)

    def init_fn(params):
      return RNNMLPState(
        step=jnp.zeros((), jnp.int32),
        tensors=init_tree(init_tensor, params),
        cells=_scheduler.start_cells(meta_params, len(filled_positions(params))),
        from_lstms=zeros(_FROM_LSTMS) + start["from_lstms"],
        losses=LossState(zeros(()), zeros(())),
        gradient_size=jnp.full((), 1 - _CLIP_DECAY, dtype),
      )

    def update_fn(updates, state: Any, params: Any = None, **extra_args):
      parts = check_tensors(updates, params, state.tensors, init_tensor, _shape, "rnn_mlp")
      loss = _scheduler.scalar_loss("rnn_mlp", extra_args.get("value"), dtype)
      losses, loss_features = _observe_loss(state.losses, loss, state.step)
      grads, gradient_size = _clip(updates, state, dtype)
      tensors, cells, from_lstms, shared = state.tensors, state.cells, state.from_lstms, ()
      if filled := filled_positions(grads):
        statistics, tensors = _observe(grads, params, parts, dtype)
        rows = [jnp.concatenate([from_lstms, *row, loss_features]) for row in statistics]
        cells = _scheduler.run_lstm(meta_params["lstm"], jnp.stack(rows), cells)
        from_lstms = jnp.mean(_scheduler.affine(meta_params["to_lstms"], cells.h), axis=0)
        to_network = _scheduler.affine(meta_params["to_network"], cells.h)
        progress = jnp.append(_time_features(state.step, dtype), math.log(len(filled)) - 1)
        shared = meta_params["network"], progress.astype(dtype), to_network
      updates, tensors = update_tree(
        functools.partial(_update_tensor, exp_scale=exp_scale, output_scale=output_scale),
        shared,
        grads,
        params,
        tensors,
        _shape,
        dtype=dtype,
        name="rnn_mlp",
        init=init_tensor,
        extras=row_numbers(grads),
      )
      return updates, RNNMLPState(state.step + 1, tensors, cells, from_lstms, losses, gradient_size)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  config = FrozenDict(
    lstm_size=lstm_size,
    num_layers=num_layers,
    hidden_size=hidden_size,
    exp_scale=exp_scale,
    output_scale=output_scale,
  )
  return LearnedOptimizer(init, optimizer, "rnn_mlp", config)


def _shape(tensor: TensorState) -> tuple[int, ...]:
  return tensor.momenta.shape[1:]


# --- What is seen of the problem.


def _clip(
  grads: chex.ArrayTree, state: RNNMLPState, dtype: np.dtype
) -> tuple[chex.ArrayTree, jax.Array]:
  """The gradients, clipped to ten times their usual size, and the next running mean of that."""
  count = (state.step + 1).astype(dtype)
  limit = _MAX_SIZES * state.gradient_size / (1 - _CLIP_DECAY**count)
  grads = jax.tree.map(lambda grad: jnp.clip(jnp.asarray(grad, dtype), -limit, limit), grads)
  squares = [jnp.mean(jnp.square(leaf)) for leaf in jax.tree.leaves(grads) if leaf.size]
  size = jnp.sqrt(1e-8 + sum(squares) / max(1, len(squares)))
  return grads, _CLIP_DECAY * state.gradient_size + (1 - _CLIP_DECAY) * size


def _observe_loss(
  state: LossState, loss: jax.Array, step: jax.Array
) -> tuple[LossState, jax.Array]:
  """How many standard deviations the loss is above its mean, and how many zero is.

  The released code has the validation loss in the place of zero, once it was told of one.
  """
  mean = _LOSS_DECAY * state.mean + (1 - _LOSS_DECAY) * loss
  variance = _LOSS_DECAY * state.variance + (1 - _LOSS_DECAY) * jnp.square(mean - loss)
  bias = 1 - _LOSS_DECAY ** (step + 1).astype(loss.dtype) + 1e-8
  deviations = jnp.stack([loss, jnp.zeros_like(loss)]) - mean / bias
  features = deviations * jax.lax.rsqrt(variance / bias + 1e-8)
  return LossState(mean, variance), jnp.clip(features, -5.0, 5.0)


def _time_features(step: jax.Array, dtype: np.dtype) -> jax.Array:
  return jnp.sin(step.astype(dtype) / (math.pi * jnp.asarray(_features.TIME_SCALES, dtype)))


def _observe(
  grads: chex.ArrayTree, params: chex.ArrayTree, states: list[Any], dtype: np.dtype
) -> tuple[list[Any], chex.ArrayTree]:
  """What the LSTM sees of each tensor with coordinates, and the next running averages of all."""
  leaves, treedef = jax.tree.flatten(grads)
  of_params = [jnp.asarray(leaf, dtype) for leaf in jax.tree.leaves(params)]
  filled = filled_positions(grads)
  inputs = [(leaves[i], of_params[i]) for i in filled]
  statistics, new = map_tensors(_observe_tensor, (), inputs, [states[i] for i in filled])
  for i, state in zip(filled, new, strict=True):
    states[i] = state
  return statistics, treedef.unflatten(states)


def _observe_tensor(
  shared: tuple[()], inputs: tuple[jax.Array, jax.Array], state: TensorState
) -> tuple[tuple[jax.Array, jax.Array], TensorState]:
  """What the network told the LSTM, and the statistics of the tensor; and its next averages."""
  del shared
  grad, param = inputs
  param, shape = clip_param(param), param.shape
  decays, flat = jnp.asarray(_DECAYS, grad.dtype), grad.reshape(shape or (1,))
  momenta = _features.mix(decays, state.momenta, flat)
  squares = _features.mix(decays, state.squares, jnp.square(flat))
  # Sizes beyond the fourth count with it.
  sizes = [*shape[: _MAX_RANK - 1], math.prod(shape[_MAX_RANK - 1 :]), *[1] * _MAX_RANK]
  sizes = np.log(sizes[:_MAX_RANK]) - 1
  statistics = [
    *_moments(momenta),
    *_moments(squares),
    *_moments(param),
    _log_magnitude(_norm(param)),
    _log_magnitude(_norm(grad)),
    jnp.asarray(-1.0 if shape else 1.0, grad.dtype),
    *jnp.asarray(sizes, grad.dtype),
  ]
  new_state = state._replace(momenta=momenta, squares=squares)
  return (state.from_network, jnp.stack(statistics)), new_state


def _moments(x: jax.Array) -> list[jax.Array]:
  """Magnitude and sign of the mean, magnitude of the variance."""
  mean = jnp.mean(x)
  return [_log_magnitude(mean), jnp.sign(mean), _log_magnitude(jnp.mean(jnp.square(x - mean)))]


def _norm(x: jax.Array) -> jax.Array:
  # Where all are zero, the root has no derivative.
  return jnp.sqrt(jnp.sum(jnp.square(x)) + 1e-30)


def _log_magnitude(x: jax.Array) -> jax.Array:
  return jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5.0, 5.0)


# --- What is done about it.


def _update_tensor(
  shared: Any, inputs: Any, state: TensorState, *, exp_scale: float, output_scale: float
) -> tuple[jax.Array, TensorState]:
  network, progress, to_network = shared
  grad, param, row = inputs
  param = clip_param(param)
  rsqrt = jax.lax.rsqrt(state.squares + 1e-6)
  log_param = jnp.log(jnp.abs(param) + 1e-8)
  groups = [
    *(x[None] for x in (grad, param, log_param)),
    *(state.momenta, state.squares, state.momenta * rsqrt, rsqrt),
  ]
  of_tensor = jnp.stack(
    [jnp.log(_norm(param) + 1e-8), jnp.asarray(math.log(param.size), param.dtype)]
  )
  shared = jnp.concatenate([progress, of_tensor, to_network[row]])
  direction, magnitude, *told = apply_mlp(network, groups, _features.normalizers(groups), shared)
  from_network = jnp.stack([jnp.mean(x) for x in told])
  update = -output_scale * direction * jnp.exp(exp_scale * magnitude)
  return update, state._replace(from_network=from_network)
