"""Antithetic evolution strategies over one truncation at a time."""

from learned_opt.base import MetaGradientEstimator, MetaLoss
from learned_opt.estimators._horizons import Horizon
from learned_opt.estimators._particles import (
  check_settings,
  evolution_strategy,
  fresh_noise,
)
from learned_opt.estimators._twins import Difference, Method
from learned_opt.meta_losses import mean


def truncated_es(
  unroll_length: int = 20,
  horizon: int | tuple[int, int] | Horizon = 100,
  meta_batch_size: int = 8,
  meta_loss: MetaLoss = mean,
  *,
  sigma: float = 0.01,
  difference: Difference = None,
  staggered: bool = True,
) -> MetaGradientEstimator:
  """Evolution strategies over one truncation of `unroll_length` steps at a time.

      1/N sum_i (L_t(phi + epsilon_i) - L_t(phi - epsilon_i)) epsilon_i / (2 sigma^2)

  where L_t is the meta-loss of the truncation. Both signs of a particle start it from the same
  inner state, and the next truncation goes on from where phi + epsilon has come. What phi has done
  to that state in earlier truncations is not seen: biased, as is `truncated_backprop`, towards
  what is good within one truncation. `pes` and `es_single` are not.

  Source: Metz et al. (2019), section 4; Vicol et al. (2021), section 3.

  Args:
    unroll_length: U, inner steps of one truncation and hence of one outer step.
    horizon: inner steps of one problem: a number; a pair (shortest, longest), from which they are
      drawn log-uniformly; or another horizon, such as `Growing`. At least `unroll_length`.
    meta_batch_size: N, particles: problems that are each optimized with both signs, side by side.
    meta_loss: one of `learned_opt.meta_losses`, or any function of that signature. Where problems
      end inside a truncation it is told by `where` which losses count.
    sigma: the standard deviation of the noise.
    difference: what is done to a particle's antithetic difference: nothing; sign takes its sign; a
      number bounds its absolute value. Both bias the estimate, and tame outliers.
    staggered: whether the first problem of each particle ends after a random number of steps, from
      1 to its horizon, so that the particles are not in lock-step: an outer step then sees early
      and late truncations.

  Returns:
    The estimator. A particle whose difference is not finite counts as zero, is counted in
    `Info.num_diverged`, and gets a fresh problem before the next truncation.

  Raises:
    ValueError: if a size or `sigma` is not positive, a horizon may be shorter than
      `unroll_length`, or `meta_loss` does not give a finite scalar.
    TypeError: if `meta_loss` is not a function, or does not take `where` where it must.

  Example:
    >>> from learned_opt import estimators
    >>> estimators.truncated_es(unroll_length=20, horizon=(100, 500)).horizon
    500
  """
  settings = check_settings(
    unroll_length, horizon, meta_batch_size, meta_loss, sigma, difference, staggered
  )
  return evolution_strategy(Method(fresh_noise), settings)
