"""The outcome of a comparison of optimizers: statistics, a table's rows, JSON."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from learned_opt._costs import Cost
from learned_opt._curves import Curves
from learned_opt._statistics import Interval, count_as_infinite, mean_interval
from learned_opt.baselines import Tuned


class Result(NamedTuple):
  """How one optimizer did on the test problems.

  A loss that is not finite counts as +inf. One diverged problem therefore makes the mean and the
  upper bound infinite from there on, while the median goes on to describe the others.

  Attributes:
    learning_rate: the tuned one; None for a candidate.
    mean: ``[T + 1]``, the mean over problems of f(theta_0), ..., f(theta_T).
    median: ``[T + 1]``, over problems.
    low: ``[T + 1]``, lower bound of the 95 % bootstrap interval of the mean.
    high: ``[T + 1]``, its upper bound.
    sum: the mean over problems of f(theta_0) + ... + f(theta_{T-1}).
    num_diverged: problems with a loss that is not finite.
    metrics: the optimizee's metrics at theta_T, means with their intervals; NaN if the metric of
      any problem is not finite.
    cost: of one update.
    tuned: the search for the learning rate; None for a candidate, or if it is not on record.
  """

  learning_rate: float | None
  mean: np.ndarray
  median: np.ndarray
  low: np.ndarray
  high: np.ndarray
  sum: float
  num_diverged: int
  metrics: dict[str, Interval]
  cost: Cost
  tuned: Tuned | None


class Row(NamedTuple):
  """What a table shows of one optimizer.

  Attributes:
    name: of the optimizer.
    learning_rate: the tuned one; None for a candidate.
    losses: the mean loss at the chosen steps.
    low: lower bound of the 95 % interval at the last of them.
    high: its upper bound.
    sum: see `Result`.
    metrics: mean metrics at theta_T.
    seconds_per_step: see `Cost`.
    flops_per_step: see `Cost`.
    state_bytes: see `Cost`.
    num_diverged: see `Result`.
  """

  name: str
  learning_rate: float | None
  losses: tuple[float, ...]
  low: float
  high: float
  sum: float
  metrics: dict[str, float]
  seconds_per_step: float
  flops_per_step: float | None
  state_bytes: int
  num_diverged: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Optimizers compared on the same problems.

  Attributes:
    optimizee: what the problems are called.
    num_steps: T.
    num_problems: P.
    results: by name, candidates first, in the order in which they were given.
  """

  optimizee: str
  num_steps: int
  num_problems: int
  results: dict[str, Result]

  def rows(self, steps: Iterable[int] | None = None) -> list[Row]:
    """The rows of a table.

    Args:
      steps: where the mean loss is shown, between 0 and T; None means the last step alone.

    Returns:
      One row for each optimizer, in the order of `results`.

    Raises:
      ValueError: if a step is out of range, or there is none.
    """
    steps = (self.num_steps,) if steps is None else tuple(steps)
    if not steps or not all(0 <= step <= self.num_steps for step in steps):
      raise ValueError(f"steps must be between 0 and {self.num_steps}, got {steps}")
    return [_row(name, result, steps) for name, result in self.results.items()]

  def summary(self) -> dict[str, Any]:
    """What a card says of the evaluation: its last losses, without the curves.

    Returns:
      JSON values, ``{"optimizee", "num_steps", "num_problems", "rows"}``, with a dictionary for
      each optimizer; see `learned_opt.annotate`.
    """
    return {
      "optimizee": self.optimizee,
      "num_steps": self.num_steps,
      "num_problems": self.num_problems,
      "rows": [_summarize_row(row) for row in self.rows()],
    }

  def to_json(self) -> dict[str, Any]:
    """The evaluation as JSON values; numbers that are not finite or not known are None.

    Returns:
      ``{"optimizee", "num_steps", "num_problems", "results": {name: {"learning_rate", "mean",
      "median", "low", "high", "sum", "seconds_per_step", "flops_per_step", "state_bytes"}}}``, the
      curves as lists of T + 1 numbers. Results have ``"metrics"``, too, if the optimizee has:
      ``{metric: {"mean", "low", "high"}}``; and ``"num_diverged"`` if any problem has.
    """
    return {
      "optimizee": self.optimizee,
      "num_steps": self.num_steps,
      "num_problems": self.num_problems,
      "results": {name: _result_to_json(result) for name, result in self.results.items()},
    }


