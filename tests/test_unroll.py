"""Inner steps: one scan equals a plain loop, and the first-order rule is what it says."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import OPTIMIZEES, bowl, meta_params_of, tiny_lstm

import learned_opt
from learned_opt import estimators, evaluate, inspect, optimizees
from learned_opt.unroll import init_inner_state, inner_step, unroll

NUM_STEPS = 6


def learned():
  lstm = tiny_lstm()
  return lstm.optimizer(meta_params_of(lstm, dtype=jnp.result_type(float)))


TRANSFORMATIONS = {
  "sgd": lambda: optax.sgd(0.02),
  "adam": lambda: optax.adam(0.1),
  "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
  "lbfgs": lambda: optax.lbfgs(memory_size=3),
  "polyak_sgd": optax.polyak_sgd,
  "lstm": learned,
  "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), learned()),
}


def noisy():
  """A loss that shows its key: theta_t moves by exactly what the noise of step t says."""
  return learned_opt.Optimizee.from_functions(
    lambda key: jnp.zeros(2),
    lambda params, key: jnp.sum(params) * jax.random.normal(key) + jax.random.uniform(key),
  )


def start(optimizee, tx, key):
  return jax.jit(lambda optimizee, key: init_inner_state(optimizee, tx, key))(optimizee, key)


def rollout(optimizee, tx, state, num_steps):
  run = jax.jit(lambda optimizee, state: unroll(optimizee, tx, state, num_steps))
  return run(optimizee, state)


def plain_loop(optimizee, tx, state, num_steps):
  """Optax as its documentation has it; no scan, no `unroll`."""
  params, opt_state, losses = state.params, state.opt_state, []
  tx = optax.with_extra_args_support(tx)

  @jax.jit
  def evaluate(params, step):
    key = jax.random.fold_in(state.key, step)
    return jax.value_and_grad(optimizee.loss)(params, state.constants, optimizee.data, key)

  @jax.jit
  def update(grads, opt_state, params, value, step):
    def value_fn(params):
      key = jax.random.fold_in(state.key, step)
      return optimizee.loss(params, state.constants, optimizee.data, key)

    updates, opt_state = tx.update(
      grads, opt_state, params, value=value, grad=grads, value_fn=value_fn
    )
    return optax.apply_updates(params, updates), opt_state

  for step in range(num_steps):
    value, grads = evaluate(params, step)
    losses.append(value)
    params, opt_state = update(grads, opt_state, params, value, step)
  losses.append(evaluate(params, num_steps)[0])
  return params, opt_state, jnp.stack(losses)


@pytest.mark.parametrize("tx", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_unroll_equals_a_plain_loop(tx, key, x64):
  optimizee, tx = bowl(), tx()
  state = start(optimizee, tx, key)
  new_state, trajectory = rollout(optimizee, tx, state, NUM_STEPS)
  params, opt_state, losses = plain_loop(optimizee, tx, state, NUM_STEPS)
  chex.assert_trees_all_close(new_state.params, params, rtol=1e-10)
  chex.assert_trees_all_close(new_state.opt_state, opt_state, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(trajectory.losses, losses, rtol=1e-10)
  np.testing.assert_array_equal(trajectory.outer_losses, trajectory.losses[1:])
  assert int(new_state.step) == NUM_STEPS
  assert not np.array_equal(params, state.params)


def test_lbfgs_solves_a_quadratic(key, x64):
  optimizee, tx = optimizees.quadratic(3), optax.lbfgs()
  _, trajectory = rollout(optimizee, tx, start(optimizee, tx, key), 30)
  assert trajectory.losses[0] > 0.1
  assert trajectory.losses[-1] < 1e-12


class Recorded(NamedTuple):
  value: jax.Array
  grad: jax.Array
  value_again: jax.Array
  grads: jax.Array
  params: jax.Array


def recorder():
  """Keeps in its state what it was given; moves by minus a tenth of the gradient."""

  def init(params):
    return Recorded(jnp.zeros(()), params, jnp.zeros(()), params, params)

  def update(grads, state, params, *, value, grad, value_fn, **extra_args):
    del state, extra_args
    return -0.1 * grads, Recorded(value, grad, value_fn(params), grads, params)

  return optax.GradientTransformationExtraArgs(init, update)


def test_update_is_given_value_grad_and_value_fn(key, x64):
  optimizee, tx = noisy(), recorder()
  state = start(optimizee, tx, key)._replace(params=jnp.array([0.5, 2.0]))
  one_step = jax.jit(lambda state: inner_step(optimizee, tx, state))
  for step in range(3):
    before = state
    state, loss = one_step(state)
    step_key = jax.random.fold_in(before.key, step)
    noise = jax.random.normal(step_key)
    seen = state.opt_state
    expected = jnp.sum(before.params) * noise + jax.random.uniform(step_key)
    np.testing.assert_allclose(seen.value, expected, rtol=1e-12)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(seen.value_again, expected, rtol=1e-12)
    np.testing.assert_allclose(seen.grads, jnp.stack([noise, noise]), rtol=1e-12)
    np.testing.assert_array_equal(seen.grad, seen.grads)
    np.testing.assert_array_equal(seen.params, before.params)


def planner():
  """Moves by what it is told of its horizon, by nothing if it is told nothing."""

  def update(grads, state, params, *, num_steps=0, **extra_args):
    del params, extra_args
    return jnp.full_like(grads, num_steps), state

  return optax.GradientTransformationExtraArgs(lambda params: (), update)


@pytest.mark.parametrize(("horizon", "per_step"), [(None, 0.0), (7, 7.0), (np.int32(9), 9.0)])
def test_update_is_told_the_horizon_as_num_steps(horizon, per_step, key):
  optimizee, tx = noisy(), planner()
  state = init_inner_state(optimizee, tx, key)
  run = jax.jit(lambda state, horizon: unroll(optimizee, tx, state, 3, horizon=horizon)[0])
  np.testing.assert_array_equal(run(state, horizon).params, np.full(2, 3 * per_step))


@pytest.mark.parametrize("estimator", [estimators.truncated_backprop, estimators.imitation])
def test_every_part_of_the_package_tells_its_horizon(estimator, key):
  learned_optimizer = learned_opt.LearnedOptimizer(lambda key: jnp.zeros(()), lambda phi: planner())
  part = estimator(2, 4, **({"teacher": planner()} if estimator is estimators.imitation else {}))
  state = part.init(noisy(), learned_optimizer, jnp.zeros(()), key)
  _, state, _ = part.estimate(noisy(), learned_optimizer, jnp.zeros(()), state, key)
  np.testing.assert_array_equal(state.problems.params, [[8.0, 8.0]])


def test_evaluation_and_inspection_tell_their_number_of_steps(key):
  valley = learned_opt.Optimizee.from_functions(
    lambda key: jnp.zeros(()), lambda params, key: jnp.sum(params)
  )
  curves = evaluate.learning_curves(valley, lambda phi: planner(), (), key[None], 3)
  np.testing.assert_array_equal(curves.losses, [[0.0, 3.0, 6.0, 9.0]])
  told = inspect.counterfactual_updates(
    valley,
    evaluate.Candidate.from_transformation("planner", planner()),
    coordinate=0,
    steps=[1],
    gradients=[0.0],
    key=key,
    horizon=5,
  )
  np.testing.assert_array_equal(told.updates["planner"], [[5.0]])


def test_key_of_step_t_is_folded_from_the_problems_key(key, x64):
  optimizee, tx = noisy(), optax.sgd(0.1)
  state = start(optimizee, tx, key)
  _, trajectory = rollout(optimizee, tx, state, 4)
  keys = jax.vmap(lambda step: jax.random.fold_in(state.key, step))(jnp.arange(5))
  slopes, offsets = jax.vmap(jax.random.normal)(keys), jax.vmap(jax.random.uniform)(keys)
  positions = -0.1 * 2 * jnp.concatenate([jnp.zeros(1), jnp.cumsum(slopes[:-1])])
  np.testing.assert_allclose(trajectory.losses, positions * slopes + offsets, rtol=1e-10)
  assert len(set(np.asarray(offsets).tolist())) == 5


def test_unroll_in_two_parts_equals_one(key):
  """Bit for bit, minibatches included; the loss between the parts is seen by both."""
  optimizee, tx = OPTIMIZEES["mlp_classifier_outer_split"].make(), optax.adam(0.05)
  state = start(optimizee, tx, key)
  whole_state, whole = rollout(optimizee, tx, state, 6)
  middle, first = rollout(optimizee, tx, state, 3)
  end, second = rollout(optimizee, tx, middle, 3)
  chex.assert_trees_all_equal(end, whole_state)
  np.testing.assert_array_equal(first.losses[-1], second.losses[0])
  np.testing.assert_array_equal(jnp.append(first.losses, second.losses[1:]), whole.losses)
  np.testing.assert_array_equal(
    jnp.append(first.outer_losses, second.outer_losses), whole.outer_losses
  )


def test_outer_losses_are_the_outer_loss_on_draws_of_their_own(key):
  optimizee = noisy()
  outer = learned_opt.Optimizee(
    optimizee.init,
    optimizee.loss,
    outer_loss=lambda params, constants, data, key: 10.0 + jax.random.uniform(key),
  )
  tx = optax.sgd(0.1)
  state = start(outer, tx, key)
  _, plain = rollout(optimizee, tx, state, 4)
  _, trajectory = rollout(outer, tx, state, 4)
  np.testing.assert_array_equal(plain.losses, trajectory.losses)
  draws = np.asarray(trajectory.outer_losses) - 10
  assert draws.shape == (4,)
  assert np.all((draws >= 0) & (draws < 1))
  inner_keys = [jax.random.fold_in(state.key, t) for t in range(5)]
  inner_draws = [float(jax.random.uniform(k)) for k in inner_keys]
  assert len({round(float(u), 6) for u in [*draws, *inner_draws]}) == 9


def test_outer_losses_are_taken_after_each_update(key, x64):
  outer = dataclasses.replace(bowl(), outer_loss=lambda params, *_: jnp.sum(params**3))
  tx = optax.sgd(0.02)
  state = start(outer, tx, key)
  _, trajectory = rollout(outer, tx, state, 3)
  expected = []
  step = jax.jit(lambda state: inner_step(outer, tx, state)[0])
  for _ in range(3):
    state = step(state)
    expected.append(jnp.sum(state.params**3))
  np.testing.assert_allclose(trajectory.outer_losses, expected, rtol=1e-12)


# --- Derivatives. On f(theta) = a theta^2 / 2, everything is known in closed form.

CURVATURE, START, RATE, STEPS = 0.7, 1.3, 0.2, 5


def parabola():
  return learned_opt.Optimizee.from_functions(
    lambda key: jnp.array(START), lambda params, key: CURVATURE * params**2 / 2
  )


def total_loss(make_tx, phi, *, optimizee=None, **options):
  """sum_t f(theta_t), t = 1..5, as a function of phi."""
  optimizee, tx = optimizee or parabola(), make_tx(phi)
  state = init_inner_state(optimizee, tx, jax.random.key(0))
  return jnp.sum(unroll(optimizee, tx, state, STEPS, **options)[1].outer_losses)


def meta_grad(make_tx, phi, **options):
  return jax.jit(jax.grad(lambda phi: total_loss(make_tx, phi, **options)))(phi)


def sgd(phi):
  return optax.GradientTransformation(
    lambda params: (), lambda grads, state, params=None: (-phi * grads, state)
  )


def test_second_order_is_the_derivative_of_the_loss(x64):
  # theta_t = (1 - phi a)^t theta_0.
  t = np.arange(1, STEPS + 1)
  shrink = 1 - RATE * CURVATURE
  expected = np.sum(CURVATURE * START**2 * shrink ** (2 * t - 1) * t * -CURVATURE)
  np.testing.assert_allclose(meta_grad(sgd, RATE, second_order=True), expected, rtol=1e-12)


def test_first_order_takes_gradients_as_given(x64):
  # theta_s = theta_0 - phi sum_{t < s} g_t with g_t fixed, so d theta_s / d phi = -sum_{t < s} g_t.
  theta = START * (1 - RATE * CURVATURE) ** np.arange(STEPS + 1)
  grads = CURVATURE * theta
  expected = np.sum(grads[1:] * -np.cumsum(grads[:-1]))
  np.testing.assert_allclose(meta_grad(sgd, RATE), expected, rtol=1e-12)


def test_first_order_detaches_value_too(x64):
  def make_tx(phi):
    return optax.GradientTransformationExtraArgs(
      lambda params: (), lambda grads, state, params, value, **_: (-phi * value * grads, state)
    )

  theta, fed = START, []
  thetas = [theta]
  for _ in range(STEPS):
    fed.append(CURVATURE * theta**2 / 2 * CURVATURE * theta)
    theta = theta - RATE * fed[-1]
    thetas.append(theta)
  expected = np.sum(CURVATURE * np.array(thetas[1:]) * -np.cumsum(fed))
  np.testing.assert_allclose(meta_grad(make_tx, RATE), expected, rtol=1e-12)


def test_first_order_keeps_what_flows_through_params(x64):
  """An optimizer that reads params: u_t = -phi theta_t - 0.1 g_t."""

  def make_tx(phi):
    return optax.GradientTransformation(
      lambda params: (),
      lambda grads, state, params=None: (-phi * params - 0.1 * grads, state),
    )

  theta, slope, expected = START, 0.0, 0.0
  for _ in range(STEPS):
    slope = (1 - RATE) * slope - theta
    theta = (1 - RATE) * theta - 0.1 * CURVATURE * theta
    expected += CURVATURE * theta * slope
  np.testing.assert_allclose(meta_grad(make_tx, RATE), expected, rtol=1e-12)


def test_first_order_keeps_what_flows_through_optimizer_state(x64):
  """Momentum phi: m_t = phi m_{t-1} + g_t, u_t = -0.1 m_t."""

  def make_tx(phi):
    return optax.chain(optax.trace(decay=phi), optax.scale(-0.1))

  theta, momentum, d_momentum, slope, expected = START, 0.0, 0.0, 0.0, 0.0
  for _ in range(STEPS):
    d_momentum = momentum + RATE * d_momentum
    momentum = RATE * momentum + CURVATURE * theta
    theta, slope = theta - 0.1 * momentum, slope - 0.1 * d_momentum
    expected += CURVATURE * theta * slope
  np.testing.assert_allclose(meta_grad(make_tx, RATE), expected, rtol=1e-12)


def test_outer_loss_is_what_is_differentiated(x64):
  plain = parabola()
  outer = learned_opt.Optimizee(
    plain.init, plain.loss, outer_loss=lambda params, *_: jnp.sin(params)
  )
  theta = START * (1 - RATE * CURVATURE) ** np.arange(STEPS + 1)
  expected = np.sum(np.cos(theta[1:]) * -np.cumsum(CURVATURE * theta[:-1]))
  np.testing.assert_allclose(meta_grad(sgd, RATE, optimizee=outer), expected, rtol=1e-12)


@pytest.mark.parametrize("second_order", [False, True])
def test_remat_gives_the_same_gradients(second_order, key, x64):
  lstm, optimizee = tiny_lstm(), bowl()
  meta_params = meta_params_of(lstm, dtype=jnp.float64)
  plain, remat = (
    meta_grad(
      lstm.optimizer, meta_params, optimizee=optimizee, second_order=second_order, remat=remat
    )
    for remat in (False, True)
  )
  chex.assert_trees_all_close(plain, remat, rtol=1e-10, atol=1e-14)
  assert float(optax.tree.norm(plain)) > 1e-3


def test_gradient_reaches_the_last_update(x64):
  """With one step only the loss after the update depends on phi."""
  optimizee = parabola()

  def loss(phi):
    state = init_inner_state(optimizee, sgd(phi), jax.random.key(0))
    return jnp.sum(unroll(optimizee, sgd(phi), state, 1)[1].losses)

  theta = START * (1 - RATE * CURVATURE)
  expected = CURVATURE * theta * -CURVATURE * START
  np.testing.assert_allclose(jax.grad(loss)(RATE), expected, rtol=1e-12)


def test_one_trace_for_other_problems_and_meta_params(key):
  lstm, optimizee = tiny_lstm(), bowl()
  init = jax.jit(
    lambda meta_params, key: init_inner_state(optimizee, lstm.optimizer(meta_params), key)
  )

  @jax.jit
  @chex.assert_max_traces(n=1)
  def run(optimizee, meta_params, state):
    return unroll(optimizee, lstm.optimizer(meta_params), state, 3)

  finals = []
  for seed in range(2):
    meta_params = meta_params_of(lstm, seed)
    state = init(meta_params, jax.random.key(10 + seed))
    for _ in range(2):
      state, trajectory = run(bowl(), meta_params, state)
    finals.append(float(trajectory.losses[-1]))
  assert finals[0] != finals[1]


def test_vmap_over_problems_equals_a_loop(key):
  optimizee, tx = OPTIMIZEES["mlp_classifier"].make(), optax.adam(0.05)

  def run(key):
    return unroll(optimizee, tx, init_inner_state(optimizee, tx, key), 3)[1].losses

  keys = jax.random.split(key, 3)
  one = jax.jit(run)
  np.testing.assert_allclose(
    jax.jit(jax.vmap(run))(keys), jnp.stack([one(k) for k in keys]), rtol=1e-5
  )
