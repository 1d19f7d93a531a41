"""Evolution strategies with one perturbation an episode."""

import chex
import jax

from learned_opt.base import MetaGradientEstimator, MetaLoss
from learned_opt.estimators import _paths
from learned_opt.estimators._horizons import Horizon
from learned_opt.estimators._particles import (
  check_settings,
  evolution_strategy,
)
from learned_opt.estimators._twins import Difference, Method
from learned_opt.meta_losses import mean


def es_single(
  unroll_length: int = 20,
  horizon: int | tuple[int, int] | Horizon = 100,
  meta_batch_size: int = 8,
  meta_loss: MetaLoss = mean,
  *,
  sigma: float = 0.01,
  difference: Difference = None,
  staggered: bool = True,
) -> MetaGradientEstimator:
  """Evolution strategies whose noise is kept for an episode: ES-Single, or noise-reuse ES.

      1/N sum_i (L_t^+ - L_t^-) epsilon_i / (2 sigma^2)

  As `pes`, each sign of a particle goes on from its own inner state, but with one epsilon from the
  start of a problem to its end. The estimates add up, over the truncations of an episode, to what
  `full_es` gives for it: unbiased for the gradient of the smoothed meta-loss, and with a variance
  that does not grow with the number of truncations.

  A problem that begins inside a truncation has its own epsilon from there on.

  Source: Vicol (2023), "Low-variance gradient estimation in unrolled computation graphs with
  ES-Single"; Li et al. (2023), "Noise-reuse in online evolution strategies".

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
    >>> estimators.es_single(unroll_length=50, horizon=1000).horizon
    1000
  """
  settings = check_settings(
    unroll_length, horizon, meta_batch_size, meta_loss, sigma, difference, staggered
  )
  method = Method(_keep, initial=lambda drawn: drawn, keeps_twins=True, keeps_noise=settings.renews)
  return evolution_strategy(method, settings)


def _keep(restart: jax.Array, remembered: chex.ArrayTree, drawn: chex.ArrayTree):
  kept = _paths.where(restart, drawn, remembered)
  return kept, kept