def _summarize_row(row: Row) -> dict[str, Any]:
  values = row._asdict()
  (final_loss,) = values.pop("losses")
  return {"name": values.pop("name"), "final_loss": final_loss, **values}


def summarize(curves: Curves, cost: Cost, tuned: Tuned | None) -> Result:
  """The statistics of one optimizer's learning curves.

  >>> import numpy as np
  >>> curves = Curves(np.array([[3.0, 1.0], [5.0, np.nan]]), {})
  >>> result = summarize(curves, Cost(1e-6, None, 0), None)
  >>> result.mean.tolist(), result.sum, result.num_diverged
  ([4.0, inf], 4.0, 1)
  """
  losses = count_as_infinite(curves.losses)
  interval = mean_interval(losses)
  return Result(
    learning_rate=None if tuned is None else tuned.learning_rate,
    mean=interval.mean,
    median=np.median(losses, axis=0),
    low=interval.low,
    high=interval.high,
    sum=float(losses[:, :-1].sum(axis=1).mean()),
    num_diverged=int(np.sum(~np.isfinite(losses).all(axis=1))),
    metrics={name: _metric_interval(values) for name, values in curves.metrics.items()},
    cost=cost,
    tuned=tuned,
  )


def _metric_interval(values: np.ndarray) -> Interval:
  # Whether a large metric is good or bad is not known: none stands for "diverged".
  if not np.isfinite(values).all():
    return Interval(*[np.array(np.nan)] * 3)
  return mean_interval(values)


def _row(name: str, result: Result, steps: tuple[int, ...]) -> Row:
  return Row(
    name=name,
    learning_rate=result.learning_rate,
    losses=tuple(float(result.mean[step]) for step in steps),
    low=float(result.low[steps[-1]]),
    high=float(result.high[steps[-1]]),
    sum=result.sum,
    metrics={metric: float(interval.mean) for metric, interval in result.metrics.items()},
    num_diverged=result.num_diverged,
    **result.cost._asdict(),
  )


def _result_to_json(result: Result) -> dict[str, Any]:
  json = {
    "learning_rate": result.learning_rate,
    "mean": result.mean,
    "median": result.median,
    "low": result.low,
    "high": result.high,
    "sum": result.sum,
    **result.cost._asdict(),
  }
  if result.num_diverged:
    json["num_diverged"] = result.num_diverged
  if result.metrics:
    json["metrics"] = result.metrics
  return as_json(json)


def evaluation_from_json(json: Mapping[str, Any]) -> Evaluation:
  """The evaluation that `Evaluation.to_json` has described, without the searches of the baselines.

  >>> import numpy as np
  >>> curves = Curves(np.array([[3.0, 1.0], [5.0, np.nan]]), {})
  >>> result = summarize(curves, Cost(1e-6, None, 0), None)
  >>> described = Evaluation("bowl", 1, 2, {"sgd": result}).to_json()
  >>> evaluation_from_json(described).results["sgd"].mean.tolist()
  [4.0, inf]
  """
  results = {name: _result_from_json(result) for name, result in json["results"].items()}
  return Evaluation(json["optimizee"], json["num_steps"], json["num_problems"], results)


def _result_from_json(json: Mapping[str, Any]) -> Result:
  curves = {name: _from_json(json[name], np.inf) for name in ("mean", "median", "low", "high")}
  metrics = {
    name: Interval(**{bound: _from_json(value, np.nan) for bound, value in interval.items()})
    for name, interval in json.get("metrics", {}).items()
  }
  return Result(
    learning_rate=json["learning_rate"],
    sum=float(_from_json(json["sum"], np.inf)),
    num_diverged=json.get("num_diverged", 0),
    metrics=metrics,
    cost=Cost(**{name: json[name] for name in Cost._fields}),
    tuned=None,
    **curves,
  )


def _from_json(value: Any, if_none: float) -> np.ndarray:
  """Numbers, of which those that JSON could not hold become `if_none`."""
  values = np.asarray(value, np.float64)
  return np.where(np.isnan(values), if_none, values)


def as_json(value: Any) -> Any:
  """Plain Python values, named tuples as objects; JSON knows neither NaN nor infinity.

  >>> import numpy as np
  >>> as_json({"a": np.array([1.0, np.nan]), "b": (2, None)})
  {'a': [1.0, None], 'b': [2, None]}
  """
  if hasattr(value, "_asdict"):
    value = value._asdict()
  if isinstance(value, dict):
    return {key: as_json(item) for key, item in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    return as_json(value.tolist())
  if isinstance(value, list | tuple):
    return [as_json(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
