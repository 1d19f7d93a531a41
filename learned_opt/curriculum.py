"""Curricula: stages of a meta-training, such as longer and longer horizons.

Each stage is a run of `learned_opt.runs` in a folder of its own, and starts from the best
meta-params of the one before (Chen et al. 2020). A curriculum owns a folder, which holds

* ``config.json``: the recipes of all stages;
* ``stage-0-100/``, ...: the runs, named by the horizon;
* ``curriculum.json``: how each stage ended;
* ``optimizer/``, ``evaluation.json`` and ``learning_curves.png``: as those of a run.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from learned_opt import _card, _outcome, _recipe, _run_folder, runs
from learned_opt._arrays import Path
from learned_opt._outcome import Report
from learned_opt._recipe import Recipe
from learned_opt.base import MetaGradientEstimator
from learned_opt.evaluate import Evaluation
from learned_opt.meta_train import MetaTrainResult
from learned_opt.runs import Callback, Run

# Between the seeds of two stages: large and odd, so that small seeds share none.
_SEED_STRIDE = 2_654_435_769


class Curriculum(NamedTuple):
  """What became of the stages.

  Attributes:
    out: the folder of the curriculum.
    stages: the runs of the stages that were begun, in order.
    evaluation: beside the tuned baselines; None if it was not asked for, or did not come about.
    optimizer: the folder of the saved optimizer; None if there is nothing to save.
    interrupted: whether Ctrl-C ended it.
  """

  out: pathlib.Path
  stages: tuple[Run, ...]
  evaluation: Evaluation | None
  optimizer: pathlib.Path | None
  interrupted: bool

  @property
  def training(self) -> MetaTrainResult:
    """That of the last stage; its meta-params are the best."""
    return self.stages[-1].training

  @property
  def files(self) -> tuple[pathlib.Path, ...]:
    """What the curriculum has written, beside the stages' own."""
    return _run_folder.contents(self.out)


def over_horizons(
  recipe: Recipe,
  make_estimator: Callable[[int], MetaGradientEstimator],
  horizons: Sequence[int],
) -> tuple[Recipe, ...]:
  """The stages of a curriculum that trains at one horizon and validates at the next.

  Every stage draws problems of its own.

  Source: Chen et al. (2020), with the horizons 100, 200, 500, 1000, 1500, ..., 3000.

  Args:
    recipe: of each stage but for the estimator, the steps of validation and the seed; its patience
      decides when a stage ends (`train`), and theirs is 3 validations.
    make_estimator: ``horizon -> estimator``, such as
      ``lambda horizon: estimators.truncated_backprop(20, horizon)``.
    horizons: ascending; the last one is that of the last validation only.

  Returns:
    A recipe for each horizon but the last.

  Raises:
    ValueError: if there are less than two horizons, they do not ascend, or an estimator has another
      horizon than it was made for.

  Example:
    >>> from learned_opt import curriculum, estimators, optimizees, optimizers, runs
    >>> recipe = runs.Recipe(
    ...   name="lstm",
    ...   optimizee=optimizees.quadratic(),
    ...   learned_optimizer=optimizers.lstm(),
    ...   estimator=estimators.truncated_backprop(20, 100),
    ...   num_outer_steps=10_000,
    ...   patience=3,
    ... )
    >>> stages = curriculum.over_horizons(
    ...   recipe, lambda horizon: estimators.truncated_backprop(20, horizon), (100, 200, 500)
    ... )
    >>> [(stage.estimator.horizon, stage.validation_steps) for stage in stages]
    [(100, 200), (200, 500)]
  """
  if len(horizons) < 2 or list(horizons) != sorted(set(horizons)):
    raise ValueError(f"horizons must be at least two, in ascending order, got {tuple(horizons)}")

  def stage(index: int, horizon: int, validation_steps: int) -> Recipe:
    estimator = make_estimator(horizon)
    if estimator.horizon != horizon:
      raise ValueError(f"make_estimator({horizon}) gave one with the horizon {estimator.horizon}")
    return dataclasses.replace(
      recipe,
      estimator=estimator,
      validation_steps=validation_steps,
      seed=(recipe.seed + index * _SEED_STRIDE) % 2**32,
    )

  return tuple(stage(index, *pair) for index, pair in enumerate(itertools.pairwise(horizons)))


