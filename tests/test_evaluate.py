"""Learning curves, the search for learning rates, statistics, costs, and the whole comparison."""

import dataclasses
import json
import math
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from cases import bowl, bowl_grad, bowl_loss, images, meta_params_of, tiny_lstm

from learned_opt import Optimizee, baselines, evaluate, optimizees
from learned_opt._costs import _flops
from learned_opt._curves import Curves
from learned_opt._results import summarize
from learned_opt._statistics import mean_interval
from learned_opt.baselines import BASELINES, Baseline, tune
from learned_opt.evaluate import Candidate, learning_curves
from learned_opt.unroll import init_inner_state, unroll

ONE_BASELINE = ("sgd",)


def weighted_squares(curvatures, start):
  """sum_i c_i x_i^2 / 2 from a fixed start, the same for each key; cheap to compile."""
  start = np.asarray(start, np.float32)
  curvatures = np.asarray(curvatures, np.float32)
  return Optimizee.from_functions(
    lambda key: jnp.asarray(start), lambda x, key: jnp.sum(curvatures * x**2) / 2
  )


def keys_of(number, seed=0):
  return jax.random.split(jax.random.key(seed), number)


# --- Learning curves: the baselines against their papers' equations in float64.


def momentum_rule(rate):
  velocity = 0.0

  def step(grad):
    nonlocal velocity
    velocity = 0.9 * velocity + grad
    return -rate * velocity

  return step


def rprop_rule(rate):
  step_size, previous = rate, 0.0

  def step(grad):
    nonlocal step_size, previous
    agreement = np.sign(grad * previous)
    factor = np.where(agreement > 0, 1.2, np.where(agreement < 0, 0.5, 1.0))
    step_size = np.clip(step_size * factor, 1e-6, 50.0)
    grad = np.where(agreement < 0, 0.0, grad)
    previous = grad
    return -step_size * np.sign(grad)

  return step


def adagrad_rule(rate):
  total = 0.1

  def step(grad):
    nonlocal total
    total = total + grad**2
    return -rate * grad / np.sqrt(total + 1e-7)

  return step


def rmsprop_rule(rate):
  average = 0.0

  def step(grad):
    nonlocal average
    average = 0.9 * average + 0.1 * grad**2
    return -rate * grad / np.sqrt(average + 1e-8)

  return step


def adam_rule(rate):
  first, second, t = 0.0, 0.0, 0

  def step(grad):
    nonlocal first, second, t
    t += 1
    first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
    return -rate * first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)

  return step


RULES = {
  "sgd": lambda rate: lambda grad: -rate * grad,
  "momentum": momentum_rule,
  "rprop": rprop_rule,
  "adagrad": adagrad_rule,
  "rmsprop": rmsprop_rule,
  "adam": adam_rule,
}


@jax.jit
def draw(optimizee, key):
  return init_inner_state(optimizee, optax.identity(), key)


def start_of(optimizee, key):
  """theta_0 in float64 and the constants of the problem with this key."""
  state = draw(optimizee, key)
  return np.asarray(state.params, np.float64), jax.tree.map(np.float64, state.constants)


def numpy_curve(theta, loss, grad, step, num_steps):
  losses = []
  for _ in range(num_steps):
    losses.append(loss(theta))
    theta = theta + step(grad(theta))
  return [*losses, loss(theta)]


@pytest.mark.parametrize("name", RULES)
def test_a_baseline_follows_its_equations(name):
  # Large enough for Rprop's steps to change their direction.
  keys, rate = keys_of(3), 0.25 if name == "rprop" else 0.03125
  expected = []
  for key in keys:
    theta, constants = start_of(bowl(), key)
    step = RULES[name](rate)
    expected.append(numpy_curve(theta, bowl_loss(constants), bowl_grad(constants), step, 12))
  curves = learning_curves(bowl(), BASELINES[name].make, rate, keys, 12)
  np.testing.assert_allclose(curves.losses, expected, rtol=2e-5)


