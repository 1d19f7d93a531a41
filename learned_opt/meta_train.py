"""The outer loop: meta-training a learned optimizer.

Many outer steps run in one dispatch, a `jax.lax.scan` under one `jit`; Python is touched between
dispatches only, to validate, to report and to checkpoint. Everything that the next outer step
needs is one pytree, `MetaTrainState`: the run that continues from a saved state is the run that
was never interrupted, bit for bit.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import _outer_loop, devices
from learned_opt._outer_loop import History as History
from learned_opt._outer_loop import MetaTrainState as MetaTrainState
from learned_opt.base import (
  Info,
  LearnedOptimizer,
  MetaGradientEstimator,
  Optimizee,
  check_optimizee,
)
from learned_opt.families import Families, members


class Progress(NamedTuple):
  """What a callback sees after each dispatch.

  Attributes:
    state: the state; valid during the call only, as the next dispatch reuses its memory. Copy it,
      for example with ``jax.device_get``, to keep it.
    history: so far.
    outer_step: outer steps taken.
    num_outer_steps: outer steps of the whole run.
    seconds: wall-clock seconds since the start of this call of `run`.
    validated: whether there was a validation after this dispatch.
  """

  state: MetaTrainState
  history: History
  outer_step: int
  num_outer_steps: int
  seconds: float
  validated: bool


class MetaTrainResult(NamedTuple):
  """A finished meta-training.

  Attributes:
    meta_params: the best by final validation loss, numpy arrays.
    best_loss: that loss; infinite if the run was stopped before its first validation, in which
      case `meta_params` are the latest.
    best_step: the outer step of that validation.
    state: the last state, from which `run` continues; numpy arrays, and JAX's random keys.
    history: what happened.
    compile_seconds: spent until the first dispatch began to run.
    seconds: wall-clock seconds of the whole call.
    stopped: why it ended: all steps taken, no better validation for `patience` validations, or
      Ctrl-C.
  """

  meta_params: chex.ArrayTree
  best_loss: float
  best_step: int
  state: MetaTrainState
  history: History
  compile_seconds: float
  seconds: float
  stopped: Literal["finished", "early", "interrupted"]


def with_clipping(
  outer_optimizer: optax.GradientTransformation, max_meta_grad_norm: float | None
) -> optax.GradientTransformation:
  """The outer optimizer behind a clip of the meta-gradient's global norm.

  Args:
    outer_optimizer: any optax transformation.
    max_meta_grad_norm: the largest norm, None for no clipping.

  Returns:
    The transformation to give to `run`.

  Raises:
    ValueError: if the norm is not positive.

  Example:
    >>> import jax.numpy as jnp, optax
    >>> from learned_opt import meta_train
    >>> tx = meta_train.with_clipping(optax.sgd(1.0), max_meta_grad_norm=1.0)
    >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> [round(float(u), 3) for u in updates]
    [-0.6, -0.8]
  """
  if max_meta_grad_norm is None:
    return outer_optimizer
  if not max_meta_grad_norm > 0:
    raise ValueError(f"max_meta_grad_norm must be positive or None, got {max_meta_grad_norm}")
  return optax.chain(optax.clip_by_global_norm(max_meta_grad_norm), outer_optimizer)


def init(
  optimizee: Optimizee | Families,
  learned_optimizer: LearnedOptimizer,
  estimator: MetaGradientEstimator,
  outer_optimizer: optax.GradientTransformation,
  key: chex.PRNGKey,
  meta_params: chex.ArrayTree | None = None,
) -> MetaTrainState:
  """The state in which a meta-training starts.

  Args:
    optimizee: the problems to train on.
    learned_optimizer: the architecture.
    estimator: of the meta-gradient.
    outer_optimizer: any optax transformation.
    key: of the whole run.
    meta_params: where to start; None draws them.

  Returns:
    The state at outer step 0.

  Example:
    >>> import jax, optax
    >>> from learned_opt import estimators, meta_train, optimizees, optimizers
    >>> state = meta_train.init(
    ...   optimizees.quadratic(), optimizers.lstm(), estimators.truncated_backprop(),
    ...   optax.adam(1e-3), jax.random.key(0),
    ... )
    >>> int(state.outer_step)
    0
  """
  if meta_params is None:
    meta_params = learned_optimizer.init(jax.random.fold_in(key, _outer_loop.META_PARAMS))
  estimator_key = jax.random.fold_in(key, _outer_loop.ESTIMATOR)
  return MetaTrainState(
    meta_params=meta_params,
    outer_state=outer_optimizer.init(meta_params),
    estimator_state=estimator.init(
      cast(Any, optimizee), learned_optimizer, meta_params, estimator_key
    ),
    outer_step=jnp.zeros((), jnp.int32),
    best_meta_params=jax.tree.map(jnp.copy, meta_params),
    best_loss=jnp.full((), jnp.inf, jnp.float32),
    best_step=jnp.zeros((), jnp.int32),
    num_stale=jnp.zeros((), jnp.int32),
    key=key,
  )


# One program: to draw what is random operation by operation takes several times as long to compile.
_start = jax.jit(init, static_argnames=("learned_optimizer", "estimator", "outer_optimizer"))


def step(
  optimizee: Optimizee | Families,
  learned_optimizer: LearnedOptimizer,
  estimator: MetaGradientEstimator,
  outer_optimizer: optax.GradientTransformation,
  state: MetaTrainState,
) -> tuple[MetaTrainState, Info]:
  """One step of the outer optimizer along one estimate of the meta-gradient. Pure.

  Example:
    >>> import jax, optax
    >>> from learned_opt import estimators, meta_train, optimizees, optimizers
    >>> parts = (
    ...   optimizees.quadratic(), optimizers.lstm(), estimators.truncated_backprop(5, 10),
    ...   optax.adam(1e-3),
    ... )
    >>> init = jax.jit(meta_train.init, static_argnums=(1, 2, 3))
    >>> step = jax.jit(meta_train.step, static_argnums=(1, 2, 3))
    >>> state = init(*parts, jax.random.key(0))
    >>> state, info = step(*parts, state)
    >>> int(state.outer_step), int(info.num_diverged)
    (1, 0)
  """
  key = jax.random.fold_in(jax.random.fold_in(state.key, _outer_loop.OUTER_STEPS), state.outer_step)
  meta_grads, estimator_state, info = estimator.estimate(
    cast(Any, optimizee), learned_optimizer, state.meta_params, state.estimator_state, key
  )
  updates, outer_state = outer_optimizer.update(meta_grads, state.outer_state, state.meta_params)
  state = state._replace(
    meta_params=optax.apply_updates(state.meta_params, updates),
    outer_state=outer_state,
    estimator_state=estimator_state,
    outer_step=state.outer_step + 1,
  )
  return state, info


@functools.partial(
  jax.jit,
  static_argnames=("learned_optimizer", "estimator", "outer_optimizer", "num_steps"),
  donate_argnames="state",
)
def _dispatch(optimizee, state, *, learned_optimizer, estimator, outer_optimizer, num_steps):
  one_step = functools.partial(step, optimizee, learned_optimizer, estimator, outer_optimizer)
  state, info = jax.lax.scan(lambda state, _: one_step(state), state, length=num_steps)
  # As it came in, so that the next dispatch runs the same program.
  return devices.replicate(state), info._replace(losses=None)


def run(
  optimizee: Optimizee | Families,
  learned_optimizer: LearnedOptimizer,
  estimator: MetaGradientEstimator,
  *,
  num_outer_steps: int,
  key: chex.PRNGKey,
  outer_optimizer: optax.GradientTransformation | None = None,
  validation_optimizee: Optimizee | Families | None = None,
  num_validation_problems: int = 32,
  validation_steps: int | None = None,
  validate_every: int = 100,
  steps_per_dispatch: int | None = None,
  patience: int | None = None,
  callbacks: Sequence[Callable[[Progress], None]] = (),
  meta_params: chex.ArrayTree | None = None,
  state: MetaTrainState | None = None,
  history: History | None = None,
) -> MetaTrainResult:
  """Meta-trains a learned optimizer and keeps the best meta-params by *final* validation loss.

  Validation optimizes the same held-out problems each time, from their start, and takes the mean of
  their last losses (Andrychowicz et al. 2016, section 3). The same arguments give the same bits.

  On `families`, the validation loss is the mean over families of the mean last loss over the mean
  first loss, as losses of different families have different scales.

  Args:
    optimizee: the problems to train on; or `families.families` of them, with an estimator that
      `estimators.over_families` has made.
    learned_optimizer: the architecture.
    estimator: of the meta-gradient, for example `estimators.truncated_backprop`.
    num_outer_steps: outer steps of the whole run, those of a given `state` included. A multiple of
      `steps_per_dispatch`.
    key: of the whole run. A given `state` brings its own.
    outer_optimizer: any optax transformation; None is Adam at 1e-3 behind a clip of the global
      norm at 1 (`with_clipping`).
    validation_optimizee: the problems to validate on, if they are of another split, for example;
      by default `optimizee`. Their keys are never those of training.
    num_validation_problems: how many; of each family, if there are several.
    validation_steps: inner steps of validation; None means the estimator's horizon.
    validate_every: outer steps between validations, a multiple of `steps_per_dispatch`. There is
      one more after the last step.
    steps_per_dispatch: outer steps that run without touching Python; by default `validate_every`.
    patience: stop after so many validations in a row without a better one; None never stops.
    callbacks: called with a `Progress` after each dispatch. An exception in one ends the run.
    meta_params: where to start; None draws them. If they are given, there is a validation before
      the first outer step as well: the result is never worse than they are.
    state: continue from it instead of starting anew: the ``state`` of a result, or one that a
      callback has saved.
    history: what happened up to that state; it is continued in place.

  Returns:
    The result. After Ctrl-C too: then `stopped` says so, and nothing is lost.

  Raises:
    ValueError: if a number is out of range, or the steps do not divide as said above.
    TypeError: if the optimizee is malformed.
    FloatingPointError: if the optimizee's loss is not finite at its start, or all problems of a
      dispatch diverged in all outer steps.

  Example:
    >>> import jax
    >>> from learned_opt import estimators, meta_train, optimizees, optimizers
    >>> result = meta_train.run(
    ...   optimizees.quadratic(), optimizers.lstm(), estimators.truncated_backprop(5, 10),
    ...   num_outer_steps=4, validate_every=2, num_validation_problems=2, key=jax.random.key(0),
    ... )
    >>> result.stopped, len(result.history.meta_loss), result.history.validation_step
    ('finished', 4, [2, 4])
  """
  start = time.perf_counter()
  steps_per_dispatch = validate_every if steps_per_dispatch is None else steps_per_dispatch
  _outer_loop.check_schedule(num_outer_steps, validate_every, steps_per_dispatch, patience)
  validation_steps = estimator.horizon if validation_steps is None else validation_steps
  _outer_loop.check_validation(num_validation_problems, validation_steps)
  if state is not None and meta_params is not None:
    raise ValueError("give either state or meta_params: a state brings its own meta-params")
  if outer_optimizer is None:
    outer_optimizer = _default_outer_optimizer()
  for member in members(optimizee):
    check_optimizee(member, key)
  optimizee = devices.replicate(optimizee)
  if state is None:
    current = _start(optimizee, learned_optimizer, estimator, outer_optimizer, key, meta_params)
  else:
    # A copy, because the first dispatch reuses the memory of what it is given.
    current = jax.tree.map(jnp.copy, state)
  current = devices.replicate(current)
  validation_optimizee = (
    optimizee if validation_optimizee is None else devices.replicate(validation_optimizee)
  )
  _outer_loop.check_progress(int(current.outer_step), num_outer_steps)

  dispatch = functools.partial(
    _dispatch,
    optimizee,
    learned_optimizer=learned_optimizer,
    estimator=estimator,
    outer_optimizer=outer_optimizer,
    num_steps=steps_per_dispatch,
  )
  validate = functools.partial(
    _outer_loop.final_loss,
    validation_optimizee,
    learned_optimizer=learned_optimizer,
    num_problems=num_validation_problems,
    num_steps=validation_steps,
  )
  history = History() if history is None else history
  seconds_before = history.seconds[-1] if history.seconds else 0.0
  compile_seconds, stopped = 0.0, "finished"
  taken = int(current.outer_step)

  def keep_best(state: MetaTrainState) -> MetaTrainState:
    loss = validate(state.meta_params, state.key)
    history.validation_step.append(taken)
    history.validation_loss.append(float(loss))
    history.seconds.append(seconds_before + time.perf_counter() - start)
    return _outer_loop.keep_best(state, loss)

  def tell(state: MetaTrainState, validated: bool) -> None:
    seconds = time.perf_counter() - start
    progress = Progress(state, history, taken, num_outer_steps, seconds, validated)
    for callback in callbacks:
      callback(progress)

  try:
    if meta_params is not None:
      # A start that is not finite is no validation without a better one.
      current = keep_best(current)._replace(num_stale=current.num_stale)
      tell(current, validated=True)
    while taken < num_outer_steps:
      current, info = dispatch(current)
      compile_seconds = compile_seconds or time.perf_counter() - start
      taken += steps_per_dispatch
      info = jax.device_get(info)
      _outer_loop.record(history, info)
      _outer_loop.check_not_hopeless(info, taken)
      validated = taken % validate_every == 0 or taken == num_outer_steps
      if validated:
        current = keep_best(current)
      tell(current, validated)
      if patience is not None and int(current.num_stale) >= patience:
        stopped = "early"
        break
  except KeyboardInterrupt:
    stopped = "interrupted"
  current = jax.device_get(current)
  return MetaTrainResult(
    meta_params=current.best_meta_params if np.isfinite(current.best_loss) else current.meta_params,
    best_loss=float(current.best_loss),
    best_step=int(current.best_step),
    state=current,
    history=history,
    compile_seconds=compile_seconds,
    seconds=time.perf_counter() - start,
    stopped=stopped,
  )


# One object, so that a second call does not compile anew.
@functools.cache
def _default_outer_optimizer() -> optax.GradientTransformation:
  return with_clipping(optax.adam(1e-3), max_meta_grad_norm=1.0)
