"""What optimizers propose: against plain numpy, along a trajectory that numpy runs by itself."""

from typing import Any

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import optax
import pytest
from matplotlib.colors import to_hex

from learned_opt import Optimizee, _inspection_figures, inspect, plots
from learned_opt.evaluate import BASELINES, Candidate
from learned_opt.unroll import init_inner_state

NUM_STEPS = 6
STEPS = (1, 3, 4)
COORDINATE = 1
ADAM, SGD = np.float32(0.25), np.float32(0.125)
META_PARAMS = cases.meta_params_of(cases.tiny_lstm())
LEADER = Candidate.from_learned("lstm", cases.tiny_lstm(), META_PARAMS)
OTHERS = [Candidate("adam", BASELINES["adam"].make, ADAM), Candidate("sgd", optax.sgd, SGD)]
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def proposals():
  return inspect.proposed_updates(
    cases.bowl(), LEADER, OTHERS, num_steps=NUM_STEPS, coordinates=[0, 1, 2], key=KEY
  )


@pytest.fixture(scope="module")
def counterfactuals(proposals):
  """The true gradients of the three steps are among those that are tried."""
  true = proposals.gradients[np.array(STEPS) - 1, COORDINATE]
  return inspect.counterfactual_updates(
    cases.bowl(),
    LEADER,
    OTHERS,
    coordinate=COORDINATE,
    steps=STEPS,
    gradients=np.concatenate([true, [-3.0, 0.0, 0.5]]),
    key=KEY,
  )


@pytest.fixture(scope="module")
def reference():
  """The LSTM, and its trajectory, in numpy: losses, gradients [T, 3]."""
  problem = init_inner_state(cases.bowl(), optax.identity(), KEY)
  constants = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), problem.constants)
  lstm = numpy_lstm.NumpyLSTM(META_PARAMS, numpy_lstm.log_and_sign(10.0), output_scale=0.1)
  loss, grad = cases.bowl_loss(constants), cases.bowl_grad(constants)
  losses, grads, *_ = numpy_lstm.optimize(lstm, loss, grad, constants.start, NUM_STEPS)
  return lstm, losses, grads[:-1]


def adam_updates(grads):
  """Adam's update after the gradients [T, n], by the formulas of its paper."""
  m = v = 0.0
  for g in grads:
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
  t = len(grads)
  return -ADAM * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


# --- Along the trajectory.