def test_nag_reports_the_losses_at_the_look_ahead_point():
  (key,), rate = keys_of(1), 0.03125
  x, constants = start_of(bowl(), key)
  loss, grad, velocity, expected = bowl_loss(constants), bowl_grad(constants), 0.0, []
  for _ in range(13):
    ahead = x + 0.9 * velocity
    expected.append(loss(ahead))
    velocity = 0.9 * velocity - rate * grad(ahead)
    x = x + velocity
  curves = learning_curves(bowl(), BASELINES["nag"].make, rate, keys_of(1), 12)
  np.testing.assert_allclose(curves.losses[0], expected, rtol=2e-5)


def test_sgd_on_the_quadratics_is_the_numpy_loop():
  optimizee, keys = optimizees.quadratic(), keys_of(4)
  expected = []
  for key in keys:
    theta, (w, y) = start_of(optimizee, key)
    expected.append(
      numpy_curve(
        theta,
        lambda x, w=w, y=y: np.sum((w @ x - y) ** 2),
        lambda x, w=w, y=y: 2 * w.T @ (w @ x - y),
        RULES["sgd"](0.015625),
        30,
      )
    )
  curves = learning_curves(optimizee, optax.sgd, 0.015625, keys, 30)
  np.testing.assert_allclose(curves.losses, expected, rtol=2e-5)
  assert curves.metrics == {}


@pytest.mark.parametrize("block_size", [1, 2, 5, 8])
def test_the_block_size_changes_nothing(block_size):
  """The last block is filled up, and what fills it is dropped."""
  expected = learning_curves(bowl(), optax.adam, 0.1, keys_of(5), 4)
  curves = learning_curves(bowl(), optax.adam, 0.1, keys_of(5), 4, block_size=block_size)
  np.testing.assert_allclose(curves.losses, expected.losses, rtol=1e-6)
  assert len(np.unique(curves.losses[:, 0])) == 5


def test_metrics_are_those_of_the_last_params():
  optimizee = optimizees.mlp_classifier(images(), (3,), batch_size=8)
  keys = keys_of(3)
  curves = learning_curves(optimizee, optax.sgd, 0.5, keys, 4, block_size=2)
  assert set(curves.metrics) == {"test_loss", "test_accuracy"}
  tx = optax.sgd(0.5)

  @jax.jit
  def expected_metrics(key):
    state, _ = unroll(optimizee, tx, init_inner_state(optimizee, tx, key), 4)
    return optimizee.metrics(state.params, state.constants, optimizee.data)

  for index, key in enumerate(keys):
    for name, value in expected_metrics(key).items():
      np.testing.assert_allclose(curves.metrics[name][index], value, rtol=1e-5)


def test_the_outer_loss_is_not_what_is_judged():
  plain = optimizees.mlp_classifier(images(), (3,), batch_size=8)
  split = optimizees.mlp_classifier(images(), (3,), batch_size=8, outer_split="validation")
  expected = learning_curves(plain, optax.sgd, 0.5, keys_of(2), 3).losses
  np.testing.assert_array_equal(
    learning_curves(split, optax.sgd, 0.5, keys_of(2), 3).losses, expected
  )


def test_one_trace_for_all_learning_rates_problems_and_numbers_of_problems():
  make = chex.assert_max_traces(lambda rate: optax.sgd(rate), n=1)
  optimizee = weighted_squares([1.0, 2.0], [1.0, 1.0])
  for rate in (0.5, np.float32(0.25), jnp.array(0.125)):
    for number in (4, 7):
      curves = learning_curves(optimizee, make, rate, keys_of(number), 3, block_size=4)
      assert curves.losses[0, 1] == pytest.approx(((1 - rate) ** 2 + 2 * (1 - 2 * rate) ** 2) / 2)


def test_one_trace_for_all_meta_params():
  architecture = tiny_lstm()
  make = chex.assert_max_traces(architecture.optimizer, n=1)
  curves = [
    learning_curves(bowl(), make, meta_params_of(architecture, seed), keys_of(2), 3).losses
    for seed in (0, 1)
  ]
  assert np.all(curves[0][:, 1:] != curves[1][:, 1:])


