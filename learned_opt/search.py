"""Random search: many meta-trainings, of which the best is chosen by validation.

How good a learned optimizer becomes depends on the outer learning rate and on the seed, and not
monotonically on either. A search owns a folder, which holds

* ``config.json``: the recipes of all trials;
* ``trials/0-rate-0.003-seed-0/``, ...: the run, or curriculum, of each trial; ``failed.json`` in it
  says why a trial came to nothing;
* ``search.json``: how good each trial is;
* ``optimizer/``, ``evaluation.json`` and ``learning_curves.png``: of the winner, as those of a run.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from learned_opt import _outcome, _recipe, _run_folder, artifacts, curriculum, runs
from learned_opt._arrays import Path
from learned_opt._outcome import Report
from learned_opt._recipe import Recipe
from learned_opt._scores import Score as Score
from learned_opt._scores import Spread as Spread
from learned_opt._scores import best_of, score_trials, spread_of, to_json
from learned_opt.artifacts import Artifact
from learned_opt.evaluate import Evaluation
from learned_opt.runs import Callback

# A recipe, or the stages of a curriculum.
Trial = Recipe | Sequence[Recipe]

_TRIALS = "trials"
_FAILED = "failed.json"


class Search(NamedTuple):
  """What became of the trials.

  Attributes:
    out: the folder of the search.
    scores: of the trials, in order; empty after Ctrl-C during the trials.
    winner: the score of the best trial; None after Ctrl-C.
    evaluation: of the winner beside the tuned baselines; None if it was not asked for, or did not
      come about.
    optimizer: the folder of the winner's optimizer; None after Ctrl-C during the trials.
    interrupted: whether Ctrl-C ended the search.
  """

  out: pathlib.Path
  scores: tuple[Score, ...]
  winner: Score | None
  evaluation: Evaluation | None
  optimizer: pathlib.Path | None
  interrupted: bool

  @property
  def files(self) -> tuple[pathlib.Path, ...]:
    """What the search has written, beside the trials' own."""
    return _run_folder.contents(self.out)

  @property
  def winners_folder(self) -> pathlib.Path | None:
    """The folder of the best trial: a run, or a curriculum; None after Ctrl-C."""
    return None if self.winner is None else self.out / _TRIALS / self.winner.name

  def spread(self) -> tuple[Spread, ...]:
    """The trials by outer learning rate, in ascending order."""
    return spread_of(self.scores)


def log_uniform(low: float, high: float, number: int, seed: int = 0) -> tuple[float, ...]:
  """Draws numbers whose logarithms are uniform, such as outer learning rates.

  Args:
    low: the least.
    high: the greatest.
    number: how many.
    seed: decides them.

  Returns:
    The numbers in ascending order, rounded to three digits, so that they can be typed.

  Raises:
    ValueError: if not 0 < low < high, or `number` is less than one.

  Example:
    >>> from learned_opt import search
    >>> search.log_uniform(1e-4, 1e-2, 3)
    (0.000121, 0.000346, 0.00188)
  """
  if not 0 < low < high < math.inf:
    raise ValueError(f"low and high must be positive, and low the lower, got {low} and {high}")
  if number < 1:
    raise ValueError(f"number must be at least 1, got {number}")
  drawn = np.exp(np.random.default_rng(seed).uniform(math.log(low), math.log(high), number))
  return tuple(float(f"{value:.3g}") for value in sorted(drawn))


def grid(
  recipe: Recipe, outer_learning_rates: Sequence[float], seeds: Sequence[int] = (0, 1, 2)
) -> tuple[Recipe, ...]:
  """The recipe at each learning rate with each seed.

  Args:
    recipe: all else.
    outer_learning_rates: of the outer optimizer; `log_uniform` draws some.
    seeds: of everything random in a trial.

  Returns:
    The trials, those of one learning rate together.

  Example:
    >>> from learned_opt import estimators, optimizees, optimizers, runs, search
    >>> recipe = runs.Recipe(
    ...   "lstm", optimizees.quadratic(), optimizers.lstm(), estimators.full_unroll(10), 1000
    ... )
    >>> trials = search.grid(recipe, (1e-3, 1e-2), seeds=(0, 1))
    >>> [(trial.outer_learning_rate, trial.seed) for trial in trials]
    [(0.001, 0), (0.001, 1), (0.01, 0), (0.01, 1)]
  """
  return tuple(
    dataclasses.replace(recipe, outer_learning_rate=rate, seed=seed)
    for rate in outer_learning_rates
    for seed in seeds
  )


