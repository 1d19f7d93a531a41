"""Random search: trials on common problems, failures, and resuming bit for bit."""

import functools
import json
import math
import shutil

import chex
import jax
import numpy as np
import numpy_lstm
import pytest

import learned_opt
from learned_opt import (
  _scores,
  cli,
  curriculum,
  estimators,
  optimizees,
  optimizers,
  runs,
  search,
)
from learned_opt.evaluate import learning_curves

# Programs of the shapes of test_curriculum.py, which the compilation cache knows.
LSTM = optimizers.lstm(hidden_size=4, preprocessing=optimizers.Identity(), output_scale=1.0)
QUADRATIC = optimizees.quadratic(dimension=2)
# The second one makes every problem diverge.
RATES = (1e-2, 1e30)


@functools.cache
def estimator(horizon):
  return estimators.truncated_backprop(unroll_length=5, horizon=horizon, meta_batch_size=2)


def recipe(**changes):
  values = {
    "name": "lstm",
    "optimizee": QUADRATIC,
    "learned_optimizer": LSTM,
    "estimator": estimator(5),
    "num_outer_steps": 4,
    "validate_every": 2,
    "steps_per_dispatch": 1,
    "num_validation_problems": 4,
    "num_test_problems": 4,
    "num_tuning_problems": 2,
    "baselines": ("sgd",),
    **changes,
  }
  return runs.Recipe(**values)


def trials(rates=RATES, seeds=(0, 1), **changes):
  return search.grid(recipe(**changes), rates, seeds)