def test_the_trajectory_is_the_leaders(proposals, reference):
  lstm, losses, grads = reference
  np.testing.assert_allclose(proposals.losses, losses, rtol=1e-5)
  np.testing.assert_allclose(proposals.gradients, grads, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(proposals.gradient_norms, np.linalg.norm(grads, axis=1), rtol=1e-5)
  np.testing.assert_allclose(
    proposals.optimizers["lstm"].updates, lstm.updates(grads)[0], rtol=1e-4, atol=1e-7
  )
  assert list(proposals.optimizers) == ["lstm", "adam", "sgd"]


def test_the_others_see_the_same_gradients(proposals):
  grads = np.asarray(proposals.gradients, np.float64)
  np.testing.assert_allclose(proposals.optimizers["sgd"].updates, -SGD * grads, rtol=1e-6)
  adam = [adam_updates(grads[: t + 1]) for t in range(NUM_STEPS)]
  np.testing.assert_allclose(proposals.optimizers["adam"].updates, adam, rtol=1e-4)


def test_rates_cosines_and_ratios(proposals):
  grads = np.asarray(proposals.gradients, np.float64)
  squares = np.sum(grads**2, axis=1)
  for one in proposals.optimizers.values():
    updates = np.asarray(one.updates, np.float64)
    norms = np.linalg.norm(updates, axis=1)
    descent = -np.sum(updates * grads, axis=1)
    np.testing.assert_allclose(one.effective_rate, descent / squares, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.cosine, descent / norms / np.sqrt(squares), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.norm_ratio, norms / np.sqrt(squares), rtol=1e-5)
  sgd = proposals.optimizers["sgd"]
  np.testing.assert_allclose(sgd.effective_rate, SGD, rtol=1e-6)
  np.testing.assert_allclose(sgd.norm_ratio, SGD, rtol=1e-6)
  np.testing.assert_allclose(sgd.cosine, 1.0, rtol=1e-6)


def test_state_norms_are_those_after_each_step(proposals, reference):
  lstm, _, grads = reference
  names = ["layers.0.c", "layers.0.h", "layers.1.c", "layers.1.h"]
  assert sorted(proposals.state_norms) == names
  state = lstm.zero_state(3)
  for step, gradient in enumerate(grads):
    _, state = lstm.update(gradient, state)
    expected = [np.linalg.norm(array) for layer in state for array in layer]
    found = [proposals.state_norms[name][step] for name in names]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_coordinates_are_named_and_come_in_the_order_asked_for():
  """Adam leads, as far as NaN: all of it is recorded, and moments like the params are one part."""

  def loss(params, key):
    return jnp.sum(params["a"] ** 2) + 3.0 * jnp.sqrt(params["b"])

  params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array(0.04)}
  optimizee = Optimizee.from_functions(lambda key: params, loss)
  leader = Candidate("adam", optax.adam, ADAM)
  found = inspect.proposed_updates(optimizee, leader, num_steps=2, coordinates=[2, 1], key=KEY)
  assert found.coordinates == {2: "b", 1: "a[0, 1]"}
  np.testing.assert_allclose(found.gradients[0], [7.5, 4.0], rtol=1e-6)
  np.testing.assert_allclose(found.optimizers["adam"].updates[0], [-ADAM, -ADAM], rtol=1e-4)
  # The root of what is negative.
  assert np.isfinite(found.losses).tolist() == [True, False, False]
  assert np.isfinite(found.optimizers["adam"].effective_rate).tolist() == [True, False]
  np.testing.assert_allclose(found.state_norms["0.mu"][0], 0.1 * np.sqrt(4 + 16 + 7.5**2), 1e-6)
  np.testing.assert_allclose(
    found.state_norms["0.nu"][0], 0.001 * np.sqrt(4**2 + 16**2 + 7.5**4), 1e-5
  )
  assert set(found.state_norms) == {"0.mu", "0.nu"}


# --- Counterfactuals.


def test_the_true_gradient_gives_the_true_update(proposals, counterfactuals):
  rows = np.array(STEPS) - 1
  np.testing.assert_allclose(
    counterfactuals.true_gradients, proposals.gradients[rows, COORDINATE], rtol=1e-4
  )
  for name, one in proposals.optimizers.items():
    true = one.updates[rows, COORDINATE]
    np.testing.assert_allclose(counterfactuals.true_updates[name], true, rtol=1e-4)
    np.testing.assert_allclose(np.diagonal(counterfactuals.updates[name]), true, rtol=1e-4)


def test_other_gradients_meet_the_true_history(counterfactuals, reference):
  lstm, _, grads = reference
  for row, step in enumerate(STEPS):
    history, state = grads[: step - 1], lstm.zero_state(3)
    for gradient in history:
      _, state = lstm.update(gradient, state)
    for column, other in enumerate(counterfactuals.gradients):
      changed = grads[step - 1].copy()
      changed[COORDINATE] = other
      expected = {
        "lstm": lstm.update(changed, state)[0],
        "adam": adam_updates([*history, changed]),
        "sgd": -SGD * changed,
      }
      for name, updates in expected.items():
        np.testing.assert_allclose(
          counterfactuals.updates[name][row, column], updates[COORDINATE], rtol=1e-4, atol=1e-6
        )


