"""LSTM layers with global averaging cells (Andrychowicz et al. 2016, appendix D)."""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from learned_opt.kernels.lstm import CellState
from learned_opt.optimizers._cells import LSTMCell


class GlobalAveragingLSTM(nn.Module):
  """LSTM layers for all coordinates, some of whose outputs are means over the coordinates.

  The first `num_global` outputs of each layer are replaced by their mean over all coordinates of
  all tensors. The layer above and the layer itself, one step later, see the mean; the cells c stay
  those of each coordinate.

  Attributes:
    hidden_size: units of each layer.
    num_global: how many of them are averaged.
    forget_bias: added to the forget gates when the cells run.
  """

  hidden_size: int
  num_global: int
  forget_bias: float

  @nn.compact
  def __call__(
    self, x: jax.Array, layers: tuple[CellState, ...]
  ) -> tuple[jax.Array, tuple[CellState, ...]]:
    """Maps inputs ``[coordinates, in]`` and the state to ``[coordinates, H]`` and the next."""
    # The same weights for every coordinate.
    cells = nn.vmap(LSTMCell, variable_axes={"params": None}, split_rngs={"params": False})
    new_layers = []
    for index, cell_state in enumerate(layers):
      cell = cells(self.hidden_size, self.forget_bias, name=f"layer_{index}")
      c, h = cast(CellState, cell(x, cell_state))
      x = jnp.concatenate(
        [
          jnp.broadcast_to(_mean(h[:, : self.num_global]), h[:, : self.num_global].shape),
          h[:, self.num_global :],
        ],
        axis=1,
      )
      new_layers.append(CellState(c, x))
    return x, tuple(new_layers)


def _mean(h: jax.Array) -> jax.Array:
  """``[coordinates, units] -> [1, units]``, zero if there are no coordinates."""
  return jnp.sum(h, axis=0, keepdims=True) / max(1, h.shape[0])


def check_num_global(num_global: int, hidden_size: int) -> None:
  """Raises `ValueError` unless that many units can be averaged."""
  if not 0 <= num_global <= hidden_size:
    raise ValueError(
      f"num_global must be between 0 and hidden_size={hidden_size}, got {num_global}"
    )
