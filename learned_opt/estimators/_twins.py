"""Twins: how the two signs of each particle go through one segment of inner steps."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from learned_opt import devices
from learned_opt.base import InnerState, LearnedOptimizer, MetaLoss, Optimizee, Trajectory
from learned_opt.estimators._horizons import Constant, Horizon
from learned_opt.unroll import Renewal, unroll

Difference: TypeAlias = float | Literal["sign"] | None

# Inner steps of whole episodes between two questions whether all have ended.
_CHUNK = 32

# The axes of twins in a problem: the others of its fields are shared.
_EACH: Any = 0
_BOTH: Any = None
_TWINS = InnerState(params=_EACH, opt_state=_EACH, constants=_BOTH, key=_BOTH, step=_BOTH)


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
    updates: int32 scalar, those before the problem is replaced; at least U if it is not.
    horizon: int32 scalar, of the problem at the beginning.
    steps: int32 ``[U]``, the updates behind each loss.
    counts: bool ``[U]``, which losses count.
    after: bool ``[U]``, which are those of the problem that replaces the first.
    next_horizon: int32 scalar, of the problem at the end of the segment.
    next_end: int32 scalar, the step at which that one is replaced.
  """

  updates: jax.Array
  horizon: jax.Array
  steps: jax.Array
  counts: jax.Array
  after: jax.Array
  next_horizon: jax.Array
  next_end: jax.Array


class Outcome(NamedTuple):
  """What one particle says.

  Attributes:
    before: scalar, the difference that is due to the losses before a replacement; the whole if
      that makes no difference.
    after: scalar, to those after it.
    meta_loss: scalar, the mean of the twins'.
    losses: ``[U + 1]``, the means of the twins'.
    meta_grads: the mean of the twins' derivatives; None if these were not asked for.
  """

  before: jax.Array
  after: jax.Array
  meta_loss: jax.Array
  losses: jax.Array
  meta_grads: Any


def run_particles(
  method: Method,
  settings: Settings,
  optimizee: Optimizee,
  learned_optimizer: LearnedOptimizer,
  meta_params: chex.ArrayTree,
  episodes: Episode,
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
    episodes: where the particles stand.
    fresh: what was drawn for them.
    moved: epsilon, a tree of ``[N, ...]`` arrays.
    backprop: the options of `unroll` with which to differentiate the meta-loss; None for not.

  Returns:
    All with a leading axis of particles.
  """
  num_steps = jnp.max(fresh.horizon)

  def run_particle(episode: Episode, fresh: Fresh, moved: chex.ArrayTree):
    plan = _plan(settings, episode, fresh)
    score = functools.partial(_score, settings, plan)

    def twin(sign: jax.Array, problem: InnerState):
      next_phi = _shift(meta_params, fresh.noise, sign) if method.keeps_noise else None

      def meta_loss(phi: chex.ArrayTree) -> tuple[jax.Array, tuple[InnerState, Trajectory]]:
        tx, here, there = _bind(learned_optimizer, phi, next_phi, problem, fresh.problem)
        if settings.unroll_length is None:
          here = there
        here = jax.tree.map(functools.partial(jnp.where, episode.restart), there, here)
        if settings.unroll_length is None and settings.masked:
          end, trajectory = _run_whole(settings, optimizee, tx, here, plan.horizon, num_steps)
        else:
          end, trajectory = unroll(
            optimizee,
            tx,
            here,
            settings.num_losses,
            horizon=plan.horizon,
            renewal=Renewal(plan.updates, there, fresh.horizon) if settings.renews else None,
            **(backprop or {}),
          )
        if method.keeps_noise:
          end = end._replace(opt_state=end.opt_state[1])
        return score(trajectory.outer_losses), (end, trajectory)

      phi = _shift(meta_params, moved, sign)
      if backprop is None:
        return *meta_loss(phi)[1], None
      (_, (end, trajectory)), meta_grads = jax.value_and_grad(meta_loss, has_aux=True)(phi)
      return end, trajectory, meta_grads

    axes = _TWINS if method.keeps_twins else None
    twins = jax.vmap(twin, in_axes=(0, axes), out_axes=(_TWINS, 0, 0))
    end, trajectory, meta_grads = twins(jnp.array([1.0, -1.0]), episode.problem)
    if not method.keeps_twins:
      first = functools.partial(jax.tree.map, lambda leaf: leaf[0])
      end = end._replace(params=first(end.params), opt_state=first(end.opt_state))
    splits = method.keeps_twins and settings.renews
    return end, plan, _outcome(score, plan if splits else None, trajectory, meta_grads)

  return jax.vmap(run_particle)(*devices.share((episodes, fresh, moved)))


def _score(settings: Settings, plan: Plan, losses: jax.Array) -> jax.Array:
  where = {"where": plan.counts} if settings.masked else {}
  return settings.meta_loss(losses, plan.steps, **where)


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
    updates=updates,
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
  next_phi: Any,
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
  plan: Plan | None,
  trajectory: Trajectory,
  meta_grads: Any,
) -> Outcome:
  """What a particle says; None for the plan if the difference counts as a whole."""
  plus, minus = trajectory.outer_losses
  high, low = score(plus), score(minus)
  losses = jnp.mean(trajectory.losses, axis=0)
  meta_grads = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), meta_grads)
  if plan is None:
    return Outcome(high - low, jnp.zeros_like(high), (high + low) / 2, losses, meta_grads)
  # Those of + before the replacement and of - after it, and the other way round.
  first = score(jnp.where(plan.after, minus, plus))
  second = score(jnp.where(plan.after, plus, minus))
  return Outcome(
    before=((high - second) + (first - low)) / 2,
    after=((high - first) + (second - low)) / 2,
    meta_loss=(high + low) / 2,
    losses=losses,
    meta_grads=meta_grads,
  )
