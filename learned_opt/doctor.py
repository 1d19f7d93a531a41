"""The doctor: which meta-gradient estimator suits a problem, and what is wrong where none does.

Every estimator gets the same problems and the same number of inner steps: one sample is the mean of
its estimates over an episode of `horizon` inner steps, which is an estimate of the gradient of the
mean loss over the episode. It is compared with that gradient itself, by backpropagation through the
whole episode: of second order if that can be told from its own noise, else of first order.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from learned_opt import estimators, meta_losses
from learned_opt._curves import check_is_optimizee, check_positive
from learned_opt._nonfinite import NonFinite as NonFinite
from learned_opt._nonfinite import find_nonfinite as find_nonfinite
from learned_opt._results import as_json
from learned_opt.base import LearnedOptimizer, MetaGradientEstimator, Optimizee

MakeEstimator = Callable[[int, int, int, float], MetaGradientEstimator]

# Of the samples of the slowest estimator that is compared, what a recommendation may spend.
_BUDGET = 100

# The largest relative standard error of a full gradient to compare with.
_MAX_ERROR = 0.5


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
# Through a whole episode they are the references, the better one first.
_BACKPROP = ("second_order_backprop", "truncated_backprop")


class Measurement(NamedTuple):
  """One estimator at one unroll length, in S samples; g is the full gradient.

  Attributes:
    estimator: its name.
    unroll_length: U.
    bias: |E estimate - g| / |g|, with what the samples' noise adds to it taken off.
    bias_error: the length of the standard error of E estimate - g over |g|: a smaller bias cannot
      be seen.
    variance: the trace of a sample's covariance over |g|^2.
    cosine: the mean cosine of the angle between a sample and g.
    seconds: wall-clock seconds of a sample, the median; all estimators took turns.
    diverged: the share of problems that were dropped as not finite.
    gradient_norm: the median norm of one estimate, over truncations and samples.
  """

  estimator: str
  unroll_length: int
  bias: float
  bias_error: float
  variance: float
  cosine: float
  seconds: float
  diverged: float
  gradient_norm: float

  def expected_error(self, seconds: float) -> float:
    """The squared error over |g|^2 of the mean of as many samples as fit into some seconds."""
    return self.bias**2 + self.variance * self.seconds / seconds


class Diagnosis(NamedTuple):
  """What the doctor found.

  Attributes:
    horizon: inner steps of an episode.
    meta_batch_size: problems side by side in one estimate.
    num_samples: S.
    reference: whose full gradient g is, a name in `METHODS`.
    full_gradient_norm: |g|.
    full_gradient_error: the length of the standard error of g over |g|.
    measurements: of each estimator at each unroll length.
    nonfinite: the share and the first place of values that are not finite along the unroll.
    overtaken_at: by estimator without derivatives, for each kind of backpropagation, the shortest
      unroll length at which that has the larger variance; None if there is none.
    recommendation: what to use, and why.
  """

  horizon: int
  meta_batch_size: int
  num_samples: int
  reference: str
  full_gradient_norm: float
  full_gradient_error: float
  measurements: tuple[Measurement, ...]
  nonfinite: NonFinite
  overtaken_at: dict[str, dict[str, int | None]]
  recommendation: str

  def to_json(self) -> dict[str, Any]:
    """JSON values by the names of the fields; numbers that are not finite are None."""
    return as_json(self)


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
    (name, horizon): METHODS[name](horizon, horizon, meta_batch_size, sigma) for name in _BACKPROP
  }
  taken = [name for name in _BACKPROP if chosen.get(name, METHODS[name]) is not METHODS[name]]
  if taken:
    raise ValueError(f"methods must not give other estimators the names {taken}")
  samplers: dict[tuple[str, int], Callable[..., Any]] = {}
  for place, estimator in {**full, **many}.items():
    report(f"compiling {place[0]}, unroll length {place[1]}")
    run = functools.partial(_episode, learned_optimizer, estimator, horizon // place[1])
    samplers[place] = jax.jit(run).lower(optimizee, meta_params, key).compile()
  report(f"{num_samples} episodes for each")
  samples = _take_turns(samplers, optimizee, meta_params, jax.random.split(key, num_samples))
  errors = {name: _standard_error(samples[name, horizon]) for name in _BACKPROP}
  trusted = [name for name in _BACKPROP if errors[name] <= _MAX_ERROR]
  best = trusted[0] if trusted else min(errors, key=lambda name: _or_infinite(errors[name]))
  reference = samples[best, horizon]
  measurements = tuple(
    _measure(*place, samples[place], reference, meta_batch_size) for place in many
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
    _overtaken_at(measurements),
    _recommend(measurements, nonfinite, errors[best]),
  )


class _Samples(NamedTuple):
  """S episodes: ``[S, P]`` gradients, ``[S]`` dropped problems, norms and seconds."""

  grads: np.ndarray
  num_diverged: np.ndarray
  norms: np.ndarray
  seconds: np.ndarray


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
) -> dict[tuple[str, int], _Samples]:
  """Episode by episode, so that a machine that slows down for a moment does so for all."""
  taken: dict[tuple[str, int], list[tuple[Any, ...]]] = {place: [] for place in samplers}
  for key in keys:
    for place, sampler in samplers.items():
      start = time.perf_counter()
      said = jax.device_get(sampler(optimizee, meta_params, key))
      taken[place].append((*said, time.perf_counter() - start))
  return {
    place: _Samples(*(np.asarray(field, np.float64) for field in zip(*rows, strict=True)))
    for place, rows in taken.items()
  }


def _standard_error(taken: _Samples) -> float:
  """Of the mean, relative to it."""
  spread = np.sum(np.var(taken.grads, axis=0, ddof=1)) / len(taken.grads)
  with np.errstate(divide="ignore", invalid="ignore"):
    return float(np.sqrt(spread) / np.linalg.norm(np.mean(taken.grads, axis=0)))


def _measure(
  name: str, unroll_length: int, taken: _Samples, reference: _Samples, meta_batch_size: int
) -> Measurement:
  full = np.mean(reference.grads, axis=0)
  scale, number = np.linalg.norm(full), len(taken.grads)
  # The same problems in both, whose differences cancel.
  errors = taken.grads - reference.grads
  error, spread = np.mean(errors, axis=0), np.var(errors, axis=0, ddof=1) / number
  squared = np.sum(error**2) - np.sum(spread)
  with np.errstate(divide="ignore", invalid="ignore"):
    norms = np.linalg.norm(taken.grads, axis=1)
    return Measurement(
      estimator=name,
      unroll_length=unroll_length,
      bias=float(np.sqrt(np.maximum(squared, 0.0)) / scale),
      bias_error=float(np.sqrt(np.sum(spread)) / scale),
      variance=float(np.sum(np.var(taken.grads, axis=0, ddof=1)) / scale**2),
      cosine=float(np.mean(taken.grads @ full / (norms * scale))),
      seconds=float(np.median(taken.seconds)),
      diverged=float(np.mean(taken.num_diverged) / meta_batch_size),
      gradient_norm=float(np.median(taken.norms)),
    )


def _overtaken_at(measurements: Sequence[Measurement]) -> dict[str, dict[str, int | None]]:
  variances = {(one.estimator, one.unroll_length): one.variance for one in measurements}
  names = dict.fromkeys(one.estimator for one in measurements)
  lengths = sorted({one.unroll_length for one in measurements})

  def first(backprop: str, other: str) -> int | None:
    larger = (n for n in lengths if not variances[backprop, n] < variances[other, n])
    return next(larger, None)

  return {
    other: {backprop: first(backprop, other) for backprop in _BACKPROP if backprop in names}
    for other in names
    if other not in (*_BACKPROP, "inverse_variance")
  }


def _recommend(
  measurements: Sequence[Measurement], nonfinite: NonFinite, reference_error: float
) -> str:
  """The least expected error of a mean over equal seconds, among those that drop no problem."""
  if nonfinite.share == 1:
    return f"none: no problem stays finite, beginning with {nonfinite.where}; mend that first"
  if not reference_error <= _MAX_ERROR:
    return (
      "none: no full gradient can be told from its own noise (relative standard error "
      f"{reference_error:.2g}); take more samples, more problems, or a shorter horizon"
    )
  sound = [one for one in measurements if one.diverged == 0] or list(measurements)
  seconds = _BUDGET * max(one.seconds for one in sound)
  ranked = sorted(sound, key=lambda one: _or_infinite(one.expected_error(seconds)))
  best, words = ranked[0], []
  words.append(
    f"{best.estimator} with unroll length {best.unroll_length}: in {seconds:.3g} seconds its mean "
    f"comes nearest to the full gradient (relative error {_root(best, seconds):.2g}: bias "
    f"{best.bias:.2g}, variance of a sample {best.variance:.2g}, {best.seconds:.2g} s each)"
  )
  others = [one for one in ranked if one.estimator != best.estimator]
  if others:
    words.append(
      f"next is {others[0].estimator} with {others[0].unroll_length} "
      f"({_root(others[0], seconds):.2g})"
    )
  if len(sound) < len(measurements):
    words.append("those that dropped problems as not finite are left out")
  if nonfinite.share:
    words.append(
      f"{nonfinite.share:.0%} of the problems have values that are not finite, beginning with "
      f"{nonfinite.where}"
    )
  return "; ".join(words)


def _root(one: Measurement, seconds: float) -> float:
  return math.sqrt(one.expected_error(seconds))


def _or_infinite(number: float) -> float:
  return number if math.isfinite(number) else math.inf
