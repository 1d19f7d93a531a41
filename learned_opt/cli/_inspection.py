"""What ``learned-opt inspect`` does: proposals and counterfactuals of one coordinate."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from learned_opt import _run_folder, baselines, inspect, runs
from learned_opt._curves import check_positive
from learned_opt._results import as_json
from learned_opt.base import Optimizee
from learned_opt.cli import _options, _report
from learned_opt.evaluate import Candidate
from learned_opt.plots import counterfactuals_figure, proposals_figure, trajectory_figure

# The steps of the paper's figure reach so far.
_STEPS = (1, 2, 4, 8, 16, 32)
_NUM_GRADIENTS = 61


class Inspection(NamedTuple):
  """What was found.

  Attributes:
    optimizee: what the problems are called.
    learning_rates: of the baselines.
    proposals: along the trajectory, of one coordinate.
    counterfactuals: of the same.
  """

  optimizee: str
  learning_rates: dict[str, float]
  proposals: inspect.Proposals
  counterfactuals: inspect.Counterfactuals

  def to_json(self) -> dict[str, Any]:
    """JSON values by the names of the fields; numbers that are not finite are None."""
    return as_json(self)


class Subject(NamedTuple):
  """What is looked at.

  Attributes:
    optimizee: the problems, one of which is optimized.
    tuning_optimizee: those for which the baselines are tuned.
    optimizee_name: what they are called.
    coordinate: its flat index.
    coordinate_name: where it is in the params.
    key: decides the problem.
    tuning_key: decides those of the tuning.
  """

  optimizee: Optimizee
  tuning_optimizee: Optimizee
  optimizee_name: str
  coordinate: int
  coordinate_name: str
  key: chex.PRNGKey
  tuning_key: chex.PRNGKey


def find_subject(options: Any) -> Subject:
  """Checks the options, and chooses the problem and the coordinate.

  Raises:
    ValueError: if an option is out of its range.
  """
  _check(options)
  splits = _options.optimizee_splits(options.optimizee_options)
  optimizee, coordinate = splits["test"], options.coordinate
  key, tuning_key = jax.random.split(runs.split_seed(options.seed)[1])
  if coordinate is None:
    (coordinate,) = inspect.draw_coordinates(optimizee, 1, key)
  (name,) = inspect.coordinate_names(optimizee, [coordinate]).values()
  problems = _options.optimizee_name(options.optimizee_options)
  return Subject(optimizee, splits["train"], problems, coordinate, name, key, tuning_key)


def inspect_optimizer(
  options: Any, subject: Subject, leader: Candidate, report: Callable[[str], None]
) -> Inspection:
  """Runs an optimizer on one problem, and asks baselines what they would do."""
  optimizee, coordinate, key = subject.optimizee, subject.coordinate, subject.key
  report(
    f"inspecting {leader.name} on {subject.optimizee_name}, {options.num_steps} steps, "
    f"coordinate {coordinate}: {subject.coordinate_name}"
  )
  rates = _learning_rates(options, subject, report)
  others = [Candidate(one.name, one.make, np.float32(rate)) for one, rate in rates]
  proposals = inspect.proposed_updates(
    optimizee, leader, others, num_steps=options.num_steps, coordinates=[coordinate], key=key
  )
  report("asking for other gradients")
  counterfactuals = inspect.counterfactual_updates(
    optimizee,
    leader,
    others,
    coordinate=coordinate,
    steps=options.steps or [step for step in _STEPS if step <= options.num_steps],
    gradients=_gradients(options.max_gradient, proposals.gradients),
    key=key,
    horizon=options.num_steps,
  )
  by_name = {baseline.name: rate for baseline, rate in rates}
  return Inspection(subject.optimizee_name, by_name, proposals, counterfactuals)


def _check(options: Any) -> None:
  """Raises `ValueError` for what would be found wrong only after the work has begun."""
  check_positive(num_steps=options.num_steps, num_tuning_problems=options.num_tuning_problems)
  steps, last = options.steps, options.num_steps
  if list(steps) != sorted(set(steps)) or not all(1 <= step <= last for step in steps):
    raise ValueError(f"steps must be increasing numbers between 1 and {last}, got {steps}")
  number, rates = len(baselines.find_baselines(options.baselines)), options.learning_rates
  if rates and (len(rates) != number or not all(0 < rate < math.inf for rate in rates)):
    raise ValueError(
      f"learning_rates must be {number} positive numbers, one a baseline, got {rates}"
    )
  if options.max_gradient is not None and not 0 < options.max_gradient < math.inf:
    raise ValueError(f"max_gradient must be positive and finite, got {options.max_gradient}")


def _learning_rates(
  options: Any, subject: Subject, report: Callable[[str], None]
) -> list[tuple[baselines.Baseline, float]]:
  """The baselines with the learning rates that were given, or tuned as in an evaluation."""

  def tune(baseline: baselines.Baseline) -> float:
    report(f"tuning {baseline.name}")
    return baselines.tune(
      subject.tuning_optimizee,
      baseline,
      num_steps=options.num_steps,
      num_problems=options.num_tuning_problems,
      key=subject.tuning_key,
    ).learning_rate

  chosen = baselines.find_baselines(options.baselines)
  return list(zip(chosen, options.learning_rates or map(tune, chosen), strict=True))


def _gradients(largest: float | None, true: np.ndarray) -> np.ndarray:
  """An even grid around zero, which is one of its points."""
  if largest is None:
    known = np.abs(true[np.isfinite(true)])
    largest = float(known.max(initial=0.0)) or 1.0
  return np.linspace(-largest, largest, _NUM_GRADIENTS)


def write(inspection: Inspection, out: pathlib.Path, *, plots: bool) -> None:
  """Writes what was found, and the figures of it."""
  _run_folder.write_json(out / _run_folder.INSPECTION, inspection.to_json())
  if plots:
    proposals_figure(inspection.proposals, out / _run_folder.PROPOSALS)
    counterfactuals_figure(inspection.counterfactuals, out / _run_folder.COUNTERFACTUALS)
    trajectory_figure(inspection.proposals, out / _run_folder.TRAJECTORY)


def print_inspection(inspection: Inspection) -> None:
  """Prints a line for each optimizer."""
  proposals = inspection.proposals
  leader, num_steps = next(iter(proposals.optimizers)), len(proposals.gradients)
  rows = [
    {
      "optimizer": name,
      "learning rate": inspection.learning_rates.get(name),
      "effective rate at 1": float(one.effective_rate[0]),
      f"at {num_steps}": float(one.effective_rate[-1]),
      "median": _median(one.effective_rate),
      "cosine to -g, median": _median(one.cosine),
      "|u|/|g|, median": _median(one.norm_ratio),
    }
    for name, one in proposals.optimizers.items()
  ]
  title = f"{inspection.optimizee}: proposed along {num_steps:,} steps of {leader}"
  _report.print_optimizers(title, rows)


def _median(values: np.ndarray) -> float:
  """Of the finite ones; NaN if there are none."""
  known = values[np.isfinite(values)]
  return float(np.median(known)) if known.size else math.nan
