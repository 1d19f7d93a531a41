"""Runs: the folder, resuming bit for bit, and what is left when one is cut short."""

import dataclasses
import errno
import functools
import json
import math
import os
import shutil
import signal
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_opt
from learned_opt import (
  LearnedOptimizer,
  Optimizee,
  _arrays,
  _recipe,
  _run_folder,
  estimators,
  meta_train,
  optimizees,
  optimizers,
  plots,
  runs,
)

PARTS = {
  "name": "lstm",
  "optimizee": optimizees.quadratic(dimension=2),
  "learned_optimizer": optimizers.lstm(
    hidden_size=4, preprocessing=optimizers.Identity(), output_scale=1.0
  ),
  "estimator": estimators.truncated_backprop(unroll_length=5, horizon=10, meta_batch_size=2),
}


def recipe(**changes) -> runs.Recipe:
  values = {
    "num_outer_steps": 8,
    "validate_every": 4,
    "steps_per_dispatch": 2,
    "num_validation_problems": 4,
    "num_test_problems": 4,
    "num_tuning_problems": 2,
    "baselines": ("sgd",),
    "outer_learning_rate": 1e-2,
    "schedule": "cosine",
    "description": {"why": "a test"},
    **PARTS,
    **changes,
  }
  return runs.Recipe(**values)


def train(out, /, resume=False, callbacks=(), **changes) -> runs.Run:
  return runs.train(
    recipe(**changes), out, resume=resume, callbacks=callbacks, evaluate=False, plots=False
  )


def at_step(step, action):
  def callback(progress):
    if progress.outer_step == step:
      action()

  return callback


def fail():
  raise RuntimeError("the power went out")


def press_ctrl_c():
  os.kill(os.getpid(), signal.SIGINT)


@functools.cache
def constant(value):
  """Problems whose loss is always the same."""
  return Optimizee.from_functions(
    lambda key: jnp.zeros(2), lambda params, key: value + 0.0 * jnp.sum(params)
  )


def read(path):
  return json.loads(path.read_text())