@pytest.mark.parametrize(
  ("change", "error", "match"),
  [
    ({"num_steps": 0}, ValueError, "num_steps must be an integer of at least 1, got 0"),
    ({"num_steps": 2.5}, ValueError, "num_steps must be an integer of at least 1, got 2.5"),
    ({"block_size": 0}, ValueError, "block_size must be an integer"),
    ({"optimizee": lambda key: key}, TypeError, "must be a learned_opt.Optimizee, got function"),
    ({"make": optax.sgd(0.1)}, TypeError, "make must be a function"),
  ],
)
def test_learning_curves_refuse(change, error, match):
  arguments = {"optimizee": bowl(), "make": optax.sgd, "num_steps": 2} | change
  with pytest.raises(error, match=match):
    learning_curves(hyperparams=0.1, keys=keys_of(2), **arguments)


# --- The search for a learning rate.


def tune_sgd(optimizee, exponents=(-4, 2), **options):
  options = {"num_steps": 1, "num_problems": 2, "key": jax.random.key(0)} | options
  return tune(optimizee, Baseline("sgd", optax.sgd, exponents), **options)


@pytest.mark.parametrize("exponents", [(-6, -2), (-5, -3), (-20, -17), (3, 5), (-4, -4)])
def test_the_grid_is_widened_until_the_best_is_interior(exponents):
  """One step with the rate 1 / c arrives at the minimum of c x^2 / 2."""
  tuned = tune_sgd(weighted_squares([4.0], [3.0]), exponents)
  assert tuned.learning_rate == 0.25
  assert tuned.interior
  assert tuned.values.min() == 0.0
  exponents_tried = 2 * np.log2(tuned.learning_rates)
  np.testing.assert_allclose(np.diff(exponents_tried), 1.0, rtol=1e-12)
  assert exponents_tried[0] <= exponents[0]
  assert exponents_tried[-1] >= exponents[1]
  expected = 2.0 * (3.0 * (1 - 4 * tuned.learning_rates)) ** 2
  np.testing.assert_allclose(tuned.values, expected, rtol=1e-5, atol=1e-10)


def test_the_grid_is_widened_without_compiling_again():
  make = chex.assert_max_traces(lambda rate: optax.sgd(rate), n=1)
  optimizee = weighted_squares([4.0], [3.0])
  tuned = tune(
    optimizee, Baseline("x", make, (8, 10)), num_steps=1, num_problems=2, key=jax.random.key(0)
  )
  assert tuned.learning_rate == 0.25


def test_the_objectives_choose_differently():
  """A steep direction that starts far away decides the sum, a flat one the final loss."""
  curvatures, start, num_steps = np.array([1.0, 0.25]), np.array([10.0, 1.0]), 20
  scores = {
    "final": lambda losses: losses[:, -1],
    "late": lambda losses: losses[:, -2:].mean(axis=1),
    "sum": lambda losses: losses[:, :-1].sum(axis=1),
  }
  tuned = {
    objective: tune_sgd(weighted_squares(curvatures, start), num_steps=20, objective=objective)
    for objective in scores
  }
  # 2^(1/2) is the half power of two nearest to 2 / (1 + .25), the best rate of contraction.
  assert tuned["final"].learning_rate == pytest.approx(math.sqrt(2.0))
  assert tuned["sum"].learning_rate == 1.0
  for objective, score in scores.items():
    rates = tuned[objective].learning_rates
    decay = (1 - rates[:, None] * curvatures)[:, None] ** np.arange(num_steps + 1)[:, None]
    losses = np.sum(curvatures * (decay * start) ** 2, axis=-1) / 2
    np.testing.assert_allclose(tuned[objective].values, score(losses), rtol=1e-3, atol=1e-12)


