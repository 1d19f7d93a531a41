"""The doctor: known biases and variances are found, and what is not finite by its place."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

import learned_opt
from learned_opt import _diagnosis, doctor, estimators, plots

RATE = 0.3
FULL = "second_order_backprop"


def one_rate():
  return learned_opt.LearnedOptimizer(
    lambda key: {"rate": jnp.asarray(RATE)}, lambda phi: optax.sgd(phi["rate"])
  )


def valleys():
  """Steeper on one side than on the other; each problem has a tilt of its own."""
  return learned_opt.Optimizee(
    lambda key, data: (jnp.float32(1.5), jax.random.uniform(key, (), minval=0.4, maxval=0.8)),
    lambda x, tilt, data, key: jnp.logaddexp(0.0, 2 * x) - tilt * x,
  )


def rugged():
  """Steps go back and forth over a valley that is steeper than they can take, and with ripples."""
  return learned_opt.Optimizee.from_functions(
    lambda key: 1.0 + jax.random.uniform(key), lambda x, key: 0.5 * x**2 + 2 * jnp.sin(2 * x)
  )


def off_by(factor, noise):
  """The full gradient times a factor, plus noise of a known standard deviation."""

  def make(unroll_length, horizon, meta_batch_size, sigma):
    del unroll_length, sigma
    full = estimators.full_unroll(
      horizon, meta_batch_size, learned_opt.meta_losses.mean, second_order=True
    )

    def estimate(*args):
      grads, state, info = full.estimate(*args)
      shift = noise * jax.random.normal(jax.random.fold_in(args[-1], 5))
      return jax.tree.map(lambda leaf: factor * leaf + shift, grads), state, info

    return full._replace(estimate=estimate)

  return make


@pytest.fixture(scope="module")
def diagnosis():
  return doctor.examine(
    valleys(),
    one_rate(),
    {"rate": jnp.asarray(RATE)},
    unroll_lengths=[2, 6],
    methods={
      "truncated_backprop": doctor.METHODS["truncated_backprop"],
      "half": off_by(0.5, 0.0),
      "noisy": off_by(1.0, 0.3),
    },
    meta_batch_size=4,
    num_samples=64,
    key=jax.random.key(0),
  )


def of(diagnosis, name, unroll_length):
  (one,) = (
    one
    for one in diagnosis.measurements
    if (one.estimator, one.unroll_length) == (name, unroll_length)
  )
  return one


def test_known_biases_and_variances_are_found(diagnosis):
  half, noisy = of(diagnosis, "half", 6), of(diagnosis, "noisy", 6)
  assert half.bias == pytest.approx(0.5, abs=0.02)
  assert half.cosine == pytest.approx(1.0, abs=1e-5)
  expected = (0.3 / diagnosis.full_gradient_norm) ** 2
  assert 0.5 * expected < noisy.variance < 2 * expected
  assert noisy.bias < 3 * noisy.bias_error
  assert noisy.bias_error == pytest.approx(math.sqrt(expected / 64), rel=0.3)
  assert all(one.seconds > 0 for one in diagnosis.measurements)
  assert {one.diverged for one in diagnosis.measurements} == {0.0}


def test_truncation_is_a_bias_and_the_first_order_rule_another(diagnosis):
  short, whole = (of(diagnosis, "truncated_backprop", length) for length in (2, 6))
  assert short.bias > whole.bias > 5 * whole.bias_error
  assert short.gradient_norm != whole.gradient_norm


def test_the_recommendation_weighs_bias_variance_and_time(diagnosis):
  assert diagnosis.overtaken_at["noisy"] == {"truncated_backprop": None}
  assert diagnosis.reference == "second_order_backprop"
  assert diagnosis.full_gradient_error < 0.5
  seconds = 100 * max(one.seconds for one in diagnosis.measurements)
  best = min(diagnosis.measurements, key=lambda one: one.expected_error(seconds))
  start = f"{best.estimator} with unroll length {best.unroll_length}"
  assert diagnosis.recommendation.startswith(start)
  assert "next is" in diagnosis.recommendation


def test_the_unroll_length_from_which_backpropagation_is_noisier_is_found():
  def row(name, length, variance):
    return doctor.Measurement(name, length, 0.0, 0.1, variance, 0.5, 1.0, 0.0, 1.0)

  rows = [row("pes", n, 4.0) for n in (5, 10, 20)]
  rows += [row("second_order_backprop", n, variance) for n, variance in ((5, 1), (10, 5), (20, 9))]
  rows += [row("truncated_backprop", n, 1.0) for n in (5, 10, 20)]
  expected = {"pes": {"second_order_backprop": 10, "truncated_backprop": None}}
  assert _diagnosis.overtaken_at(rows) == expected


def test_a_full_gradient_that_is_noise_is_no_reference(diagnosis):
  found = _diagnosis.recommend(
    diagnosis.measurements, doctor.NonFinite(0.0), "truncated_backprop", 0.6
  )
  assert found.startswith("none: no full gradient can be told from its own noise")
  # Second order is not trusted where it explodes.
  wild = doctor.examine(
    rugged(),
    one_rate(),
    {"rate": jnp.asarray(1.0)},
    unroll_lengths=[40],
    methods=["truncated_backprop", "second_order_backprop"],
    meta_batch_size=2,
    num_samples=8,
    key=jax.random.key(0),
  )
  first, second = wild.measurements
  assert second.variance > 100 * first.variance
  assert wild.reference == "truncated_backprop"
  assert "second_order_backprop is too noisy to compare with" in wild.recommendation


def test_a_diagnosis_is_json(diagnosis):
  found = json.loads(json.dumps(diagnosis.to_json(), allow_nan=False))
  assert len(found["measurements"]) == 6
  assert found["nonfinite"]["step"] is None
  assert found["measurements"][0]["bias"] == pytest.approx(diagnosis.measurements[0].bias)


def test_figure(diagnosis, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: drawn.append(figure))
  plots.doctor_figure(diagnosis, tmp_path / "diagnosis.png", title="a title")
  variance, bias, norms = drawn[0].axes
  assert variance.get_title() == "a title"
  for axes, field in ((variance, "variance"), (bias, "bias"), (norms, "gradient_norm")):
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    for name in ("truncated_backprop", "half", "noisy"):
      expected = [getattr(of(diagnosis, name, length), field) for length in (2, 6)]
      np.testing.assert_array_equal(lines[name], expected)


# --- What is not finite.


def planted(step, place):
  """An optimizer whose state, or whose update of one tensor, is NaN at one step."""

  def init(params):
    return {"count": jnp.zeros((), jnp.int32), "sum": jax.tree.map(jnp.zeros_like, params)}

  def update(grads, state, params=None, **extra):
    del params, extra
    bad = jnp.where(state["count"] == step, jnp.nan, 0.0)
    total = jax.tree.map(jnp.add, state["sum"], grads)
    updates = jax.tree.map(lambda g: -0.01 * g, grads)
    if place == "state":
      total["layer"]["w"] += bad
    else:
      updates["layer"]["w"] += bad
    return updates, {"count": state["count"] + 1, "sum": total}

  return learned_opt.LearnedOptimizer(
    lambda key: (), lambda phi: optax.GradientTransformationExtraArgs(init, update)
  )


def two_tensors():
  return learned_opt.Optimizee.from_functions(
    lambda key: {"a": jnp.ones(3), "layer": {"w": jnp.ones((2, 2))}},
    lambda x, key: jnp.sum(x["a"] ** 2) + jnp.sum(x["layer"]["w"] ** 2),
  )


@pytest.mark.parametrize(
  ("place", "tensor"), [("update", "layer.w"), ("state", "sum.layer.w")], ids=str
)
def test_a_planted_nan_is_found(place, tensor, key):
  found = doctor.find_nonfinite(
    two_tensors(), planted(4, place), (), num_steps=7, num_problems=2, key=key
  )
  assert found == doctor.NonFinite(1.0, 4, place, tensor, 0)
  assert found.where == f"the {place} of {tensor} at inner step 4"


def test_the_share_and_the_first_problem_are_told(key):
  """The gradient of a root is not finite at zero, where the loss is."""
  optimizee = learned_opt.Optimizee(
    lambda key, data: (
      {"a": jnp.ones(2), "b": jnp.ones(1)},
      jax.random.bernoulli(key, 0.4).astype(float),
    ),
    lambda x, bad, data, key: jnp.sum(x["a"] ** 2) + jnp.sum(jnp.sqrt(1 - bad * x["b"] ** 2)),
  )
  found = doctor.find_nonfinite(
    optimizee, one_rate(), {"rate": 0.0}, num_steps=3, num_problems=16, key=key
  )
  keys = jax.vmap(lambda key: jax.random.split(key)[0])(jax.random.split(key, 16))
  bad = np.asarray(jax.vmap(lambda key: jax.random.bernoulli(key, 0.4))(keys))
  assert 0 < bad.mean() < 1
  assert found == doctor.NonFinite(
    pytest.approx(bad.mean()), 0, "gradient", "b", int(np.argmax(bad))
  )


def test_the_last_loss_counts_and_infinite_states_do_not(key):
  """A loss that is infinite after the last update is found at that step."""
  escaping = learned_opt.Optimizee.from_functions(
    lambda key: jnp.zeros(()), lambda x, key: jnp.where(x > 2.5, jnp.inf, -x)
  )
  unit = learned_opt.LearnedOptimizer(lambda key: (), lambda phi: _with_infinite_state())
  found = doctor.find_nonfinite(escaping, unit, (), num_steps=3, num_problems=1, key=key)
  assert found[:4] == (1.0, 3, "loss", "")
  fine = doctor.find_nonfinite(escaping, unit, (), num_steps=2, num_problems=1, key=key)
  assert fine == doctor.NonFinite(0.0)
  assert fine.where == "nowhere"


def _with_infinite_state():
  sgd = optax.sgd(1.0)
  return optax.GradientTransformation(
    lambda params: (sgd.init(params), jnp.array(jnp.inf)),
    lambda grads, state, params=None: (sgd.update(grads, state[0])[0], state),
  )


def test_what_diverges_is_not_recommended():
  good = doctor.Measurement("pes", 5, 0.5, 0.1, 10.0, 0.5, 1.0, 0.0, 1.0)
  bad = doctor.Measurement("truncated_backprop", 5, 0.0, 0.1, 0.1, 1.0, 1.0, 0.25, 1.0)
  lost = bad._replace(estimator="full", variance=math.nan)
  found = _diagnosis.recommend(
    [good, bad, lost], doctor.NonFinite(0.25, 2, "loss", "", 1), FULL, 0.1
  )
  assert found.startswith("pes with unroll length 5")
  assert "left out" in found
  assert "25% of the problems" in found
  none = _diagnosis.recommend([good], doctor.NonFinite(1.0, 2, "loss", "", 1), FULL, 0.1)
  assert none.startswith("none: no problem stays finite, beginning with the loss at inner step 2")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"unroll_lengths": []}, "at least one length"),
    ({"unroll_lengths": [4], "horizon": 6}, "multiple of all unroll_lengths, got horizon=6 and 4"),
    ({"methods": ["spsa"]}, r"methods must be among truncated_backprop, .* got \['spsa'\]"),
    ({"num_samples": 1}, "num_samples must be at least 2"),
    ({"meta_batch_size": 0}, "meta_batch_size must be an integer of at least 1"),
  ],
  ids=str,
)
def test_examine_refuses(options, message, key):
  with pytest.raises(ValueError, match=message):
    doctor.examine(
      valleys(), one_rate(), {"rate": 0.1}, **{"unroll_lengths": [2], "key": key, **options}
    )
