"""Quasi-Newton methods, the line search, and the baselines that an evaluation has to ask for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from cases import bowl, bowl_grad, bowl_loss
from test_evaluate import draw, keys_of, numpy_curve, start_of, weighted_squares

from learned_opt import _figures, optimizees
from learned_opt._quasi_newton import scale_by_bfgs, scale_by_exact_line_search
from learned_opt.baselines import BASELINES, MORE_BASELINES, Baseline, find_baselines, tune
from learned_opt.evaluate import evaluate, learning_curves
from learned_opt.unroll import unroll

# --- BFGS.


def test_the_bfgs_matrix_is_scipys(key, x64):
  """On a problem that is no quadratic, and over two tensors."""
  theta, constants = start_of(bowl(), key)
  grad, tx = bowl_grad(constants), scale_by_bfgs()
  update = jax.jit(tx.update)
  tree = lambda x: {"a": jnp.asarray(x[:2]), "b": jnp.asarray(x[2])}  # noqa: E731
  state, expected = tx.init(tree(theta)), scipy.optimize.BFGS(init_scale="auto")
  expected.initialize(3, "inv_hess")
  last = theta
  for step in range(6):
    direction, state = update(tree(grad(theta)), state, tree(theta))
    if step == 0:
      matrix = np.eye(3) / max(1.0, np.linalg.norm(grad(theta)))
    else:
      expected.update(theta - last, grad(theta) - grad(last))
      matrix = expected.get_matrix()
    np.testing.assert_allclose(state.inverse_hessian, matrix, rtol=1e-10, atol=1e-13)
    flat = np.append(direction["a"], direction["b"])
    np.testing.assert_allclose(flat, matrix @ grad(theta), rtol=1e-9, atol=1e-13)
    last, theta = theta, theta - 0.5 * flat


def conjugate_gradients(w, y, theta, num_steps):
  losses, direction = [], 0.0
  residual = -2 * w.T @ (w @ theta - y)
  for _ in range(num_steps):
    losses.append(np.sum((w @ theta - y) ** 2))
    direction = residual + direction
    product = 2 * w.T @ (w @ direction)
    length = residual @ residual / (direction @ product)
    theta = theta + length * direction
    new = residual - length * product
    direction, residual = new @ new / (residual @ residual) * direction, new
  return [*losses, np.sum((w @ theta - y) ** 2)]


def test_with_an_exact_line_search_both_are_conjugate_gradients(key, x64):
  """They end in n steps, and the BFGS matrix is then the inverse Hessian."""
  n, optimizee = 5, optimizees.conditioned_quadratic(5, condition_number=100.0)
  problem = draw(optimizee, key)
  (w, y), theta = map(np.asarray, problem.constants), np.asarray(problem.params)
  expected = conjugate_gradients(w, y, theta, n)

  @jax.jit
  def run(problem):
    def one(baseline):
      tx = baseline.make_for(n + 1)(1.0)
      return unroll(optimizee, tx, problem._replace(opt_state=tx.init(problem.params)), n + 1)

    return [one(MORE_BASELINES[f"{name}_line_search"]) for name in ("bfgs", "lbfgs")]

  (dense, limited) = run(problem)
  for _, trajectory in (dense, limited):
    np.testing.assert_allclose(trajectory.losses[:n], expected[:n], rtol=1e-6)
    assert trajectory.losses[n] < 1e-15 * trajectory.losses[0]
  hessian = 2 * w.T @ w
  estimate = dense[0].opt_state[0].inverse_hessian
  np.testing.assert_allclose(estimate @ hessian, np.eye(n), atol=1e-7)
  assert np.linalg.cond(hessian) == pytest.approx(100.0)


def test_bfgs_skips_pairs_without_positive_curvature():
  tx, x = scale_by_bfgs(), jnp.array([1.0, 2.0])
  update = jax.jit(tx.update)
  _, first = update(x / 10, tx.init(x), x)
  np.testing.assert_array_equal(first.inverse_hessian, np.eye(2))
  # The gradient falls as x grows; then nothing has changed at all.
  direction, state = update(x / 20, first, 2 * x)
  np.testing.assert_allclose(direction, x / 20)
  for _ in range(2):
    np.testing.assert_array_equal(state.inverse_hessian, np.eye(2))
    assert not state.scaled
    direction, state = update(x / 20, state, 2 * x)
  _, state = update(x / 10, state, 3 * x)
  assert state.scaled
  np.testing.assert_allclose(state.inverse_hessian @ (x / 20), x, rtol=1e-6)


def test_bfgs_needs_params():
  tx, grads = scale_by_bfgs(), jnp.ones(2)
  with pytest.raises(ValueError, match=r"call update\(grads, state, params\)"):
    tx.update(grads, tx.init(grads))


# --- The line search.


def test_the_line_search_is_exact_on_quadratics(x64):
  hessian = {"a": np.array([1.0, 10.0]), "b": np.array(3.0)}

  def loss(x):
    return sum(jnp.sum(hessian[k] * (x[k] - 1) ** 2) / 2 for k in hessian)

  x = {"a": jnp.array([2.0, -1.0]), "b": jnp.array(4.0)}
  # Not the gradient, and not downhill.
  direction = {"a": jnp.array([-1.0, 0.5]), "b": jnp.array(-2.0)}
  tx = scale_by_exact_line_search()

  @jax.jit
  def slope_after_step(x):
    updates, _ = tx.update(direction, tx.init(x), x, value_fn=loss, value=None, grad=None)
    after = optax.apply_updates(x, updates)
    return updates, optax.tree.vdot(jax.grad(loss)(after), direction), loss(x) - loss(after)

  updates, slope, gain = slope_after_step(x)
  assert slope == pytest.approx(0.0, abs=1e-12)
  assert gain > 0
  # g.d / d.Hd by hand: g = (1, -20, 9), d = (-1, .5, -2), d.Hd = 1 + 2.5 + 12.
  length = (-1 - 10 - 18) / 15.5
  chex.assert_trees_all_close(updates, jax.tree.map(lambda d: -length * d, direction), rtol=1e-12)


@pytest.mark.parametrize("curvature", [0.0, -1.0])
def test_the_line_search_stays_where_nothing_curves_upwards(curvature):
  tx, x = scale_by_exact_line_search(), jnp.ones(2)
  updates, _ = tx.update(x, tx.init(x), x, value_fn=lambda x: jnp.sum(x + curvature * x**2))
  np.testing.assert_array_equal(updates, np.zeros(2))


# --- The baselines against their equations in float64.


def torch_rmsprop_rule(rate, num_steps):
  """Torch7's optim.rmsprop: alpha = .99, v_0 = 0, epsilon = 1e-8 beside the root."""
  average = 0.0

  def step(grad):
    nonlocal average
    average = 0.99 * average + 0.01 * grad**2
    return -rate * grad / (np.sqrt(average) + 1e-8)

  return step