def train(
  trials: Sequence[Trial],
  out: Path,
  *,
  num_problems: int = 128,
  resume: bool = False,
  callbacks: Sequence[Callback] = (),
  evaluate: bool = True,
  plots: bool = True,
  on_progress: Report | None = None,
) -> Search:
  """Meta-trains each trial, and keeps the one with the lowest loss on common validation problems.

  A trial's own validation problems come from its seed; they choose its best outer step. The trials
  are then compared on fresh ones, the same for all and no test problems: those of the first
  trial's `validation_optimizee`, for its steps of validation (of its last stage if it is a
  curriculum). A trial in which every problem diverges has failed; the search goes on.

  Source: Andrychowicz et al. (2016), section 3, which chooses the outer learning rate so.

  Args:
    trials: recipes, as `grid` makes them, or curricula: for example
      ``[curriculum.over_horizons(trial, ...) for trial in search.grid(...)]``.
    out: the folder of the search, which is made.
    num_problems: validation problems on which the trials are compared.
    resume: whether to continue the search of the same trials that `out` holds. The result is that
      of the uninterrupted one, bit for bit; trials that are done, or failed, are not repeated.
    callbacks: see `runs.train`.
    evaluate: whether to compare the winner with tuned baselines at the end, as its recipe says, on
      the problems of the first trial's seed.
    plots: whether to draw the figures, which needs matplotlib.
    on_progress: called with a few words before each part of the work.

  Returns:
    The search.

  Raises:
    ValueError: if there is no trial, `num_problems` is less than one, or as of `runs.train`.
    FloatingPointError: if no trial has a finite validation loss.
    FileExistsError, FileNotFoundError, TypeError, ImportError, OSError: as of `runs.train`.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt import estimators, optimizees, optimizers, runs, search
    >>> recipe = runs.Recipe(
    ...   name="lstm",
    ...   optimizee=optimizees.quadratic(dimension=2),
    ...   learned_optimizer=optimizers.lstm(hidden_size=4),
    ...   estimator=estimators.truncated_backprop(5, 5),
    ...   num_outer_steps=2,
    ...   validate_every=2,
    ...   num_validation_problems=2,
    ... )
    >>> out = pathlib.Path(tempfile.mkdtemp()) / "my-search"
    >>> trials = search.grid(recipe, (1e-3, 1e-2), seeds=(0,))
    >>> done = search.train(trials, out, num_problems=8, evaluate=False, plots=False)
    >>> done.winner.loss == min(score.loss for score in done.scores)
    True
  """
  named, out = _named(trials), pathlib.Path(out)
  if num_problems < 1:
    raise ValueError(f"num_problems must be at least 1, got {num_problems}")
  report = on_progress or (lambda words: None)
  if plots:
    runs.check_matplotlib()
  described = {name: _describe(trial) for name, trial in named.items()}
  _run_folder.begin(out, {"num_problems": num_problems, "trials": described}, resume=resume)
  for index, (name, trial) in enumerate(named.items()):
    report(f"trial {index + 1} of {len(named)}: {name}")
    if _train_trial(trial, out / _TRIALS / name, callbacks, plots, report):
      return Search(out, (), None, None, None, interrupted=True)
  report("validating the trials")
  found = {name: _artifact_or_error(out / _TRIALS / name) for name in named}
  stages = {name: _stages(trial) for name, trial in named.items()}
  first, *_ = stages.values()
  firsts = {name: one[0] for name, one in stages.items()}
  scores = score_trials(firsts, found, first[-1], num_problems)
  _run_folder.write_json(out / _run_folder.SEARCH, to_json(scores), indent=2)
  winner = best_of(scores)
  artifact = cast(Artifact, found[winner.name])
  # On the same test problems whoever wins.
  recipe = dataclasses.replace(stages[winner.name][-1], seed=first[0].seed)
  record = {**artifact.card["recipe"], "search": to_json(scores)}
  optimizer = _outcome.save(recipe, artifact.meta_params, record, out)
  result = Search(out, scores, winner, None, optimizer, interrupted=False)
  if not evaluate:
    return result
  evaluation = _outcome.judge(recipe, artifact.meta_params, record, out, plots, report)
  return result._replace(evaluation=evaluation, interrupted=evaluation is None)


def _stages(trial: Trial) -> tuple[Recipe, ...]:
  return (trial,) if isinstance(trial, Recipe) else tuple(trial)


def _named(trials: Sequence[Trial]) -> dict[str, Trial]:
  if not trials or not all(map(_stages, trials)):
    raise ValueError("trials must not be empty: give recipes, as grid does, or their sequences")
  firsts = [_stages(trial)[0] for trial in trials]
  return {
    f"{index}-rate-{first.outer_learning_rate:g}-seed-{first.seed}": trial
    for index, (first, trial) in enumerate(zip(firsts, trials, strict=True))
  }


def _describe(trial: Trial) -> dict[str, Any]:
  return _recipe.describe(trial) if isinstance(trial, Recipe) else curriculum.describe(trial)


def _train_trial(
  trial: Trial,
  folder: pathlib.Path,
  callbacks: Sequence[Callback],
  plots: bool,
  report: Report,
) -> bool:
  """Trains unless that is done or has failed; whether Ctrl-C ended it."""
  if (folder / _FAILED).exists():
    return False
  options: dict[str, Any] = {
    "resume": _run_folder.is_begun(folder),
    "callbacks": callbacks,
    "evaluate": False,
    "plots": plots,
    "on_progress": report,
  }
  try:
    if isinstance(trial, Recipe):
      return runs.train(trial, folder, **options).interrupted
    return curriculum.train(trial, folder, **options).interrupted
  except FloatingPointError as error:
    report(f"failed: {error}")
    _run_folder.write_json(folder / _FAILED, {"error": str(error)})
    return False


def _artifact_or_error(folder: pathlib.Path) -> Artifact | str:
  if (folder / _FAILED).exists():
    return _run_folder.read_json(folder / _FAILED, "the trial has failed")["error"]
  return artifacts.load_artifact(folder / _run_folder.OPTIMIZER)
