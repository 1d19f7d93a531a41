"""Particles: what the estimators by evolution strategies share.

A particle is one problem that is optimized twice, with the meta-params phi + epsilon and with
phi - epsilon, from the same theta_0 and on the same minibatches. The antithetic difference of the
two meta-losses, times a perturbation, is the particle's estimate of the gradient of the smoothed
meta-loss E L(phi + epsilon), epsilon ~ N(0, sigma^2 I):

    (L+ - L-) w / (2 sigma^2).

The estimators differ in what epsilon is, which perturbation w is, and where the twins of a
particle go on (`Method`). The rest is here and in `_twins`: segments of U inner steps, problems
that end and begin inside of them, differences that are not finite.

**Segments.** A problem that has seen its horizon is replaced before the next segment, at no cost.
Where it ends inside a segment, the inner step after its last update replaces it instead of
updating it: that step has no loss, as f(theta_0) does not depend on phi. So there is at most one
replacement in a segment, as no horizon is shorter. The meta-loss of a segment is the function
`meta_loss` of its losses; it is told by `where` which ones count. Its difference is shared between
the losses before the replacement and those after it as if these came in one order and then in the
other, and the mean taken. For sums and means that is the difference of each part.
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from learned_opt import _draws
from learned_opt.base import (
  Info,
  InnerState,
  LearnedOptimizer,
  MetaGradientEstimator,
  MetaLoss,
  Optimizee,
)
from learned_opt.estimators import _paths
from learned_opt.estimators._horizons import Horizon, as_horizon
from learned_opt.estimators._truncations import check_positive
from learned_opt.estimators._twins import (
  Difference,
  Episode,
  Fresh,
  Method,
  Outcome,
  Plan,
  Settings,
  run_particles,
)
from learned_opt.meta_losses import check_meta_loss
from learned_opt.unroll import init_inner_state

# Folded into the key of an estimate, which is split among the problems; `mixture` folds the next.
NOISE, _HORIZONS = 2**32 - 3, 2**32 - 2


class ParticleState(NamedTuple):
  """Estimator state: N particles in the middle of their optimization.

  Attributes:
    problems: an `InnerState` with a leading axis of particles; its `params` and `opt_state` have
      another one of two twins, + and -, where each goes on from its own state.
    horizons: int32 ``[N]``, what the optimizer is told: the inner steps of each problem.
    ends: int32 ``[N]``, the step at which each problem is replaced: its horizon, but for the
      first problems if these are staggered.
    restart: bool ``[N]``, the problems that are replaced before the next segment.
    perturbations: a tree like the meta-params with a leading axis of particles: what a method
      remembers of the noise; ``()`` if nothing.
    num_estimates: int32 scalar, so far.
  """

  problems: InnerState
  horizons: jax.Array
  ends: jax.Array
  restart: jax.Array
  perturbations: chex.ArrayTree
  num_estimates: jax.Array


def check_settings(
  unroll_length: int | None,
  horizon: int | tuple[int, int] | Horizon,
  meta_batch_size: int,
  meta_loss: MetaLoss,
  sigma: float,
  difference: Difference = None,
  staggered: bool = False,
) -> Settings:
  """The settings; raises `ValueError` or `TypeError`, naming the argument, if one is wrong."""
  horizon = as_horizon(horizon)
  check_positive(meta_batch_size=meta_batch_size)
  if unroll_length is not None:
    check_positive(unroll_length=unroll_length)
    if unroll_length > horizon.shortest:
      raise ValueError(
        "unroll_length must not be longer than the shortest horizon, got "
        f"unroll_length={unroll_length} and horizon={horizon}; "
        f"unroll_length={horizon.shortest} would work"
      )
  if not (math.isfinite(sigma) and sigma > 0):
    raise ValueError(f"sigma must be positive and finite, got {sigma}")
  is_bound = isinstance(difference, int | float) and difference > 0
  if not (is_bound or difference is None or difference == "sign"):
    raise ValueError(
      f"difference must be None, 'sign', or the largest absolute value, got {difference!r}"
    )
  settings = Settings(
    unroll_length, horizon, meta_batch_size, meta_loss, float(sigma), difference, staggered
  )
  check_meta_loss(meta_loss, horizon.longest, masked=settings.masked)
  return settings


def fresh_noise(restart: jax.Array, remembered: chex.ArrayTree, drawn: chex.ArrayTree):
  """The noise of a method that has new noise in each segment and remembers none."""
  del restart, remembered
  return drawn, drawn


def evolution_strategy(method: Method, settings: Settings) -> MetaGradientEstimator:
  """The estimator that goes by a method."""
  splits = method.keeps_twins and settings.renews

  def estimate(optimizee, learned_optimizer, meta_params, state: ParticleState, key):
    fresh = draw(settings, optimizee, meta_params, state, key)
    moved, weight = method.noise(state.restart, state.perturbations, fresh.noise)
    problems, plans, said = run_particles(
      method, settings, optimizee, learned_optimizer, meta_params, episodes(state), fresh, moved
    )
    before, after, diverged = usable(settings.difference, said)

    def combine(weight: jax.Array, weight_after: jax.Array) -> jax.Array:
      total = jnp.tensordot(before.astype(weight.dtype), weight, 1)
      if splits:
        total += jnp.tensordot(after.astype(weight.dtype), weight_after, 1)
      return total / (2 * settings.sigma**2 * settings.num_particles)

    meta_grads = jax.tree.map(combine, weight, fresh.noise)
    remembered = ()
    if method.initial is not None:
      renewed = plans.updates < settings.num_losses
      remembered = _paths.where(renewed, fresh.noise, weight) if settings.renews else weight
    state = advance(settings, state, problems, plans, diverged, remembered)
    return meta_grads, state, tell(settings, plans, said, diverged, meta_grads)

  return MetaGradientEstimator(
    functools.partial(start, method, settings), estimate, settings.horizon.longest
  )


def start(
  method: Method,
  settings: Settings,
  optimizee: Optimizee,
  learned_optimizer: LearnedOptimizer,
  meta_params: chex.ArrayTree,
  key: chex.PRNGKey,
) -> ParticleState:
  """The state before the first estimate."""
  problem_key, horizon_key, end_key, noise_key = jax.random.split(key, 4)
  number, num_estimates = settings.num_particles, jnp.zeros((), jnp.int32)
  tx = learned_optimizer.optimizer(meta_params)
  keys = jax.random.split(problem_key, number)
  problems = jax.vmap(lambda key: init_inner_state(optimizee, tx, key))(keys)
  if method.keeps_twins:
    twice = functools.partial(jax.tree.map, lambda leaf: jnp.stack([leaf, leaf], axis=1))
    problems = problems._replace(params=twice(problems.params), opt_state=twice(problems.opt_state))
  ends = horizons = _draw_horizons(settings, horizon_key, num_estimates)
  if settings.staggered:
    ends = jax.random.randint(end_key, (number,), 1, horizons + 1, jnp.int32)
  remembered = ()
  if method.initial is not None:
    remembered = method.initial(draw_noise(settings, meta_params, noise_key))
  restart = jnp.full(number, not settings.staggered)
  return ParticleState(problems, horizons, ends, restart, remembered, num_estimates)


def draw(
  settings: Settings,
  optimizee: Optimizee,
  meta_params: chex.ArrayTree,
  state: ParticleState,
  key: chex.PRNGKey,
) -> Fresh:
  """What an estimate draws, with a leading axis of particles.

  The problems are those that `truncated_backprop` draws from the same key.
  """
  keys = jax.random.split(key, settings.num_particles)
  return Fresh(
    jax.vmap(lambda key: init_inner_state(optimizee, optax.identity(), key))(keys),
    _draw_horizons(settings, jax.random.fold_in(key, _HORIZONS), state.num_estimates),
    draw_noise(settings, meta_params, jax.random.fold_in(key, NOISE)),
  )


def _draw_horizons(settings: Settings, key: chex.PRNGKey, num_estimates: jax.Array) -> jax.Array:
  keys = jax.random.split(key, settings.num_particles)
  return jax.vmap(lambda key: jnp.int32(settings.horizon.draw(key, num_estimates)))(keys)


def draw_noise(
  settings: Settings, meta_params: chex.ArrayTree, key: chex.PRNGKey
) -> chex.ArrayTree:
  """Epsilon ~ N(0, sigma^2 I) of each particle."""
  keys = jax.random.split(key, settings.num_particles)
  leaves, structure = jax.tree.flatten(meta_params)

  def draw_leaf(index: int, leaf: jax.Array) -> jax.Array:
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    normal = jax.vmap(lambda key: _draws.normal(jax.random.fold_in(key, index), shape, dtype))
    return settings.sigma * normal(keys)

  return structure.unflatten([draw_leaf(index, leaf) for index, leaf in enumerate(leaves)])


def episodes(state: ParticleState) -> Episode:
  """Where the particles stand."""
  return Episode(state.problems, state.horizons, state.ends, state.restart)


def usable(rule: Difference, said: Outcome) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The differences ``[N]`` under the rule, zero where they are not finite; and where that is."""
  diverged = ~jnp.isfinite(said.before + said.after)

  def use(difference: jax.Array) -> jax.Array:
    if rule == "sign":
      difference = jnp.sign(difference)
    elif rule is not None:
      difference = jnp.clip(difference, -rule, rule)
    return jnp.where(diverged, 0.0, difference)

  return use(said.before), use(said.after), diverged