def test_the_counterfactual_gradient_is_all_that_an_optimizer_is_told_otherwise():
  """An update may read all coordinates, and the extra keywords."""

  def update(updates, state, params: Any = None, **extra):
    loss, other_loss = extra["value"], extra["value_fn"](2.0 * params)
    number = state + loss + other_loss + jnp.sum(extra["grad"]) + 10.0 * jnp.sum(updates)
    return jnp.stack([number, 0.0 * number]), state + 1.0

  tx = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
  optimizee = Optimizee.from_functions(
    lambda key: jnp.array([3.0, -1.0]), lambda params, key: params[0] + 5.0 * params[1] ** 2
  )
  found = inspect.counterfactual_updates(
    optimizee,
    Candidate.from_transformation("still", optax.set_to_zero()),
    [Candidate.from_transformation("reader", tx)],
    coordinate=0,
    steps=[2],
    gradients=[0.0, 1.0, 7.0],
    key=KEY,
  )
  # The loss is 8 here and 26 there; the gradient is [1, -10]; the state has counted one step.
  expected = 1.0 + 8.0 + 26.0 + 11.0 * (np.array([0.0, 1.0, 7.0]) - 10.0)
  np.testing.assert_allclose(found.updates["reader"], expected[None], rtol=1e-6)
  np.testing.assert_allclose(found.true_updates["reader"], expected[1:2], rtol=1e-6)
  np.testing.assert_array_equal(found.updates["still"], np.zeros((1, 3)))


# --- Programs and arguments.


def test_other_numbers_do_not_compile_again():
  make: Any = chex.assert_max_traces(lambda rate: optax.sgd(rate), n=2)
  optimizee = Optimizee.from_functions(
    lambda key: jax.random.normal(key, (2,)), lambda params, key: jnp.sum(params**2)
  )
  rates: tuple[Any, Any] = 0.5, np.float32(0.25)
  for rate, key in zip(rates, jax.random.split(KEY), strict=True):
    leader, coordinate = Candidate("sgd", make, rate), round(2 * rate) % 2
    proposals = inspect.proposed_updates(
      optimizee, leader, num_steps=2, coordinates=[coordinate], key=key
    )
    found = inspect.counterfactual_updates(
      optimizee,
      leader,
      coordinate=coordinate,
      steps=[round(1 / rate)],
      gradients=[rate, 1.0],
      key=key,
    )
    np.testing.assert_allclose(found.updates["sgd"], [[-(rate**2), -rate]], rtol=1e-6)
    np.testing.assert_allclose(proposals.optimizers["sgd"].effective_rate[0], rate, rtol=1e-6)


def test_nothing_that_is_given_changes(proposals):
  before = jax.tree.map(np.array, META_PARAMS)
  gradients, steps, coordinates = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), [1, 3, 4], [0, 1, 2]
  again = inspect.proposed_updates(
    cases.bowl(), LEADER, OTHERS, num_steps=NUM_STEPS, coordinates=coordinates, key=KEY
  )
  inspect.counterfactual_updates(
    cases.bowl(),
    LEADER,
    OTHERS,
    coordinate=COORDINATE,
    steps=steps,
    gradients=gradients,
    key=KEY,
  )
  chex.assert_trees_all_equal(again._asdict(), proposals._asdict())
  chex.assert_trees_all_equal(jax.tree.map(np.array, META_PARAMS), before)
  np.testing.assert_array_equal(gradients, np.arange(6.0))
  assert (steps, coordinates) == ([1, 3, 4], [0, 1, 2])


def test_coordinates_are_drawn_from_those_with_a_gradient():
  optimizee = Optimizee.from_functions(
    lambda key: {"a": jnp.ones(5), "b": jnp.ones(5)}, lambda p, key: jnp.sum(p["b"][1:4] ** 2)
  )
  draws = [inspect.draw_coordinates(optimizee, 4, key) for key in jax.random.split(KEY, 16)]
  for drawn in draws:
    assert sorted(drawn[:3]) == [6, 7, 8]
    assert drawn[3] not in drawn[:3]
  assert len({tuple(drawn[:3]) for drawn in draws}) > 1
  assert inspect.draw_coordinates(optimizee, 4, jax.random.split(KEY, 16)[0]) == draws[0]


