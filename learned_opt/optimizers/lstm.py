"""The coordinatewise LSTM of Andrychowicz et al. (2016), section 2.1, and the pair of section 3.3.

One small network, written for a single coordinate; `vmap` gives every coordinate of the optimizee
its own state and the same weights.
"""

import functools
import math
from typing import Literal, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from learned_opt import _blocks, _coordinates, _draws
from learned_opt.base import CoordinatewiseRule, LearnedOptimizer, PartitionedRule, check_params
from learned_opt.kernels.lstm import layer_weights, stack_step
from learned_opt.optimizers._cells import (
  LSTMCell,
  LSTMState,
  check_lstm_options,
  zero_cells,
)
from learned_opt.optimizers._flat import flat_transformation
from learned_opt.optimizers._preprocessing import LogAndSign, Preprocessing

StateDtype = Literal["float32", "bfloat16"]

# The two of a pair.
_KERNELS, _OTHERS = "kernels", "others"


class CoordinatewiseLSTM(nn.Module):
  """m_phi for one coordinate: preprocessing, stacked LSTM layers, a linear output, a scale."""

  num_layers: int
  hidden_size: int
  preprocessing: Preprocessing
  output_scale: float
  forget_bias: float

  @nn.compact
  def __call__(self, grad: jax.Array, state: LSTMState) -> tuple[jax.Array, LSTMState]:
    """Maps a scalar gradient and state to the scalar update, which is *added*, and next state."""
    x = self.preprocessing(grad)
    layers = []
    for index, cell_state in enumerate(state.layers):
      cell = LSTMCell(self.hidden_size, self.forget_bias, name=f"layer_{index}")
      layers.append(cell(x, cell_state))
      x = layers[-1].h
    init = _draws.truncated_normal_init(1.0 / math.sqrt(self.hidden_size))
    update = nn.Dense(1, kernel_init=init, name="output")(x)[0] * self.output_scale
    return update, LSTMState(tuple(layers))


def lstm(
  num_layers: int = 2,
  hidden_size: int = 20,
  preprocessing: Preprocessing = LogAndSign(),
  output_scale: float = 0.1,
  forget_bias: float = 1.0,
  state_dtype: StateDtype | None = None,
) -> LearnedOptimizer:
  """The coordinatewise LSTM, by default with the paper's values for neural networks.

  Source: Andrychowicz et al. (2016), section 2.1 and appendix A; the cell and the initialisation
  are those of the released code. 5,141 meta-params by default, 5,061 with one input. For the
  quadratics the paper uses neither preprocessing nor output scale:
  ``lstm(preprocessing=Identity(), output_scale=1.0)``.

  NaN gradients give NaN updates and poison the state of the coordinates that saw them: wrap the
  transformation in `optax.apply_if_finite` where they can occur.

  Args:
    num_layers: stacked LSTM layers.
    hidden_size: units of each layer.
    preprocessing: what the network sees of a gradient.
    output_scale: factor of the network's output (the paper's value for MNIST is 0.1, the released
      code's 0.01).
    forget_bias: added to the forget gates when the network runs.
    state_dtype: of the cells and outputs that are kept from step to step: None for that of the
      meta-params, ``"bfloat16"`` for half the memory, at the price of rounding them to 8 bits. For
      accelerators: on CPUs such a state is updated as a whole and not in blocks, which is slower
      and takes more memory on the way.

  Returns:
    The architecture. Its transformations keep a state of two ``[hidden_size, coordinates]``
    arrays a layer, compute in the dtype of the meta-params, and give updates of the params'
    dtypes.

  Raises:
    ValueError: if a size is not positive, a factor is not finite or a dtype is unknown.
    TypeError: if `preprocessing` is not one of those in `learned_opt.optimizers`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.lstm()
    >>> meta_params = architecture.init(jax.random.key(0))
    >>> sum(leaf.size for leaf in jax.tree.leaves(meta_params))
    5141
    >>> tx = architecture.optimizer(meta_params)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> updates["w"].shape, state.layers[0].h.shape
    ((3, 2), (20, 8))
  """
  check_lstm_options(num_layers, hidden_size, preprocessing, output_scale, forget_bias)
  if state_dtype not in (None, *get_args(StateDtype)):
    known = ", ".join(map(repr, get_args(StateDtype)))
    raise ValueError(f"state_dtype must be None or one of {known}, got {state_dtype!r}")
  return _lstm(
    *(num_layers, hidden_size, preprocessing, float(output_scale), float(forget_bias), state_dtype)
  )


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _lstm(
  num_layers: int,
  hidden_size: int,
  preprocessing: Preprocessing,
  output_scale: float,
  forget_bias: float,
  state_dtype: StateDtype | None,
) -> LearnedOptimizer:
  module = CoordinatewiseLSTM(num_layers, hidden_size, preprocessing, output_scale, forget_bias)

  def zero_state(coordinates: tuple[int, ...], dtype: np.dtype) -> LSTMState:
    return LSTMState(zero_cells(num_layers, (hidden_size, *coordinates), dtype))

  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    return module.init(key, jnp.zeros(()), zero_state((), np.dtype(np.float32)))["params"]

  def dtype_of(meta_params) -> np.dtype:
    return jax.tree.leaves(meta_params)[0].dtype

  def plain_update(meta_params, grads, state: LSTMState):
    rows = jax.tree.map(lambda leaf: leaf.T.astype(dtype_of(meta_params)), state)
    updates, rows = jax.vmap(functools.partial(module.apply, {"params": meta_params}))(grads, rows)
    return updates, jax.tree.map(lambda new, old: new.T.astype(old.dtype), rows, state)

  def rule_init(meta_params, num_coordinates):
    dtype = dtype_of(meta_params) if state_dtype is None else jnp.dtype(state_dtype)
    return zero_state((num_coordinates,), dtype)

  def rule_update(meta_params, grads, state: LSTMState):
    gates = [meta_params[f"layer_{index}"]["gates"] for index in range(num_layers)]
    layers = tuple(layer_weights(g["kernel"], g["bias"], forget_bias) for g in gates)
    wide = jax.tree.map(lambda leaf: leaf.astype(dtype_of(meta_params)), state.layers)
    cells = stack_step(layers, jnp.moveaxis(preprocessing(grads), -1, 0), wide)
    output = meta_params["output"]
    updates = output_scale * ((output["kernel"].T @ cells[-1].h)[0] + output["bias"])
    return updates, jax.tree.map(lambda new, old: new.astype(old.dtype), LSTMState(cells), state)

  update_in_blocks = _blocks.in_blocks(rule_update, plain_update)

  def optimizer(meta_params):
    return flat_transformation(
      dtype_of(meta_params),
      init=functools.partial(rule_init, meta_params),
      update=functools.partial(update_in_blocks, meta_params),
      num_coordinates=lambda state: state.layers[0].h.shape[-1],
    )

  config = FrozenDict(
    num_layers=num_layers,
    hidden_size=hidden_size,
    preprocessing=preprocessing,
    output_scale=output_scale,
    forget_bias=forget_bias,
    state_dtype=state_dtype,
  )
  rule = CoordinatewiseRule(rule_init, rule_update)
  return LearnedOptimizer(init, optimizer, "lstm", config, rule)


