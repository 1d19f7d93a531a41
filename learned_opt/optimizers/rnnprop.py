"""RNNprop (Lv, Jiang and Li 2017): an LSTM that sees Adam's directions instead of gradients."""

import functools
import math
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from learned_opt import _blocks, _draws
from learned_opt.base import CoordinatewiseRule, LearnedOptimizer
from learned_opt.kernels.lstm import CellState, layer_weights, stack_step
from learned_opt.optimizers._cells import LSTMCell, zero_cells
from learned_opt.optimizers._flat import flat_transformation

_FORGET_BIAS = 1.0
_EPSILON = 1e-8


class RNNpropState(NamedTuple):
  """Optimizer state, for all coordinates of the tree, leaf after leaf.

  Attributes:
    mean: running mean of the gradients, ``[coordinates]``, before the correction of its bias.
    root: the square root of that of their squares, which overflows no sooner than a gradient.
    weight: sum of the weights in both, ``[coordinates]``, which corrects the bias: 1 - beta^t.
    layers: one `CellState` an LSTM layer, of ``[hidden_size, coordinates]`` arrays.
  """

  mean: jax.Array
  root: jax.Array
  weight: jax.Array
  layers: tuple[CellState, ...]


class CoordinatewiseRNNprop(nn.Module):
  """The network for one coordinate: a layer with ELU, LSTM layers, a linear output, tanh."""

  num_layers: int
  hidden_size: int
  decay: float
  output_scale: float

  @nn.compact
  def __call__(self, grad: jax.Array, state: RNNpropState) -> tuple[jax.Array, RNNpropState]:
    """Maps a scalar gradient and state to the scalar update, which is *added*, and next state."""
    features, state = _features(grad, state, self.decay)
    init = _draws.truncated_normal_init(0.1)
    x = nn.elu(nn.Dense(self.hidden_size, kernel_init=init, name="input")(features))
    layers = []
    for index, cell_state in enumerate(state.layers):
      cell = LSTMCell(self.hidden_size, _FORGET_BIAS, name=f"layer_{index}")
      layers.append(cell(x, cell_state))
      x = layers[-1].h
    output = nn.Dense(1, kernel_init=init, name="output")(x)[0]
    return -self.output_scale * jnp.tanh(output), state._replace(layers=tuple(layers))


def rnnprop(
  num_layers: int = 2,
  hidden_size: int = 20,
  decay: float = 0.95,
  output_scale: float = 0.1,
) -> LearnedOptimizer:
  """RNNprop: a coordinatewise LSTM on scale-free inputs with a bounded output.

  With running means m and v of a gradient g and of its square, corrected for their bias, the
  inputs of a coordinate are g / (sqrt(v) + 1e-8) and m / (sqrt(v) + 1e-8), both free of the scale
  of the loss. They go through a layer of `hidden_size` ELU units, `num_layers` LSTM layers and a
  linear output z; the update is ``-output_scale tanh(z)``.

  Source: Lv, Jiang and Li (2017), "Learning gradient descent: better generalization and longer
  horizons"; the constants are those of its released code. 6,641 meta-params by default.

  Args:
    num_layers: stacked LSTM layers.
    hidden_size: units of each layer.
    decay: beta of both running means.
    output_scale: the largest step of a coordinate; 0.1 in the released code, 0.01 in a later port.

  Returns:
    The architecture. Its transformations keep the state in the dtype of the meta-params, compute
    in that dtype, and give updates of the params' dtypes.

  Raises:
    ValueError: if a size is not positive, `decay` is not in [0, 1) or `output_scale` not finite.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.rnnprop()
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = jnp.ones(3)
    >>> small, _ = tx.update(jnp.full(3, 1e-3), tx.init(params), params)
    >>> large, _ = tx.update(jnp.full(3, 1e3), tx.init(params), params)
    >>> bool(jnp.allclose(small, large, rtol=1e-3))
    True
  """
  for name, size in (("num_layers", num_layers), ("hidden_size", hidden_size)):
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")
  if not 0 <= decay < 1:
    raise ValueError(f"decay must be at least 0 and less than 1, got {decay}")
  if not math.isfinite(output_scale):
    raise ValueError(f"output_scale must be finite, got {output_scale}")
  return _rnnprop(num_layers, hidden_size, float(decay), float(output_scale))