def train(
  stages: Sequence[Recipe],
  out: Path,
  *,
  resume: bool = False,
  callbacks: Sequence[Callback] = (),
  evaluate: bool = True,
  plots: bool = True,
  on_progress: Report | None = None,
) -> Curriculum:
  """Meta-trains stage by stage, each from the best meta-params of the one before.

  A stage ends as its run does: after its outer steps, or after `Recipe.patience` validations
  without a better one. The first validation of a stage is that of the meta-params it starts from.
  If none was better, the curriculum ends there, else the next stage begins (Chen et al. 2020).
  Each stage has a new outer optimizer.

  Args:
    stages: the recipes, of one architecture; `over_horizons` makes them.
    out: the folder of the curriculum, which is made.
    resume: whether to continue the curriculum of the same recipes that `out` holds. The result is
      that of the uninterrupted one, bit for bit; stages that are done are not repeated.
    callbacks: see `runs.train`.
    evaluate: whether to compare with tuned baselines at the end, as the last recipe says, on the
      problems of the first one's seed.
    plots: whether to draw the figures, which needs matplotlib.
    on_progress: called with a few words before each part of the work.

  Returns:
    The curriculum.

  Raises:
    ValueError: if there is no stage, their architectures differ, a later one has initial
      meta-params, or as of `runs.train`.
    FileExistsError, FileNotFoundError, TypeError, ImportError, OSError, FloatingPointError: as of
      `runs.train`; the best of the stages that are done is saved.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt import curriculum, estimators, optimizees, optimizers, runs
    >>> recipe = runs.Recipe(
    ...   name="lstm",
    ...   optimizee=optimizees.quadratic(dimension=2),
    ...   learned_optimizer=optimizers.lstm(hidden_size=4),
    ...   estimator=estimators.truncated_backprop(5, 5),
    ...   num_outer_steps=4,
    ...   validate_every=2,
    ...   num_validation_problems=2,
    ... )
    >>> stages = curriculum.over_horizons(
    ...   recipe, lambda horizon: estimators.truncated_backprop(5, horizon), (5, 10)
    ... )
    >>> out = pathlib.Path(tempfile.mkdtemp()) / "my-curriculum"
    >>> done = curriculum.train(stages, out, evaluate=False, plots=False)
    >>> [stage.out.name for stage in done.stages], done.optimizer.name
    (['stage-0-5'], 'optimizer')
  """
  stages, out = tuple(stages), pathlib.Path(out)
  _check_stages(stages)
  report = on_progress or (lambda words: None)
  if plots:
    runs.check_matplotlib()
  _run_folder.begin(out, describe(stages), resume=resume)
  done: dict[str, Run] = {}
  optimizer, record = None, {}
  for name, stage in _named(stages).items():
    report(f"stage {len(done) + 1} of {len(stages)}: horizon {stage.estimator.horizon}")
    recipe = stage
    if done:
      *_, former = done.values()
      recipe = dataclasses.replace(stage, initial_meta_params=former.training.meta_params)
    done[name] = run = runs.train(
      recipe,
      out / name,
      resume=_run_folder.is_begun(out / name),
      callbacks=callbacks,
      evaluate=False,
      plots=plots,
      on_progress=report,
    )
    if run.optimizer is not None:
      record = _record(recipe, done)
      optimizer = _outcome.save(recipe, run.training.meta_params, record, out)
      _run_folder.write_json(out / _run_folder.CURRICULUM, record["stages"], indent=2)
    if run.interrupted or run.training.best_step == 0:
      break
  *_, last = done.values()
  result = Curriculum(out, tuple(done.values()), None, optimizer, last.interrupted)
  if result.interrupted or not evaluate:
    return result
  evaluation = _outcome.judge(
    evaluation_recipe(stages), last.training.meta_params, record, out, plots, report
  )
  return result._replace(evaluation=evaluation, interrupted=evaluation is None)


def describe(stages: Sequence[Recipe]) -> dict[str, Any]:
  """The stages as JSON values, by the names of their folders.

  Example:
    >>> from learned_opt import curriculum, estimators, optimizees, optimizers, runs
    >>> recipe = runs.Recipe(
    ...   "lstm", optimizees.quadratic(), optimizers.lstm(), estimators.full_unroll(10), 1000
    ... )
    >>> list(curriculum.describe([recipe])["stages"])
    ['stage-0-10']
  """
  return {"stages": {name: _recipe.describe(one) for name, one in _named(stages).items()}}


def evaluation_recipe(stages: Sequence[Recipe]) -> Recipe:
  """What the evaluation of a curriculum follows: the last recipe, at the first one's seed.

  Example:
    >>> from learned_opt import curriculum, estimators, optimizees, optimizers, runs
    >>> recipe = runs.Recipe(
    ...   "lstm", optimizees.quadratic(), optimizers.lstm(), estimators.full_unroll(10), 1000
    ... )
    >>> stages = curriculum.over_horizons(recipe, estimators.full_unroll, (10, 20, 50))
    >>> chosen = curriculum.evaluation_recipe(stages)
    >>> chosen.estimator.horizon, chosen.seed
    (20, 0)
  """
  return dataclasses.replace(stages[-1], seed=stages[0].seed)


def _named(stages: Sequence[Recipe]) -> dict[str, Recipe]:
  return {f"stage-{index}-{one.estimator.horizon}": one for index, one in enumerate(stages)}


def _record(recipe: Recipe, done: Mapping[str, Run]) -> dict[str, Any]:
  """What the card says of how the meta-params were made: the last stage, and an outline of all."""
  *_, last = done.values()
  outline = {name: _outline(run) for name, run in done.items()}
  record = {**_recipe.describe(recipe), **_outcome.of_training(last.training.state)}
  return _card.to_json({**record, "stages": outline}, "recipe")


def _outline(run: Run) -> dict[str, Any]:
  training = run.training
  history = training.history
  return {
    "first_validation_loss": history.validation_loss[0] if history.validation_loss else None,
    "best_validation_loss": training.best_loss,
    "best_step": training.best_step,
    "outer_steps_taken": int(training.state.outer_step),
    "stopped": training.stopped,
  }


def _check_stages(stages: tuple[Recipe, ...]) -> None:
  if not stages:
    raise ValueError("stages must not be empty: give a recipe for each, as over_horizons does")
  for index, stage in enumerate(stages[1:], start=1):
    if stage.learned_optimizer.config != stages[0].learned_optimizer.config:
      raise ValueError(f"stages[{index}] has another architecture than stages[0]")
    if stage.initial_meta_params is not None:
      raise ValueError(
        f"stages[{index}] has initial_meta_params, but starts from the best of the stage before"
      )