@pytest.mark.parametrize(
  ("change", "error", "message"),
  [
    ({"optimizee": 1}, TypeError, "optimizee must be a learned_opt.Optimizee, got int"),
    ({"leader": optax.sgd(0.1)}, TypeError, "must be evaluate.Candidates, got GradientTransf"),
    ({"others": [LEADER]}, ValueError, r"must have different names, got \['lstm'\] twice"),
    ({"num_steps": 0}, ValueError, "num_steps must be an integer of at least 1, got 0"),
    ({"coordinates": [3]}, ValueError, "coordinates must be between 0 and 2, got 3"),
    ({"coordinates": [-1]}, ValueError, "coordinates must be between 0 and 2, got -1"),
    ({"coordinates": [0.5]}, TypeError, "coordinates must be integers, got 0.5"),
    ({"coordinates": [1, 1]}, ValueError, r"must be different, and at least one, got \[1, 1\]"),
    ({"coordinates": []}, ValueError, r"must be different, and at least one, got \[\]"),
  ],
)
def test_mistakes_in_what_to_trace(change, error, message):
  arguments = {"optimizee": cases.bowl(), "leader": LEADER, "num_steps": 2, "coordinates": [0]}
  with pytest.raises(error, match=message):
    inspect.proposed_updates(**{**arguments, "key": KEY, **change})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"coordinate": 3}, "coordinates must be between 0 and 2, got 3"),
    ({"steps": [0, 1]}, r"steps must be increasing integers from 1 on, got \[0, 1\]"),
    ({"steps": [2, 2]}, "steps must be increasing integers from 1 on"),
    ({"steps": []}, "steps must be increasing integers from 1 on"),
    ({"steps": [1.5]}, "steps must be increasing integers from 1 on"),
    ({"gradients": 1.0}, "gradients must be a vector of finite numbers, got 1.0"),
    ({"gradients": [np.nan]}, "gradients must be a vector of finite numbers"),
    ({"gradients": []}, "gradients must be a vector of finite numbers"),
  ],
)
def test_mistakes_in_what_to_ask(change, message):
  arguments = {"coordinate": 0, "steps": [1], "gradients": [0.0], "key": KEY, **change}
  with pytest.raises(ValueError, match=message):
    inspect.counterfactual_updates(cases.bowl(), LEADER, **arguments)


@pytest.mark.parametrize("number", [0, 4, 1.0])
def test_no_more_coordinates_are_drawn_than_there_are(number):
  with pytest.raises(ValueError, match=f"num_coordinates must be between 1 and 3, got {number}"):
    inspect.draw_coordinates(cases.bowl(), number, KEY)


# --- Figures.


@pytest.fixture
def drawn(monkeypatch):
  """Draws a figure, which the doctests write; gives the axes that are to be seen."""
  figures = []
  monkeypatch.setattr(_inspection_figures, "save", lambda figure, path: figures.append(figure))

  def draw(function, value, **options):
    function(value, "unused.png", **options)
    return [axes for axes in figures[-1].axes if axes.get_visible()]

  return draw


def lines_of(axes):
  return {line.get_label(): line for line in axes.get_lines()}


def test_figure_of_proposals_has_two_panels_a_coordinate(drawn, proposals):
  panels = drawn(plots.proposals_figure, proposals)
  assert [axes.get_title(loc="left") for axes in panels[::2]] == [
    *("params[0]", "params[1]", "params[2]")
  ]
  for column in range(3):
    above, below = panels[2 * column : 2 * column + 2]
    gradients = lines_of(above)["gradient"]
    np.testing.assert_array_equal(gradients.get_xdata(), np.arange(1, NUM_STEPS + 1))
    np.testing.assert_array_equal(gradients.get_ydata(), proposals.gradients[:, column])
    for name, one in proposals.optimizers.items():
      np.testing.assert_array_equal(lines_of(below)[name].get_ydata(), one.updates[:, column])
  lines = lines_of(panels[1])
  assert lines["lstm"].get_linewidth() > lines["adam"].get_linewidth()
  assert len({to_hex(line.get_color()) for line in lines.values()}) == 3