def quasi_newton_rule(matrix_of):
  """Of the matrix that `matrix_of` makes of all pairs (s, y) so far."""

  def rule(rate, num_steps):
    pairs, last_grad, last_step = [], None, None

    def step(grad):
      nonlocal last_grad, last_step
      if last_grad is None:
        matrix = np.eye(grad.size) / max(1.0, np.linalg.norm(grad))
      else:
        pairs.append((last_step, grad - last_grad))
        matrix = matrix_of(pairs)
      last_grad, last_step = grad, -rate * matrix @ grad
      return last_step

    return step

  return rule


def updated(matrix, s, y):
  v = np.eye(s.size) - np.outer(s, y) / (s @ y)
  return v @ matrix @ v.T + np.outer(s, s) / (s @ y)


def quasi_newton_matrix(pairs, s, y):
  matrix = s @ y / (y @ y) * np.eye(s.size)
  for pair in pairs:
    matrix = updated(matrix, *pair)
  return matrix


RULES = {
  "torch_rmsprop": torch_rmsprop_rule,
  # The scale is that of the first pair with BFGS, of the last one with L-BFGS.
  "bfgs": quasi_newton_rule(lambda pairs: quasi_newton_matrix(pairs, *pairs[0])),
  "lbfgs": quasi_newton_rule(lambda pairs: quasi_newton_matrix(pairs[-10:], *pairs[-1])),
}


@pytest.mark.parametrize("name", RULES)
def test_a_baseline_follows_its_equations(name):
  num_steps, rate, keys = 14, 0.0625, keys_of(3)
  expected = []
  for key in keys:
    theta, constants = start_of(bowl(), key)
    loss, grad = bowl_loss(constants), bowl_grad(constants)
    expected.append(numpy_curve(theta, loss, grad, RULES[name](rate, num_steps), num_steps))
  curves = learning_curves(bowl(), MORE_BASELINES[name].make, np.float32(rate), keys, num_steps)
  np.testing.assert_allclose(curves.losses, expected, rtol=1e-4)


