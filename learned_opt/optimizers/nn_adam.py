"""Adam whose hyper-parameters an LSTM moves, for each tensor on its own."""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from learned_opt.base import LearnedOptimizer
from learned_opt.kernels.lstm import CellState
from learned_opt.optimizers._cells import LSTMCell, zero_cells
from learned_opt.optimizers._features import mix
from learned_opt.optimizers._mlp import check_mlp_options
from learned_opt.optimizers._tensors import tensorwise_transformation

_NUM_FEATURES = 19
_MAX_GRADIENT = 1000.0
_FORGET_BIAS = 1.0


class Hyperparams(NamedTuple):
  """Those of one tensor, or what stands for them.

  Attributes:
    learning_rate: between 1e-8 and 1e3.
    beta1: of the means of gradients, between 0 and 1 - exp(-10).
    beta2: of the means of their squares, between the same.
    epsilon: between 1e-11 and 1e4.
  """

  learning_rate: jax.Array
  beta1: jax.Array
  beta2: jax.Array
  epsilon: jax.Array


class NNAdamState(NamedTuple):
  """What is kept of one tensor.

  Attributes:
    mean: running mean of the gradients, of the tensor's shape.
    square: of their squares.
    logs: the hyper-parameters, as a tenth of their logarithms, or of one minus the betas.
    cell: of the LSTM.
  """

  mean: jax.Array
  square: jax.Array
  logs: Hyperparams
  cell: CellState


def nn_adam(
  hidden_size: int = 32,
  output_scale: float = 0.01,
  learning_rate: float = 1e-4,
  beta1: float = 0.9,
  beta2: float = 0.999,
  epsilon: float = 1e-8,
) -> LearnedOptimizer:
  """Adam whose hyper-parameters an LSTM moves in each step, for each tensor on its own.

  The LSTM sees 19 numbers: the four hyper-parameters, what rank the tensor has, and means and
  variances of its parameters, gradients and their running means. It gives four numbers, which are
  added to the logarithms x of the hyper-parameters,

      learning_rate = exp(10 x), beta = 1 - exp(10 x), epsilon = exp(10 x),  x <- x + scale output,

  and with running means m and v without a correction of their bias

      update = -learning_rate (1 + epsilon) m / (epsilon + sqrt(v + 1e-10)).

  The first x and the first state of the LSTM are learned. Gradients are clipped to +-1000. A tensor
  of one number counts as a scalar.

  Source: the released code of Metz et al. (2020), "Tasks, stability, architecture, and compute:
  training more effective learned optimizers, and using them to train themselves", ``nn_adam``.

  Args:
    hidden_size: units of the LSTM.
    output_scale: factor of the LSTM's outputs.
    learning_rate: where meta-training starts, at which the LSTM's outputs are zero.
    beta1: likewise.
    beta2: likewise.
    epsilon: likewise.

  Returns:
    The architecture. Its transformations read the params. They keep two arrays of the size of the
    params, and few smaller ones, in the dtype of the meta-params, and compute in it.

  Raises:
    ValueError: if `hidden_size` is not positive, `output_scale` is not finite, or a hyper-parameter
      is outside of its range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.nn_adam(learning_rate=0.1)
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = jnp.array([1.0, -2.0])
    >>> _, state = jax.jit(tx.update)(params, tx.init(params), params)
    >>> f"{jnp.exp(10 * state.tensors.logs.learning_rate):.3g}"
    '0.1'
  """
  check_mlp_options(1, hidden_size, output_scale=output_scale)
  initial = Hyperparams(learning_rate, beta1, beta2, epsilon)  # pyright: ignore[reportArgumentType]
  for (name, value), (least, largest) in zip(initial._asdict().items(), _RANGES, strict=True):
    if not least <= value <= largest:
      raise ValueError(f"{name} must be between {least:g} and {largest:g}, got {value}")
  return _nn_adam(hidden_size, float(output_scale), *map(float, initial))


_MAX_BETA = 1 - math.exp(-10)
_RANGES = Hyperparams((1e-8, 1e3), (0.0, _MAX_BETA), (0.0, _MAX_BETA), (1e-11, 1e4))  # pyright: ignore[reportArgumentType]


def _from_logs(logs: Hyperparams) -> Hyperparams:
  """The hyper-parameters, within their ranges."""
  return Hyperparams(
    jnp.clip(jnp.exp(10 * logs.learning_rate), *_RANGES.learning_rate),
    1 - jnp.exp(jnp.clip(10 * logs.beta1, -10, 0)),
    1 - jnp.exp(jnp.clip(10 * logs.beta2, -10, 0)),
    jnp.clip(jnp.exp(10 * logs.epsilon), *_RANGES.epsilon),
  )


