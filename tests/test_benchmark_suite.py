"""The suite: what is measured, how it is scored, and that baselines are kept and found."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import learned_opt
from learned_opt import benchmark_suite, cli, optimizees, optimizers
from learned_opt._costs import Cost
from learned_opt.benchmark_suite import SIZES, TASKS, Data, Report, TaskResult, _baselines, _suite
from learned_opt.benchmark_suite._report import aggregate, speed_up
from learned_opt.benchmark_suite._running import curves_of, curves_of_rates, draw, window_steps
from learned_opt.evaluate import Candidate, learning_curves

SMOKE = SIZES["smoke"]
TASK = TASKS["softmax-regression"]
STEPS = np.array([0, 10, 20, 30, 40])


@pytest.fixture(autouse=True)
def no_text(monkeypatch, tmp_path):
  monkeypatch.setenv("LEARNED_OPT_DATA", str(tmp_path))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The baselines at smoke size, and what was skipped."""
  folder = tmp_path_factory.mktemp("baselines")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("LEARNED_OPT_DATA", str(folder))
    return folder, benchmark_suite.build("smoke", folder=folder, command="pytest")


# --- The tasks.


def test_there_are_tasks_of_every_kind_and_most_need_no_download():
  assert len(TASKS) >= 16
  assert sum(task.needs is None for task in TASKS.values()) >= 12
  assert {task.horizon for task in TASKS.values()} == {1, 5, 25}
  kinds = {task.make.__name__ for task in TASKS.values()}
  assert kinds >= {"_mlp", "_conv", "_autoencoder", "_recurrent", "_transformer", "_sines"}
  for name, task in TASKS.items():
    assert name == task.name
    assert json.loads(json.dumps(task.definition(10)))["options"] == dict(task.options)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.needs is None])
def test_tasks_without_a_download_can_be_traced(name, key):
  optimizee = TASKS[name].optimizee(Data())

  def start(optimizee, key):
    params, constants = optimizee.init(key, optimizee.data)
    return optimizee.loss(params, constants, optimizee.data, key)

  assert jax.eval_shape(start, optimizee, key).shape == ()


def test_tasks_are_chosen_by_name_and_horizon():
  assert [task.name for task in SIZES["cpu"].chosen(["conv", "mlp-x25"])] == ["conv", "mlp-x25"]
  assert SMOKE._replace(max_horizon=1).chosen(["conv", "mlp-x25"]) == (TASKS["conv"],)
  assert SIZES["cpu"].steps_of(TASKS["mlp-x25"]) == 25_000
  with pytest.raises(ValueError, match=r"unknown tasks \['covn'\]: there are mlp-wide"):
    SMOKE.chosen(["covn"])


# --- Curves.


def bowls():
  return optimizees.conditioned_quadratic(2, 4.0, noise=0.1)


def test_curves_are_means_over_windows_of_the_losses_that_are_seen():
  keys = jax.random.split(jax.random.key(1), 3)
  problems = draw(bowls(), keys)
  found = curves_of_rates(bowls(), optax.sgd, [0.1, 0.2], problems, 10, 3)
  assert found.shape == (2, 3, 4)
  losses = learning_curves(bowls(), optax.sgd, 0.2, keys, 10).losses
  np.testing.assert_allclose(found[1][:, 0], losses[:, 0], rtol=1e-5)
  # A step that is over comes before the first window: 1 + 3 * 3.
  expected = losses[:, 1:10].reshape(3, 3, 3).mean(axis=2)
  np.testing.assert_allclose(found[1][:, 1:], expected, rtol=1e-4)
  one = curves_of(bowls(), optax.sgd, 0.2, problems, 10, 3)
  np.testing.assert_allclose(one, found[1], rtol=1e-5)
  np.testing.assert_array_equal(window_steps(10, 3), [0, 4, 7, 10])
  np.testing.assert_array_equal(window_steps(2, 50), [0, 1, 2])


# --- Tuning.