def assert_same_training(run, expected):
  chex.assert_trees_all_equal(run.training.meta_params, expected.training.meta_params)
  chex.assert_trees_all_equal(run.training.state, expected.training.state)
  for name in ("meta_loss", "meta_grad_norm", "num_diverged", "validation_step", "validation_loss"):
    assert getattr(run.training.history, name) == getattr(expected.training.history, name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A run that nothing interrupted, with evaluation and figures. Not to be changed."""
  return runs.train(recipe(), tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
  """The folder of a run that ended with an error after its first validation."""
  out = tmp_path_factory.mktemp("runs") / "killed"
  with pytest.raises(RuntimeError, match="power"):
    train(out, callbacks=[at_step(6, fail)])
  return out


@pytest.fixture
def killed_copy(killed, tmp_path):
  return shutil.copytree(killed, tmp_path / "copy")


# --- A run that goes well.


def test_folder_holds_all_that_was_promised(finished):
  assert [path.name for path in finished.files] == [
    "config.json",
    "history.json",
    "checkpoint.npz",
    "optimizer",
    "meta_training.png",
    "evaluation.json",
    "learning_curves.png",
  ]
  assert {path.name for path in finished.out.iterdir()} == {path.name for path in finished.files}
  assert read(finished.out / "history.json") == finished.training.history.to_json()
  assert read(finished.out / "evaluation.json") == finished.evaluation.to_json()
  for name in ("meta_training.png", "learning_curves.png"):
    assert (finished.out / name).read_bytes()[:4] == b"\x89PNG"


def test_config_records_what_was_asked_for(finished):
  config = read(finished.out / "config.json")
  assert config["seed"] == 0
  assert config["horizon"] == 10
  assert config["baselines"] == ["sgd"]
  assert config["description"] == {"why": "a test"}
  assert config["learned_optimizer"]["config"]["preprocessing"] == {"type": "Identity"}
  assert "optimizee" not in config


def test_published_curves_are_drawn_and_not_on_record(finished, tmp_path, monkeypatch):
  """A finished run that is resumed draws its figure anew."""
  drawn = []

  def draw(evaluation, path, *, published):
    drawn.append(published)

  monkeypatch.setattr(_run_folder, "learning_curves_figure", draw)
  published = {"theirs": ((0, 10), (2.0, 1.0))}
  folder = shutil.copytree(finished.out, tmp_path / "copy")
  runs.train(recipe(published=published), folder, resume=True)
  assert drawn == [published]
  assert read(folder / "config.json") == read(finished.out / "config.json")


def test_artifact_is_the_best_and_says_how_it_was_made(finished):
  artifact = learned_opt.load_artifact(finished.optimizer)
  chex.assert_trees_all_equal(artifact.meta_params, finished.training.meta_params)
  recorded = artifact.card["recipe"]
  config = read(finished.out / "config.json")
  assert {name: recorded[name] for name in config} == config
  assert recorded["best_step"] == finished.training.best_step
  assert recorded["best_validation_loss"] == finished.training.best_loss
  rows = artifact.card["evaluation"]["rows"]
  assert [row["name"] for row in rows] == ["lstm", "sgd"]
  assert rows[1]["final_loss"] == finished.evaluation.results["sgd"].mean[-1]


def test_training_and_evaluation_see_different_problems():
  keys = [jax.random.key_data(key) for seed in range(3) for key in runs.split_seed(seed)]
  assert len({tuple(key.tolist()) for key in keys}) == 6


def test_each_optimizee_has_its_part(tmp_path):
  run = runs.train(
    recipe(
      validation_optimizee=constant(3.0),
      test_optimizee=constant(7.0),
      tuning_optimizee=optimizees.quadratic(dimension=2),
      evaluation_steps=2,
    ),
    tmp_path / "run",
    plots=False,
  )
  assert run.training.history.validation_loss == [3.0, 3.0]
  assert run.training.best_step == 4
  assert run.evaluation.results["lstm"].mean.tolist() == [7.0] * 3
  assert run.evaluation.results["sgd"].tuned.values.min() < 3.0


def test_evaluating_again_gives_the_same_curves(finished, tmp_path):
  out = shutil.copytree(finished.out, tmp_path / "copy")
  again = runs.evaluate(recipe(), out, num_steps=10, plots=False)
  for name, result in finished.evaluation.results.items():
    np.testing.assert_array_equal(again.results[name].mean, result.mean)
  assert read(out / "evaluation-10.json") == again.to_json()
  with pytest.raises(ValueError, match="holds another architecture than the recipe"):
    runs.evaluate(recipe(learned_optimizer=optimizers.lstm(hidden_size=3)), out)


# --- Resuming.


def test_folder_of_a_killed_run_holds_the_best_so_far(killed):
  artifact = learned_opt.load_artifact(killed / "optimizer")
  assert artifact.card["recipe"]["best_step"] == 4
  assert read(killed / "history.json")["validation_step"] == [4]
  assert not list(killed.glob("**/.*"))


def test_resumed_run_is_the_uninterrupted_one(killed_copy, finished):
  run = train(killed_copy, resume=True)
  assert_same_training(run, finished)
  assert run.training.stopped == "finished"
  assert (
    learned_opt.load_artifact(run.optimizer).card["recipe"]["best_step"] == run.training.best_step
  )


def test_resuming_before_the_first_checkpoint_starts_anew(tmp_path, finished):
  with pytest.raises(RuntimeError, match="power"):
    train(tmp_path / "run", callbacks=[at_step(2, fail)])
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
  assert_same_training(train(tmp_path / "run", resume=True), finished)


def test_resuming_a_finished_run_changes_nothing(finished, tmp_path):
  out = shutil.copytree(finished.out, tmp_path / "copy")
  assert_same_training(train(out, resume=True), finished)


def test_full_disk_loses_one_validation_at_most(tmp_path, finished, monkeypatch):
  fsync, calls = os.fsync, []

  def full_from_the_second_checkpoint(descriptor):
    calls.append(descriptor)
    if (tmp_path / "run" / "checkpoint.npz").exists() and len(calls) > 20:
      raise OSError(errno.ENOSPC, "No space left on device")
    fsync(descriptor)

  with monkeypatch.context() as patch:
    patch.setattr(_arrays.os, "fsync", full_from_the_second_checkpoint)
    fill = at_step(6, lambda: calls.extend(range(20)))
    with pytest.raises(OSError, match="No space left"):
      train(tmp_path / "run", callbacks=[fill])
  assert read(tmp_path / "run" / "history.json")["validation_step"] == [4]
  assert not list((tmp_path / "run").glob("**/.*"))
  assert_same_training(train(tmp_path / "run", resume=True), finished)


def test_history_beyond_the_checkpoint_is_cut(killed_copy, finished):
  # As after a kill between the two.
  shutil.copy(finished.out / "history.json", killed_copy / "history.json")
  assert_same_training(train(killed_copy, resume=True), finished)


def test_run_out_of_patience_does_not_go_on(tmp_path):
  changes = {"patience": 1, "validate_every": 2, "validation_optimizee": constant(3.0)}
  run = train(tmp_path / "run", **changes)
  assert run.training.stopped == "early"
  assert int(run.training.state.outer_step) == 4
  assert_same_training(again := train(tmp_path / "run", resume=True, **changes), run)
  assert again.training.stopped == "early"


@pytest.mark.parametrize(
  ("changes", "difference"),
  [
    ({"seed": 1}, "seed was 0 and is 1"),
    ({"max_meta_grad_norm": None}, "max_meta_grad_norm was 1.0 and is null"),
    (
      {"learned_optimizer": optimizers.lstm(hidden_size=5)},
      "learned_optimizer.config.hidden_size was 4 and is 5",
    ),
    ({"description": {"other": 1}}, 'description.why was "a test" and is not there'),
  ],
)
def test_resume_refuses_another_recipe(killed, changes, difference):
  with pytest.raises(ValueError, match="cannot be resumed as this one") as error:
    train(killed, resume=True, **changes)
  assert difference in str(error.value)


def test_run_of_a_version_that_knew_fewer_options_can_be_resumed(killed_copy, finished):
  config = read(killed_copy / "config.json")
  assert config.pop("validation_steps") is None
  (killed_copy / "config.json").write_text(json.dumps(config))
  assert_same_training(train(killed_copy, resume=True), finished)


def test_run_may_start_from_given_meta_params(tmp_path, finished):
  start = {"initial_meta_params": learned_opt.load_artifact(finished.optimizer).meta_params}
  whole = train(tmp_path / "whole", **start)
  assert whole.training.history.validation_step == [0, 4, 8]
  assert whole.training.history.validation_loss[0] == finished.training.best_loss
  assert read(tmp_path / "whole" / "config.json")["initial_meta_params"].startswith("sha256 ")
  for step in (0, 2, 6):
    out = tmp_path / str(step)
    with pytest.raises(RuntimeError, match="power"):
      train(out, callbacks=[at_step(step, fail)], **start)
    assert learned_opt.load_artifact(out / "optimizer").card["recipe"]["best_step"] in (0, 4)
    assert_same_training(train(out, resume=True, **start), whole)
  with pytest.raises(ValueError, match=r'initial_meta_params was "sha256 \w+" and is null'):
    train(tmp_path / "whole", resume=True)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_before_the_first_outer_step_keeps_the_start(tmp_path, finished):
  start = learned_opt.load_artifact(finished.optimizer).meta_params
  run = train(tmp_path / "run", callbacks=[at_step(0, press_ctrl_c)], initial_meta_params=start)
  assert run.interrupted
  assert int(run.training.state.outer_step) == 0
  chex.assert_trees_all_equal(learned_opt.load_artifact(run.optimizer).meta_params, start)


def test_resume_needs_a_run(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"config\.json does not exist: there is no run"):
    train(tmp_path, resume=True)


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("config.json", b"{", r"config\.json is damaged: it is not JSON"),
    ("config.json", b"[]", r"config\.json is damaged: it does not hold a JSON object"),
    ("checkpoint.npz", b"PK", r"checkpoint\.npz is not a readable \.npz file"),
    ("history.json", b"{}", r"history\.json is damaged: it is not the history of a run"),
    ("history.json", b"\xff", r"history\.json is damaged: it is not JSON"),
  ],
)
def test_damaged_files_are_named(killed_copy, name, content, message):
  (killed_copy / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    train(killed_copy, resume=True)


def test_history_that_is_too_short_is_damaged(killed_copy):
  history = read(killed_copy / "history.json")
  history["meta_loss"].pop()
  (killed_copy / "history.json").write_text(json.dumps(history))
  with pytest.raises(ValueError, match=r"meta_loss has 3 values, where the checkpoint .* to 4"):
    train(killed_copy, resume=True)


# --- Ctrl-C.


@pytest.fixture
def heeds_ctrl_c():
  """Python's own handler; a shell starts its background jobs with another."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_between_dispatches_and_loses_nothing(tmp_path, finished):
  said = []
  run = runs.train(
    recipe(),
    tmp_path / "run",
    callbacks=[at_step(2, press_ctrl_c)],
    on_progress=said.append,
  )
  assert run.interrupted
  assert run.training.stopped == "interrupted"
  assert int(run.training.state.outer_step) == 2
  assert run.evaluation is None
  assert any("stopping after this dispatch" in words for words in said)
  # Never validated, so that the latest stand for the best.
  saved = learned_opt.load_artifact(run.optimizer).meta_params
  chex.assert_trees_all_equal(saved, run.training.state.meta_params)
  assert (tmp_path / "run" / "meta_training.png").exists()
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  assert_same_training(train(tmp_path / "run", resume=True), finished)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_second_ctrl_c_acts_at_once(tmp_path):
  later = []

  def press_twice():
    press_ctrl_c()
    press_ctrl_c()

  callbacks = [at_step(6, press_twice), at_step(6, lambda: later.append("not reached"))]
  run = train(tmp_path / "run", callbacks=callbacks)
  assert run.interrupted
  assert not later
  assert learned_opt.load_artifact(run.optimizer).card["recipe"]["best_step"] == 4


def test_ctrl_c_during_the_evaluation_keeps_the_optimizer(tmp_path, finished):
  def interrupt(words):
    if words.startswith("tuning"):
      raise KeyboardInterrupt

  run = runs.train(recipe(), tmp_path / "run", plots=False, on_progress=interrupt)
  assert run.interrupted
  assert run.training.stopped == "finished"
  assert run.evaluation is None
  chex.assert_trees_all_equal(
    learned_opt.load_artifact(run.optimizer).meta_params, finished.training.meta_params
  )


def test_a_finished_evaluation_is_not_made_again(tmp_path):
  out, said = tmp_path / "run", []
  first = runs.train(recipe(), out, plots=False)
  second = runs.train(recipe(), out, resume=True, plots=False, on_progress=said.append)
  assert first.evaluation is not None
  assert second.evaluation is not None
  assert second.evaluation.to_json() == first.evaluation.to_json()
  assert not any(words.startswith(("tuning", "testing")) for words in said)


def test_ctrl_c_before_the_first_dispatch_saves_nothing(tmp_path, monkeypatch):
  def interrupted(*arguments, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(meta_train, "_dispatch", interrupted)
  run = train(tmp_path / "run")
  assert run.interrupted
  assert run.optimizer is None
  assert [path.name for path in run.files] == ["config.json"]


def test_runs_outside_of_the_main_thread(tmp_path, finished):
  found = []
  thread = threading.Thread(target=lambda: found.append(train(tmp_path / "run")))
  thread.start()
  thread.join()
  assert_same_training(found[0], finished)


# --- What is refused before any work.


@pytest.fixture
def no_training(monkeypatch):
  def run(*arguments, **options):
    raise AssertionError("the training began")

  monkeypatch.setattr(meta_train, "run", run)


@pytest.mark.usefixtures("no_training")
def test_never_overwrites(finished, tmp_path):
  before = {path: path.stat().st_mtime_ns for path in finished.out.rglob("*")}
  with pytest.raises(FileExistsError, match=r"not empty: choose another folder .*--resume"):
    train(finished.out)
  assert {path: path.stat().st_mtime_ns for path in finished.out.rglob("*")} == before
  (tmp_path / "file").write_text("precious")
  with pytest.raises(FileExistsError, match="choose another folder"):
    train(tmp_path / "file")


@pytest.mark.usefixtures("no_training")
def test_unwritable_output_shows_before_the_training(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(
    OSError, match=r"cannot write to .*run: .*Choose a folder that can be written"
  ):
    train(tmp_path / "file" / "run")


@pytest.mark.usefixtures("no_training")
def test_missing_matplotlib_shows_before_the_training(tmp_path, monkeypatch):
  monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ImportError, match=r"pip install 'learned_opt\[plots\]'.*--no-plots"):
    runs.train(recipe(), tmp_path / "run")
  assert not (tmp_path / "run").exists()
  with pytest.raises(AssertionError, match="the training began"):
    runs.train(recipe(), tmp_path / "run", plots=False)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    (
      {"learned_optimizer": LearnedOptimizer(lambda key: {}, lambda phi: None)},
      ValueError,
      "not part of learned_opt.optimizers",
    ),
    ({"description": {"when": object()}}, TypeError, r"recipe\['description'\]\['when'\]"),
  ],
)
def test_what_cannot_be_recorded_is_refused(tmp_path, changes, error, message):
  with pytest.raises(error, match=message):
    train(tmp_path / "run", **changes)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_outer_steps": 0}, "num_outer_steps must be an integer of at least 1, got 0"),
    ({"validate_every": 2.5}, "validate_every must be an integer"),
    ({"num_test_problems": 0}, "num_test_problems"),
    ({"num_tuning_problems": -1}, "num_tuning_problems"),
    ({"num_validation_problems": None}, "num_validation_problems"),
    ({"patience": 0}, "patience must be an integer of at least 1, or None, got 0"),
    ({"steps_per_dispatch": 0}, "steps_per_dispatch"),
    ({"evaluation_steps": 0}, "evaluation_steps"),
    ({"validation_steps": 0}, "validation_steps must be an integer of at least 1, or None"),
    (
      {"initial_meta_params": {"layer_0": np.zeros(3)}},
      "initial_meta_params do not fit the architecture .*output/bias is missing",
    ),
    ({"outer_learning_rate": 0.0}, "outer_learning_rate must be positive and finite"),
    ({"outer_learning_rate": math.nan}, "outer_learning_rate"),
    ({"max_meta_grad_norm": 0.0}, "max_meta_grad_norm must be positive or None"),
    ({"schedule": "linear"}, "schedule must be one of .*'linear'"),
    ({"num_warmup_steps": 8}, "num_warmup_steps must be .* below num_outer_steps=8, got 8"),
    ({"seed": -1}, "seed must be between 0 and"),
    ({"seed": 2**32}, "seed must be between 0 and"),
    ({"objective": "mean"}, "objective must be one of"),
    ({"baselines": ("adamm",)}, "did you mean 'adam'"),
    ({"name": "sgd"}, "name must not be empty or that of a baseline, got 'sgd'"),
    ({"name": ""}, "name must not be empty"),
  ],
)
def test_recipe_refuses_what_makes_no_sense(changes, message):
  with pytest.raises(ValueError, match=message):
    recipe(**changes)