def train(out, chosen=None, evaluate=False, **options):
  return search.train(
    chosen or trials(), out, num_problems=8, evaluate=evaluate, plots=False, **options
  )


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
  """All that a search leaves and that is to be the same bit for bit."""
  found = {
    str(path.relative_to(out)): path.read_bytes()
    for path in out.rglob("*")
    if path.suffix == ".npz" or path.name in ("config.json", "search.json", "failed.json")
  }
  for path in out.rglob("history.json"):
    found[str(path.relative_to(out))] = {**read(path), "seconds": None}
  return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Four trials, of which two fail. Not to be changed."""
  return train(tmp_path_factory.mktemp("search") / "finished", evaluate=True)


# --- What is tried.


def test_log_uniform_draws_what_its_name_says():
  drawn = np.array(search.log_uniform(1e-5, 1e-1, 2000, seed=1))
  assert np.all((drawn >= 1e-5) & (drawn <= 1e-1))
  assert np.all(np.diff(drawn) >= 0)
  logs = np.log10(drawn)
  # Uniform on [-5, -1]: mean -3, variance 16 / 12, within four standard errors.
  assert abs(logs.mean() + 3) < 4 * math.sqrt(16 / 12 / 2000)
  assert abs(logs.var() - 16 / 12) < 4 * math.sqrt(4**4 / 180 / 2000)
  assert search.log_uniform(1e-4, 1e-2, 3) == search.log_uniform(1e-4, 1e-2, 3)
  assert search.log_uniform(1e-4, 1e-2, 3) != search.log_uniform(1e-4, 1e-2, 3, seed=1)


def test_grid_changes_rates_and_seeds_alone():
  chosen = trials((0.1, 0.2), (5, 7))
  assert [(one.outer_learning_rate, one.seed) for one in chosen] == [
    *((0.1, 5), (0.1, 7), (0.2, 5), (0.2, 7))
  ]
  assert {one.estimator for one in chosen} == {estimator(5)}


# --- The trials and the winner.


def test_scores_are_means_over_the_same_fresh_problems(finished):
  key = jax.random.fold_in(runs.split_seed(0)[1], 2)
  keys = jax.random.split(key, 8)

  @jax.jit
  def draw(key):
    return QUADRATIC.init(jax.random.split(key)[0], QUADRATIC.data)

  problems = [jax.tree.map(np.float64, draw(key)) for key in keys]

  def final_loss(lstm, theta, constants):
    def residual(theta):
      return constants.w @ theta - constants.y

    def loss(theta):
      return np.sum(residual(theta) ** 2)

    def grad(theta):
      return 2 * constants.w.T @ residual(theta)

    return numpy_lstm.optimize(lstm, loss, grad, theta, 5)[0][-1]

  for score in finished.scores[:2]:
    artifact = learned_opt.load_artifact(finished.out / "trials" / score.name / "optimizer")
    lstm = numpy_lstm.NumpyLSTM(artifact.meta_params, numpy_lstm.identity)
    losses = [final_loss(lstm, *problem) for problem in problems]
    np.testing.assert_allclose(score.loss, np.mean(losses), rtol=1e-5)
    assert score.low < score.loss < score.high
    assert score.best_step == artifact.card["recipe"]["best_step"]


def test_trials_that_diverge_have_failed_and_the_search_goes_on(finished):
  assert [score.name for score in finished.scores] == [
    *("0-rate-0.01-seed-0", "1-rate-0.01-seed-1", "2-rate-1e+30-seed-0", "3-rate-1e+30-seed-1")
  ]
  assert [score.error is None for score in finished.scores] == [True, True, False, False]
  for score in finished.scores[2:]:
    assert "every problem diverged in each of the outer steps" in score.error
    assert (score.loss, score.best_step) == (math.inf, None)


def test_winner_has_the_lowest_loss_and_is_judged_once(finished):
  assert finished.winner == min(finished.scores, key=lambda score: score.loss)
  trial = learned_opt.load_artifact(finished.out / "trials" / finished.winner.name / "optimizer")
  artifact = learned_opt.load_artifact(finished.optimizer)
  chex.assert_trees_all_equal(artifact.meta_params, trial.meta_params)
  recorded = artifact.card["recipe"]
  assert recorded["seed"] == finished.winner.seed
  assert recorded["search"] == read(finished.out / "search.json")
  assert [row["name"] for row in artifact.card["evaluation"]["rows"]] == ["lstm", "sgd"]
  assert not list(finished.out.glob("trials/*/evaluation.json"))
  # On the problems of the first seed, whoever wins.
  again = runs.evaluate(recipe(), finished.out, num_steps=5, plots=False)
  np.testing.assert_array_equal(
    again.results["lstm"].mean, finished.evaluation.results["lstm"].mean
  )


def test_spread_is_told_by_learning_rate(finished):
  good, bad = finished.spread()
  losses = sorted(score.loss for score in finished.scores[:2])
  assert good == (1e-2, 2, 0, losses[0], np.mean(losses), losses[1])
  assert bad == (1e30, 2, 2, math.inf, math.inf, math.inf)
  told = read(finished.out / "search.json")
  assert told["by_outer_learning_rate"][0]["best"] == losses[0]
  assert told["by_outer_learning_rate"][1]["median"] is None
  assert [one["loss"] for one in told["trials"]][2:] == [None, None]


def test_curricula_can_be_trials(tmp_path):
  chosen = [curriculum.over_horizons(one, estimator, (5, 10)) for one in trials(RATES[:1], (0,))]
  done = train(tmp_path / "run", [*chosen, recipe(outer_learning_rate=1e-2)])
  assert [score.name for score in done.scores] == ["0-rate-0.01-seed-0", "1-rate-0.01-seed-0"]
  assert (tmp_path / "run" / "trials" / "0-rate-0.01-seed-0" / "stage-0-5").is_dir()
  # The first trial says on what they are compared: 10 steps, on which none of them was trained.
  curves = learning_curves(
    QUADRATIC,
    LSTM.optimizer,
    learned_opt.load_artifact(tmp_path / "run" / "optimizer").meta_params,
    jax.random.split(jax.random.fold_in(runs.split_seed(0)[1], 2), 8),
    10,
  )
  lowest = min(score.loss for score in done.scores)
  assert lowest == pytest.approx(np.mean(curves.losses[:, -1]), rel=1e-6)


# --- Resuming.


@pytest.mark.parametrize(
  ("number", "error"),
  [(1, RuntimeError), (3, RuntimeError), (7, KeyboardInterrupt)],
  ids=["before-a-checkpoint", "first-trial", "ctrl-c-in-second-trial"],
)
def test_resumed_search_is_the_uninterrupted_one(tmp_path, finished, number, error):
  out = tmp_path / "run"
  try:
    cut = train(out, callbacks=[at_call(number, error("the power went out"))])
    assert cut.interrupted
    assert (cut.scores, cut.winner, cut.optimizer) == ((), None, None)
  except RuntimeError:
    assert error is RuntimeError
  assert not (out / "search.json").exists()
  train(out, resume=True)
  assert traces(out) == traces(finished.out)


def test_trials_that_are_done_or_failed_are_not_repeated(tmp_path, finished):
  out, steps = shutil.copytree(finished.out, tmp_path / "run"), []
  shutil.rmtree(out / "trials" / "1-rate-0.01-seed-1")
  train(out, resume=True, callbacks=[lambda progress: steps.append(progress.outer_step)])
  assert steps == [1, 2, 3, 4]
  assert traces(out) == traces(finished.out)


def test_resume_refuses_other_trials(finished):
  with pytest.raises(ValueError, match=r"trials\.0-rate-0\.01-seed-0\.num_outer_steps was 4 and"):
    train(finished.out, trials(num_outer_steps=6), resume=True)
  with pytest.raises(ValueError, match="num_problems was 8 and is 9"):
    search.train(trials(), finished.out, num_problems=9, resume=True)


def test_never_overwrites(finished):
  before = traces(finished.out)
  with pytest.raises(FileExistsError, match="not empty: choose another folder"):
    train(finished.out)
  assert traces(finished.out) == before


# --- The command line.


def test_prints_trials_spread_and_evaluation(tmp_path, finished, capsys):
  out = shutil.copytree(finished.out, tmp_path / "run")
  cli.run_search(trials(), out, num_problems=8, resume=True, plots=False)
  stdout, stderr = capsys.readouterr()
  lines = [line.split() for line in stdout.splitlines()]
  (heading,) = (n for n, line in enumerate(lines) if line[:2] == ["trial", "loss"])
  assert lines[heading + 1][0] == finished.winner.name
  assert lines[heading + 4][1:] == ["inf", "failed", "-"]
  assert [f"{1e30:,.0f}", "2", "2", "inf", "inf", "inf"] in lines
  assert "optimizee: mean loss over 4 fresh problems" in stdout
  assert f"wrote {out / 'search.json'}" in stdout
  assert "trial 4 of 4: 3-rate-1e+30-seed-1" in stderr


# --- Errors.


def test_no_trial_with_a_finite_loss_is_an_error(tmp_path, finished):
  out = shutil.copytree(finished.out, tmp_path / "run")
  for trial in (out / "trials").iterdir():
    (trial / "failed.json").write_text('{"error": "it diverged"}')
  with pytest.raises(FloatingPointError, match=r"none of 4 trials .* loss: it diverged"):
    train(out, resume=True)


def test_without_an_error_there_is_nothing_to_quote():
  score = _scores.Score("0", 0.1, 0, math.inf, math.inf, math.inf, 2, None)
  with pytest.raises(FloatingPointError, match=r"none of 1 trials .* loss$"):
    _scores.best_of([score])


@pytest.mark.parametrize(
  ("chosen", "options", "message"),
  [
    ((), {}, "trials must not be empty"),
    ([[]], {}, "trials must not be empty"),
    (trials(), {"num_problems": 0}, "num_problems must be at least 1, got 0"),
  ],
  ids=["none", "no-stage", "problems"],
)
def test_train_refuses(tmp_path, chosen, options, message):
  with pytest.raises(ValueError, match=message):
    search.train(chosen, tmp_path / "run", **options)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((0.0, 1.0, 3), "low and high must be positive, and low the lower, got 0.0 and 1.0"),
    ((1.0, 0.1, 3), "low and high must be positive"),
    ((0.1, 1.0, 0), "number must be at least 1, got 0"),
  ],
)
def test_log_uniform_refuses(arguments, message):
  with pytest.raises(ValueError, match=message):
    search.log_uniform(*arguments)
