"""Runs: a learned optimizer from its recipe to the saved artifact, its evaluation and plots.

What the command line and the experiments share. A run owns a folder, which holds

* ``config.json``: what the run was told to do, and nothing that it found;
* ``history.json`` and ``checkpoint.npz``: written at each validation, from which it continues;
* ``optimizer/``: the artifact of the best meta-params so far, for `learned_opt.load`;
* ``evaluation.json`` and ``learning_curves.png``: the comparison with tuned baselines;
* ``meta_training.png``: the losses over the outer steps.

What `evaluate` adds for another number of steps has that number in its name.

Each file is there as a whole or not at all, whenever the run is killed.
"""

import contextlib
import importlib.util
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from learned_opt import _recipe, _run_folder, artifacts, meta_train
from learned_opt._arrays import Path
from learned_opt._recipe import Recipe as Recipe
from learned_opt.base import Optimizee
from learned_opt.evaluate import Candidate, Evaluation, Row
from learned_opt.evaluate import evaluate as evaluate_candidates
from learned_opt.meta_train import MetaTrainResult, MetaTrainState, Progress
from learned_opt.plots import meta_training_figure

Callback = Callable[[Progress], None]
Report = Callable[[str], None]


class Run(NamedTuple):
  """What became of a recipe.

  Attributes:
    out: the folder of the run.
    training: of the learned optimizer.
    evaluation: beside the tuned baselines; None if it was not asked for, or did not come about.
    optimizer: the folder of the saved optimizer; None if there is nothing to save, as not one
      dispatch was finished.
    interrupted: whether Ctrl-C ended the run, during the training or the evaluation.
  """

  out: pathlib.Path
  training: MetaTrainResult
  evaluation: Evaluation | None
  optimizer: pathlib.Path | None
  interrupted: bool

  @property
  def files(self) -> tuple[pathlib.Path, ...]:
    """What the run has written, in order."""
    return _run_folder.contents(self.out)


def train(
  recipe: Recipe,
  out: Path,
  *,
  resume: bool = False,
  callbacks: Sequence[Callback] = (),
  evaluate: bool = True,
  plots: bool = True,
  on_progress: Report | None = None,
) -> Run:
  """Meta-trains, saves, evaluates and plots.

  At each validation the state goes to the disk, and the optimizer as well if it is the best so
  far. Ctrl-C ends the training after the dispatch that is running, a second one at once; the best
  so far is kept, and not evaluated. It acts so in Python's main thread only.

  Args:
    recipe: what to do.
    out: the folder of the run, which is made.
    resume: whether to continue the run of the same recipe that `out` holds, from its last
      validation. The result is that of the uninterrupted run, bit for bit.
    callbacks: called with a `meta_train.Progress` after each dispatch, when the checkpoint is
      written.
    evaluate: whether to compare with tuned baselines at the end.
    plots: whether to draw the figures, which needs matplotlib.
    on_progress: called with a few words before each part of the work.

  Returns:
    The run.

  Raises:
    FileExistsError: if `out` exists, is not empty, and not `resume`.
    FileNotFoundError: if there is no run to resume.
    ValueError: if the recipe differs from that of the run to resume, its architecture cannot be
      saved, or as of `meta_train.run`.
    TypeError: if the recipe's description is not made of JSON values.
    ImportError: if matplotlib is missing and `plots`.
    OSError: if `out` cannot be written, which shows before the training.
    FloatingPointError: as of `meta_train.run` and `evaluate`; the best so far is saved.

  Example:
    >>> import pathlib, tempfile
    >>> import learned_opt
    >>> from learned_opt import estimators, optimizees, optimizers, runs
    >>> recipe = runs.Recipe(
    ...   name="lstm",
    ...   optimizee=optimizees.quadratic(dimension=2),
    ...   learned_optimizer=optimizers.lstm(hidden_size=4),
    ...   estimator=estimators.truncated_backprop(5, 10),
    ...   num_outer_steps=4,
    ...   validate_every=2,
    ...   num_validation_problems=2,
    ... )
    >>> out = pathlib.Path(tempfile.mkdtemp()) / "my-run"
    >>> run = runs.train(recipe, out, evaluate=False, plots=False)
    >>> [path.name for path in run.files]
    ['config.json', 'history.json', 'checkpoint.npz', 'optimizer']
    >>> tx = learned_opt.load(out / "optimizer")
  """
  out = pathlib.Path(out)
  report = on_progress or (lambda words: None)
  if plots:
    check_matplotlib()
  config = _recipe.describe(recipe)
  if resume:
    _run_folder.reopen(out, config)
  else:
    _run_folder.make(out, config, ", or continue the run that it holds (resume=True, --resume)")
  training = _meta_train(recipe, config, out, callbacks, report)
  run = _save(recipe, config, out, training)
  if plots and training.history.meta_loss:
    meta_training_figure(training.history, out / _run_folder.META_TRAINING)
  if not evaluate or run.interrupted:
    return run
  try:
    evaluation = _evaluate(recipe, training.meta_params, None, report)
  except KeyboardInterrupt:
    return run._replace(interrupted=True)
  _run_folder.write_evaluation(evaluation, out, plots=plots)
  return _save(recipe, config, out, training, evaluation)


