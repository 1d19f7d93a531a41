"""Curricula: what a stage starts from, when it ends, and that they resume bit for bit."""

import dataclasses
import functools
import json
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import learned_opt
from learned_opt import (
  Optimizee,
  _recipe,
  cli,
  curriculum,
  estimators,
  meta_train,
  optimizees,
  optimizers,
)
from learned_opt.runs import Recipe

# Programs of the shapes of test_runs.py, which the compilation cache knows.
LSTM = optimizers.lstm(hidden_size=4, preprocessing=optimizers.Identity(), output_scale=1.0)


@functools.cache
def estimator(horizon):
  return estimators.truncated_backprop(unroll_length=5, horizon=horizon, meta_batch_size=2)


def recipe(**changes):
  values = {
    "name": "lstm",
    "optimizee": optimizees.quadratic(dimension=2),
    "learned_optimizer": LSTM,
    "estimator": estimator(10),
    "num_outer_steps": 4,
    "validate_every": 2,
    "steps_per_dispatch": 1,
    "num_validation_problems": 4,
    "num_test_problems": 4,
    "num_tuning_problems": 2,
    "baselines": ("sgd",),
    "outer_learning_rate": 1e-2,
    **changes,
  }
  return Recipe(**values)


def stages(horizons=(5, 10, 15), **changes):
  return curriculum.over_horizons(recipe(**changes), estimator, horizons)


def train(out, chosen=None, evaluate=False, **options):
  return curriculum.train(chosen or stages(), out, evaluate=evaluate, plots=False, **options)


def at_call(number, error):
  """A callback that raises when it is called for the so manieth time."""
  calls = []

  def callback(progress):
    calls.append(progress.outer_step)
    if len(calls) == number:
      raise error

  return callback


def read(path):
  return json.loads(path.read_text())


