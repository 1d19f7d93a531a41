"""The learned schedule of VeLO and Celo: an LSTM that sees the training's progress and losses.

Source: Metz et al. (2022), "VeLO: training versatile learned optimizers by scaling up"; the
constants are those of its released code.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import _draws
from learned_opt.kernels.lstm import CellState

# Fractions of the training around which its progress is told apart.
_FRACTIONS = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)
_NUM_MEANS = 10
_SHORTEST_HALF_LIFE = 10.0
# Means say something from the third loss on.
_NUM_UNSEEN = 2

NUM_PROGRESS = len(_FRACTIONS)
NUM_LOSSES = _NUM_MEANS - 1


class LossState(NamedTuple):
  """Running means of the losses, whose half-lives go from 10 steps to all of them.

  Attributes:
    means: ``[10]``, without a correction of their bias.
    minima: ``[10]``, the smallest of each so far, with the correction.
  """

  means: jax.Array
  minima: jax.Array


def init_losses(dtype: np.dtype) -> LossState:
  """The state before the first loss."""
  return LossState(jnp.zeros(_NUM_MEANS, dtype), jnp.full(_NUM_MEANS, 999999999999.0, dtype))


def observe_loss(
  state: LossState, loss: jax.Array, step: jax.Array, num_steps: jax.Array
) -> tuple[LossState, jax.Array]:
  """The means after one more loss, and how each compares with the next slower one.

  The features are (mean_i - minimum_i) / (mean_{i+1} - minimum_i) - 1, clipped to +-1: negative
  where the loss falls. They are zero for the first two losses. A loss beyond twice the largest mean
  counts as that.

  Args:
    state: of `init_losses`.
    loss: scalar of the same dtype.
    step: the number of losses before this one.
    num_steps: scalar of the same dtype, the longest half-life.

  Returns:
    The next state, and the features ``[9]``.

  Example:
    >>> import jax.numpy as jnp
    >>> state = init_losses(jnp.float32)
    >>> for step, loss in enumerate([4.0, 3.0, 2.0]):
    ...   args = jnp.array(loss), jnp.array(step), jnp.array(100.0)
    ...   state, features = observe_loss(state, *args)
    >>> features.shape, bool(jnp.all(features <= 0))
    ((9,), True)
  """
  count = (step + 1).astype(loss.dtype)
  exponents = jnp.linspace(1.0, jnp.log10(num_steps), _NUM_MEANS, dtype=loss.dtype)
  rates = -1.0 / (_SHORTEST_HALF_LIFE**exponents)
  # 1 - decay and 1 - decay^count, of which slow decays would leave few digits.
  weights, bias = -jnp.expm1(rates), -jnp.expm1(count * rates)
  # The old means have one loss less: as published.
  largest = jnp.where(step == 0, loss, jnp.max(state.means / bias))
  loss = jnp.minimum(2.0 * jnp.abs(largest), loss)
  means = (1.0 - weights) * state.means + weights * loss
  corrected = means / bias
  minima = jnp.minimum(state.minima, corrected)
  above = jnp.maximum(corrected[1:] - minima[:-1], 1e-8)
  features = jnp.clip((corrected[:-1] - minima[:-1]) / above - 1.0, -1.0, 1.0)
  return LossState(means, minima), jnp.where(step < _NUM_UNSEEN, 0.0, features)


def progress_features(step: jax.Array, num_steps: jax.Array) -> jax.Array:
  """tanh(10 (step / num_steps - x)) for nine fractions x; `step` counts earlier updates.

  >>> progress_features(jnp.array(40), jnp.array(100.0))[3]
  Array(0., dtype=float32)
  """
  fraction = step.astype(num_steps.dtype) / num_steps
  return jnp.tanh(10.0 * (fraction - jnp.asarray(_FRACTIONS, num_steps.dtype)))


def init_layers(key: chex.PRNGKey, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
  """Layers by their names: weights from a truncated normal of scale 1 / sqrt(inputs), biases 0."""
  return {
    name: {
      "kernel": _draws.truncated_normal(k, shape, jnp.float32) / math.sqrt(shape[0]),
      "bias": jnp.zeros(shape[1], jnp.float32),
    }
    for k, (name, shape) in zip(jax.random.split(key, len(sizes)), sizes.items(), strict=True)
  }


def init_scheduler(
  key: chex.PRNGKey, num_inputs: int, lstm_size: int, **heads: int
) -> dict[str, Any]:
  """The weights of a scheduler, whose LSTM starts with zeros.

  Args:
    key: random key.
    num_inputs: features.
    lstm_size: H.
    **heads: linear outputs by their names, with their sizes.

  Returns:
    float32 arrays.
  """
  sizes = {
    "mix": (num_inputs, lstm_size),
    "input": (num_inputs, lstm_size),
    "lstm": (2 * lstm_size, 4 * lstm_size),
    **{name: (lstm_size, size) for name, size in heads.items()},
  }
  start = {name: jnp.zeros(lstm_size, jnp.float32) for name in CellState._fields}
  return {"start": start, **init_layers(key, sizes)}


def start_cells(weights: Any, number: int) -> CellState:
  """The states ``[number, H]`` in which the LSTM starts, in buffers of their own."""
  zeros = jnp.zeros((number, 1), weights["lstm"]["bias"].dtype)
  return CellState(*(zeros + weights["start"][name][None] for name in CellState._fields))


def run_scheduler(weights: Any, inputs: jax.Array, cells: CellState) -> CellState:
  """One step of the LSTM, whose rows, one a tensor, see the largest of all in what they mix.

  Args:
    weights: of `init_scheduler`.
    inputs: ``[rows, num_inputs]``, at least one row.
    cells: ``[rows, H]`` arrays.

  Returns:
    The next cells; their `h` is what heads read.
  """
  mixed = jnp.max(jax.nn.relu(affine(weights["mix"], inputs)), axis=0, keepdims=True)
  return run_lstm(weights["lstm"], affine(weights["input"], inputs) + mixed, cells)


def run_lstm(weights: Any, x: jax.Array, cells: CellState) -> CellState:
  """One step of an LSTM with a forget bias of one, for each row."""
  gates = affine(weights, jnp.concatenate([x, cells.h], axis=1))
  i, j, f, o = jnp.split(gates, 4, axis=1)
  c = jax.nn.sigmoid(f + 1.0) * cells.c + jax.nn.sigmoid(i) * jnp.tanh(j)
  return CellState(c, jax.nn.sigmoid(o) * jnp.tanh(c))


def affine(weights: Any, x: jax.Array) -> jax.Array:
  """``[rows, in] -> [rows, out]``."""
  return x @ weights["kernel"] + weights["bias"][None]


class Schedule(NamedTuple):
  """State of a schedule for the whole problem.

  Attributes:
    cells: of the LSTM, ``[1, H]`` arrays.
    losses: what was seen of the losses.
  """

  cells: CellState
  losses: LossState


def init_schedule(weights: Any) -> Schedule:
  """The state in which it starts."""
  return Schedule(start_cells(weights, 1), init_losses(weights["lstm"]["bias"].dtype))


def scheduled_rates(
  weights: Any, state: Schedule, loss: jax.Array, step: jax.Array, num_steps: jax.Array
) -> tuple[jax.Array, Schedule]:
  """The factors of this step, exp(z) / 10 of the LSTM's outputs z, and the next state.

  The released code runs the LSTM once a tensor, on the same inputs; here it runs once.

  Args:
    weights: of `init_scheduler` with one head, ``rate``.
    state: of `init_schedule`.
    loss: scalar.
    step: the number of earlier updates.
    num_steps: scalar, how many there will be.
  """
  losses, features = observe_loss(state.losses, loss, step, num_steps)
  inputs = jnp.concatenate([progress_features(step, num_steps), features])
  cells = run_scheduler(weights, inputs[None], state.cells)
  return 0.1 * jnp.exp(affine(weights["rate"], cells.h)[0]), Schedule(cells, losses)


# --- What a user must hand over.


def check_num_steps(num_steps: int | None) -> int | None:
  """The number, for a factory; `ValueError` if there cannot be so many steps."""
  if num_steps is not None and num_steps < 1:
    raise ValueError(f"num_steps must be at least 1, got {num_steps}")
  return num_steps


def planned_steps(
  name: str, configured: int | None, given: chex.Numeric | None, dtype: np.dtype
) -> jax.Array:
  """For how many steps the optimizer is to plan; what an update was given goes first."""
  if given is None and configured is None:
    raise ValueError(
      f"{name} plans the whole training: say for how many steps with learned_opt.load(path, "
      f"num_steps=n), optimizers.{name}(num_steps=n) or tx.update(..., num_steps=n)"
    )
  if isinstance(given, int):
    check_num_steps(given)
  return jnp.asarray(configured if given is None else given, dtype)


def cosine_decay(step: jax.Array, num_steps: jax.Array, power: chex.Numeric = 1.0) -> jax.Array:
  """Half a wave of the cosine of 1 - (1 - step / num_steps)^power, from 1 to 0 after the last step.

  >>> steps = jnp.array([0, 5, 10, 11])
  >>> [f"{factor:.2f}" for factor in cosine_decay(steps, jnp.float32(10))]
  ['1.00', '0.50', '0.00', '0.00']
  >>> [f"{factor:.2f}" for factor in cosine_decay(steps, jnp.float32(10), 2.0)]
  ['1.00', '0.15', '0.00', '0.00']
  """
  # Not zero, for the derivative to the power.
  left = jnp.maximum(1.0 - step.astype(num_steps.dtype) / num_steps, 1e-7)
  return 0.5 * (1.0 - jnp.cos(jnp.pi * left**power))


def scalar_loss(name: str, value: chex.Numeric | None, dtype: np.dtype) -> jax.Array:
  """The loss that an update was given."""
  if value is None:
    raise ValueError(f"{name} reads the loss: call tx.update(grads, state, params, value=loss)")
  if jnp.shape(value):
    raise ValueError(f"{name} reads the loss as a scalar, got value of shape {jnp.shape(value)}")
  return jnp.asarray(value, dtype)
