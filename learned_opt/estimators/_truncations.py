"""Problems carried from one truncation to the next: what the truncated estimators share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt.base import Info, InnerState, LearnedOptimizer, MetaGradientEstimator
from learned_opt.estimators import _paths


class TruncatedState(NamedTuple):
  """Estimator state: the problems in the middle of their optimization.

  Attributes:
    problems: an `InnerState` whose leaves have a leading axis of `meta_batch_size`; without
      `opt_state` if an unroll is as long as the horizon, as nothing is carried then.
    restart: bool ``[meta_batch_size]``, the problems that are replaced before the next unroll; all
      are if an unroll is as long as the horizon.
  """

  problems: InnerState
  restart: jax.Array


def truncations(
  path_for: Callable[[LearnedOptimizer], _paths.Path],
  unroll_length: int,
  horizon: int,
  meta_batch_size: int,
) -> MetaGradientEstimator:
  """The estimator that goes along a path, one truncation an estimate.

  Problems that diverge are replaced before the next truncation, as are those at the horizon.
  """

  def draw(optimizee, learned_optimizer, meta_params, key) -> InnerState:
    keys = jax.random.split(key, meta_batch_size)
    return path_for(learned_optimizer).draw(optimizee, learned_optimizer, meta_params, keys)

  carries = unroll_length < horizon

  def kept(problems: InnerState) -> InnerState:
    # The state of the optimizer is most of what a large problem needs.
    return problems if carries else problems._replace(opt_state=())

  def init(optimizee, learned_optimizer, meta_params, key) -> TruncatedState:
    problems = draw(optimizee, learned_optimizer, meta_params, key)
    return TruncatedState(kept(problems), jnp.ones(meta_batch_size, bool))

  def estimate(optimizee, learned_optimizer, meta_params, state: TruncatedState, key):
    chosen = path_for(learned_optimizer)
    fresh = draw(optimizee, learned_optimizer, meta_params, key)
    problems = chosen.choose(state.restart, fresh, state.problems) if carries else fresh
    segment = chosen.gradient(
      optimizee, learned_optimizer, meta_params, problems, jax.random.fold_in(key, 1)
    )
    info = Info(
      meta_loss=_paths.mean_where(~segment.diverged, segment.meta_losses),
      losses=_paths.mean_where(~segment.diverged, segment.trajectory.losses),
      num_diverged=jnp.sum(segment.diverged, dtype=jnp.int32),
      meta_grad_norm=optax.tree.norm(segment.meta_grads),
    )
    restart = segment.diverged | (segment.problems.step >= horizon)
    return segment.meta_grads, TruncatedState(kept(segment.problems), restart), info

  return MetaGradientEstimator(init, estimate, horizon)


def check_truncations(unroll_length: int, horizon: int, meta_batch_size: int) -> None:
  """Raises `ValueError` unless the sizes are positive and the horizon is whole unrolls."""
  check_positive(horizon=horizon, unroll_length=unroll_length, meta_batch_size=meta_batch_size)
  if horizon % unroll_length:
    near = max(horizon // unroll_length, 1) * unroll_length
    raise ValueError(
      f"horizon must be a multiple of unroll_length, got horizon={horizon} and "
      f"unroll_length={unroll_length}; horizon={near} would work"
    )


def check_positive(**sizes: int) -> None:
  """Raises `ValueError`, naming the argument, unless all sizes are at least 1."""
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")