def _features(grad: jax.Array, state: RNNpropState, decay: float) -> tuple[jax.Array, RNNpropState]:
  """The two inputs, on a last axis, and the state with the running means after this step."""
  mean = decay * state.mean + (1.0 - decay) * grad
  root = _hypotenuse(math.sqrt(decay) * state.root, math.sqrt(1.0 - decay) * grad)
  weight = decay * state.weight + (1.0 - decay)
  scale = root / jnp.sqrt(weight) + _EPSILON
  inputs = jnp.stack([grad / scale, mean / weight / scale], axis=-1)
  return inputs, state._replace(mean=mean, root=root, weight=weight)


def _hypotenuse(a: jax.Array, b: jax.Array) -> jax.Array:
  """sqrt(a^2 + b^2) without overflow, and with finite derivatives; far below epsilon, roughly."""
  a, b = jnp.abs(a), jnp.abs(b)
  largest = jnp.maximum(a, b)
  return largest * jnp.sqrt(1.0 + (jnp.minimum(a, b) / jnp.maximum(largest, 1e-15)) ** 2)


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _rnnprop(
  num_layers: int, hidden_size: int, decay: float, output_scale: float
) -> LearnedOptimizer:
  module = CoordinatewiseRNNprop(num_layers, hidden_size, decay, output_scale)

  def zero_state(coordinates: tuple[int, ...], dtype: np.dtype) -> RNNpropState:
    zeros = functools.partial(jnp.zeros, coordinates, dtype)
    layers = zero_cells(num_layers, (hidden_size, *coordinates), dtype)
    return RNNpropState(zeros(), zeros(), zeros(), layers)

  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    return module.init(key, jnp.zeros((), np.float32), zero_state((), np.dtype(np.float32)))[
      "params"
    ]

  def plain_update(meta_params, grads, state: RNNpropState):
    rows = jax.tree.map(jnp.transpose, state)
    updates, rows = jax.vmap(functools.partial(module.apply, {"params": meta_params}))(grads, rows)
    return updates, jax.tree.map(jnp.transpose, rows)

  def rule_init(meta_params, num_coordinates):
    return zero_state((num_coordinates,), jax.tree.leaves(meta_params)[0].dtype)

  def rule_update(meta_params, grads, state: RNNpropState):
    features, state = _features(grads, state, decay)
    inputs, output = meta_params["input"], meta_params["output"]
    x = nn.elu(inputs["kernel"].T @ features.T + inputs["bias"][:, None])
    gates = [meta_params[f"layer_{index}"]["gates"] for index in range(num_layers)]
    layers = tuple(layer_weights(g["kernel"], g["bias"], _FORGET_BIAS) for g in gates)
    cells = stack_step(layers, x, state.layers)
    z = (output["kernel"].T @ cells[-1].h)[0] + output["bias"]
    return -output_scale * jnp.tanh(z), state._replace(layers=cells)

  update_in_blocks = _blocks.in_blocks(rule_update, plain_update)

  def optimizer(meta_params):
    return flat_transformation(
      jax.tree.leaves(meta_params)[0].dtype,
      init=functools.partial(rule_init, meta_params),
      update=functools.partial(update_in_blocks, meta_params),
      num_coordinates=lambda state: state.mean.shape[0],
    )

  config = FrozenDict(
    num_layers=num_layers, hidden_size=hidden_size, decay=decay, output_scale=output_scale
  )
  rule = CoordinatewiseRule(rule_init, rule_update)
  return LearnedOptimizer(init, optimizer, "rnnprop", config, rule)