def test_the_rate_of_adamw_falls_to_zero_at_the_horizon():
  (key,), num_steps, rate = keys_of(1), 6, 0.125
  theta, constants = start_of(bowl(), key)
  loss, grad = bowl_loss(constants), bowl_grad(constants)
  first, second, expected = 0.0, 0.0, [loss(theta)]
  for t in range(num_steps):
    g = grad(theta)
    first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
    direction = first / (1 - 0.9 ** (t + 1)) / (np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8)
    rate_t = rate * (1 + np.cos(np.pi * t / num_steps)) / 2
    theta = theta - rate_t * (direction + 1e-4 * theta)
    expected.append(loss(theta))
  make = MORE_BASELINES["adamw_cosine"].make_for(num_steps)
  # Beyond the horizon nothing moves.
  losses = learning_curves(bowl(), make, np.float32(rate), keys_of(1), num_steps + 1).losses[0]
  np.testing.assert_allclose(losses, [*expected, expected[-1]], rtol=2e-5)


# --- Tuning and evaluation.


def test_a_schedule_does_not_retrace_for_another_rate():
  @chex.assert_max_traces(n=1)
  def make(learning_rate, num_steps):
    return optax.sgd(optax.linear_schedule(learning_rate, 0.0, num_steps))

  problem = weighted_squares([1.0], [2.0])
  baseline = Baseline("linear", make, (-2, 2), to_horizon=True)
  tuned = tune(problem, baseline, num_steps=2, num_problems=2, key=jax.random.key(0))
  # Steps of r and r / 2: (1 - r)(1 - r / 2) is zero at r = 1.
  assert (tuned.learning_rate, tuned.interior, len(tuned.values)) == (1.0, True, 5)


def test_what_has_nothing_to_tune_has_the_rate_one():
  problem = weighted_squares([1.0, 4.0], [1.0, 1.0])
  options = {"num_steps": 1, "num_problems": 2, "key": jax.random.key(0)}
  tuned = tune(problem, "bfgs_line_search", **options)
  assert (tuned.learning_rate, tuned.interior, tuned.learning_rates.tolist()) == (1.0, True, [1.0])
  # Steepest descent from (1, 1): g = (1, 4), f - |g|^4 / (2 g.Hg).
  np.testing.assert_allclose(tuned.values, [2.5 - 17**2 / (2 * 65)], rtol=1e-6)


def test_an_evaluation_has_them_if_it_asks():
  evaluation = evaluate(
    weighted_squares([1.0, 4.0], [1.0, 1.0]),
    [],
    num_steps=3,
    num_problems=2,
    key=jax.random.key(0),
    baselines=["sgd", "adamw_cosine", "lbfgs_line_search"],
    num_tuning_problems=2,
  )
  results = evaluation.results
  assert list(results) == ["sgd", "adamw_cosine", "lbfgs_line_search"]
  assert results["lbfgs_line_search"].learning_rate == 1.0
  assert results["lbfgs_line_search"].mean[2] < 1e-10 < results["sgd"].mean[2]
  assert results["adamw_cosine"].learning_rate == 0.5
  colors = _figures.colors_of(results)
  assert len(set(colors.values())) == 3


def test_learned_optimizers_take_none_of_the_baselines_colors():
  alone = _figures.colors_of(BASELINES)
  beside = _figures.colors_of(["one", *BASELINES, "another", "third"])
  assert len(set(beside.values())) == len(BASELINES) + 3
  assert {name: beside[name] for name in BASELINES} == alone
  assert beside["one"] == _figures.LEARNED_COLORS[0]


def test_they_are_found_by_name_and_are_not_the_default():
  assert not BASELINES.keys() & MORE_BASELINES.keys()
  names = [*BASELINES, *MORE_BASELINES]
  assert [baseline.name for baseline in find_baselines(names)] == names
  for baseline in find_baselines(names):
    assert baseline.gradients_per_step == (2 if "line_search" in baseline.name else 1)
    assert (baseline.exponents is None) == ("line_search" in baseline.name)