def lstm_pair(
  num_layers: int = 2,
  hidden_size: int = 20,
  preprocessing: Preprocessing = LogAndSign(),
  output_scale: float = 0.1,
  forget_bias: float = 1.0,
  kernel_rank: int = 4,
  state_dtype: StateDtype | None = None,
) -> LearnedOptimizer:
  """Two coordinatewise LSTMs of the same shape, with weights of their own.

  One updates the tensors of rank `kernel_rank`, which are the kernels of convolutions over images,
  the other all tensors of any other rank: fully connected weights, biases, offsets. The two are
  put together by `optax.partition`.

  Source: Andrychowicz et al. (2016), section 3.3, which names the convolutional and the fully
  connected parameters; that biases and offsets of convolutions go with the latter is the released
  code's choice. 10,282 meta-params by default.

  Args:
    num_layers: as of `lstm`, like the four that follow, for both.
    hidden_size: units of each layer.
    preprocessing: what the networks see of a gradient.
    output_scale: factor of the networks' outputs.
    forget_bias: added to the forget gates when the networks run.
    kernel_rank: of the tensors that the first LSTM updates; 3 for convolutions over sequences.
    state_dtype: as of `lstm`.

  Returns:
    The architecture. Its meta-params are a dict of those of two LSTMs, ``"kernels"`` and
    ``"others"``; the state is that of `optax.partition`.

  Raises:
    ValueError: if `kernel_rank` is negative, or as of `lstm`.
    TypeError: as of `lstm`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.lstm_pair()
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = {"kernel": jnp.ones((5, 5, 1, 2)), "bias": jnp.ones(2)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> {name: update.shape for name, update in updates.items()}
    {'bias': (2,), 'kernel': (5, 5, 1, 2)}
  """
  if kernel_rank < 0:
    raise ValueError(f"kernel_rank must be at least 0, got {kernel_rank}")
  member = lstm(num_layers, hidden_size, preprocessing, output_scale, forget_bias, state_dtype)
  return _lstm_pair(member, kernel_rank)


# Equal arguments give the same object: no second compilation for it.
@functools.cache
def _lstm_pair(member: LearnedOptimizer, kernel_rank: int) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    kernels_key, others_key = jax.random.split(key)
    return {_KERNELS: member.init(kernels_key), _OTHERS: member.init(others_key)}

  def label(leaf) -> str:
    return _KERNELS if leaf.ndim == kernel_rank else _OTHERS

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    members = {name: member.optimizer(meta_params[name]) for name in (_KERNELS, _OTHERS)}
    pair = optax.partition({**members}, functools.partial(jax.tree.map, label))

    def init_fn(params):
      check_params(params)
      return pair.init(params)

    def update_fn(updates, state, params=None, **extra_args):
      _coordinates.check_gradients(updates, params)
      return pair.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  rules = FrozenDict(dict.fromkeys((_KERNELS, _OTHERS), member.coordinatewise))
  config = FrozenDict({**(member.config or {}), "kernel_rank": kernel_rank})
  return LearnedOptimizer(init, optimizer, "lstm_pair", config, PartitionedRule(rules, label))