def test_figure_of_the_trajectory(drawn, proposals):
  losses, rates, cosines, norms = drawn(plots.trajectory_figure, proposals, title="a title")
  assert losses.get_title() == "a title"
  np.testing.assert_array_equal(losses.get_lines()[0].get_ydata(), proposals.losses)
  for name, one in proposals.optimizers.items():
    np.testing.assert_array_equal(lines_of(rates)[name].get_ydata(), one.effective_rate)
    np.testing.assert_array_equal(lines_of(cosines)[name].get_ydata(), one.cosine)
  for name, values in proposals.state_norms.items():
    np.testing.assert_array_equal(lines_of(norms)[name].get_ydata(), values)
  assert norms.get_yscale() == "log"


def test_what_is_not_there_is_not_drawn(drawn, proposals):
  """An optimizer without a state has no norms; what diverged has no points."""
  gone = jax.tree.map(lambda leaf: np.full(leaf.shape, np.inf), proposals.optimizers)
  without = proposals._replace(state_norms={}, optimizers=gone)
  losses, rates, cosines = drawn(plots.trajectory_figure, without)
  assert np.isnan(lines_of(rates)["sgd"].get_ydata()).all()
  assert np.isnan(lines_of(cosines)["sgd"].get_ydata()).all()
  np.testing.assert_array_equal(losses.get_lines()[0].get_ydata(), proposals.losses)
  losses.figure.draw_without_rendering()


def test_others_do_not_squeeze_the_leader(drawn, proposals):
  sgd, lstm = proposals.optimizers["sgd"], proposals.optimizers["lstm"]
  wild = sgd._replace(updates=1e6 * sgd.updates, effective_rate=-1e6 * sgd.effective_rate)
  others = proposals._replace(optimizers={"lstm": lstm, "sgd": wild})
  low, high = drawn(plots.proposals_figure, others)[1].get_ylim()
  most = 4 * np.abs(lstm.updates[:, 0]).max()
  assert max(-low, high) == pytest.approx(most, rel=1e-6)
  _, rates, cosines, _ = drawn(plots.trajectory_figure, others)
  assert rates.get_ylim()[0] == pytest.approx(-4 * np.abs(lstm.effective_rate).max(), rel=1e-6)
  assert cosines.get_ylim()[1] > 1


@pytest.mark.parametrize("num_steps", [1, 3, 4])
def test_figure_of_counterfactuals_has_a_panel_a_step(drawn, counterfactuals, num_steps):
  rows = np.arange(num_steps) % len(STEPS)
  pick = {name: updates[rows] for name, updates in counterfactuals.updates.items()}
  true = {name: updates[rows] for name, updates in counterfactuals.true_updates.items()}
  chosen = counterfactuals._replace(
    steps=np.array(STEPS)[rows],
    updates=pick,
    true_gradients=counterfactuals.true_gradients[rows],
    true_updates=true,
  )
  panels = drawn(plots.counterfactuals_figure, chosen)
  assert [axes.get_title() for axes in panels] == [f"step {step}" for step in chosen.steps]
  for row, axes in enumerate(panels):
    lines = axes.get_lines()
    for index, (name, updates) in enumerate(pick.items()):
      curve, point = lines[2 * index : 2 * index + 2]
      np.testing.assert_array_equal(curve.get_ydata(), updates[row])
      assert point.get_ydata() == true[name][row]
  assert all(axes.get_xlabel() == "gradient" for axes in panels[-3:])
