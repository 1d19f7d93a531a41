"""Backpropagation and evolution strategies on the same noise, weighed by their variances."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from learned_opt.base import MetaGradientEstimator, MetaLoss
from learned_opt.estimators import _particles, _paths
from learned_opt.estimators._horizons import Horizon
from learned_opt.estimators._twins import Method, run_particles
from learned_opt.meta_losses import mean


def inverse_variance(
  unroll_length: int = 20,
  horizon: int | tuple[int, int] | Horizon = 100,
  meta_batch_size: int = 8,
  meta_loss: MetaLoss = mean,
  *,
  sigma: float = 0.01,
  es_weight: float | Literal["inverse_variance"] = "inverse_variance",
  staggered: bool = True,
  second_order: bool = False,
  remat: bool = False,
) -> MetaGradientEstimator:
  """The mean of backpropagation and evolution strategies, weighed by their inverse variances.

  Of the same particles, for the gradient of the same smoothed meta-loss E L(phi + epsilon):

      g_rp = 1/N sum_i (grad L_t(phi + epsilon_i) + grad L_t(phi - epsilon_i)) / 2
      g_es = 1/N sum_i (L_t(phi + epsilon_i) - L_t(phi - epsilon_i)) epsilon_i / (2 sigma^2)
      g = (g_rp / s_rp^2 + g_es / s_es^2) / (1 / s_rp^2 + 1 / s_es^2),

  coordinate by coordinate of phi, with the empirical variances over the particles. Where the
  meta-loss is smooth, the first is precise; where it is rugged, its variance explodes and the
  second takes over. Truncations are those of `truncated_es`, with its bias; under the first-order
  rule there is that of `truncated_backprop` as well. Memory is that of backpropagation.

  Source: Metz et al. (2019), section 4.2, where the unroll length grows over the meta-training.

  Args:
    unroll_length: U, inner steps of one truncation and hence of one outer step.
    horizon: inner steps of one problem: a number; a pair (shortest, longest), from which they are
      drawn log-uniformly; or another horizon, such as `Growing`. At least `unroll_length`.
    meta_batch_size: N, particles: problems that are each optimized with both signs, side by side.
      At least 2, as there would be no variance.
    meta_loss: one of `learned_opt.meta_losses`, or any function of that signature. Where problems
      end inside a truncation it is told by `where` which losses count.
    sigma: the standard deviation of the noise.
    es_weight: of evolution strategies in the mean, from 0 to 1, instead of that which the variances
      give; 0 is backpropagation at phi + epsilon and phi - epsilon.
    staggered: whether the first problem of each particle ends after a random number of steps, from
      1 to its horizon, so that the particles are not in lock-step: an outer step then sees early
      and late truncations.
    second_order: whether to differentiate through the optimizee's gradients.
    remat: whether to recompute each inner step in the backward pass, to save memory.

  Returns:
    The estimator. A particle whose difference is not finite counts as zero for both parts, is
    counted in `Info.num_diverged`, and gets a fresh problem before the next truncation. One with a
    gradient that is not finite is left out of g_rp and counted as well, but goes on.

  Raises:
    ValueError: if a size or `sigma` is not positive, there are fewer than 2 particles, a horizon
      may be shorter than `unroll_length`, the weight is out of range, or `meta_loss` does not give
      a finite scalar.
    TypeError: if `meta_loss` is not a function, or does not take `where` where it must.

  Example:
    >>> from learned_opt import estimators
    >>> estimators.inverse_variance(unroll_length=20, horizon=100, meta_batch_size=16).horizon
    100
  """
  settings = _particles.check_settings(
    unroll_length, horizon, meta_batch_size, meta_loss, sigma, None, staggered
  )
  if meta_batch_size < 2:
    raise ValueError(f"meta_batch_size must be at least 2 for a variance, got {meta_batch_size}")
  if es_weight != "inverse_variance" and not 0 <= es_weight <= 1:
    raise ValueError(f"es_weight must be between 0 and 1, got {es_weight}")
  method = Method(_particles.fresh_noise)
  backprop = {"second_order": second_order, "single_gradient": not second_order, "remat": remat}

  def estimate(optimizee, learned_optimizer, meta_params, state: _particles.ParticleState, key):
    fresh = _particles.draw(settings, optimizee, meta_params, state, key)
    problems, plans, said = run_particles(
      method,
      settings,
      optimizee,
      learned_optimizer,
      meta_params,
      _particles.episodes(state),
      fresh,
      fresh.noise,
      backprop,
    )
    difference, _, diverged = _particles.usable(None, said)
    differentiable = ~diverged & _paths.all_finite(said.meta_grads)

    def combine(noise: jax.Array, slope: jax.Array) -> jax.Array:
      scale = difference.astype(noise.dtype) / (2 * sigma**2)
      by_noise = noise * scale.reshape(-1, *[1] * (noise.ndim - 1))
      return _combine(by_noise, slope, differentiable, es_weight)

    meta_grads = jax.tree.map(combine, fresh.noise, said.meta_grads)
    state = _particles.advance(settings, state, problems, plans, diverged)
    return meta_grads, state, _particles.tell(settings, plans, said, ~differentiable, meta_grads)

  init = functools.partial(_particles.start, method, settings)
  return MetaGradientEstimator(init, estimate, settings.horizon.longest)


def _combine(
  by_noise: jax.Array,
  slope: jax.Array,
  differentiable: jax.Array,
  es_weight: float | Literal["inverse_variance"],
) -> jax.Array:
  """The weighed mean of two ``[N, ...]`` arrays of estimates, the second where it is finite."""
  es, es_variance = _mean_and_variance(by_noise, jnp.ones_like(differentiable))
  rp, rp_variance = _mean_and_variance(slope, differentiable)
  if es_weight == "inverse_variance":
    share = rp_variance / (rp_variance + es_variance)
    # Two without a variance, as if there were no noise: the derivative is exact.
    weight = jnp.where(rp_variance == 0, 0.0, jnp.where(jnp.isinf(rp_variance), 1.0, share))
  else:
    weight = jnp.where(jnp.isinf(rp_variance), 1.0, jnp.full_like(rp_variance, es_weight))
  return weight * es + (1 - weight) * rp


def _mean_and_variance(samples: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of the mean over those that are kept; zero and infinity where there are fewer than two."""
  number = jnp.sum(keep)
  mean_of_kept = _paths.mean_where(keep, samples, if_none=0.0)
  squares = _paths.where(keep, (samples - mean_of_kept[None]) ** 2, jnp.zeros_like(samples))
  variance = jnp.sum(squares, axis=0) / jnp.maximum(number * (number - 1), 1)
  # A sum of finite numbers may overflow, too.
  usable = (number > 1) & jnp.isfinite(variance)
  return jnp.where(usable, mean_of_kept, 0.0), jnp.where(usable, variance, jnp.inf)
