"""Two estimators that take turns by chance."""

import functools
from typing import Any, NamedTuple

import jax

from learned_opt.base import MetaGradientEstimator

# Folded into the key of an outer step, which the estimators split among their problems.
_COIN = 2**32 - 1


class MixtureState(NamedTuple):
  """Estimator state: that of both, of which only one goes on at a time."""

  first: Any
  second: Any


def mixture(
  first: MetaGradientEstimator, second: MetaGradientEstimator, probability: float
) -> MetaGradientEstimator:
  """Each estimate is one of two estimators', by the toss of a coin.

  Each has problems of its own, which wait while the other has its turn: with `imitation` as the
  second, a problem is either the student's or the teacher's, from its start to its horizon. Only
  the estimator whose turn it is costs anything. `Info` is what it tells.

  Args:
    first: for example `truncated_backprop`; its horizon is the mixture's.
    second: for example `imitation`, with unrolls as long as those of `first`.
    probability: that an estimate is that of `second`, between 0 and 1. With 0 the estimates are
      those of `first`, bit for bit.

  Returns:
    The estimator.

  Raises:
    ValueError: if `probability` is out of range; from `estimate`, if their unrolls are not of the
      same length.
    TypeError: if one is no estimator.

  Example:
    >>> from learned_opt import estimators
    >>> estimator = estimators.mixture(
    ...   estimators.truncated_backprop(20, 100), estimators.imitation(20, 100), probability=0.3
    ... )
    >>> estimator.horizon
    100
  """
  for name, part in (("first", first), ("second", second)):
    if not isinstance(part, MetaGradientEstimator):
      raise TypeError(f"{name} must be a MetaGradientEstimator, got {type(part).__name__}")
  if not 0 <= probability <= 1:
    raise ValueError(f"probability must be between 0 and 1, got {probability}")

  def init(optimizee, learned_optimizer, meta_params, key) -> MixtureState:
    def start(part: MetaGradientEstimator, key: jax.Array) -> Any:
      return part.init(optimizee, learned_optimizer, meta_params, key)

    return MixtureState(start(first, key), start(second, jax.random.fold_in(key, _COIN)))

  def estimate(optimizee, learned_optimizer, meta_params, state: MixtureState, key):
    lengths = []

    def turn_of(part: MetaGradientEstimator, field: str, state: MixtureState):
      meta_grads, part_state, info = part.estimate(
        optimizee, learned_optimizer, meta_params, getattr(state, field), key
      )
      lengths.append(info.losses.size - 1)
      if len(set(lengths)) > 1:
        raise ValueError(f"first and second must have unrolls of one length, got {lengths}")
      return meta_grads, state._replace(**{field: part_state}), info

    return jax.lax.cond(
      jax.random.bernoulli(jax.random.fold_in(key, _COIN), probability),
      functools.partial(turn_of, second, "second"),
      functools.partial(turn_of, first, "first"),
      state,
    )

  return MetaGradientEstimator(init, estimate, first.horizon)
