"""What the suite says of an optimizer: task by task, and as a whole."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from learned_opt._costs import Cost
from learned_opt._results import as_json
from learned_opt._statistics import count_as_infinite
from learned_opt.benchmark_suite._running import at_least_solved

# Resamples of the bootstrap.
_RESAMPLES = 2000


class Aggregate(NamedTuple):
  """An interquartile mean over all tasks and problems, with its 95 % bootstrap interval."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class TaskResult:
  """An optimizer on one task.

  Attributes:
    name: of the task.
    differs: from the usual problems of training.
    steps: ``[W + 1]``, where the curves are: 0 and the ends of the windows.
    curves: ``[P, W + 1]``, the losses of each problem.
    baselines: those of each baseline on the same problems.
    learning_rates: the tuned one of each baseline.
    cost: of one update.
    adam_cost: of one update of Adam.
    note: what is to be known of the comparison; empty if there is nothing.
  """

  name: str
  differs: str
  steps: np.ndarray
  curves: np.ndarray
  baselines: dict[str, np.ndarray]
  learning_rates: dict[str, float]
  cost: Cost
  adam_cost: Cost
  note: str = ""

  @property
  def num_failed(self) -> int:
    """Problems with a loss that is not finite, or that end above where they began."""
    return int(np.sum(_failed(self.curves)))

  @property
  def final_loss(self) -> float:
    """The mean over problems of the loss in the last window; infinite if one diverged."""
    return float(np.mean(count_as_infinite(self.curves)[:, -1]))

  def best_baseline(self) -> str:
    """The baseline with the lowest mean final loss; the fastest, if several solve the task."""

    def rank(baseline: str) -> tuple[float, float]:
      curves = at_least_solved(self.baselines[baseline])
      return float(np.mean(curves[:, -1])), float(np.mean(curves))

    return min(self.baselines, key=rank)

  def baseline_loss(self, baseline: str) -> float:
    """The mean final loss of a baseline."""
    return float(np.mean(count_as_infinite(self.baselines[baseline])[:, -1]))

  def speed_ups(self, baseline: str) -> np.ndarray:
    """``[P]``, how many times as fast as a baseline; see `speed_up` and `at_least_solved`."""
    curves = at_least_solved(self.curves), at_least_solved(self.baselines[baseline])
    return np.array([speed_up(*pair, self.steps) for pair in zip(*curves, strict=True)])

  def loss_ratios(self, baseline: str) -> np.ndarray:
    """``[P]``, the final loss of a baseline over ours, likewise; zero where ours is not finite."""
    ours = at_least_solved(self.curves)[:, -1]
    theirs = at_least_solved(self.baselines[baseline])[:, -1]
    return np.where(np.isfinite(ours), theirs / ours, 0.0)


@dataclasses.dataclass(frozen=True)
class Report:
  """An optimizer on the suite.

  Attributes:
    name: of the optimizer.
    size: of the suite.
    results: one a task.
    skipped: the tasks that were not run, by name, with the reason.
  """

  name: str
  size: str
  results: tuple[TaskResult, ...]
  skipped: dict[str, str]

  @property
  def num_failed(self) -> int:
    """Problems that failed, over all tasks."""
    return sum(result.num_failed for result in self.results)

  def baselines(self) -> tuple[str, ...]:
    """The baselines that all tasks have."""
    first, *rest = self.results
    return tuple(b for b in first.baselines if all(b in result.baselines for result in rest))

  def speed_up(self, baseline: str | None = None) -> Aggregate:
    """The interquartile mean speed-up over a baseline; None for the best baseline of each task."""
    return aggregate([one.speed_ups(baseline or one.best_baseline()) for one in self.results])

  def loss_ratio(self, baseline: str | None = None) -> Aggregate:
    """The interquartile mean of a baseline's final losses over ours, likewise."""
    return aggregate([one.loss_ratios(baseline or one.best_baseline()) for one in self.results])

  def to_json(self) -> dict[str, Any]:
    """The report as JSON values; numbers that are not finite are None.

    Example:
      >>> from learned_opt.benchmark_suite import Report
      >>> Report("mine", "cpu", (), {"conv": "no data"}).to_json()["skipped"]
      {'conv': 'no data'}
    """
    names = self.baselines() if self.results else ()
    aggregates = {
      name or "best": {
        "speed_up": self.speed_up(name),
        "loss_ratio": self.loss_ratio(name),
      }
      for name in (*names, *([None] if names else []))
    }
    return as_json(
      {
        "name": self.name,
        "size": self.size,
        "num_failed": self.num_failed,
        "against": aggregates,
        "tasks": {one.name: _task_to_json(one) for one in self.results},
        "skipped": self.skipped,
      }
    )


