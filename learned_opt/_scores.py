"""Comparing the trials of a search on the same validation problems."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from learned_opt import _card
from learned_opt._curves import learning_curves
from learned_opt._recipe import Recipe, split_seed
from learned_opt._statistics import count_as_infinite, mean_interval
from learned_opt.artifacts import Artifact
from learned_opt.families import Families, members

# Folded into the key of the evaluation, which is split in two for the evaluation itself.
_VALIDATION = 2


class Score(NamedTuple):
  """How good a trial is.

  Attributes:
    name: of the trial's folder.
    outer_learning_rate: of its recipe; of the first stage of a curriculum.
    seed: likewise.
    loss: the mean final loss on the validation problems that all trials share; infinite if a
      problem diverged, or the trial failed.
    low: lower bound of the 95 % bootstrap interval of that mean.
    high: its upper bound.
    best_step: the outer step at which the trial itself found it best; None if it failed.
    error: why it failed; None if it did not.
  """

  name: str
  outer_learning_rate: float
  seed: int
  loss: float
  low: float
  high: float
  best_step: int | None
  error: str | None


class Spread(NamedTuple):
  """How good the trials of one outer learning rate are.

  Attributes:
    outer_learning_rate: of them.
    num_trials: how many there are.
    num_failed: how many of them failed.
    best: the lowest loss.
    median: the median loss; that of a trial that failed is infinite.
    worst: the highest loss.
  """

  outer_learning_rate: float
  num_trials: int
  num_failed: int
  best: float
  median: float
  worst: float


def score_trials(
  firsts: Mapping[str, Recipe],
  found: Mapping[str, Artifact | str],
  common: Recipe,
  num_problems: int,
) -> tuple[Score, ...]:
  """Optimizes the same problems with the optimizer of each trial.

  Args:
    firsts: the recipe of each trial; of its first stage, if it has several.
    found: what came of each trial: its optimizer, or why it failed.
    common: whose validation problems and steps they are.
    num_problems: how many problems.
  """
  optimizee = common.validation_optimizee or common.optimizee
  num_steps = common.validation_steps or common.estimator.horizon
  first_seed = next(iter(firsts.values())).seed
  key = jax.random.fold_in(split_seed(first_seed)[1], _VALIDATION)
  keys = jax.random.split(key, num_problems)

  def score(name: str, recipe: Recipe) -> Score:
    outcome, rate = found[name], recipe.outer_learning_rate
    if isinstance(outcome, str):
      return Score(name, rate, recipe.seed, math.inf, math.inf, math.inf, None, outcome)
    make = recipe.learned_optimizer.optimizer
    curves = [
      learning_curves(member, make, outcome.meta_params, keys, num_steps).losses
      for member in members(optimizee)
    ]
    # As in the validation of a meta-training.
    if isinstance(optimizee, Families):
      curves = [losses / np.mean(losses[:, 0]) for losses in curves]
    interval = mean_interval(count_as_infinite(np.concatenate(curves)[:, -1]))
    mean, low, high = map(float, interval)
    return Score(
      name, rate, recipe.seed, mean, low, high, outcome.card["recipe"]["best_step"], None
    )

  return tuple(score(name, recipe) for name, recipe in firsts.items())


def best_of(scores: Sequence[Score]) -> Score:
  """The score with the lowest loss.

  Raises:
    FloatingPointError: if no loss is finite.
  """
  best = min(scores, key=lambda score: score.loss)
  if not math.isfinite(best.loss):
    errors = "; ".join(sorted({score.error for score in scores if score.error}))
    raise FloatingPointError(
      f"none of {len(scores)} trials has a finite validation loss{errors and ': ' + errors}"
    )
  return best


def spread_of(scores: Sequence[Score]) -> tuple[Spread, ...]:
  """By outer learning rate, in ascending order."""
  by_rate: dict[float, list[Score]] = {}
  for score in scores:
    by_rate.setdefault(score.outer_learning_rate, []).append(score)
  return tuple(_spread(rate, by_rate[rate]) for rate in sorted(by_rate))


def to_json(scores: Sequence[Score]) -> dict[str, Any]:
  """The scores and their spread as JSON values; what is infinite is None."""
  values = {
    "trials": [score._asdict() for score in scores],
    "by_outer_learning_rate": [spread._asdict() for spread in spread_of(scores)],
  }
  return _card.to_json(values, "scores")


def _spread(rate: float, scores: Sequence[Score]) -> Spread:
  losses = [score.loss for score in scores]
  num_failed = sum(score.error is not None for score in scores)
  return Spread(rate, len(scores), num_failed, min(losses), statistics.median(losses), max(losses))
