"""LSTM layers, which several architectures are made of."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import _draws
from learned_opt.kernels.lstm import CellState
from learned_opt.optimizers._preprocessing import Preprocessing


class LSTMState(NamedTuple):
  """Optimizer state: one `CellState` a layer, for all coordinates of the tree, leaf after leaf."""

  layers: tuple[CellState, ...]


class LSTMCell(nn.Module):
  """One layer for one coordinate, as in Sonnet 1, which the released code of the paper uses.

  With ``z = [x, h] W + b``, split into i, j, f, o:

      c' = sigmoid(f + forget_bias) c + sigmoid(i) tanh(j),  h' = tanh(c') sigmoid(o).

  Attributes:
    hidden_size: H, the number of units.
    forget_bias: added to f when the cell runs; it is not part of b.
  """

  hidden_size: int
  forget_bias: float

  @nn.compact
  def __call__(self, x: jax.Array, state: CellState) -> CellState:
    """Maps inputs ``[in]`` and the previous state of ``[H]`` arrays to the next state."""
    inputs = jnp.concatenate([x, state.h])
    # Sonnet draws the biases from the same distribution as the weights.
    init = _draws.truncated_normal_init(1.0 / math.sqrt(inputs.size))
    gates = nn.Dense(4 * self.hidden_size, kernel_init=init, bias_init=init, name="gates")(inputs)
    i, j, f, o = jnp.split(gates, 4)
    c = nn.sigmoid(f + self.forget_bias) * state.c + nn.sigmoid(i) * jnp.tanh(j)
    return CellState(c, jnp.tanh(c) * nn.sigmoid(o))


def zero_cells(num_layers: int, shape: tuple[int, ...], dtype: np.dtype) -> tuple[CellState, ...]:
  """The state of layers that have seen nothing; no two arrays share a buffer."""
  return tuple(
    CellState(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(num_layers)
  )


def check_lstm_options(
  num_layers: int,
  hidden_size: int,
  preprocessing: Preprocessing,
  output_scale: float,
  forget_bias: float,
) -> None:
  """Raises `ValueError` or `TypeError` for what no LSTM can be made of."""
  for name, size in (("num_layers", num_layers), ("hidden_size", hidden_size)):
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")
  for name, factor in (("output_scale", output_scale), ("forget_bias", forget_bias)):
    if not math.isfinite(factor):
      raise ValueError(f"{name} must be finite, got {factor}")
  if not isinstance(preprocessing, Preprocessing):
    raise TypeError(
      f"preprocessing must be LogAndSign(p), Scale(factor) or Identity(), got {preprocessing!r}"
    )