# --- The parts of a recipe.


@pytest.mark.parametrize(
  ("num_outer_steps", "validate_every", "given", "expected"),
  [(1000, 100, None, 25), (250, 100, None, 25), (101, 100, None, 1), (4, 2, None, 2), (8, 8, 8, 8)],
)
def test_steps_per_dispatch(num_outer_steps, validate_every, given, expected):
  chosen = recipe(
    num_outer_steps=num_outer_steps, validate_every=validate_every, steps_per_dispatch=given
  )
  assert _recipe.steps_per_dispatch(chosen) == expected


@pytest.mark.parametrize(
  ("schedule", "num_warmup_steps", "expected"),
  [
    ("constant", 0, [1.0] * 4),
    ("constant", 2, [0.0, 0.5, 1.0, 1.0]),
    ("cosine", 0, [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ("cosine", 2, [0.0, 0.5, 1.0, 0.5]),
  ],
)
def test_learning_rates(schedule, num_warmup_steps, expected):
  chosen = recipe(
    schedule=schedule,
    num_warmup_steps=num_warmup_steps,
    outer_learning_rate=0.1,
    num_outer_steps=4,
  )
  tx = _recipe.outer_optimizer(chosen)
  params = jnp.zeros(1)
  state, rates = tx.init(params), []
  for _ in range(4):
    # Adam's update along a constant gradient is the learning rate.
    updates, state = tx.update(jnp.full(1, 0.5), state, params)
    rates.append(-float(updates[0]))
  np.testing.assert_allclose(rates, 0.1 * np.array(expected), atol=1e-6)


def test_equal_recipes_share_their_compilations():
  assert _recipe.outer_optimizer(recipe()) is _recipe.outer_optimizer(recipe(seed=5))


# --- The figure of the meta-training.


def history(meta_loss, num_diverged=None, validation_loss=(2.0, 1.0)):
  return meta_train.History(
    meta_loss=list(meta_loss),
    meta_grad_norm=[1.0] * len(meta_loss),
    num_diverged=list(num_diverged or [0] * len(meta_loss)),
    validation_step=list(range(1, len(validation_loss) + 1)),
    validation_loss=list(validation_loss),
    seconds=[1.0] * len(validation_loss),
  )


@pytest.fixture
def drawn(monkeypatch):
  """The figures that were saved."""
  figures = []
  monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
  return figures


def test_figure_shows_validation_and_smoothed_meta_loss(drawn):
  meta_loss = np.linspace(5.0, 1.0, 100)
  plots.meta_training_figure(history(meta_loss), "unused.png", title="a title")
  validation, training = drawn[0].axes
  assert validation.get_title() == "a title"
  assert validation.get_legend().get_texts()[0].get_text() == "best: 1 at outer step 2"
  raw, smooth = training.get_lines()
  np.testing.assert_array_equal(raw.get_ydata(), meta_loss)
  expected = (meta_loss[1:] + meta_loss[:-1]) / 2
  np.testing.assert_allclose(smooth.get_ydata()[1:], expected, rtol=1e-12)
  assert validation.get_yscale() == training.get_yscale() == "log"


def test_figure_shows_diverged_problems_only_if_there_are_any(drawn):
  plots.meta_training_figure(history([1.0, math.nan, 2.0], [0, 3, 0]), "unused.png")
  *_, diverged = drawn[0].axes
  assert len(drawn[0].axes) == 3
  assert [bar.get_height() for bar in diverged.patches] == [0, 3, 0]


def test_figure_without_validation_and_with_negative_losses(drawn):
  plots.meta_training_figure(history([-1.0, -2.0], validation_loss=()), "unused.png")
  validation, training = drawn[0].axes
  assert not validation.get_lines()
  assert training.get_yscale() == "linear"


def test_figure_of_nothing_is_refused():
  with pytest.raises(ValueError, match="the history is empty"):
    plots.meta_training_figure(history([]), "unused.png")


# --- The files.


def test_written_json_is_read_again(tmp_path):
  value = {"a": [1, 2.5, None], "b": {"c": "text"}}
  _run_folder.write_json(tmp_path / "file.json", value)
  assert _run_folder.read_json(tmp_path / "file.json", "of the test") == value
  with pytest.raises(ValueError, match="not JSON compliant"):
    _run_folder.write_json(tmp_path / "file.json", {"a": math.inf})
  assert _run_folder.read_json(tmp_path / "file.json", "of the test") == value


def test_recipe_is_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    recipe().seed = 1