def _within_ranges(logs: Hyperparams) -> Hyperparams:
  """The nearest of those that stand for hyper-parameters within their ranges."""
  (least_rate, largest_rate), (least_epsilon, largest_epsilon) = (
    (math.log(value) / 10 for value in _RANGES[index]) for index in (0, 3)
  )
  return Hyperparams(
    jnp.clip(logs.learning_rate, least_rate, largest_rate),
    jnp.clip(logs.beta1, -1, 0),
    jnp.clip(logs.beta2, -1, 0),
    jnp.clip(logs.epsilon, least_epsilon, largest_epsilon),
  )


def _log_magnitude(x: jax.Array) -> jax.Array:
  return jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5, 5) / 2


def _features(grad, param, mean, square, logs: Hyperparams) -> jax.Array:
  """The ``[19]`` inputs of the LSTM, in the order of the published form."""
  mean_grad, mean_mean, mean_param, mean_square = map(jnp.mean, (grad, mean, param, square))
  settings = [jnp.clip(x, -5, 5) / 5 for x in (logs.beta1, logs.beta2, logs.epsilon)]
  is_scalar, is_vector = grad.shape == (1,), grad.ndim == 1 and grad.shape != (1,)
  ranks = [jnp.asarray(1.0 if is_so else -1.0, grad.dtype) for is_so in (is_vector, is_scalar)]
  return jnp.stack(
    [
      *settings,
      *ranks,
      jnp.clip(logs.learning_rate, -5, 5) / 5,
      _log_magnitude(mean_grad),
      jnp.sign(mean_grad),
      _log_magnitude(jnp.mean(jnp.abs(grad))),
      _log_magnitude(mean_mean),
      jnp.sign(mean_mean),
      _log_magnitude(mean_param),
      jnp.sign(mean_param),
      _log_magnitude(mean_square),
      jnp.sign(mean_square),
      *(
        _log_magnitude(jnp.mean(jnp.square(x - center)))
        for x, center in (
          (grad, mean_grad),
          (mean, mean_mean),
          (param, mean_param),
          (square, mean_square),
        )
      ),
    ]
  )


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _nn_adam(
  hidden_size: int,
  output_scale: float,
  learning_rate: float,
  beta1: float,
  beta2: float,
  epsilon: float,
) -> LearnedOptimizer:
  module = LSTMCell(hidden_size, _FORGET_BIAS)

  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    (cell,) = zero_cells(1, (hidden_size,), np.dtype(np.float32))
    logs = math.log(learning_rate), math.log1p(-beta1), math.log1p(-beta2), math.log(epsilon)
    return {
      "lstm": module.init(key, jnp.zeros(_NUM_FEATURES, np.float32), cell)["params"],
      "output": {
        "kernel": jnp.zeros((hidden_size, len(logs)), jnp.float32),
        "bias": jnp.zeros(len(logs), jnp.float32),
      },
      "initial_cell": {"c": cell.c, "h": cell.h},
      "initial_logs": jnp.asarray(logs, jnp.float32) / 10,
    }

  def update_tensor(meta_params, inputs, state: NNAdamState):
    grad, param = inputs
    grad = jnp.clip(grad, -_MAX_GRADIENT, _MAX_GRADIENT)
    now = _from_logs(state.logs)
    mean = mix(now.beta1[None], state.mean[None], grad)[0]
    square = mix(now.beta2[None], state.square[None], jnp.square(grad))[0]
    step = now.learning_rate * (1 + now.epsilon) / (now.epsilon + jnp.sqrt(square + 1e-10)) * mean
    features = _features(grad, param, mean, square, state.logs)
    cell = module.apply({"params": meta_params["lstm"]}, features, state.cell)
    assert isinstance(cell, CellState)
    output = meta_params["output"]
    moves = output_scale * (cell.h @ output["kernel"] + output["bias"])
    logs = Hyperparams(*(x + move for x, move in zip(state.logs, moves, strict=True)))
    return -step, NNAdamState(mean, square, _within_ranges(logs), cell)

  def init_tensor(meta_params, shape: tuple[int, ...]) -> NNAdamState:
    dtype = meta_params["initial_logs"].dtype
    # Each tensor has its own copies, as states are donated.
    logs, cell = jax.tree.map(
      jnp.copy, (Hyperparams(*meta_params["initial_logs"]), meta_params["initial_cell"])
    )
    return NNAdamState(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), logs, CellState(**cell))

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    return tensorwise_transformation(
      meta_params["initial_logs"].dtype,
      "nn_adam",
      init=functools.partial(init_tensor, meta_params),
      update=update_tensor,
      shared=lambda step: meta_params,
      shape_of_state=lambda state: state.mean.shape,
    )

  config = FrozenDict(
    hidden_size=hidden_size,
    output_scale=output_scale,
    learning_rate=learning_rate,
    beta1=beta1,
    beta2=beta2,
    epsilon=epsilon,
  )
  return LearnedOptimizer(init, optimizer, "nn_adam", config)