def evaluate(
  recipe: Recipe,
  out: Path,
  *,
  num_steps: int | None = None,
  plots: bool = True,
  on_progress: Report | None = None,
) -> Evaluation:
  """Evaluates the optimizer of a run once more, for example for more steps than it was trained on.

  On the problems of the run's own evaluation; the baselines are tuned anew for these steps. Adds
  ``evaluation-<steps>.json`` and ``learning_curves-<steps>.png`` to the folder, and replaces them
  if they are there.

  Args:
    recipe: of the run.
    out: the folder of the run.
    num_steps: inner steps; None means the recipe's, and files without a number in their names.
    plots: whether to draw the figure, which needs matplotlib.
    on_progress: called with a few words before each part of the work.

  Returns:
    The evaluation.

  Raises:
    FileNotFoundError: if there is no optimizer in `out`.
    ArtifactError: a `ValueError` if the optimizer there is damaged.
    ValueError: if it has another architecture than the recipe's.
    ImportError: if matplotlib is missing and `plots`.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt import estimators, optimizees, optimizers, runs
    >>> recipe = runs.Recipe(
    ...   name="lstm",
    ...   optimizee=optimizees.quadratic(dimension=2),
    ...   learned_optimizer=optimizers.lstm(hidden_size=4),
    ...   estimator=estimators.truncated_backprop(5, 10),
    ...   num_outer_steps=4,
    ...   validate_every=2,
    ...   num_validation_problems=2,
    ...   num_test_problems=2,
    ...   baselines=(),
    ... )
    >>> out = pathlib.Path(tempfile.mkdtemp()) / "my-run"
    >>> _ = runs.train(recipe, out, evaluate=False, plots=False)
    >>> evaluation = runs.evaluate(recipe, out, num_steps=20, plots=False)
    >>> evaluation.results["lstm"].mean.shape, (out / "evaluation-20.json").exists()
    ((21,), True)
  """
  out = pathlib.Path(out)
  if plots:
    check_matplotlib()
  artifact = artifacts.load_artifact(out / _run_folder.OPTIMIZER)
  if artifact.learned_optimizer.config != recipe.learned_optimizer.config:
    raise ValueError(
      f"{out} holds another architecture than the recipe: {artifact.learned_optimizer.config} "
      f"instead of {recipe.learned_optimizer.config}"
    )
  report = on_progress or (lambda words: None)
  evaluation = _evaluate(recipe, artifact.meta_params, num_steps, report)
  suffix = "" if num_steps is None else f"-{num_steps}"
  _run_folder.write_evaluation(evaluation, out, suffix=suffix, plots=plots)
  return evaluation


def split_seed(seed: int) -> tuple[chex.PRNGKey, chex.PRNGKey]:
  """The key of the training and that of the evaluation, which share no problem for any seeds.

  Example:
    >>> from learned_opt import runs
    >>> training_key, evaluation_key = runs.split_seed(0)
    >>> bool(training_key == evaluation_key)
    False
  """
  training_key, evaluation_key = jax.random.split(jax.random.key(seed))
  return training_key, evaluation_key


def check_matplotlib() -> None:
  """Raises `ImportError` where figures cannot be drawn, before the work that they are to show.

  Example:
    >>> from learned_opt import runs
    >>> runs.check_matplotlib()
  """
  if importlib.util.find_spec("matplotlib") is None:
    raise ImportError(
      "figures need matplotlib: pip install 'learned_opt[plots]', or do without them (plots=False, "
      "--no-plots)"
    )


def _meta_train(
  recipe: Recipe,
  config: Mapping[str, Any],
  out: pathlib.Path,
  callbacks: Sequence[Callback],
  report: Report,
) -> MetaTrainResult:
  key, _ = split_seed(recipe.seed)
  outer_optimizer = _recipe.outer_optimizer(recipe)

  def init(optimizee: Optimizee, key: chex.PRNGKey) -> MetaTrainState:
    parts = (recipe.learned_optimizer, recipe.estimator, outer_optimizer)
    return meta_train.init(optimizee, *parts, key)

  num_outer_steps = recipe.num_outer_steps
  state, history = _run_folder.load_progress(out, jax.eval_shape(init, recipe.optimizee, key))
  if state is None:
    report("compiling")
  else:
    report(f"continuing at outer step {int(state.outer_step)}")
    if recipe.patience is not None and int(state.num_stale) >= recipe.patience:
      num_outer_steps = int(state.outer_step)
  saver = _Saver(recipe, config, out)
  with _interrupts_between_dispatches(saver, report) as stop_if_interrupted:
    result = meta_train.run(
      recipe.optimizee,
      recipe.learned_optimizer,
      recipe.estimator,
      num_outer_steps=num_outer_steps,
      key=key,
      outer_optimizer=outer_optimizer,
      validation_optimizee=recipe.validation_optimizee,
      num_validation_problems=recipe.num_validation_problems,
      validate_every=recipe.validate_every,
      steps_per_dispatch=_recipe.steps_per_dispatch(recipe),
      patience=recipe.patience,
      callbacks=(saver, *callbacks, stop_if_interrupted),
      state=state,
      history=history,
    )
  ended_before = num_outer_steps < recipe.num_outer_steps
  return result._replace(stopped="early") if ended_before else result