def test_a_learning_rate_with_which_one_problem_diverges_is_out():
  """x^4 / 4 from 1 or from 3: a large rate suits the one and blows up the other."""
  optimizee = Optimizee.from_functions(
    lambda key: 1.0 + 2.0 * jax.random.bernoulli(key).astype(jnp.float32),
    lambda x, key: x**4 / 4,
  )
  tuned = tune_sgd(optimizee, (-8, 2), num_steps=30, num_problems=8)
  starts = [float(start_of(optimizee, key)[0]) for key in keys_of(8)]
  assert set(starts) == {1.0, 3.0}
  # From 3 the iteration shrinks below the rate 2 / 9 only, from 1 below 2.
  diverged = tuned.learning_rates > 2 / 9
  np.testing.assert_array_equal(np.isinf(tuned.values), diverged)
  assert tuned.learning_rate == tuned.learning_rates[~diverged][np.argmin(tuned.values[~diverged])]


def test_all_learning_rates_see_the_same_problems():
  """With a loss of noise alone all learning rates have exactly the same value."""
  noise = Optimizee.from_functions(
    lambda key: jnp.zeros(()), lambda x, key: 0.0 * x + jax.random.uniform(key)
  )
  with pytest.warns(UserWarning, match="lies at an end"):
    tuned = tune_sgd(noise, num_problems=3)
  assert len(np.unique(tuned.values)) == 1


def test_a_search_that_finds_no_end_says_so():
  slope = Optimizee.from_functions(lambda key: jnp.zeros(()), lambda x, key: -x)
  with pytest.warns(UserWarning, match=r"rate of sgd, 1.05e\+06, lies at an end of the grid"):
    tuned = tune_sgd(slope)
  assert (tuned.learning_rate, tuned.interior) == (2.0**20, False)


def test_a_problem_that_always_diverges_is_an_error():
  broken = Optimizee.from_functions(lambda key: jnp.zeros(()), lambda x, key: x / 0.0)
  with pytest.raises(FloatingPointError, match="sgd diverges with every learning rate"):
    tune_sgd(broken)


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"objective": "best"}, r"objective must be one of \('final', 'late', 'sum'\), got 'best'"),
    ({"num_problems": 0}, "num_problems must be an integer of at least 1, got 0"),
    ({"num_steps": -1}, "num_steps must be an integer of at least 1, got -1"),
  ],
)
def test_tune_refuses(change, match):
  with pytest.raises(ValueError, match=match):
    tune_sgd(bowl(), **change)


@pytest.mark.parametrize(
  ("name", "match"),
  [
    ("Adam", "did you mean 'adam'"),
    ("nagg", "did you mean 'nag'"),
    ("zzz", "^unknown baseline 'zzz': Known are sgd"),
  ],
)
def test_an_unknown_baseline_is_an_error_with_the_nearest_match(name, match):
  with pytest.raises(ValueError, match=match):
    tune(bowl(), name, num_steps=1, num_problems=1, key=jax.random.key(0))


# --- Statistics.


def test_the_interval_of_a_large_sample_is_the_normal_one():
  values = np.random.default_rng(1).gamma(2.0, size=(400, 3))
  interval = mean_interval(values, num_resamples=20_000)
  error = values.std(axis=0) / np.sqrt(400)
  # The standard error of a 2.5 % quantile of 20,000 draws is .019 of theirs; the skewness of a
  # mean of 400 moves the bounds by about as much.
  for bound, sign in ((interval.low, -1), (interval.high, 1)):
    np.testing.assert_allclose((bound - interval.mean) / error, sign * 1.96, atol=0.12)
  np.testing.assert_allclose(interval.mean, values.mean(axis=0), rtol=1e-12)


def test_the_interval_of_a_small_skewed_sample_is_scipys():
  values = np.random.default_rng(2).exponential(size=25) ** 2
  interval = mean_interval(values, num_resamples=20_000)
  expected = scipy.stats.bootstrap(
    (values,), np.mean, n_resamples=20_000, method="percentile", rng=0
  )
  error = expected.standard_error
  assert interval.low == pytest.approx(expected.confidence_interval.low, abs=0.1 * error)
  assert interval.high == pytest.approx(expected.confidence_interval.high, abs=0.1 * error)
  # Wider above than below, which the normal interval is not.
  assert interval.high - interval.mean > 1.15 * (interval.mean - interval.low)


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
  samples = np.random.default_rng(3).normal(size=(80, 1000))
  interval = mean_interval(samples)
  coverage = np.mean((interval.low <= 0) & (interval.high >= 0))
  # One standard error of a share of .95 of 1,000 is .007; percentile intervals of 80 cover .94.
  assert 0.915 < coverage < 0.965


