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

from learned_opt import _outcome, _recipe, _run_folder, artifacts, meta_train
from learned_opt._arrays import Path
from learned_opt._outcome import Report
from learned_opt._recipe import Recipe as Recipe
from learned_opt._recipe import split_seed as split_seed
from learned_opt.base import Optimizee
from learned_opt.evaluate import Evaluation
from learned_opt.meta_train import History, MetaTrainResult, MetaTrainState, Progress
from learned_opt.plots import meta_training_figure

Callback = Callable[[Progress], None]


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
      validation. The result is that of the uninterrupted run, bit for bit; an evaluation that
      is there already is taken as it is.
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
  _run_folder.begin(out, config, resume=resume)
  training = _meta_train(recipe, config, out, callbacks, report)
  run = Run(out, training, None, None, interrupted=training.stopped == "interrupted")
  if not (training.history.meta_loss or training.history.validation_loss):
    return run
  record = {**config, **_outcome.of_training(training.state)}
  folder = _outcome.save(recipe, training.meta_params, record, out)
  if plots and training.history.meta_loss:
    meta_training_figure(training.history, out / _run_folder.META_TRAINING)
  if not evaluate or run.interrupted:
    return run._replace(optimizer=folder)
  evaluation = _outcome.judge(recipe, training.meta_params, record, out, plots, report)
  return run._replace(optimizer=folder, evaluation=evaluation, interrupted=evaluation is None)


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
  evaluation = _outcome.evaluate(recipe, artifact.meta_params, num_steps, report)
  suffix = "" if num_steps is None else f"-{num_steps}"
  _run_folder.write_evaluation(
    evaluation, out, suffix=suffix, plots=plots, published=recipe.published
  )
  return evaluation


def load_history(out: Path) -> History:
  """What happened in the training of a run.

  Args:
    out: the folder of the run.

  Returns:
    The history up to its last validation.

  Raises:
    FileNotFoundError: if there is no run in `out`, or it had not come so far.
    ValueError: if the file there is damaged.

  Example:
    >>> from learned_opt import runs
    >>> runs.load_history("nowhere")
    Traceback (most recent call last):
      ...
    FileNotFoundError: nowhere/history.json ...
  """
  return _run_folder.load_history(pathlib.Path(out))


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
      validation_steps=recipe.validation_steps,
      validate_every=recipe.validate_every,
      steps_per_dispatch=_recipe.steps_per_dispatch(recipe),
      patience=recipe.patience,
      callbacks=(saver, *callbacks, stop_if_interrupted),
      meta_params=recipe.initial_meta_params if state is None else None,
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
      record = {**self.config, **_outcome.of_training(state)}
      _outcome.save(self.recipe, state.best_meta_params, record, self.out)

  def save_checkpoint(self, progress: Progress) -> None:
    _run_folder.save_progress(self.out, progress.state, progress.history)


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
