"""Meta-losses: how the losses along an unroll become one number.

A meta-loss is a function ``(losses, steps) -> scalar`` of the outer losses ``[U]`` at theta_s for
the inner steps `steps`, an int32 ``[U]`` array that counts the updates applied so far: 1 after the
first update, `horizon` after the last. Any function of this signature will do.

Where the losses of several problems meet in one unroll, or a problem ends before it does, some of
the losses do not count. Estimators that have such unrolls, and only these, give the keyword
`where`, a bool ``[U]`` array that is true for the losses that count. What the others are, NaN
perhaps, must not matter.
"""

import functools
import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.base import MetaLoss


def weighted_sum(weights: float | Sequence[float] | chex.Array = 1.0) -> MetaLoss:
  """sum_t w_t f(theta_t), the paper's meta-loss (section 2, equation 3).

  Args:
    weights: w_t, one number for all steps (the paper's is 1) or one for each step of the horizon.

  Returns:
    The meta-loss.

  Raises:
    ValueError: if a weight is not finite, or the weights are no number or vector. An estimator
      raises it if there are fewer weights than its horizon has steps.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt import meta_losses
    >>> losses, steps = jnp.array([3.0, 2.0]), jnp.array([1, 2])
    >>> float(meta_losses.weighted_sum()(losses, steps))
    5.0
    >>> float(meta_losses.weighted_sum([0.0, 1.0])(losses, steps))
    2.0
  """
  weights = np.asarray(weights, np.float64)
  if weights.ndim > 1 or weights.size == 0 or not np.all(np.isfinite(weights)):
    raise ValueError(f"weights must be a finite number or one for each step, got {weights}")

  def meta_loss(losses: jax.Array, steps: jax.Array, where: jax.Array | None = None) -> jax.Array:
    if weights.ndim == 0:
      return float(weights) * jnp.sum(losses, where=where)
    at_steps = jnp.asarray(weights, losses.dtype).at[steps - 1].get(mode="fill", fill_value=jnp.nan)
    return jnp.sum(at_steps * losses, where=where)

  return meta_loss


def mean(losses: jax.Array, steps: jax.Array, where: jax.Array | None = None) -> jax.Array:
  """The mean loss over the steps of the unroll.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt import meta_losses
    >>> float(meta_losses.mean(jnp.array([3.0, 2.0]), jnp.array([1, 2])))
    2.5
  """
  del steps
  return jnp.mean(losses, where=where)


def final(losses: jax.Array, steps: jax.Array, where: jax.Array | None = None) -> jax.Array:
  """The loss after the last update of the unroll (of each truncation, where there are several).

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt import meta_losses
    >>> float(meta_losses.final(jnp.array([3.0, 2.0]), jnp.array([1, 2])))
    2.0
  """
  del steps
  return losses[-1] if where is None else losses[where.size - 1 - jnp.argmax(where[::-1])]


def mean_log(losses: jax.Array, steps: jax.Array, where: jax.Array | None = None) -> jax.Array:
  """The mean of log(f(theta_t) + 1e-6), which gives small losses the weight of large ones.

  The gradient is that of the scale-free objective of Wichrowska et al. (2017), section 3.4, whose
  division by the initial loss only subtracts a constant. For losses that are not negative.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt import meta_losses
    >>> round(float(meta_losses.mean_log(jnp.array([1.0, 1.0]), jnp.array([1, 2]))), 5)
    0.0
  """
  del steps
  return jnp.mean(jnp.log(losses + 1e-6), where=where)