@pytest.mark.parametrize("best", [-37, -9, 3, 20])
def test_the_search_finds_the_best_half_power_of_two(best):
  """Also far outside of where it starts."""
  asked = []

  def values_at(exponents):
    asked.extend(exponents := list(exponents))
    return {k: abs(k - best) + 0.0 for k in exponents}

  values = _baselines._search(values_at, (-12, 0))
  assert min(values, key=values.__getitem__) == best
  assert {best - 1, best + 1} <= set(values)
  assert len(asked) == len(set(asked))


def test_the_search_ends_where_all_diverges():
  values = _baselines._search(lambda ks: dict.fromkeys(ks, np.inf), (-12, 0))
  assert min(values) < -50


def test_a_rate_with_which_a_problem_diverges_is_out_of_the_question(monkeypatch):
  """Gradient descent on curvatures of at most 2 diverges with rates above 1."""
  monkeypatch.setattr(_baselines, "_MAKES", {"sgd": (optax.sgd, (-4, 4))})
  tuned = _baselines._tune(optimizees.conditioned_quadratic(2, 1.0), "sgd", 200, SMOKE)
  values = dict(zip(tuned.rates.round(4).tolist(), tuned.values.tolist(), strict=True))
  # All arrive, and a half in one step.
  assert tuned.learning_rate == 0.5
  assert tuned.interior
  first = tuned.curves[:, 0].mean()
  assert values[0.5] < 0.05 * first
  assert values[4.0] == np.inf
  assert tuned.curves.shape == (2, 5)


def test_a_cosine_takes_the_rate_to_zero_at_the_horizon():
  tx = _baselines._Make(optax.sgd, 10)(jnp.float32(0.5))
  assert _baselines._Make(optax.sgd, 10) == _baselines._Make(optax.sgd, 10)
  state, sizes = tx.init(jnp.ones(())), []
  for _ in range(11):
    update, state = tx.update(jnp.ones(()), state)
    sizes.append(-float(update))
  expected = 0.5 * (1 + np.cos(np.pi * np.arange(11) / 10)) / 2
  np.testing.assert_allclose(sizes, expected, atol=1e-6)


def test_all_baselines_are_tuned_with_both_schedules():
  assert {"sgd", "momentum", "nag", "rprop", "adagrad", "rmsprop", "adam", "adamw"} == {
    name.removesuffix("-cosine") for name in _baselines.names_of(SIZES["cpu"])
  }
  assert len(_baselines.names_of(SIZES["cpu"])) == 16


# --- What is kept.


def test_baselines_are_kept_with_their_record(built):
  folder, skipped = built
  record = _baselines.read_record(folder, TASK)
  assert record["command"] == "pytest"
  assert set(record["versions"]) == {"learned_opt", "jax", "jaxlib", "optax", "numpy"}
  assert record["device"]
  assert record["definition"]["num_steps"] == 8
  tuned = _baselines.read(folder, TASK, SMOKE)
  assert list(tuned) == ["adam", "adam-cosine"]
  for one in tuned.values():
    assert one.curves.shape == (2, 5)
    np.testing.assert_allclose(one.learning_rate, one.rates[np.argmin(one.values)], rtol=1e-6)
  assert len(skipped) == 1
  assert skipped[0].startswith("shakespeare-lstm: tiny shakespeare is not at ")


SHIPPED = sorted(path.stem for path in _baselines.package_folder("cpu").glob("*.json"))


def test_the_baselines_of_all_tasks_are_shipped():
  assert set(SHIPPED) == set(TASKS)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_baselines_are_those_of_the_task_as_it_is_now(name):
  size, task = SIZES["cpu"], TASKS[name]
  tuned = _baselines.read(_baselines.package_folder("cpu"), task, size)
  assert tuned is not None
  assert set(tuned) == set(_baselines.BASELINES)
  for one in tuned.values():
    assert one.curves.shape == (size.num_seeds, size.num_windows + 1)
    assert one.interior
    best = one.rates[np.argmin(one.values)]
    np.testing.assert_allclose(best, one.learning_rate, rtol=1e-6)
    assert np.isfinite(one.curves).all()