def traces(out):
  """All that a curriculum leaves and that is to be the same bit for bit."""
  found = {
    str(path.relative_to(out)): path.read_bytes()
    for path in out.rglob("*")
    if path.suffix == ".npz" or path.name in ("config.json", "curriculum.json")
  }
  for path in out.rglob("history.json"):
    found[str(path.relative_to(out))] = {**read(path), "seconds": None}
  return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Two stages that nothing interrupted. Not to be changed."""
  return train(tmp_path_factory.mktemp("curriculum") / "finished", evaluate=True)


# --- The stages.


def test_stages_train_at_one_horizon_and_validate_at_the_next():
  chosen = stages((5, 10, 20, 50), seed=3)
  assert [one.estimator.horizon for one in chosen] == [5, 10, 20]
  assert [one.validation_steps for one in chosen] == [10, 20, 50]
  assert chosen[0].seed == 3
  assert len({one.seed for one in chosen}) == 3
  assert {one.outer_learning_rate for one in chosen} == {1e-2}


def test_a_stage_starts_from_the_best_of_the_one_before(finished):
  first, second = finished.stages
  assert first.training.history.validation_step == [2, 4]
  history = second.training.history
  assert history.validation_step == [0, 2, 4]
  # The best of the first stage, on the validation problems of the second.
  start = meta_train.run(
    recipe().optimizee,
    LSTM,
    estimator(10),
    num_outer_steps=1,
    validate_every=1,
    outer_optimizer=_recipe.outer_optimizer(recipe()),
    num_validation_problems=4,
    validation_steps=15,
    key=learned_opt.runs.split_seed(stages()[1].seed)[0],
    meta_params=first.training.meta_params,
  )
  assert start.history.validation_loss[0] == history.validation_loss[0]
  assert second.training.best_loss == min(history.validation_loss)


def test_folder_tells_how_each_stage_ended(finished):
  assert [path.name for path in finished.files] == [
    *("config.json", "curriculum.json", "optimizer", "evaluation.json")
  ]
  outline = read(finished.out / "curriculum.json")
  assert list(outline) == ["stage-0-5", "stage-1-10"]
  for run, told in zip(finished.stages, outline.values(), strict=True):
    assert told["best_validation_loss"] == run.training.best_loss
    assert told["first_validation_loss"] == run.training.history.validation_loss[0]
    assert told["stopped"] == "finished"
  config = read(finished.out / "config.json")["stages"]
  assert [one["validation_steps"] for one in config.values()] == [10, 15]
  started = [read(run.out / "config.json")["initial_meta_params"] for run in finished.stages]
  assert started[0] is None
  assert started[1].startswith("sha256 ")


def test_artifact_is_the_best_of_the_last_stage(finished):
  artifact = learned_opt.load_artifact(finished.optimizer)
  chex.assert_trees_all_equal(artifact.meta_params, finished.stages[1].training.meta_params)
  assert artifact.card["recipe"]["stages"] == read(finished.out / "curriculum.json")
  assert artifact.card["recipe"]["horizon"] == 10
  assert [row["name"] for row in artifact.card["evaluation"]["rows"]] == ["lstm", "sgd"]
  assert finished.evaluation.num_steps == 10
  # On the problems on which a plain run with the seed of the recipe would be judged.
  again = learned_opt.runs.evaluate(recipe(), finished.out, num_steps=10, plots=False)
  for name, result in finished.evaluation.results.items():
    np.testing.assert_array_equal(again.results[name].mean, result.mean)


# --- When a stage ends.


@functools.cache
def constant(value):
  """Problems whose loss is always the same."""
  return Optimizee.from_functions(
    lambda key: jnp.zeros(2), lambda params, key: value + 0.0 * jnp.sum(params)
  )


def test_ends_after_a_stage_without_any_improvement(tmp_path):
  options = {"patience": 2, "validation_optimizee": constant(3.0), "validate_every": 1}
  chosen = stages((5, 10, 15, 20), **options)
  done = train(tmp_path / "run", chosen)
  assert [run.training.stopped for run in done.stages] == ["early", "early"]
  # The first validation is better than none; then there is no better one.
  assert [int(run.training.state.outer_step) for run in done.stages] == [3, 2]
  assert [run.training.best_step for run in done.stages] == [1, 0]
  chex.assert_trees_all_equal(done.training.meta_params, done.stages[0].training.meta_params)
  assert not (tmp_path / "run" / "stage-2-15").exists()
  again = train(tmp_path / "run", chosen, resume=True)
  assert [run.training.stopped for run in again.stages] == ["early", "early"]


# --- Resuming.


@pytest.mark.parametrize(
  ("number", "error"),
  [(1, RuntimeError), (3, RuntimeError), (5, RuntimeError), (6, KeyboardInterrupt)],
  ids=["before-a-checkpoint", "first-stage", "start-of-second-stage", "ctrl-c-in-second-stage"],
)
def test_resumed_curriculum_is_the_uninterrupted_one(tmp_path, finished, number, error):
  out = tmp_path / "run"
  try:
    cut = train(out, callbacks=[at_call(number, error("the power went out"))])
    assert cut.interrupted
    assert cut.evaluation is None
  except RuntimeError:
    assert error is RuntimeError
  train(out, resume=True)
  assert traces(out) == traces(finished.out)


def test_stages_that_are_done_are_not_repeated(tmp_path, finished):
  out, steps = shutil.copytree(finished.out, tmp_path / "run"), []
  shutil.rmtree(out / "stage-1-10")
  train(out, resume=True, callbacks=[lambda progress: steps.append(progress.outer_step)])
  assert steps == [0, 1, 2, 3, 4]
  assert traces(out) == traces(finished.out)


def test_resume_refuses_other_stages(finished):
  with pytest.raises(ValueError, match=r"stages\.stage-0-5\.outer_learning_rate was 0\.01 and is"):
    train(finished.out, stages(outer_learning_rate=0.1), resume=True)
  with pytest.raises(ValueError, match=r"stages\.stage-1-10\.name was \"lstm\" and is not there"):
    train(finished.out, stages()[:1], resume=True)


def test_never_overwrites(finished):
  before = traces(finished.out)
  with pytest.raises(FileExistsError, match="not empty: choose another folder"):
    train(finished.out)
  assert traces(finished.out) == before


# --- The command line.


def test_prints_the_table_and_exits_after_ctrl_c(tmp_path, finished, capsys, monkeypatch):
  out = shutil.copytree(finished.out, tmp_path / "run")
  cli.run_curriculum(stages(), out, resume=True, plots=False)
  stdout, stderr = capsys.readouterr()
  assert "optimizee: mean loss over 4 fresh problems" in stdout
  assert f"wrote {out / 'curriculum.json'}" in stdout
  assert "stage 2 of 2: horizon 10" in stderr

  def interrupted(*arguments, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(meta_train, "_dispatch", interrupted)
  with pytest.raises(SystemExit, match="130"):
    cli.run_curriculum(stages(), tmp_path / "other", plots=False)
  assert "--resume continues" in capsys.readouterr().err


# --- Errors.


@pytest.mark.parametrize("horizons", [(), (5,), (10, 5), (5, 5)], ids=repr)
def test_over_horizons_refuses(horizons):
  with pytest.raises(ValueError, match="at least two, in ascending order"):
    stages(horizons)


def test_over_horizons_checks_the_estimators():
  with pytest.raises(ValueError, match=r"make_estimator\(5\) gave one with the horizon 10"):
    curriculum.over_horizons(recipe(), lambda horizon: estimator(10), (5, 10))


def test_train_refuses(tmp_path):
  first, second = stages()
  other = dataclasses.replace(second, learned_optimizer=optimizers.lstm(hidden_size=3))
  with pytest.raises(ValueError, match=r"stages\[1\] has another architecture than stages\[0\]"):
    train(tmp_path / "run", (first, other))
  with pytest.raises(ValueError, match="stages must not be empty"):
    curriculum.train((), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_train_refuses_a_second_start(tmp_path, finished):
  first, second = stages()
  start = finished.training.meta_params
  second = dataclasses.replace(second, initial_meta_params=start)
  with pytest.raises(ValueError, match=r"stages\[1\] has initial_meta_params, but starts from"):
    train(tmp_path / "run", (first, second))
