"""Particles: what the estimators by evolution strategies share.

A particle is one problem that is optimized twice, with the meta-params phi + epsilon and with
phi - epsilon, from the same theta_0 and on the same minibatches. The antithetic difference of the
two meta-losses, times a perturbation, is the particle's estimate of the gradient of the smoothed
meta-loss E L(phi + epsilon), epsilon ~ N(0, sigma^2 I):

    (L+ - L-) w / (2 sigma^2).

The estimators differ in what epsilon is, which perturbation w is, and where the twins of a
particle go on (`Method`). This file is the rest: segments of U inner steps, problems that end and
begin inside of them, differences that are not finite.

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
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from learned_opt import devices
from learned_opt.base import (
  Info,
  InnerState,
  LearnedOptimizer,
  MetaGradientEstimator,
  MetaLoss,
  Optimizee,
  Trajectory,
)
from learned_opt.estimators import _paths
from learned_opt.estimators._horizons import Constant, Horizon, as_horizon
from learned_opt.estimators._truncations import check_positive
from learned_opt.meta_losses import check_meta_loss
from learned_opt.unroll import Renewal, init_inner_state, unroll

Difference: TypeAlias = float | Literal["sign"] | None

# Inner steps of whole episodes between two questions whether all have ended.
_CHUNK = 32

# Those of the fields of a problem that differ between the twins of a particle.
_TWINS = InnerState(params=0, opt_state=0, constants=None, key=None, step=None)
_SHARED = InnerState(params=None, opt_state=None, constants=None, key=None, step=None)


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


class Method(NamedTuple):
  """What sets one estimator apart; the noise is a tree of ``[N, ...]`` arrays.

  Attributes:
    noise: ``(restart, remembered, drawn) -> (moved, weight)``: epsilon, by which the meta-params
      are moved, and w, with which the difference is multiplied and which is remembered. Once a
      problem has been replaced inside a segment, both are `drawn`.
    initial: ``drawn -> remembered`` before the first estimate; None if nothing is remembered.
    keeps_twins: whether each twin goes on from its own state; else both do from that of +.
    keeps_noise: whether `moved` may be other noise than `drawn`.
  """

  noise: Callable[..., tuple[chex.ArrayTree, chex.ArrayTree]]
  initial: Callable[[chex.ArrayTree], chex.ArrayTree] | None = None
  keeps_twins: bool = False
  keeps_noise: bool = False


class Settings(NamedTuple):
  """What all estimators by evolution strategies are told, checked.

  Attributes:
    unroll_length: U, inner steps of one segment; None for whole episodes.
    horizon: of the problems.
    num_particles: N.
    meta_loss: of the losses of a segment.
    sigma: the standard deviation of the noise.
    difference: None, a bound of the absolute difference, or ``"sign"``.
    staggered: whether the first problems end early.
  """

  unroll_length: int | None
  horizon: Horizon
  num_particles: int
  meta_loss: MetaLoss
  sigma: float
  difference: Difference = None
  staggered: bool = False

  @property
  def num_losses(self) -> int:
    """The losses of a segment."""
    return self.horizon.longest if self.unroll_length is None else self.unroll_length

  @property
  def renews(self) -> bool:
    """Whether problems may end inside a segment, and others begin."""
    if self.unroll_length is None:
      return False
    whole = isinstance(self.horizon, Constant) and not self.horizon.longest % self.unroll_length
    return self.staggered or not whole

  @property
  def masked(self) -> bool:
    """Whether some losses of a segment may not count."""
    return self.renews or (self.unroll_length is None and not isinstance(self.horizon, Constant))


class Episode(NamedTuple):
  """One particle's problem.

  Attributes:
    problem: where it stands.
    horizon: what the optimizer is told.
    end: the step at which it is replaced.
    restart: whether it is replaced at once.
  """

  problem: InnerState
  horizon: jax.Array
  end: jax.Array
  restart: jax.Array


class Fresh(NamedTuple):
  """What is drawn for one particle in each estimate, whether it is needed or not.

  Attributes:
    problem: at step 0, without an `opt_state`.
    horizon: of it.
    noise: a tree like the meta-params.
  """

  problem: InnerState
  horizon: jax.Array
  noise: chex.ArrayTree


class Plan(NamedTuple):
  """How a particle goes through one segment.

  Attributes:
    renew_after: int32 scalar, the updates before the problem is replaced; at least U if it is not.
    horizon: int32 scalar, of the problem at the beginning.
    steps: int32 ``[U]``, the updates behind each loss.
    counts: bool ``[U]``, which losses count.
    after: bool ``[U]``, which are those of the problem that replaces the first.
    next_horizon: int32 scalar, of the problem at the end of the segment.
    next_end: int32 scalar, the step at which that one is replaced.
  """

  renew_after: jax.Array
  horizon: jax.Array
  steps: jax.Array
  counts: jax.Array
  after: jax.Array
  next_horizon: jax.Array
  next_end: jax.Array


class Outcome(NamedTuple):
  """What one particle says.

  Attributes:
    before: scalar, the difference that is due to the losses before a replacement.
    after: scalar, to those after it.
    meta_loss: scalar, the mean of the twins'.
    losses: ``[U + 1]``, the means of the twins'.
    meta_grads: the mean of the twins' derivatives; None if these were not asked for.
  """

  before: jax.Array
  after: jax.Array
  meta_loss: jax.Array
  losses: jax.Array
  meta_grads: chex.ArrayTree | None


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


def evolution_strategy(method: Method, settings: Settings) -> MetaGradientEstimator:
  """The estimator that goes by a method."""
  splits = method.keeps_twins and settings.renews

  def estimate(optimizee, learned_optimizer, meta_params, state: ParticleState, key):
    fresh = draw(settings, optimizee, meta_params, state, key)
    moved, weight = method.noise(state.restart, state.perturbations, fresh.noise)
    problems, plans, said = run_particles(
      method, settings, optimizee, learned_optimizer, meta_params, state, fresh, moved
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
      renewed = plans.renew_after < settings.num_losses
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
    remembered = method.initial(_draw_noise(settings, meta_params, noise_key))
  restart = jnp.full(number, not settings.staggered)
  return ParticleState(problems, horizons, ends, restart, remembered, num_estimates)


def draw(
  settings: Settings,
  optimizee: Optimizee,
  meta_params: chex.ArrayTree,
  state: ParticleState,
  key: chex.PRNGKey,
) -> Fresh:
  """What an estimate draws, with a leading axis of particles."""
  problem_key, horizon_key, noise_key = jax.random.split(key, 3)
  keys = jax.random.split(problem_key, settings.num_particles)
  return Fresh(
    jax.vmap(lambda key: init_inner_state(optimizee, optax.identity(), key))(keys),
    _draw_horizons(settings, horizon_key, state.num_estimates),
    _draw_noise(settings, meta_params, noise_key),
  )


def _draw_horizons(settings: Settings, key: chex.PRNGKey, num_estimates: jax.Array) -> jax.Array:
  keys = jax.random.split(key, settings.num_particles)
  return jax.vmap(lambda key: jnp.int32(settings.horizon.draw(key, num_estimates)))(keys)


def _draw_noise(
  settings: Settings, meta_params: chex.ArrayTree, key: chex.PRNGKey
) -> chex.ArrayTree:
  """Epsilon ~ N(0, sigma^2 I) of each particle."""
  keys = jax.random.split(key, settings.num_particles)
  leaves, structure = jax.tree.flatten(meta_params)

  def draw_leaf(index: int, leaf: jax.Array) -> jax.Array:
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    normal = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape, dtype))
    return settings.sigma * normal(keys)

  return structure.unflatten([draw_leaf(index, leaf) for index, leaf in enumerate(leaves)])


def run_particles(
  method: Method,
  settings: Settings,
  optimizee: Optimizee,
  learned_optimizer: LearnedOptimizer,
  meta_params: chex.ArrayTree,
  state: ParticleState,
  fresh: Fresh,
  moved: chex.ArrayTree,
  backprop: dict[str, bool] | None = None,
) -> tuple[InnerState, Plan, Outcome]:
  """One segment of all particles: where their problems end, how they came there, what they say.

  Args:
    method: what sets the estimator apart.
    settings: of the estimator.
    optimizee: the distribution of problems.
    learned_optimizer: the architecture.
    meta_params: phi.
    state: of the estimator.
    fresh: what was drawn.
    moved: epsilon, a tree of ``[N, ...]`` arrays.
    backprop: the options of `unroll` with which to differentiate the meta-loss; None for not.

  Returns:
    All with a leading axis of particles.
  """
  num_steps = jnp.max(fresh.horizon)
  options = {} if backprop is None else backprop

  def run_particle(episode: Episode, fresh: Fresh, moved: chex.ArrayTree):
    plan = _plan(settings, episode, fresh)

    def score(losses: jax.Array) -> jax.Array:
      where = {"where": plan.counts} if settings.masked else {}
      return settings.meta_loss(losses, plan.steps, **where)

    def twin(sign: jax.Array, problem: InnerState):
      def meta_loss(phi: chex.ArrayTree) -> tuple[jax.Array, tuple[InnerState, Trajectory]]:
        next_phi = _shift(meta_params, fresh.noise, sign) if method.keeps_noise else None
        tx, here, there = _bind(learned_optimizer, phi, next_phi, problem, fresh.problem)
        here = jax.tree.map(functools.partial(jnp.where, episode.restart), there, here)
        if settings.unroll_length is None and settings.masked:
          end, trajectory = _run_whole(settings, optimizee, tx, here, plan.horizon, num_steps)
        else:
          renewal = Renewal(plan.renew_after, there, fresh.horizon) if settings.renews else None
          end, trajectory = unroll(
            optimizee,
            tx,
            here,
            settings.num_losses,
            horizon=plan.horizon,
            renewal=renewal,
            **options,
          )
        if method.keeps_noise:
          end = end._replace(opt_state=end.opt_state[1])
        return score(trajectory.outer_losses), (end, trajectory)

      phi = _shift(meta_params, moved, sign)
      if backprop is None:
        return *meta_loss(phi)[1], None
      (_, (end, trajectory)), meta_grads = jax.value_and_grad(meta_loss, has_aux=True)(phi)
      return end, trajectory, meta_grads

    axes = _TWINS if method.keeps_twins else _SHARED
    twins = jax.vmap(twin, in_axes=(0, axes), out_axes=(_TWINS, 0, 0))
    end, trajectory, meta_grads = twins(jnp.array([1.0, -1.0]), episode.problem)
    if not method.keeps_twins:
      first = functools.partial(jax.tree.map, lambda leaf: leaf[0])
      end = end._replace(params=first(end.params), opt_state=first(end.opt_state))
    return end, plan, _outcome(score, plan, trajectory, meta_grads)

  episode = Episode(state.problems, state.horizons, state.ends, state.restart)
  return jax.vmap(run_particle)(*devices.share((episode, fresh, moved)))


def _plan(settings: Settings, episode: Episode, fresh: Fresh) -> Plan:
  start = jnp.where(episode.restart, 0, episode.problem.step)
  horizon = jnp.where(episode.restart, fresh.horizon, episode.horizon)
  end = jnp.where(episode.restart, fresh.horizon, episode.end)
  index = jnp.arange(settings.num_losses)
  steps, updates = start + 1 + index, end - start
  if not settings.renews:
    nowhere = jnp.zeros_like(index, bool)
    return Plan(updates, horizon, steps, steps <= end, nowhere, horizon, end)
  after = index >= updates
  renewed = after[-1]
  return Plan(
    renew_after=updates,
    horizon=horizon,
    steps=jnp.where(after, index - updates, steps),
    counts=index != updates,
    after=after,
    next_horizon=jnp.where(renewed, fresh.horizon, horizon),
    next_end=jnp.where(renewed, fresh.horizon, end),
  )


def _shift(meta_params: chex.ArrayTree, noise: chex.ArrayTree, sign: jax.Array) -> chex.ArrayTree:
  return jax.tree.map(lambda leaf, by: leaf + sign.astype(by.dtype) * by, meta_params, noise)


def _bind(
  learned_optimizer: LearnedOptimizer,
  phi: chex.ArrayTree,
  next_phi: chex.ArrayTree | None,
  problem: InnerState,
  fresh: InnerState,
) -> tuple[optax.GradientTransformation, InnerState, InnerState]:
  """The transformation, the problem, and the fresh one with its `opt_state`.

  With other meta-params for the fresh problem, each carries its own in its `opt_state`.
  """
  if next_phi is None:
    tx = learned_optimizer.optimizer(phi)
    return tx, problem, fresh._replace(opt_state=tx.init(fresh.params))

  def update(updates, state, params=None, **extra):
    tx = optax.with_extra_args_support(learned_optimizer.optimizer(state[0]))
    updates, opt_state = tx.update(updates, state[1], params, **extra)
    return updates, (state[0], opt_state)

  def init(params):
    return next_phi, learned_optimizer.optimizer(next_phi).init(params)

  return (
    optax.GradientTransformationExtraArgs(init, update),
    problem._replace(opt_state=(phi, problem.opt_state)),
    fresh._replace(opt_state=init(fresh.params)),
  )


def _run_whole(
  settings: Settings,
  optimizee: Optimizee,
  tx: optax.GradientTransformation,
  problem: InnerState,
  horizon: jax.Array,
  num_steps: jax.Array,
) -> tuple[InnerState, Trajectory]:
  """An episode of at least `num_steps` steps; its losses are filled up to the longest horizon.

  The steps are as many for all particles, so that the loop is one. What a particle does beyond its
  own horizon does not count.
  """
  longest = settings.num_losses
  size = min(_CHUNK, longest)
  room = math.ceil(longest / size) * size
  dtype = jax.eval_shape(
    optimizee.loss, problem.params, problem.constants, optimizee.data, problem.key
  ).dtype

  def body(carry: tuple[jax.Array, InnerState, Trajectory]):
    done, problem, whole = carry
    problem, part = unroll(optimizee, tx, problem, size, horizon=horizon)
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=done, axis=0)
    return done + size, problem, jax.tree.map(put, whole, part)

  empty = Trajectory(jnp.zeros(room + 1, dtype), jnp.zeros(room, dtype))
  _, problem, whole = jax.lax.while_loop(
    lambda carry: carry[0] < num_steps, body, (jnp.int32(0), problem, empty)
  )
  return problem, Trajectory(whole.losses[: longest + 1], whole.outer_losses[:longest])


def _outcome(
  score: Callable[[jax.Array], jax.Array],
  plan: Plan,
  trajectory: Trajectory,
  meta_grads: chex.ArrayTree | None,
) -> Outcome:
  plus, minus = trajectory.outer_losses
  high, low = score(plus), score(minus)
  # Those of + before the replacement and of - after it, and the other way round.
  first = score(jnp.where(plan.after, minus, plus))
  second = score(jnp.where(plan.after, plus, minus))
  return Outcome(
    before=((high - second) + (first - low)) / 2,
    after=((high - first) + (second - low)) / 2,
    meta_loss=(high + low) / 2,
    losses=jnp.mean(trajectory.losses, axis=0),
    meta_grads=jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), meta_grads),
  )


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