def test_what_is_kept_is_not_tuned_again_unless_the_task_is_another(built, monkeypatch):
  folder, _ = built
  monkeypatch.setattr(_baselines, "_tune", lambda *_: pytest.fail("tuned again"))
  benchmark_suite.build("smoke", folder=folder, tasks=[TASK.name])
  other = dataclasses.replace(TASK, options={**TASK.options, "batch_size": 8})
  assert _baselines.read(folder, other, SMOKE) is None
  assert _baselines.read(folder, TASK, SMOKE._replace(num_seeds=3)) is None


# --- Scores.


def test_speed_up_compares_the_steps_to_the_higher_final_loss():
  theirs = np.array([9.0, 7.0, 5.0, 3.0, 1.0])
  assert speed_up(theirs, theirs, STEPS) == 1.0
  # A curve that fluctuates is as fast as itself, and one around its last loss has not settled.
  around = np.array([9.0, 1.0, 4.0, 1.0, 3.0])
  assert speed_up(theirs, around, STEPS) == pytest.approx(70 / 3 / 30)
  noisy = np.array([9.0, 7.0, 1.0, 3.0, 2.0])
  assert speed_up(noisy, noisy, STEPS) == 1.0
  assert speed_up(noisy, theirs, STEPS) * speed_up(theirs, noisy, STEPS) == pytest.approx(1.0)
  # We are at their last loss between steps 10 and 20, three quarters on the way from 7 to -1.
  assert speed_up(np.array([9.0, 7.0, -1.0, -1.0, -2.0]), theirs, STEPS) == pytest.approx(40 / 17.5)
  # They are at our last loss, 4, halfway from step 20 to 30.
  assert speed_up(np.array([9.0, 8.0, 6.0, 5.0, 4.0]), theirs, STEPS) == pytest.approx(25 / 40)
  # What the first window cannot tell is not credited.
  assert speed_up(np.array([0.5, 0.0, 0.0, 0.0, 0.0]), theirs, STEPS) == 4.0


def test_failures_count_as_no_speed_at_all():
  theirs = np.array([9.0, 7.0, 5.0, 3.0, 1.0])
  assert speed_up(np.array([9.0, 7.0, np.nan, np.nan, np.nan]), theirs, STEPS) == 0.0
  assert speed_up(np.array([9.0, 7.0, 5.0, 3.0, 10.0]), theirs, STEPS) == 0.0
  assert speed_up(theirs, np.array([9.0, np.inf, 5.0, 3.0, 1.0]), STEPS) == 4.0


def test_aggregate_is_the_interquartile_mean_with_a_bootstrap_interval():
  rng = np.random.default_rng(0)
  values = [rng.normal(task, 0.5, 7) for task in range(5)]
  values[0][2] = np.inf
  found = aggregate(values)
  expected = scipy.stats.trim_mean(np.concatenate(values), 0.25)
  np.testing.assert_allclose(found.value, expected, rtol=1e-12)
  assert found.low < found.value < found.high
  # Tasks are not resampled: problems without spread leave no interval.
  assert aggregate([np.full(7, task) for task in range(5)])[1:] == (2.0, 2.0)
  assert np.isnan(aggregate([]).value)


def result(name, ours, theirs) -> TaskResult:
  cost = Cost(1e-6, None, 8)
  return TaskResult(
    name, "all", STEPS, np.array(ours), {"adam": np.array(theirs)}, {"adam": 0.1}, cost, cost
  )