def test_resampling_in_blocks_changes_nothing(monkeypatch):
  values = np.random.default_rng(4).normal(size=(10, 2))
  expected = mean_interval(values, num_resamples=101)
  monkeypatch.setattr("learned_opt._statistics._BLOCK_ELEMENTS", 70)
  blocks = mean_interval(values, num_resamples=101)
  chex.assert_trees_all_close(blocks, expected, rtol=1e-12)
  other_seed = mean_interval(values, num_resamples=101, seed=1)
  assert np.all(other_seed.low != expected.low)


def test_an_infinite_value_is_in_the_mean_and_the_upper_bound_of_its_column():
  values = np.random.default_rng(5).uniform(size=(20, 2))
  finite = mean_interval(values)
  values[7, 1] = np.inf
  mean, low, high = mean_interval(values)
  assert (mean[0], low[0], high[0]) == (finite.mean[0], finite.low[0], finite.high[0])
  # A third of the resamples leave the problem out, and they decide the lower bound.
  assert (mean[1], high[1]) == (np.inf, np.inf)
  assert 0 < low[1] < 1


def test_a_summary_of_curves_of_which_one_diverged():
  losses = np.array([[4.0, 1.0, 2.0], [2.0, 3.0, 6.0], [3.0, np.nan, 5.0], [1.0, 2.0, 3.0]])
  curves = Curves(losses, {"accuracy": np.full(4, 0.5), "loss": np.array([1.0, 2.0, np.nan, 3.0])})
  result = summarize(curves, evaluate.Cost(1e-3, 10.0, 8), None)
  np.testing.assert_array_equal(result.mean, [2.5, np.inf, 4.0])
  np.testing.assert_array_equal(result.median, [2.5, 2.5, 4.0])
  np.testing.assert_array_equal(np.isinf(result.high), [False, True, False])
  assert (result.sum, result.num_diverged, result.learning_rate) == (np.inf, 1, None)
  assert [float(bound) for bound in result.metrics["accuracy"]] == [0.5, 0.5, 0.5]
  assert np.isnan(result.metrics["loss"]).all()


def test_the_sum_leaves_the_last_loss_out():
  curves = Curves(np.array([[4.0, 1.0, 100.0], [2.0, 3.0, 200.0]]), {})
  assert summarize(curves, evaluate.Cost(1e-3, None, 0), None).sum == 5.0


# --- The comparison.


def compare(optimizee, candidates=(), **options):
  options = {
    "num_steps": 2,
    "num_problems": 3,
    "num_tuning_problems": 2,
    "key": jax.random.key(0),
    "baselines": ONE_BASELINE,
    **options,
  }
  return evaluate.evaluate(optimizee, candidates, **options)


def test_the_comparison_of_known_curves():
  """x^2 / 2 from 2: the rate 1 arrives at once, a candidate halves x each time."""
  halving = Candidate.from_transformation("halving", optax.scale(-0.5))
  evaluation = compare(weighted_squares([1.0], [2.0]), [halving], optimizee_name="parabola")
  assert list(evaluation.results) == ["halving", "sgd"]
  candidate, sgd = evaluation.results.values()
  for curve in (candidate.mean, candidate.median, candidate.low, candidate.high):
    np.testing.assert_array_equal(curve, [2.0, 0.5, 0.125])
  np.testing.assert_array_equal(sgd.mean, [2.0, 0.0, 0.0])
  assert (candidate.sum, candidate.learning_rate, candidate.tuned) == (2.5, None, None)
  assert (sgd.sum, sgd.learning_rate, sgd.tuned.learning_rate) == (2.0, 1.0, 1.0)
  first, second = evaluation.rows((0, 1))
  assert (first.name, first.losses, first.low, first.high) == ("halving", (2.0, 0.5), 0.5, 0.5)
  assert (second.learning_rate, second.losses, second.num_diverged) == (1.0, (2.0, 0.0), 0)
  assert [row.losses for row in evaluation.rows()] == [(0.125,), (0.0,)]


