"""Evolution: that it finds what is faster, keeps the best, and goes on where it was."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

import learned_opt
from learned_opt import baselines, benchmark_suite, evolution, optimizees, optimizers
from learned_opt.families import families

PROBLEMS = families(optimizees.quadratic(3))
RECIPE = evolution.Recipe(
  "mine",
  optimizers.learned_muon(rate=0.05),
  PROBLEMS,
  PROBLEMS,
  num_steps=20,
  num_problems=4,
  num_validation_problems=4,
  num_generations=3,
  population_size=4,
  sigma=0.5,
  description={"command": "a test"},
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  return evolution.train(RECIPE, tmp_path_factory.mktemp("evolution") / "mine")


# --- Races.


def test_adam_is_as_fast_as_itself():
  """At the rate that was found, on the same problems."""
  race = benchmark_suite.race(optimizees.quadratic(3), jax.random.key(1), num_steps=30)
  itself = learned_opt.LearnedOptimizer(
    lambda key: {"rate": np.float32(race.learning_rate)},
    lambda meta_params: baselines.BASELINES["adam"].make(meta_params["rate"]),
  )
  np.testing.assert_allclose(race.speed_ups(itself, itself.init(jax.random.key(0))), 1.0)
  others = [{"rate": np.float32(race.learning_rate * factor)} for factor in (0.25, 4.0)]
  slower = [np.mean(race.speed_ups(itself, other)) for other in others]
  assert max(slower) < 1


def test_the_rate_is_the_best_of_its_neighbours():
  race = benchmark_suite.race(optimizees.quadratic(3), jax.random.key(1), num_steps=30)
  assert 0.001 < race.learning_rate < 1
  assert race.curves.shape == (8, 31)
  np.testing.assert_array_equal(race.steps, np.arange(31))


def test_steps_are_divided_into_windows():
  race = benchmark_suite.race(
    optimizees.quadratic(2), jax.random.key(0), num_problems=3, num_steps=40, num_windows=4
  )
  assert race.curves.shape == (3, 5)
  assert race.steps.tolist() == [0, 10, 20, 30, 40]


def test_what_diverges_is_not_fast():
  race = benchmark_suite.race(optimizees.quadratic(2), jax.random.key(0), num_steps=20)
  wild = optimizers.learned_sgd()
  assert race.speed_ups(wild, {"log_learning_rate": np.float32(5.0)}).tolist() == [0.0] * 8


def test_races_need_problems_and_steps():
  for name in ("num_problems", "num_steps", "num_windows"):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
      benchmark_suite.race(optimizees.quadratic(2), jax.random.key(0), **{name: 0})


def test_adam_may_diverge_everywhere():
  quadratic = optimizees.quadratic(2)
  nan = dataclasses.replace(quadratic, loss=lambda *args: quadratic.loss(*args) * np.nan)
  with pytest.raises(FloatingPointError, match="Adam diverges on these problems at each"):
    benchmark_suite.race(nan, jax.random.key(0), num_steps=5)


# --- Evolutions.


def test_it_becomes_faster(done):
  assert done.best_loss < done.first_loss - 0.1
  assert len(done.history) == 3
  assert done.best_loss == min(one.validation_loss for one in done.history)
  assert done.history[done.best_generation - 1].validation_loss == done.best_loss
  assert all(len(one.losses) == 4 for one in done.history)


def test_the_best_is_an_artifact_that_can_be_scored_again(done):
  artifact = learned_opt.load_artifact(done.optimizer)
  card = artifact.card["recipe"]
  assert (card["name"], card["description"]["command"]) == ("mine", "a test")
  assert card["best_step"] == done.best_generation
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), evolution._VALIDATION), 0)
  race = benchmark_suite.race(optimizees.quadratic(3), key, num_problems=4, num_steps=20)
  logs = np.log(race.speed_ups(RECIPE.learned_optimizer, artifact.meta_params))
  np.testing.assert_allclose(-np.mean(np.clip(logs, -np.log(2.5), np.log(2.5))), done.best_loss)


def test_a_resumed_one_is_the_uninterrupted_one(done, tmp_path, monkeypatch):
  out = tmp_path / "mine"

  def stop_in_the_second(words):
    if words.startswith("generation 1"):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    evolution.train(RECIPE, out, on_progress=stop_in_the_second)
  scored, score = [], benchmark_suite.Race.speed_ups
  monkeypatch.setattr(
    benchmark_suite.Race, "speed_ups", lambda *args: scored.append(1) or score(*args)
  )
  resumed = evolution.train(RECIPE, out, resume=True)
  # Two generations with their validation; neither the first, nor the start.
  assert len(scored) == 2 * (4 + 1)
  assert resumed.history == done.history
  jax.tree.map(np.testing.assert_array_equal, resumed.meta_params, done.meta_params)


def test_a_start_that_nothing_beats_is_kept(tmp_path):
  """With a spread in which all that is tried diverges."""
  recipe = dataclasses.replace(
    RECIPE,
    learned_optimizer=optimizers.learned_sgd(),
    meta_params={"log_learning_rate": np.float32(np.log(0.02))},
    num_generations=1,
    sigma=1e3,
  )
  done = evolution.train(recipe, tmp_path / "mine")
  assert (done.best_generation, done.best_loss) == (0, done.first_loss)
  np.testing.assert_allclose(done.meta_params["log_learning_rate"], np.log(0.02), rtol=1e-6)


def test_families_count_alike(tmp_path):
  """The loss is the mean over families of the mean over their problems."""
  both = families(optimizees.quadratic(3), optimizees.quadratic(2))
  recipe = dataclasses.replace(RECIPE, problems=both, validation_problems=both, num_generations=1)
  done = evolution.train(recipe, tmp_path / "mine")
  start, means = recipe.learned_optimizer.init(jax.random.key(0)), []
  for index, member in enumerate((optimizees.quadratic(3), optimizees.quadratic(2))):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), evolution._VALIDATION), index)
    race = benchmark_suite.race(member, key, num_problems=4, num_steps=20)
    speed_ups = race.speed_ups(recipe.learned_optimizer, start)
    means.append(np.mean(np.clip(np.log(speed_ups), -np.log(2.5), np.log(2.5))))
  np.testing.assert_allclose(done.first_loss, -np.mean(means), rtol=1e-6)


def test_what_is_wrong_is_named(done, tmp_path, monkeypatch):
  for options, message in (
    ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ({"num_generations": 0}, "num_generations must be at least 1, got 0"),
    ({"population_size": 3}, "population_size must be at least 4, got 3"),
    ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
  ):
    with pytest.raises(ValueError, match=message):
      dataclasses.replace(RECIPE, **options)
  with pytest.raises(FileExistsError, match="is not empty"):
    evolution.train(RECIPE, done.out)
  with pytest.raises(ValueError, match=r"sigma was 0\.5 and is 0\.7"):
    evolution.train(dataclasses.replace(RECIPE, sigma=0.7), done.out, resume=True)
  out = tmp_path / "damaged"
  out.mkdir()
  (out / "config.json").write_bytes((done.out / "config.json").read_bytes())
  (out / "history.json").write_text(json.dumps({"generations": [{}]}))
  with pytest.raises(ValueError, match=r"history\.json is damaged: it is not the history of"):
    evolution.train(RECIPE, out, resume=True)
  monkeypatch.setitem(sys.modules, "cmaes", None)
  with pytest.raises(ImportError, match=r"pip install 'learned_opt\[evolution\]'"):
    evolution.train(RECIPE, tmp_path / "other")
