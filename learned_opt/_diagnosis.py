"""What `learned_opt.doctor` makes of its samples: statistics, and a recommendation."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from learned_opt._nonfinite import NonFinite
from learned_opt._results import as_json

# Of the samples of the slowest estimator that is compared, what a recommendation may spend.
_BUDGET = 100

# The largest relative standard error of a full gradient to compare with.
MAX_ERROR = 0.5

# Through a whole episode they are the references, the better one first.
BACKPROP = ("second_order_backprop", "truncated_backprop")


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


class Samples(NamedTuple):
  """S episodes: ``[S, P]`` gradients, ``[S]`` dropped problems, norms and seconds."""

  grads: np.ndarray
  num_diverged: np.ndarray
  norms: np.ndarray
  seconds: np.ndarray


def standard_error(taken: Samples) -> float:
  """Of the mean, relative to it."""
  spread = np.sum(np.var(taken.grads, axis=0, ddof=1)) / len(taken.grads)
  with np.errstate(divide="ignore", invalid="ignore"):
    return float(np.sqrt(spread) / np.linalg.norm(np.mean(taken.grads, axis=0)))


def measure(
  name: str, unroll_length: int, taken: Samples, reference: Samples, meta_batch_size: int
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


def overtaken_at(measurements: Sequence[Measurement]) -> dict[str, dict[str, int | None]]:
  variances = {(one.estimator, one.unroll_length): one.variance for one in measurements}
  names = dict.fromkeys(one.estimator for one in measurements)
  lengths = sorted({one.unroll_length for one in measurements})

  def first(backprop: str, other: str) -> int | None:
    larger = (n for n in lengths if not variances[backprop, n] < variances[other, n])
    return next(larger, None)

  return {
    other: {backprop: first(backprop, other) for backprop in BACKPROP if backprop in names}
    for other in names
    if other not in (*BACKPROP, "inverse_variance")
  }


def recommend(
  measurements: Sequence[Measurement], nonfinite: NonFinite, reference: str, reference_error: float
) -> str:
  """The least expected error of a mean over equal seconds, among those that drop no problem."""
  if nonfinite.share == 1:
    return f"none: no problem stays finite, beginning with {nonfinite.where}; mend that first"
  if not reference_error <= MAX_ERROR:
    return (
      "none: no full gradient can be told from its own noise (relative standard error "
      f"{reference_error:.2g}); take more samples, more problems, or a shorter horizon"
    )
  sound = [one for one in measurements if one.diverged == 0] or list(measurements)
  seconds = _BUDGET * max(one.seconds for one in sound)
  ranked = sorted(sound, key=lambda one: or_infinite(one.expected_error(seconds)))
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
  if reference != BACKPROP[0]:
    words.append(
      f"the full gradient is that of {reference}, which has no bias here by definition: "
      f"{BACKPROP[0]} is too noisy to compare with"
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


def or_infinite(number: float) -> float:
  return number if math.isfinite(number) else math.inf