def mean_log_above(floor: float, rising_over: int | None = None) -> MetaLoss:
  """The mean of log(f(theta_t) + floor), to which losses far below the floor are all the same.

  For families of problems of which some can be solved to the last digit: by `mean_log`, a decade
  that one of these gains on the way there counts as much as one where it matters.

  Args:
    floor: positive; `mean_log` has 1e-6.
    rising_over: if given, the loss after step t counts ``t / rising_over`` times: what is reached
      in the end more than what is gained on the way there.

  Returns:
    The meta-loss.

  Raises:
    ValueError: if `floor` is not positive and finite, or `rising_over` is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt import meta_losses
    >>> meta_loss, step = meta_losses.mean_log_above(0.01), jnp.array([1])
    >>> gained = meta_loss(jnp.array([1e-4]), step) - meta_loss(jnp.array([1e-6]), step)
    >>> round(float(gained), 3)
    0.01
  """
  if not (math.isfinite(floor) and floor > 0):
    raise ValueError(f"floor must be positive and finite, got {floor}")
  if rising_over is not None and rising_over < 1:
    raise ValueError(f"rising_over must be at least 1 step, or None, got {rising_over}")
  return _mean_log_above(float(floor), rising_over)


# Equal arguments give the same object, so that an estimator made of it does not compile anew.
@functools.cache
def _mean_log_above(floor: float, rising_over: int | None) -> MetaLoss:
  def meta_loss(losses: jax.Array, steps: jax.Array, where: jax.Array | None = None) -> jax.Array:
    logs = jnp.log(losses + floor)
    if rising_over is not None:
      logs *= steps / rising_over
    return jnp.mean(logs, where=where)

  return meta_loss


# The meta-losses that a command can name.
META_LOSSES: dict[str, MetaLoss] = {
  "weighted_sum": weighted_sum(),
  "mean": mean,
  "final": final,
  "mean_log": mean_log,
}


def check_meta_loss(meta_loss: MetaLoss, horizon: int, masked: bool = False) -> None:
  """Checks that a meta-loss gives a finite scalar for a whole horizon of losses equal to one.

  Args:
    meta_loss: the function.
    horizon: how many losses it is given.
    masked: whether it will be told by `where` that some losses do not count; these are NaN here.

  Raises:
    TypeError: if it is not callable, or has no keyword `where` and needs it.
    ValueError: if it does not return a finite scalar.

  Example:
    >>> from learned_opt import meta_losses
    >>> meta_losses.check_meta_loss(meta_losses.weighted_sum([1.0] * 20), horizon=100)
    Traceback (most recent call last):
      ...
    ValueError: meta_loss must return a finite scalar for a horizon of 100 steps, got nan; \
weighted_sum needs a weight for each step
  """
  if not callable(meta_loss):
    raise TypeError(
      f"meta_loss must be a function such as meta_losses.weighted_sum(), got {meta_loss!r}"
    )
  losses, steps = np.ones(horizon), np.arange(1, horizon + 1)
  if masked:
    _check_masked(meta_loss, losses, steps)
  value = np.asarray(_value_of(meta_loss, losses, steps))
  if value.shape or not np.isfinite(value):
    raise ValueError(
      f"meta_loss must return a finite scalar for a horizon of {horizon} steps, got {value}; "
      "weighted_sum needs a weight for each step"
    )


def _value_of(meta_loss: MetaLoss, *args: np.ndarray, **kwargs: np.ndarray) -> jax.Array:
  """As one program: operation by operation takes several times as long to compile."""
  return jax.jit(meta_loss)(*args, **kwargs)


def _check_masked(meta_loss: MetaLoss, losses: np.ndarray, steps: np.ndarray) -> None:
  counts = steps % 2 == 1
  losses, steps = np.where(counts, losses, np.nan), np.where(counts, steps, 0)
  try:
    value = _value_of(meta_loss, losses, steps, where=counts)
  except TypeError as error:
    raise TypeError(
      "meta_loss must take the keyword `where` here, as problems end inside of unrolls; those of "
      f"learned_opt.meta_losses do: {error}"
    ) from error
  if not np.all(np.isfinite(value)):
    raise ValueError(
      "meta_loss must leave out the losses where its keyword `where` is false: one of them was "
      f"NaN, and the result is {value}"
    )