class _Saver(NamedTuple):
  """The callback that writes the checkpoint, and the optimizer if it is the best so far."""

  recipe: Recipe
  config: Mapping[str, Any]
  out: pathlib.Path

  def __call__(self, progress: Progress) -> None:
    if not progress.validated:
      return
    self.save_checkpoint(progress)
    state = progress.state
    if int(state.best_step) == progress.outer_step:
      artifacts.save(
        self.out / _run_folder.OPTIMIZER,
        self.recipe.learned_optimizer,
        state.best_meta_params,
        recipe={**self.config, **_outcome(state)},
        overwrite=True,
      )

  def save_checkpoint(self, progress: Progress) -> None:
    _run_folder.save_progress(self.out, progress.state, progress.history)


def _outcome(state: MetaTrainState) -> dict[str, Any]:
  """What the card says of the training, beside the configuration."""
  return {
    "outer_steps_taken": int(state.outer_step),
    "best_step": int(state.best_step),
    "best_validation_loss": float(state.best_loss),
    "device": next(iter(jnp.zeros(()).devices())).device_kind,
  }


@contextlib.contextmanager
def _interrupts_between_dispatches(saver: _Saver, report: Report) -> Iterator[Callback]:
  """Defers Ctrl-C to a callback, as an interrupted dispatch would take the state with it."""
  pressed = threading.Event()

  def stop_if_pressed(progress: Progress) -> None:
    if pressed.is_set():
      saver.save_checkpoint(progress)
      raise KeyboardInterrupt

  def press(signal_number, frame) -> None:
    del signal_number, frame
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pressed.set()
    report("stopping after this dispatch; Ctrl-C again stops at once")

  is_main = threading.current_thread() is threading.main_thread()
  if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    yield stop_if_pressed
    return
  signal.signal(signal.SIGINT, press)
  try:
    yield stop_if_pressed
  finally:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _save(
  recipe: Recipe,
  config: Mapping[str, Any],
  out: pathlib.Path,
  training: MetaTrainResult,
  evaluation: Evaluation | None = None,
) -> Run:
  """Writes the artifact and what goes with it."""
  interrupted = training.stopped == "interrupted"
  if not training.history.meta_loss:
    return Run(out, training, None, None, interrupted)
  folder = artifacts.save(
    out / _run_folder.OPTIMIZER,
    recipe.learned_optimizer,
    training.meta_params,
    recipe={**config, **_outcome(training.state)},
    evaluation=None if evaluation is None else _summary(evaluation),
    overwrite=True,
  )
  return Run(out, training, evaluation, folder, interrupted)


def _summary(evaluation: Evaluation) -> dict[str, Any]:
  """What the card says of the evaluation: its last losses, without the curves."""
  return {
    "optimizee": evaluation.optimizee,
    "num_steps": evaluation.num_steps,
    "num_problems": evaluation.num_problems,
    "rows": [_summarize_row(row) for row in evaluation.rows()],
  }


def _summarize_row(row: Row) -> dict[str, Any]:
  values = row._asdict()
  (final_loss,) = values.pop("losses")
  return {"name": values.pop("name"), "final_loss": final_loss, **values}


def _evaluate(
  recipe: Recipe, meta_params: chex.ArrayTree, num_steps: int | None, report: Report
) -> Evaluation:
  return evaluate_candidates(
    recipe.test_optimizee or recipe.optimizee,
    [Candidate.from_learned(recipe.name, recipe.learned_optimizer, meta_params)],
    num_steps=num_steps or recipe.evaluation_steps or recipe.estimator.horizon,
    num_problems=recipe.num_test_problems,
    key=split_seed(recipe.seed)[1],
    baselines=recipe.baselines,
    tuning_optimizee=recipe.tuning_optimizee or recipe.optimizee,
    num_tuning_problems=recipe.num_tuning_problems,
    objective=recipe.objective,
    optimizee_name=recipe.optimizee_name,
    on_progress=report,
  )
