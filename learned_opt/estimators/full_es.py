"""Antithetic evolution strategies over whole episodes."""

from learned_opt.base import MetaGradientEstimator, MetaLoss
from learned_opt.estimators._horizons import Horizon
from learned_opt.estimators._particles import (
  check_settings,
  evolution_strategy,
  fresh_noise,
)
from learned_opt.estimators._twins import Difference, Method
from learned_opt.meta_losses import mean


def full_es(
  horizon: int | tuple[int, int] | Horizon = 100,
  meta_batch_size: int = 8,
  meta_loss: MetaLoss = mean,
  *,
  sigma: float = 0.01,
  difference: Difference = None,
) -> MetaGradientEstimator:
  """Evolution strategies over the whole optimization of fresh problems.

      1/N sum_i (L(phi + epsilon_i) - L(phi - epsilon_i)) epsilon_i / (2 sigma^2)

  Unbiased for the gradient of the smoothed meta-loss E L(phi + epsilon), whatever the horizon and
  however wild L is; an outer step costs two episodes for each particle. No derivative of the
  optimizer is taken, and memory does not grow with the horizon.

  With horizons that are drawn, the particles run as long as the longest of them; the losses after
  a particle's own horizon do not count.

  Source: Salimans et al. (2017); Metz et al. (2022), "VeLO", trains so, with the last loss, drawn
  horizons, and the sign of the difference.

  Args:
    horizon: inner steps of one problem: a number; a pair (shortest, longest), from which they are
      drawn log-uniformly; or another horizon, such as `Growing`.
    meta_batch_size: N, particles: problems that are each optimized with both signs, side by side.
    meta_loss: one of `learned_opt.meta_losses`, or any function of that signature. With horizons
      that are not constant it is told by `where` which losses count.
    sigma: the standard deviation of the noise.
    difference: what is done to a particle's antithetic difference: nothing; sign takes its sign; a
      number bounds its absolute value. Both bias the estimate, and tame outliers.

  Returns:
    The estimator. A particle whose difference is not finite counts as zero, and is counted in
    `Info.num_diverged`.

  Raises:
    ValueError: if a size or `sigma` is not positive, or `meta_loss` does not give a finite scalar.
    TypeError: if `meta_loss` is not a function, or does not take `where` where it must.

  Example:
    >>> from learned_opt import estimators, meta_losses
    >>> estimator = estimators.full_es((100, 2000), 64, meta_losses.final, difference="sign")
    >>> estimator.horizon
    2000
  """
  settings = check_settings(None, horizon, meta_batch_size, meta_loss, sigma, difference)
  return evolution_strategy(Method(fresh_noise), settings)
