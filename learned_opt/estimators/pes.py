"""Persistent evolution strategies."""

import chex
import jax
import jax.numpy as jnp

from learned_opt.base import MetaGradientEstimator, MetaLoss
from learned_opt.estimators import _paths
from learned_opt.estimators._horizons import Horizon
from learned_opt.estimators._particles import (
  check_settings,
  evolution_strategy,
)
from learned_opt.estimators._twins import Difference, Method
from learned_opt.meta_losses import mean


def pes(
  unroll_length: int = 20,
  horizon: int | tuple[int, int] | Horizon = 100,
  meta_batch_size: int = 8,
  meta_loss: MetaLoss = mean,
  *,
  sigma: float = 0.01,
  difference: Difference = None,
  staggered: bool = True,
) -> MetaGradientEstimator:
  """Persistent evolution strategies: truncations without their bias.

      1/N sum_i (L_t^+ - L_t^-) xi_{i,t} / (2 sigma^2),  xi_{i,t} = sum_{tau <= t} epsilon_{i,tau}

  Each truncation t has noise of its own, each sign of a particle goes on from its own inner state,
  and the difference counts for all the noise that the state has seen. So the estimates add up, over
  the truncations of an episode, to the gradient of the smoothed sum of their meta-losses, where the
  noise is independent from truncation to truncation. The variance grows with their number.

  If a problem ends inside a truncation, the losses before count for xi and those after for the new
  epsilon alone, and xi := epsilon.

  Source: Vicol, Metz and Sohl-Dickstein (2021), algorithm 2.

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
    >>> estimators.pes(unroll_length=50, horizon=(100, 2000), meta_batch_size=8).horizon
    2000
  """
  settings = check_settings(
    unroll_length, horizon, meta_batch_size, meta_loss, sigma, difference, staggered
  )
  return evolution_strategy(Method(_add_up, initial=_nothing, keeps_twins=True), settings)


def _nothing(drawn: chex.ArrayTree) -> chex.ArrayTree:
  return jax.tree.map(jnp.zeros_like, drawn)


def _add_up(restart: jax.Array, remembered: chex.ArrayTree, drawn: chex.ArrayTree):
  before = _paths.where(restart, _nothing(drawn), remembered)
  return drawn, jax.tree.map(jnp.add, before, drawn)
