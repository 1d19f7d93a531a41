"""LSTM+GAC: the LSTM with global averaging cells (Andrychowicz et al. 2016, appendix D)."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from learned_opt import _draws
from learned_opt.base import LearnedOptimizer
from learned_opt.optimizers._cells import LSTMState, check_lstm_options, zero_cells
from learned_opt.optimizers._flat import flat_transformation
from learned_opt.optimizers._gac import GlobalAveragingLSTM, check_num_global
from learned_opt.optimizers._preprocessing import LogAndSign, Preprocessing


class LSTMWithGlobalAveraging(nn.Module):
  """m_phi for all coordinates: preprocessing, layers with averaging cells, a linear output."""

  hidden_size: int
  num_global: int
  preprocessing: Preprocessing
  output_scale: float
  forget_bias: float

  @nn.compact
  def __call__(self, grads: jax.Array, state: LSTMState) -> tuple[jax.Array, LSTMState]:
    """Maps ``[coordinates]`` gradients and the state to updates, which are *added*, and next."""
    stack = GlobalAveragingLSTM(self.hidden_size, self.num_global, self.forget_bias, name="stack")
    h, layers = stack(self.preprocessing(grads), state.layers)
    init = _draws.truncated_normal_init(self.hidden_size**-0.5)
    output = nn.Dense(1, kernel_init=init, name="output")(h)[:, 0]
    return self.output_scale * output, LSTMState(layers)


def lstm_gac(
  num_layers: int = 2,
  hidden_size: int = 20,
  num_global: int = 3,
  preprocessing: Preprocessing = LogAndSign(),
  output_scale: float = 0.1,
  forget_bias: float = 1.0,
) -> LearnedOptimizer:
  """The LSTM whose coordinates talk to each other through global averaging cells.

  In each layer the outputs of `num_global` units are replaced by their mean over all coordinates
  of all tensors; enough, for example, to clip the norm of the gradient. The rest is `lstm`, and
  with ``num_global=0`` so is the whole.

  Source: Andrychowicz et al. (2016), appendix D. The paper leaves open how many units are global
  and whether the recurrence sees the mean or a coordinate's own value; here it sees the mean.

  Args:
    num_layers: stacked LSTM layers.
    hidden_size: units of each layer.
    num_global: units of each layer that are averaged.
    preprocessing: what the network sees of a gradient.
    output_scale: factor of the network's output.
    forget_bias: added to the forget gates when the network runs.

  Returns:
    The architecture; its transformations keep two ``[coordinates, hidden_size]`` arrays a layer:
    those of `lstm`, transposed.

  Raises:
    ValueError: if a size is out of its range or a factor is not finite.
    TypeError: if `preprocessing` is not one of those in `learned_opt.optimizers`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.lstm_gac()
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> updates["w"].shape, float(jnp.ptp(state.layers[0].h[:, 0]))
    ((3, 2), 0.0)
  """
  check_lstm_options(num_layers, hidden_size, preprocessing, output_scale, forget_bias)
  check_num_global(num_global, hidden_size)
  return _lstm_gac(
    num_layers, hidden_size, num_global, preprocessing, float(output_scale), float(forget_bias)
  )


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _lstm_gac(
  num_layers: int,
  hidden_size: int,
  num_global: int,
  preprocessing: Preprocessing,
  output_scale: float,
  forget_bias: float,
) -> LearnedOptimizer:
  module = LSTMWithGlobalAveraging(
    hidden_size, num_global, preprocessing, output_scale, forget_bias
  )

  def zero_state(num_coordinates: int, dtype: np.dtype) -> LSTMState:
    return LSTMState(zero_cells(num_layers, (num_coordinates, hidden_size), dtype))

  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    grads = jnp.zeros(1, np.float32)
    return module.init(key, grads, zero_state(1, np.dtype(np.float32)))["params"]

  def optimizer(meta_params):
    dtype = jax.tree.leaves(meta_params)[0].dtype
    return flat_transformation(
      dtype,
      init=lambda num_coordinates: zero_state(num_coordinates, dtype),
      update=functools.partial(module.apply, {"params": meta_params}),
      num_coordinates=lambda state: state.layers[0].h.shape[0],
    )

  config = FrozenDict(
    num_layers=num_layers,
    hidden_size=hidden_size,
    num_global=num_global,
    preprocessing=preprocessing,
    output_scale=output_scale,
    forget_bias=forget_bias,
  )
  return LearnedOptimizer(init, optimizer, "lstm_gac", config)