def test_all_baselines_are_judged_by_default():
  evaluation = compare(weighted_squares([1.0], [2.0]), baselines=tuple(BASELINES), num_steps=8)
  for name, result in evaluation.results.items():
    assert result.tuned.interior, name
    assert result.mean[-1] < 0.1 * result.mean[0], name
    assert result.mean[-1] == pytest.approx(result.tuned.values.min(), abs=1e-12), name


def test_statistics_are_those_of_the_curves():
  evaluation = compare(bowl(), num_problems=6, num_steps=5)
  result = evaluation.results["sgd"]
  test_key, _ = jax.random.split(jax.random.key(0))
  keys = jax.random.split(test_key, 6)
  losses = learning_curves(bowl(), optax.sgd, result.learning_rate, keys, 5).losses
  np.testing.assert_allclose(result.mean, losses.mean(axis=0), rtol=1e-5)
  np.testing.assert_allclose(result.median, np.median(losses, axis=0), rtol=1e-5)
  assert result.sum == pytest.approx(losses[:, :5].sum(axis=1).mean(), rel=1e-5)
  assert np.all((result.low < result.mean) & (result.mean < result.high))


def test_tuning_and_test_problems_are_disjoint(monkeypatch):
  seen = {"tune": [], "test": []}

  def spy(module, phase):
    original = module.learning_curves

    def record(optimizee, make, hyperparams, keys, num_steps, **options):
      seen[phase].append(jax.random.key_data(keys).tolist())
      return original(optimizee, make, hyperparams, keys, num_steps, **options)

    monkeypatch.setattr(module, "learning_curves", record)

  spy(baselines, "tune")
  spy(evaluate, "test")
  compare(bowl(), baselines=("sgd", "adam"), num_problems=8, num_tuning_problems=8)
  # All optimizers get the same problems in a phase, and none of one phase occurs in the other.
  for keys in seen.values():
    assert len(keys) > 1
    assert all(other == keys[0] for other in keys)
  tuned_on, tested_on = ({tuple(key) for key in seen[phase][0]} for phase in seen)
  assert len(tuned_on) == len(tested_on) == 8
  assert not tuned_on & tested_on


def test_baselines_are_tuned_on_the_problems_that_are_given_for_it():
  evaluation = compare(
    weighted_squares([1.0], [2.0]), tuning_optimizee=weighted_squares([4.0], [1.0])
  )
  result = evaluation.results["sgd"]
  assert result.learning_rate == 0.25
  np.testing.assert_allclose(result.mean, 2 * 0.75 ** (2 * np.arange(3)), rtol=1e-6)


def test_the_objective_reaches_the_search():
  optimizee = weighted_squares([1.0, 0.25], [10.0, 1.0])
  rates = [
    compare(optimizee, num_steps=20, objective=objective).results["sgd"].learning_rate
    for objective in ("final", "sum")
  ]
  assert rates == pytest.approx([math.sqrt(2.0), 1.0])


def test_the_two_forms_of_a_learned_optimizer_are_judged_alike():
  architecture = tiny_lstm()
  meta_params = meta_params_of(architecture)
  evaluation = compare(
    bowl(),
    [
      Candidate.from_learned("learned", architecture, meta_params),
      Candidate.from_transformation("loaded", architecture.optimizer(meta_params)),
    ],
    baselines=(),
  )
  learned, loaded = evaluation.results.values()
  np.testing.assert_allclose(learned.mean, loaded.mean, rtol=1e-6)
  assert learned.mean[-1] != pytest.approx(learned.mean[0], rel=1e-3)
  # Two layers, c and h, 4 units of float32, 3 coordinates.
  assert learned.cost.state_bytes == loaded.cost.state_bytes == 2 * 2 * 4 * 4 * 3