def test_a_report_counts_failures_and_is_json():
  theirs = [[9.0, 7.0, 5.0, 3.0, 1.0]] * 2
  good = result("good", [[9.0, 5.0, 3.0, 1.0, 0.5]] * 2, theirs)
  bad = result("bad", [theirs[0], [9.0, np.nan, np.nan, np.nan, np.nan]], theirs)
  report = Report("mine", "cpu", (good, bad), {"conv": "no data"})
  assert (good.num_failed, bad.num_failed, report.num_failed) == (0, 1, 1)
  np.testing.assert_allclose(good.speed_ups("adam"), 40 / 30)
  np.testing.assert_allclose(bad.loss_ratios("adam"), [1.0, 0.0])
  # Losses below a hundredth of the first are all as good.
  easy = result("easy", [[9.0, 0.01, 0.0, 0.0, 0.0]] * 2, [[9.0, 1.0, 0.02, 0.02, 0.02]] * 2)
  np.testing.assert_allclose(easy.loss_ratios("adam"), 1.0)
  np.testing.assert_allclose(easy.speed_ups("adam"), 2.0)
  # The middle two of 4/3, 4/3, 1 and 0.
  assert report.speed_up("adam").value == pytest.approx((4 / 3 + 1) / 2)
  assert report.speed_up() == report.speed_up("adam")
  described = json.loads(json.dumps(report.to_json(), allow_nan=False))
  assert described["tasks"]["bad"]["final_loss"] is None
  assert described["tasks"]["good"]["baselines"]["adam"]["final_loss"] == 1.0
  assert described["against"]["best"]["speed_up"]["value"] == pytest.approx(7 / 6)
  assert described["skipped"] == {"conv": "no data"}


# --- Runs.


def test_the_baseline_itself_is_as_fast_as_the_baseline(built):
  folder, _ = built
  rate = _baselines.read(folder, TASK, SMOKE)["adam"].learning_rate
  adam = Candidate("ours", optax.adam, np.float32(rate))
  report = benchmark_suite.run(adam, size="smoke", baselines=folder)
  (one,) = report.results
  np.testing.assert_allclose(one.curves, one.baselines["adam"], rtol=1e-5)
  np.testing.assert_allclose(one.speed_ups("adam"), 1.0, rtol=1e-2)
  assert (one.note, one.num_failed, report.name) == ("", 0, "ours")
  assert one.cost.state_bytes == one.adam_cost.state_bytes > 0
  assert list(report.skipped) == ["shakespeare-lstm"]


def test_without_baselines_a_task_is_skipped_with_the_remedy(tmp_path):
  sgd = Candidate("sgd", optax.sgd, 0.1)
  report = benchmark_suite.run(sgd, size="smoke", tasks=[TASK.name], baselines=tmp_path)
  assert "python -m learned_opt.benchmark_suite makes them" in report.skipped[TASK.name]
  assert report.results == ()
  with pytest.raises(ValueError, match="size must be one of smoke, cpu, got 'large'"):
    benchmark_suite.run(sgd, size="large")


def test_architectures_with_a_horizon_are_told_the_tasks(tmp_path):
  """As it would plan for so many steps, with its other options as they were saved."""
  saved = optimizers.learned_muon(rate=0.03, gains=(4.0, 4.0))
  meta_params = saved.init(jax.random.key(0))
  learned_opt.save(tmp_path / "it", saved, meta_params, recipe={"name": "mine"})
  candidate = _suite._for_steps(tmp_path / "it", None)(3)
  assert candidate.name == "mine"
  planned = optimizers.learned_muon(rate=0.03, gains=(4.0, 4.0), num_steps=3)
  params, found = jnp.ones(2), []
  for tx in (candidate.make(candidate.hyperparams), planned.optimizer(meta_params)):
    _, state = tx.update(params, tx.init(params), params)
    found.append(tx.update(params, state, params)[0])
  np.testing.assert_array_equal(*found)


def test_the_command_prints_a_table_or_json_and_writes_a_figure(built, tmp_path, capsys):
  folder, _ = built
  argv = ["benchmark", "lstm-mnist", "--size", "smoke", "--baselines", str(folder)]
  assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 0
  printed = capsys.readouterr().out
  assert "softmax-regression" in printed
  assert "best of each task" in printed
  assert "skipped shakespeare-lstm: tiny shakespeare is not at" in printed
  assert (tmp_path / "out" / "learning_curves.png").stat().st_size > 10_000
  written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
  assert cli.main([*argv, "--json"]) == 0
  described = json.loads(capsys.readouterr().out)
  for one in (written, described):
    for task in one["tasks"].values():
      del task["cost"], task["adam_cost"]
  assert written == described
  assert cli.main(["benchmark", "lstm-mnist", "--size", "smoke", "--tasks", "covn"]) == 2
