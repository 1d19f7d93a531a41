"""Comparisons: finished optimizers side by side, also on problems that they were not trained on.

A comparison owns a folder, which holds

* ``config.json``: what was compared, the optimizers by the sha256 of their weights;
* ``evaluation.json`` and ``learning_curves.png``: the outcome, beside tuned baselines.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from learned_opt import _card, _run_folder, artifacts, runs
from learned_opt._arrays import Path
from learned_opt.base import Optimizee
from learned_opt.baselines import BASELINES, Objective
from learned_opt.evaluate import Candidate, Evaluation, evaluate
from learned_opt.plots import Published


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """Problems on which optimizers are compared, and how.

  Attributes:
    name: of its folder.
    optimizee: the test problems.
    num_steps: T, the updates applied to each problem.
    optimizee_name: what tables and plots call the problems; None means the name.
    tuning_optimizee: the problems on which the baselines are tuned; None means `optimizee`.
    num_problems: test problems.
    num_tuning_problems: problems on which each baseline is tuned.
    baselines: names in `learned_opt.baselines.BASELINES`.
    objective: what the baselines are tuned for, ``"final"``, ``"late"`` or ``"sum"``.
    seed: decides test and tuning problems. They are not those of a run with the same seed's
      training, but those of its evaluation.
    description: what the problems are, and whatever else should be on record; JSON values.
    published: curves of others for the figure, by name, as pairs ``(steps, losses)``.

  Example:
    >>> from learned_opt import optimizees
    >>> from learned_opt.comparisons import Comparison
    >>> Comparison("quadratic", optimizees.quadratic(), num_steps=100).num_problems
    128
  """

  name: str
  optimizee: Optimizee
  num_steps: int
  optimizee_name: str | None = None
  tuning_optimizee: Optimizee | None = None
  num_problems: int = 128
  num_tuning_problems: int = 32
  baselines: tuple[str, ...] = tuple(BASELINES)
  objective: Objective = "final"
  seed: int = 0
  description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  published: Published = dataclasses.field(default_factory=dict)


def compare(
  comparison: Comparison,
  optimizers: Mapping[str, Path],
  out: Path,
  *,
  resume: bool = False,
  plots: bool = True,
  on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
  """Compares saved optimizers with one another and with tuned baselines.

  Args:
    comparison: on which problems.
    optimizers: names or folders of saved optimizers, as for `learned_opt.load`, by the names that
      tables and plots show.
    out: the folder under which that of the comparison is made.
    resume: whether to take the outcome from the folder if it is there already, and else to begin
      anew what was interrupted. Optimizers that it does not have yet are added to it; only these
      are run then, and their seconds a step are not measured side by side with those of the others.
    plots: whether to draw the figure, which needs matplotlib.
    on_progress: called with a few words before each part of the work.

  Returns:
    The evaluation.

  Raises:
    FileExistsError: if the folder is there, is not empty, and not `resume`.
    ValueError: if it holds another comparison, or one of optimizers of which some are not given or
      have other weights now, or as of `learned_opt.evaluate.evaluate`.
    FileNotFoundError: if there is no such optimizer.
    ImportError: if matplotlib is missing and `plots`.

  Example:
    >>> import tempfile
    >>> from learned_opt import optimizees
    >>> from learned_opt.comparisons import Comparison, compare
    >>> small = Comparison(
    ...   "small", optimizees.quadratic(dimension=2), num_steps=5, num_problems=2, baselines=()
    ... )
    >>> evaluation = compare(small, {"lstm": "lstm-quadratic"}, tempfile.mkdtemp(), plots=False)
    >>> evaluation.results["lstm"].mean.shape
    (6,)
  """
  if plots:
    runs.check_matplotlib()
  folder = pathlib.Path(out) / comparison.name
  if repeated := sorted(set(optimizers) & set(comparison.baselines)):
    raise ValueError(f"optimizers must not be called as baselines are, got {repeated}")
  loaded = {name: artifacts.load_artifact(path) for name, path in optimizers.items()}
  config = _describe(comparison, loaded)
  if resume and _run_folder.is_begun(folder):
    _run_folder.reopen(folder, config, may_have_more="optimizers")
  else:
    _run_folder.begin(folder, config, resume=False)
  evaluation = _run_folder.read_evaluation(folder)
  if evaluation is None:
    evaluation = _evaluate(comparison, loaded, comparison.baselines, on_progress)
  elif added := {name: one for name, one in loaded.items() if name not in evaluation.results}:
    results = {**evaluation.results, **_evaluate(comparison, added, (), on_progress).results}
    in_order = {name: results[name] for name in (*loaded, *comparison.baselines)}
    evaluation = dataclasses.replace(evaluation, results=in_order)
  _run_folder.write_evaluation(evaluation, folder, plots=plots, published=comparison.published)
  return evaluation


def _evaluate(
  comparison: Comparison,
  optimizers: Mapping[str, artifacts.Artifact],
  baselines: tuple[str, ...],
  on_progress: Callable[[str], None] | None,
) -> Evaluation:
  candidates = [
    Candidate.from_learned(name, one.learned_optimizer, one.meta_params)
    for name, one in optimizers.items()
  ]
  return evaluate(
    comparison.optimizee,
    candidates,
    num_steps=comparison.num_steps,
    num_problems=comparison.num_problems,
    key=runs.split_seed(comparison.seed)[1],
    baselines=baselines,
    tuning_optimizee=comparison.tuning_optimizee,
    num_tuning_problems=comparison.num_tuning_problems,
    objective=comparison.objective,
    optimizee_name=comparison.optimizee_name or comparison.name,
    on_progress=on_progress,
  )


def _describe(
  comparison: Comparison, optimizers: Mapping[str, artifacts.Artifact]
) -> dict[str, Any]:
  """What decides the outcome, as JSON values."""
  parts = {"optimizee", "tuning_optimizee", "published"}
  values = {
    field.name: getattr(comparison, field.name)
    for field in dataclasses.fields(comparison)
    if field.name not in parts
  }
  values["optimizers"] = {
    name: one.card["meta_params"]["sha256"] for name, one in optimizers.items()
  }
  return _card.to_json(values, "comparison")
