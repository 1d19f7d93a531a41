"""Populations: several meta-trainings in one program, for seeds and outer learning rates.

How good a learned optimizer becomes depends on the outer learning rate and on the seed, and not
monotonically on either (Andrychowicz et al. 2016 search at random). The members of a population
differ in both, and their outer steps are taken together, by one `vmap` of the outer step: one
compilation, one dispatch, and large arrays where a single small meta-training leaves an
accelerator idle. Each member is the meta-training that `meta_train.run` makes of the same key and
outer optimizer, to rounding.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import _outer_loop, devices, families, meta_train
from learned_opt._outer_loop import History, MetaTrainState
from learned_opt.base import (
  Info,
  LearnedOptimizer,
  MetaGradientEstimator,
  Optimizee,
  check_optimizee,
)
from learned_opt.families import Families

MakeOuterOptimizer = Callable[[Any], optax.GradientTransformation]


class Progress(NamedTuple):
  """What a callback sees after each dispatch.

  Attributes:
    state: of all members, leaves with a leading axis of them; valid during the call only, as the
      next dispatch reuses its memory.
    histories: of the members, so far.
    outer_step: outer steps taken by each.
    num_outer_steps: outer steps of the whole run.
    seconds: wall-clock seconds since the start of this call of `run`.
    validated: whether there was a validation after this dispatch.
  """

  state: MetaTrainState
  histories: tuple[History, ...]
  outer_step: int
  num_outer_steps: int
  seconds: float
  validated: bool


class Member(NamedTuple):
  """One meta-training of a population.

  Attributes:
    meta_params: the best by final validation loss; the latest if no validation was finite.
    best_loss: that loss, or infinity.
    best_step: the outer step of that validation.
    history: what happened; `seconds` are those of the whole population.
  """

  meta_params: chex.ArrayTree
  best_loss: float
  best_step: int
  history: History


class Population(NamedTuple):
  """Finished meta-trainings.

  Attributes:
    members: in the order of the keys.
    state: of all members, leaves with a leading axis of them, from which `run` continues.
    compile_seconds: spent until the first dispatch began to run.
    seconds: wall-clock seconds of the whole call.
    interrupted: whether Ctrl-C ended it.
  """

  members: tuple[Member, ...]
  state: MetaTrainState
  compile_seconds: float
  seconds: float
  interrupted: bool

  @property
  def best(self) -> Member:
    """The member with the lowest validation loss."""
    return min(self.members, key=lambda member: member.best_loss)


def adam(learning_rate: float | jax.Array) -> optax.GradientTransformation:
  """`meta_train.run`'s default outer optimizer at a learning rate, which may be traced.

  Args:
    learning_rate: scalar.

  Returns:
    Adam behind a clip of the global norm at 1.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import population
    >>> rates = jnp.array([1e-3, 1e-2])
    >>> states = jax.vmap(lambda rate: population.adam(rate).init(jnp.zeros(3)))(rates)
    >>> jax.tree.leaves(states)[-1].shape
    (2, 3)
  """
  return meta_train.with_clipping(optax.adam(learning_rate), max_meta_grad_norm=1.0)


def run(
  optimizee: Optimizee | Families,
  learned_optimizer: LearnedOptimizer,
  estimator: MetaGradientEstimator,
  *,
  keys: chex.PRNGKey,
  hyperparams: chex.ArrayTree,
  num_outer_steps: int,
  make_outer_optimizer: MakeOuterOptimizer = adam,
  validation_optimizee: Optimizee | Families | None = None,
  num_validation_problems: int = 32,
  validation_steps: int | None = None,
  validate_every: int = 100,
  steps_per_dispatch: int | None = None,
  callbacks: Sequence[Callable[[Progress], None]] = (),
  state: MetaTrainState | None = None,
  histories: Sequence[History] | None = None,
) -> Population:
  """Meta-trains several learned optimizers side by side; see `meta_train.run`.

  A member whose problems all diverge goes on, and has an infinite `best_loss` if no validation was
  finite; it stops nobody. Under a mesh the members are shared among the devices.

  Args:
    optimizee: the problems to train on; or families, with an estimator over them.
    learned_optimizer: the architecture.
    estimator: of the meta-gradient.
    keys: ``[members]``, of the meta-trainings. A given `state` brings its own.
    hyperparams: of the outer optimizers, arrays with a leading axis of members; for example the
      learning rates.
    num_outer_steps: outer steps of each member, those of a given `state` included.
    make_outer_optimizer: makes the outer optimizer of one member's hyperparams, inside the traced
      function.
    validation_optimizee: the problems to validate on; by default `optimizee`.
    num_validation_problems: how many, drawn by each member's own key.
    validation_steps: inner steps of validation; None means the estimator's horizon.
    validate_every: outer steps between validations, a multiple of `steps_per_dispatch`.
    steps_per_dispatch: outer steps that run without touching Python; by default `validate_every`.
    callbacks: called with a `Progress` after each dispatch.
    state: continue from it instead of starting anew: that of a `Population`, or one that a callback
      has saved.
    histories: what happened up to that state; they are continued in place.

  Returns:
    The population. After Ctrl-C too.

  Raises:
    ValueError: if a number is out of range, or the members' keys, hyperparams and histories are
      not as many.
    TypeError: if the optimizee is malformed.
    FloatingPointError: if the optimizee's loss is not finite at its start, or all problems of all
      members diverged in all outer steps of a dispatch.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import estimators, optimizees, optimizers, population
    >>> trained = population.run(
    ...   optimizees.quadratic(2), optimizers.lstm(1, 4), estimators.truncated_backprop(2, 2),
    ...   keys=jax.random.split(jax.random.key(0), 2), hyperparams=jnp.array([1e-3, 1e-2]),
    ...   num_outer_steps=2, validate_every=2, num_validation_problems=2,
    ... )
    >>> len(trained.members), trained.best.history.validation_step
    (2, [2])
  """
  begin = time.perf_counter()
  steps_per_dispatch = validate_every if steps_per_dispatch is None else steps_per_dispatch
  validation_steps = estimator.horizon if validation_steps is None else validation_steps
  _outer_loop.check_schedule(num_outer_steps, validate_every, steps_per_dispatch, None)
  _outer_loop.check_validation(num_validation_problems, validation_steps)
  hyperparams = jax.tree.map(jnp.asarray, hyperparams)
  size = _size(keys, hyperparams, histories)
  for one in families.members(optimizee):
    check_optimizee(one, keys[0])
  optimizee, keys, hyperparams = devices.replicate((optimizee, keys, hyperparams))
  if validation_optimizee is None:
    validation_optimizee = optimizee
  else:
    validation_optimizee = devices.replicate(validation_optimizee)
  parts: dict[str, Any] = {
    "learned_optimizer": learned_optimizer,
    "estimator": estimator,
    "make_outer_optimizer": make_outer_optimizer,
  }
  if state is None:
    current = _start(optimizee, hyperparams, keys, **parts)
  else:
    # A copy, because the first dispatch reuses the memory of what it is given.
    current = devices.replicate(jax.tree.map(jnp.copy, state))
  told = tuple(History() for _ in range(size)) if histories is None else tuple(histories)
  seconds_before = told[0].seconds[-1] if told[0].seconds else 0.0
  taken, compile_seconds, interrupted = int(current.outer_step[0]), 0.0, False
  _outer_loop.check_progress(taken, num_outer_steps)
  try:
    while taken < num_outer_steps:
      current, info = _dispatch(
        optimizee, hyperparams, current, num_steps=steps_per_dispatch, **parts
      )
      compile_seconds = compile_seconds or time.perf_counter() - begin
      taken += steps_per_dispatch
      info = jax.device_get(info)
      _outer_loop.check_not_hopeless(info, taken)
      for index, history in enumerate(told):
        _outer_loop.record(history, jax.tree.map(lambda leaf, index=index: leaf[index], info))
      validated = taken % validate_every == 0 or taken == num_outer_steps
      if validated:
        current, losses = _validate(
          validation_optimizee,
          current,
          learned_optimizer=learned_optimizer,
          num_problems=num_validation_problems,
          num_steps=validation_steps,
        )
        for history, loss in zip(told, losses.tolist(), strict=True):
          history.validation_step.append(taken)
          history.validation_loss.append(loss)
          history.seconds.append(seconds_before + time.perf_counter() - begin)
      seconds = time.perf_counter() - begin
      for callback in callbacks:
        callback(Progress(current, told, taken, num_outer_steps, seconds, validated))
  except KeyboardInterrupt:
    interrupted = True
  current = jax.device_get(current)
  members = tuple(_member(current, index, history) for index, history in enumerate(told))
  return Population(members, current, compile_seconds, time.perf_counter() - begin, interrupted)


def _size(
  keys: chex.PRNGKey, hyperparams: chex.ArrayTree, histories: Sequence[History] | None
) -> int:
  """The number of members, which all agree on."""
  sizes = {"keys": keys.shape[0] if keys.ndim else None}
  for path, leaf in jax.tree_util.tree_leaves_with_path(hyperparams):
    sizes["hyperparams" + jax.tree_util.keystr(path)] = leaf.shape[0] if leaf.ndim else None
  if histories is not None:
    sizes["histories"] = len(histories)
  if len(set(sizes.values())) > 1 or not sizes["keys"]:
    said = ", ".join(f"{name}: {size or 'no axis'}" for name, size in sizes.items())
    raise ValueError(f"keys and hyperparams must have a leading axis of members each, got {said}")
  return sizes["keys"]


@functools.partial(
  jax.jit, static_argnames=("learned_optimizer", "estimator", "make_outer_optimizer")
)
def _start(
  optimizee, hyperparams, keys, *, learned_optimizer, estimator, make_outer_optimizer
) -> MetaTrainState:
  def start(values, key: chex.PRNGKey) -> MetaTrainState:
    outer_optimizer = make_outer_optimizer(values)
    return meta_train.init(optimizee, learned_optimizer, estimator, outer_optimizer, key)

  return devices.replicate(jax.vmap(start)(hyperparams, keys))


@functools.partial(
  jax.jit,
  static_argnames=("learned_optimizer", "estimator", "make_outer_optimizer", "num_steps"),
  donate_argnames="state",
)
def _dispatch(
  optimizee, hyperparams, state, *, learned_optimizer, estimator, make_outer_optimizer, num_steps
) -> tuple[MetaTrainState, Info]:
  def steps(values, state: MetaTrainState):
    one_step = functools.partial(
      meta_train.step, optimizee, learned_optimizer, estimator, make_outer_optimizer(values)
    )
    return jax.lax.scan(lambda state, _: one_step(state), state, length=num_steps)

  state, info = jax.vmap(steps)(*devices.share((hyperparams, state)))
  # As it came in, so that the next dispatch runs the same program.
  return devices.replicate(state), info._replace(losses=None)


@functools.partial(jax.jit, static_argnames=("learned_optimizer", "num_problems", "num_steps"))
def _validate(
  optimizee, state: MetaTrainState, *, learned_optimizer, num_problems, num_steps
) -> tuple[MetaTrainState, jax.Array]:
  def validate(state: MetaTrainState) -> tuple[MetaTrainState, jax.Array]:
    loss = _outer_loop.final_loss(
      optimizee,
      state.meta_params,
      state.key,
      learned_optimizer=learned_optimizer,
      num_problems=num_problems,
      num_steps=num_steps,
    )
    return _outer_loop.keep_best(state, loss), loss

  return devices.replicate(jax.vmap(validate)(state))


def _member(state: MetaTrainState, index: int, history: History) -> Member:
  def take(tree: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(lambda leaf: leaf[index], tree)

  best_loss = float(state.best_loss[index])
  meta_params = state.best_meta_params if np.isfinite(best_loss) else state.meta_params
  return Member(take(meta_params), best_loss, int(state.best_step[index]), history)
