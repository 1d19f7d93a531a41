"""What a meta-training and a population of them share: state, history, validation."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import devices
from learned_opt.base import Info, LearnedOptimizer, Optimizee
from learned_opt.families import Families, map_groups
from learned_opt.unroll import init_inner_state, unroll

# What the key of a run is folded with, so that its parts draw independent numbers.
META_PARAMS, ESTIMATOR, OUTER_STEPS, VALIDATION = range(4)


class MetaTrainState(NamedTuple):
  """A meta-training in progress; what the next outer step needs.

  Attributes:
    meta_params: phi.
    outer_state: state of the outer optimizer.
    estimator_state: state of the meta-gradient estimator.
    outer_step: int32 scalar, outer steps taken.
    best_meta_params: those with the lowest final validation loss so far.
    best_loss: float32 scalar, that loss; infinite before the first validation.
    best_step: int32 scalar, the outer step of that validation.
    num_stale: int32 scalar, validations since then.
    key: the run's key.
  """

  meta_params: chex.ArrayTree
  outer_state: Any
  estimator_state: Any
  outer_step: jax.Array
  best_meta_params: chex.ArrayTree
  best_loss: jax.Array
  best_step: jax.Array
  num_stale: jax.Array
  key: chex.PRNGKey


@dataclasses.dataclass
class History:
  """What happened, for people; plain numpy and Python numbers.

  Attributes:
    meta_loss: one number an outer step, the mean over the problems that did not diverge.
    meta_grad_norm: one number an outer step, before clipping.
    num_diverged: one number an outer step.
    validation_step: the outer steps at which there was a validation.
    validation_loss: the final validation losses: the mean over the validation problems.
    seconds: wall-clock seconds after each validation, compilation included.
  """

  meta_loss: list[float] = dataclasses.field(default_factory=list)
  meta_grad_norm: list[float] = dataclasses.field(default_factory=list)
  num_diverged: list[int] = dataclasses.field(default_factory=list)
  validation_step: list[int] = dataclasses.field(default_factory=list)
  validation_loss: list[float] = dataclasses.field(default_factory=list)
  seconds: list[float] = dataclasses.field(default_factory=list)

  def to_json(self) -> dict[str, list]:
    """The fields as lists, with None for numbers that are not finite.

    Example:
      >>> from learned_opt.meta_train import History
      >>> History(meta_loss=[1.0, float("nan")]).to_json()["meta_loss"]
      [1.0, None]
    """
    return {
      name: [value if np.isfinite(value) else None for value in values]
      for name, values in dataclasses.asdict(self).items()
    }


@functools.partial(jax.jit, static_argnames=("learned_optimizer", "num_problems", "num_steps"))
def final_loss(
  optimizee: Optimizee | Families,
  meta_params: chex.ArrayTree,
  key: chex.PRNGKey,
  *,
  learned_optimizer: LearnedOptimizer,
  num_problems: int,
  num_steps: int,
) -> jax.Array:
  """The mean last loss of problems drawn by a run's key; of families, each by its first loss."""
  tx = learned_optimizer.optimizer(meta_params)
  key = jax.random.fold_in(key, VALIDATION)

  def losses_of(optimizee: Optimizee, key: chex.PRNGKey) -> jax.Array:
    state = init_inner_state(optimizee, tx, key)
    return unroll(optimizee, tx, state, num_steps, horizon=num_steps)[1].losses

  def relative_final_loss(optimizee: Optimizee, key: chex.PRNGKey) -> jax.Array:
    keys = devices.share(jax.random.split(key, num_problems))
    losses = jnp.mean(jax.vmap(functools.partial(losses_of, optimizee))(keys), axis=0)
    return losses[-1] / losses[0]

  if isinstance(optimizee, Families):
    return jnp.mean(jnp.concatenate(map_groups(relative_final_loss, optimizee, key)))
  keys = devices.share(jax.random.split(key, num_problems))
  return jnp.mean(jax.vmap(lambda key: losses_of(optimizee, key)[-1])(keys))


@jax.jit
def keep_best(state: MetaTrainState, loss: jax.Array) -> MetaTrainState:
  """The state after a validation."""
  better = loss < state.best_loss
  choose = functools.partial(jnp.where, better)
  return state._replace(
    best_meta_params=jax.tree.map(choose, state.meta_params, state.best_meta_params),
    best_loss=choose(loss.astype(jnp.float32), state.best_loss),
    best_step=choose(state.outer_step, state.best_step),
    num_stale=choose(0, state.num_stale + 1),
  )


def record(history: History, info: Info) -> None:
  """Adds what happened in the outer steps of a dispatch, ``[steps]`` each."""
  history.meta_loss.extend(info.meta_loss.tolist())
  history.meta_grad_norm.extend(info.meta_grad_norm.tolist())
  history.num_diverged.extend(info.num_diverged.tolist())


def check_not_hopeless(info: Info, taken: int) -> None:
  """Raises `FloatingPointError` if there is no finite meta-loss in a dispatch."""
  if not np.any(np.isfinite(info.meta_loss)):
    first = taken - info.meta_loss.shape[-1]
    raise FloatingPointError(
      f"every problem diverged in each of the outer steps {first} to {taken}: lower the outer "
      "learning rate or the optimizer's output scale, or clip the meta-gradient harder"
    )


def check_schedule(
  num_outer_steps: int, validate_every: int, steps_per_dispatch: int, patience: int | None
) -> None:
  """Raises `ValueError`, naming the argument, unless the numbers of outer steps fit."""
  for name, value in (
    ("num_outer_steps", num_outer_steps),
    ("validate_every", validate_every),
    ("steps_per_dispatch", steps_per_dispatch),
    ("patience", 1 if patience is None else patience),
  ):
    if value < 1:
      raise ValueError(f"{name} must be at least 1, got {value}")
  for name, value in (("num_outer_steps", num_outer_steps), ("validate_every", validate_every)):
    if value % steps_per_dispatch:
      near = max(value // steps_per_dispatch, 1) * steps_per_dispatch
      raise ValueError(
        f"{name} must be a multiple of steps_per_dispatch, got {name}={value} and "
        f"steps_per_dispatch={steps_per_dispatch}; {name}={near} would work"
      )


def check_validation(num_validation_problems: int, validation_steps: int) -> None:
  """Raises `ValueError`, naming the argument, unless both are positive."""
  for name, number in (
    ("num_validation_problems", num_validation_problems),
    ("validation_steps", validation_steps),
  ):
    if number < 1:
      raise ValueError(f"{name} must be at least 1, got {number}")


def check_progress(outer_step: int, num_outer_steps: int) -> None:
  """Raises `ValueError` if a state to continue from has come too far."""
  if outer_step > num_outer_steps:
    raise ValueError(
      f"state is at outer step {outer_step}, beyond num_outer_steps={num_outer_steps}"
    )