def test_a_candidate_compiles_once_for_the_curves_and_twice_for_the_cost():
  architecture = tiny_lstm()
  traces = []
  counting = architecture._replace(
    optimizer=lambda meta_params: traces.append(0) or architecture.optimizer(meta_params)
  )
  candidate = Candidate.from_learned("learned", counting, meta_params_of(architecture, 0))
  compare(bowl(), [candidate], baselines=(), num_problems=7, block_size=2)
  # Seconds and FLOPs are those of two programs, and both need a state, made outside of any trace.
  assert len(traces) == 4
  candidate = Candidate.from_learned("learned", counting, meta_params_of(architecture, 1))
  compare(bowl(), [candidate], baselines=(), num_problems=5, block_size=2, key=jax.random.key(1))
  assert len(traces) - 4 == 3


def test_equal_transformations_do_not_compile_again():
  traces = []
  plain = optax.sgd(0.1)
  tx = optax.GradientTransformation(
    lambda params: traces.append(0) or plain.init(params), plain.update
  )
  for _ in range(2):
    candidate = Candidate.from_transformation("sgd", tx)
    learning_curves(bowl(), candidate.make, candidate.hyperparams, keys_of(2), 2)
  assert len(traces) == 1


@pytest.mark.parametrize("with_metrics", [False, True])
def test_json_has_the_documented_form(with_metrics):
  optimizee = weighted_squares([1.0], [2.0])
  if with_metrics:
    optimizee = dataclasses.replace(
      optimizee, metrics=lambda params, constants, data: {"distance": jnp.abs(params[0])}
    )
  candidate = Candidate.from_transformation("candidate", optax.scale(-0.5))
  evaluation = compare(optimizee, [candidate], optimizee_name="parabola")
  found = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
  assert list(found) == ["optimizee", "num_steps", "num_problems", "results"]
  assert (found["optimizee"], found["num_steps"], found["num_problems"]) == ("parabola", 2, 3)
  fields = ["learning_rate", "mean", "median", "low", "high", "sum"]
  fields += ["seconds_per_step", "flops_per_step", "state_bytes"] + ["metrics"] * with_metrics
  assert list(found["results"]) == ["candidate", "sgd"]
  for result in found["results"].values():
    assert list(result) == fields
    assert all(len(result[name]) == 3 for name in ("mean", "median", "low", "high"))
  assert found["results"]["candidate"]["mean"] == [2.0, 0.5, 0.125]
  assert found["results"]["candidate"]["learning_rate"] is None
  assert found["results"]["sgd"]["learning_rate"] == 1.0
  if with_metrics:
    distance = {"distance": {"mean": 0.5, "low": 0.5, "high": 0.5}}
    assert found["results"]["candidate"]["metrics"] == distance
    assert evaluation.rows()[0].metrics == {"distance": 0.5}


def test_divergence_is_counted_and_null_in_json():
  """x^2 / 2 from 0 or 1 with x multiplied by -1e18 each time: one stays, one overflows."""
  optimizee = Optimizee.from_functions(
    lambda key: jax.random.bernoulli(key).astype(jnp.float32), lambda x, key: x**2 / 2
  )
  candidate = Candidate.from_transformation("wild", optax.scale(-1e18))
  evaluation = compare(optimizee, [candidate], baselines=(), num_problems=9)
  result = evaluation.results["wild"]
  test_key, _ = jax.random.split(jax.random.key(0))
  starts = np.array([start_of(optimizee, key)[0] for key in jax.random.split(test_key, 9)])
  assert 0 < starts.sum() < 9
  assert result.num_diverged == evaluation.rows()[0].num_diverged == starts.sum()
  assert result.mean[0] == pytest.approx(starts.mean() / 2)
  assert (result.mean[2], result.high[2]) == (np.inf, np.inf)
  assert result.median[2] == (0.0 if starts.sum() < 5 else np.inf)
  found = evaluation.to_json()["results"]["wild"]
  assert found["mean"][2] is None
  assert found["mean"][0] == result.mean[0]