def advance(
  settings: Settings,
  state: ParticleState,
  problems: InnerState,
  plans: Plan,
  diverged: jax.Array,
  remembered: chex.ArrayTree = (),
) -> ParticleState:
  """The state after a segment; what has diverged or ended is replaced before the next one."""
  is_over = problems.step >= plans.next_end
  if settings.unroll_length is None:
    is_over = jnp.ones_like(is_over)
  return ParticleState(
    problems,
    plans.next_horizon,
    plans.next_end,
    diverged | is_over,
    remembered,
    state.num_estimates + 1,
  )


def tell(
  settings: Settings, plans: Plan, said: Outcome, diverged: jax.Array, meta_grads: chex.ArrayTree
) -> Info:
  """What people want to know."""
  losses = _paths.mean_where(~diverged, said.losses)
  if settings.unroll_length is None and settings.masked:
    there = jnp.pad(plans.counts, ((0, 0), (1, 0)), constant_values=True) & ~diverged[:, None]
    losses = jnp.mean(said.losses, axis=0, where=there)
  return Info(
    meta_loss=_paths.mean_where(~diverged, said.meta_loss),
    losses=losses,
    num_diverged=jnp.sum(diverged, dtype=jnp.int32),
    meta_grad_norm=optax.tree.norm(meta_grads),
  )