def speed_up(ours: np.ndarray, theirs: np.ndarray, steps: np.ndarray) -> float:
  """How many times as fast we are: the steps they take to a loss over the steps we take to it.

  The loss is the higher one of the two final losses, and the steps are those from which on a curve
  stays there: it takes long to a loss around which it fluctuates, and is as fast as itself. A
  baseline whose rate falls to zero at the horizon gets to its losses late: against such ones,
  speed-ups below one are optimistic. No difference is made within the first window, and there is no
  credit if a loss of ours is not finite or ours ends above where it began.

  Args:
    ours: ``[W + 1]`` losses.
    theirs: likewise.
    steps: ``[W + 1]``, starting with 0.

  Returns:
    The ratio, at most the number of windows; 0 for a failure.

  Example:
    >>> import numpy as np
    >>> from learned_opt.benchmark_suite._report import speed_up
    >>> steps, theirs = np.array([0, 10, 20]), np.array([5.0, 3.0, 2.0])
    >>> speed_up(np.array([5.0, 2.0, 1.0]), theirs, steps)
    2.0
    >>> speed_up(np.array([5.0, 4.5, 3.0]), theirs, steps)
    0.5
  """
  if _failed(ours):
    return 0.0
  if not np.isfinite(theirs).all():
    return float(steps[-1] / steps[1])
  level = max(ours[-1], theirs[-1])
  ours_at, theirs_at = (max(_settles(c, level, steps), steps[1]) for c in (ours, theirs))
  return float(theirs_at / ours_at)


def aggregate(values: list[np.ndarray], seed: int = 0) -> Aggregate:
  """The interquartile mean, and its 95 % interval by a bootstrap of the problems of each task.

  As recommended by Agarwal et al. (2021), "Deep reinforcement learning at the edge of the
  statistical precipice": the mean of the middle half of all tasks' problems.

  Args:
    values: ``[P]`` for each task.
    seed: decides the resamples.

  Returns:
    The mean and its bounds; NaN without tasks.

  Example:
    >>> import numpy as np
    >>> from learned_opt.benchmark_suite._report import aggregate
    >>> aggregate([np.array([1.0, 2.0]), np.array([3.0, 400.0])]).value
    2.5
  """
  if not values:
    return Aggregate(*[float("nan")] * 3)
  rng = np.random.default_rng(seed)
  resampled = np.concatenate(
    [one[rng.integers(len(one), size=(_RESAMPLES, len(one)))] for one in values], axis=1
  )
  low, high = np.quantile(_interquartile_mean(resampled), [0.025, 0.975])
  return Aggregate(
    float(_interquartile_mean(np.concatenate(values)[None])[0]), float(low), float(high)
  )


def _interquartile_mean(values: np.ndarray) -> np.ndarray:
  """Over the last axis, without the lowest and the highest quarter, rounded down."""
  number = values.shape[-1]
  cut = number // 4
  return np.sort(values, axis=-1)[..., cut : number - cut].mean(axis=-1)


def _failed(curves: np.ndarray) -> np.ndarray:
  """Over the last axis: whether a loss is not finite, or the last is above the first."""
  finite = np.isfinite(curves).all(axis=-1)
  return ~finite | (count_as_infinite(curves)[..., -1] > count_as_infinite(curves)[..., 0])


def _settles(curve: np.ndarray, level: float, steps: np.ndarray) -> float:
  """The step from which a curve is at a level or below, between points along a line."""
  above = np.flatnonzero(curve > level)
  if not above.size:
    return 0.0
  index = above[-1]
  part = (curve[index] - level) / (curve[index] - curve[index + 1])
  return float(steps[index] + part * np.diff(steps)[index])


def _task_to_json(one: TaskResult) -> dict[str, Any]:
  return {
    "differs": one.differs,
    "num_steps": int(one.steps[-1]),
    "final_loss": one.final_loss,
    "num_failed": one.num_failed,
    "best_baseline": one.best_baseline(),
    "cost": one.cost,
    "adam_cost": one.adam_cost,
    "note": one.note,
    "steps": one.steps,
    "curve": count_as_infinite(one.curves).mean(axis=0),
    "baselines": {
      name: {
        "learning_rate": one.learning_rates[name],
        "final_loss": one.baseline_loss(name),
        "speed_up": float(np.mean(one.speed_ups(name))),
        "curve": curves.mean(axis=0),
      }
      for name, curves in one.baselines.items()
    },
  }
