"""The doctor: which meta-gradient estimator suits a problem, and what is wrong where none does.

Every estimator gets the same problems and the same number of inner steps: one sample is the mean of
its estimates over an episode of `horizon` inner steps, which is an estimate of the gradient of the
mean loss over the episode. It is compared with that gradient itself, by backpropagation through the
whole episode: of second order if that can be told from its own noise, else of first order.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from learned_opt import estimators, meta_losses
from learned_opt._curves import check_is_optimizee, check_positive
from learned_opt._diagnosis import (
  BACKPROP,
  MAX_ERROR,
  Samples,
  measure,
  or_infinite,
  overtaken_at,
  recommend,
  standard_error,
)
from learned_opt._diagnosis import Diagnosis as Diagnosis
from learned_opt._diagnosis import Measurement as Measurement
from learned_opt._nonfinite import NonFinite as NonFinite
from learned_opt._nonfinite import find_nonfinite as find_nonfinite
from learned_opt.base import LearnedOptimizer, MetaGradientEstimator, Optimizee

MakeEstimator = Callable[[int, int, int, float], MetaGradientEstimator]


def _first_order(unroll_length: int, horizon: int, meta_batch_size: int, sigma: float):
  del sigma
  return estimators.truncated_backprop(unroll_length, horizon, meta_batch_size, meta_losses.mean)


def _second_order(unroll_length: int, horizon: int, meta_batch_size: int, sigma: float):
  del sigma
  return estimators.truncated_backprop(
    unroll_length, horizon, meta_batch_size, meta_losses.mean, second_order=True, remat=True
  )


def _by_particles(factory: Callable[..., MetaGradientEstimator]) -> MakeEstimator:
  def make(unroll_length: int, horizon: int, meta_batch_size: int, sigma: float):
    return factory(unroll_length, horizon, meta_batch_size, sigma=sigma, staggered=False)

  return make


# ``(unroll_length, horizon, meta_batch_size, sigma) -> estimator`` of the mean loss, in lock-step.
METHODS: dict[str, MakeEstimator] = {
  "truncated_backprop": _first_order,
  "second_order_backprop": _second_order,
  "truncated_es": _by_particles(estimators.truncated_es),
  "pes": _by_particles(estimators.pes),
  "es_single": _by_particles(estimators.es_single),
  "inverse_variance": _by_particles(estimators.inverse_variance),
}


def examine(
  optimizee: Optimizee,
  learned_optimizer: LearnedOptimizer,
  meta_params: chex.ArrayTree,
  *,
  unroll_lengths: Sequence[int],
  key: chex.PRNGKey,
  horizon: int | None = None,
  methods: Sequence[str] | Mapping[str, MakeEstimator] = tuple(METHODS),
  meta_batch_size: int = 8,
  num_samples: int = 16,
  sigma: float = 0.01,
  on_progress: Callable[[str], None] | None = None,
) -> Diagnosis:
  """Runs estimators on an optimizee and compares them with the full gradient.

  Args:
    optimizee: the problems.
    learned_optimizer: the architecture.
    meta_params: where to look; the answer may be another one elsewhere.
    unroll_lengths: U, each a divisor of the horizon.
    key: of all that is drawn.
    horizon: inner steps of an episode; None means the longest unroll.
    methods: names in `METHODS`, or estimators of one's own by name, as functions of unroll length,
      horizon, meta-batch size and sigma.
    meta_batch_size: problems, or particles, side by side in one estimate.
    num_samples: S, episodes for each estimator at each unroll length.
    sigma: of the estimators by evolution strategies.
    on_progress: called with a few words before each part of the work.

  Returns:
    The diagnosis.

  Raises:
    TypeError: if `optimizee` is no `Optimizee`.
    ValueError: if a number is out of range, a method is unknown, or the horizon is no multiple of
      an unroll length.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from learned_opt import LearnedOptimizer, Optimizee, doctor
    >>> bowl = Optimizee.from_functions(jax.random.normal, lambda x, key: jnp.cosh(x))
    >>> one_rate = LearnedOptimizer(lambda key: jnp.array(0.1), optax.sgd)
    >>> diagnosis = doctor.examine(
    ...   bowl, one_rate, jnp.array(0.1), unroll_lengths=[2], methods=["truncated_backprop"],
    ...   num_samples=2, key=jax.random.key(0),
    ... )
    >>> [one.unroll_length for one in diagnosis.measurements], diagnosis.nonfinite.share
    ([2], 0.0)
  """
  check_is_optimizee(optimizee=optimizee)
  lengths = sorted(set(unroll_lengths))
  if not lengths:
    raise ValueError("unroll_lengths must name at least one length")
  horizon = lengths[-1] if horizon is None else horizon
  check_positive(
    horizon=horizon,
    meta_batch_size=meta_batch_size,
    unroll_lengths=lengths[0],
    num_samples=num_samples,
  )
  for length in lengths:
    if horizon % length:
      raise ValueError(
        f"horizon must be a multiple of all unroll_lengths, got horizon={horizon} and {length}"
      )
  if num_samples < 2:
    raise ValueError(f"num_samples must be at least 2 for a variance, got {num_samples}")
  report = on_progress or (lambda words: None)
  chosen = _find_methods(methods)
  many = {
    (name, length): make(length, horizon, meta_batch_size, sigma)
    for name, make in chosen.items()
    for length in lengths
  }
  full = {
    (name, horizon): METHODS[name](horizon, horizon, meta_batch_size, sigma) for name in BACKPROP
  }
  taken = [name for name in BACKPROP if chosen.get(name, METHODS[name]) is not METHODS[name]]
  if taken:
    raise ValueError(f"methods must not give other estimators the names {taken}")
  samplers: dict[tuple[str, int], Callable[..., Any]] = {}
  for place, estimator in {**full, **many}.items():
    report(f"compiling {place[0]}, unroll length {place[1]}")
    run = functools.partial(_episode, learned_optimizer, estimator, horizon // place[1])
    samplers[place] = jax.jit(run).lower(optimizee, meta_params, key).compile()
  report(f"{num_samples} episodes for each")
  samples = _take_turns(samplers, optimizee, meta_params, jax.random.split(key, num_samples))
  errors = {name: standard_error(samples[name, horizon]) for name in BACKPROP}
  trusted = [name for name in BACKPROP if errors[name] <= MAX_ERROR]
  best = trusted[0] if trusted else min(errors, key=lambda name: or_infinite(errors[name]))
  reference = samples[best, horizon]
  measurements = tuple(
    measure(*place, samples[place], reference, meta_batch_size) for place in many
  )
  report("looking for values that are not finite")
  nonfinite = find_nonfinite(
    optimizee,
    learned_optimizer,
    meta_params,
    num_steps=horizon,
    num_problems=meta_batch_size,
    key=key,
  )
  return Diagnosis(
    horizon,
    meta_batch_size,
    num_samples,
    best,
    float(np.linalg.norm(np.mean(reference.grads, axis=0))),
    errors[best],
    measurements,
    nonfinite,
    overtaken_at(measurements),
    recommend(measurements, nonfinite, best, errors[best]),
  )


def _find_methods(methods: Sequence[str] | Mapping[str, MakeEstimator]) -> dict[str, MakeEstimator]:
  if isinstance(methods, Mapping):
    return dict(methods)
  unknown = [name for name in methods if name not in METHODS]
  if unknown or not methods:
    raise ValueError(f"methods must be among {', '.join(METHODS)}, got {list(methods)}")
  return {name: METHODS[name] for name in methods}


def _episode(
  learned_optimizer: LearnedOptimizer,
  estimator: MetaGradientEstimator,
  num_truncations: int,
  optimizee: Optimizee,
  meta_params: chex.ArrayTree,
  key: chex.PRNGKey,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The mean estimate over an episode, the dropped problems of each truncation, and the norms."""
  state = estimator.init(optimizee, learned_optimizer, meta_params, key)

  def body(state, index):
    # The first truncation draws the problems: the same ones for all estimators.
    step_key = jax.random.fold_in(key, index)
    grads, state, info = estimator.estimate(
      optimizee, learned_optimizer, meta_params, state, step_key
    )
    return state, (ravel_pytree(grads)[0], info.num_diverged, info.meta_grad_norm)

  grads, num_diverged, norms = jax.lax.scan(body, state, jnp.arange(num_truncations))[1]
  return jnp.mean(grads, axis=0), jnp.mean(num_diverged), jnp.median(norms)


def _take_turns(
  samplers: Mapping[tuple[str, int], Callable[..., Any]],
  optimizee: Optimizee,
  meta_params: chex.ArrayTree,
  keys: chex.PRNGKey,
) -> dict[tuple[str, int], Samples]:
  """Episode by episode, so that a machine that slows down for a moment does so for all."""
  taken: dict[tuple[str, int], list[tuple[Any, ...]]] = {place: [] for place in samplers}
  for key in keys:
    for place, sampler in samplers.items():
      start = time.perf_counter()
      said = jax.device_get(sampler(optimizee, meta_params, key))
      taken[place].append((*said, time.perf_counter() - start))
  return {
    place: Samples(*(np.asarray(field, np.float64) for field in zip(*rows, strict=True)))
    for place, rows in taken.items()
  }