def test_costs_count_state_and_arithmetic():
  evaluation = compare(
    weighted_squares(np.ones(100), np.ones(100)),
    [
      Candidate.from_transformation("none", optax.scale(-0.5)),
      Candidate.from_transformation("adam_fixed", optax.adam(0.1)),
      # Evaluates the loss in its update.
      Candidate.from_transformation(
        "search", optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5))
      ),
    ],
  )
  costs = {row.name: row for row in evaluation.rows()}
  assert costs["none"].state_bytes == costs["sgd"].state_bytes == 0
  assert costs["adam_fixed"].state_bytes == 2 * 100 * 4 + 4
  # Scale and add.
  assert costs["none"].flops_per_step == pytest.approx(200, abs=5)
  assert costs["none"].flops_per_step < costs["adam_fixed"].flops_per_step
  assert all(row.seconds_per_step > 0 for row in costs.values())
  assert costs["search"].losses[0] < 1e-6


def test_all_blocks_of_an_update_are_counted():
  lstm = tiny_lstm(num_layers=1)

  def flops_per_coordinate(number):
    candidate = Candidate.from_learned("lstm", lstm, meta_params_of(lstm))
    problem = weighted_squares(np.ones(number), np.ones(number))
    (row,) = compare(problem, [candidate], baselines=(), num_problems=1).rows()
    return row.flops_per_step / number

  # One block, and three with a part of a fourth.
  assert flops_per_coordinate(7000) == pytest.approx(flops_per_coordinate(1000), rel=0.02)


@pytest.mark.parametrize(
  ("analysis", "flops"),
  [({"flops": 3.0}, 3.0), ({"flops": -1.0}, None), ({}, None), (None, None)],
)
def test_flops_that_xla_does_not_know_are_none(analysis, flops):
  assert _flops(types.SimpleNamespace(cost_analysis=lambda: analysis)) == flops


def test_progress_names_each_part():
  words = []
  candidate = Candidate.from_transformation("mine", optax.scale(-0.5))
  compare(weighted_squares([1.0], [2.0]), [candidate], on_progress=words.append)
  assert words == ["tuning sgd", "testing mine", "testing sgd", "measuring costs"]


SGD = Candidate.from_transformation("sgd", optax.sgd(0.1))


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"candidates": [SGD]}, r"must have different names, got \['sgd'\] twice"),
    ({"baselines": ()}, "nothing to evaluate"),
    ({"baselines": ("adamw",)}, "did you mean 'adam'"),
    ({"num_steps": 0}, "num_steps must be an integer of at least 1"),
    ({"num_problems": 0}, "num_problems must be an integer of at least 1"),
    ({"num_tuning_problems": 0}, "num_tuning_problems must be an integer of at least 1"),
  ],
)
def test_evaluate_refuses(change, match):
  with pytest.raises(ValueError, match=match):
    compare(bowl(), **change)


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"optimizee": optimizees.quadratic}, "optimizee must be a learned_opt.Optimizee"),
    ({"tuning_optimizee": bowl}, "tuning_optimizee must be a learned_opt.Optimizee"),
    ({"baselines": "adam"}, r"several names, got the string 'adam': give \['adam'\]"),
  ],
)
def test_evaluate_refuses_the_wrong_types(change, match):
  with pytest.raises(TypeError, match=match):
    compare(**{"optimizee": bowl(), **change})


def test_candidates_of_the_wrong_type_are_refused():
  with pytest.raises(TypeError, match="tx must be an optax transformation, got function"):
    Candidate.from_transformation("sgd", optax.sgd)
  with pytest.raises(TypeError, match="got GradientTransformationExtraArgs; from_transformation"):
    Candidate.from_learned("sgd", optax.sgd(0.1), {})


@pytest.mark.parametrize("steps", [(), (3,), (-1, 2)])
def test_rows_refuse_steps_out_of_range(steps):
  evaluation = compare(weighted_squares([1.0], [2.0]), [], num_steps=2)
  with pytest.raises(ValueError, match="steps must be between 0 and 2"):
    evaluation.rows(steps)
