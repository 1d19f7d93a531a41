"""Imitation against finite differences and closed forms, and the coin of a mixture."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import optax
import pytest
from cases import DEFECTS, bowl, bowl_grad, bowl_loss, meta_params_of, tiny_lstm

import learned_opt
from learned_opt import estimators, optimizers

UNROLL, HORIZON, PROBLEMS, WEIGHT, P, OUTPUT_SCALE = 2, 4, 3, 50.0, 3.0, 0.3


def small_lstm():
  return tiny_lstm(hidden_size=3, preprocessing=optimizers.LogAndSign(P), output_scale=OUTPUT_SCALE)


def programs_of(estimator, learned_optimizer):
  """`init` and `estimate` as one program each; the optimizee is an argument."""
  init = jax.jit(lambda optimizee, *args: estimator.init(optimizee, learned_optimizer, *args))
  estimate = jax.jit(
    lambda optimizee, *args: estimator.estimate(optimizee, learned_optimizer, *args)
  )
  return init, estimate


def small_meta_params():
  return jax.tree.map(lambda leaf: leaf.astype(float), meta_params_of(small_lstm()))


@functools.cache
def programs():
  estimator = estimators.imitation(UNROLL, HORIZON, PROBLEMS, optax.adam(0.2), weight=WEIGHT)
  return programs_of(estimator, small_lstm())


def teachers_way(constants, num_steps):
  """Adam at 0.2 in numpy: losses [T + 1], gradients [T, n] and updates [T, n]."""
  theta, first, second = constants.start, 0.0, 0.0
  losses, grads, updates = [bowl_loss(constants)(theta)], [], []
  for step in range(1, num_steps + 1):
    grads.append(bowl_grad(constants)(theta))
    first = 0.9 * first + 0.1 * grads[-1]
    second = 0.999 * second + 0.001 * grads[-1] ** 2
    updates.append(-0.2 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8))
    theta = theta + updates[-1]
    losses.append(bowl_loss(constants)(theta))
  return np.array(losses), np.array(grads), np.array(updates)


def imitation_loss(meta_params, constants, first):
  """That of the truncation which begins at step `first`."""
  _, grads, targets = teachers_way(constants, HORIZON)
  lstm = numpy_lstm.NumpyLSTM(meta_params, numpy_lstm.log_and_sign(P), OUTPUT_SCALE)
  outputs, _ = lstm.updates(grads)
  seen = slice(first, first + UNROLL)
  return WEIGHT * np.sum((targets[seen] - outputs[seen]) ** 2) / (2 * 3)


def derivative_along(direction, meta_params, constants, first, num_steps):
  """Of the imitation loss, with the student's state at the start of the truncation held fixed."""
  _, grads, targets = teachers_way(constants, num_steps)
  seen = slice(first, first + UNROLL)

  def lstm(epsilon):
    moved = jax.tree.map(lambda leaf, d: np.asarray(leaf) + epsilon * d, meta_params, direction)
    return numpy_lstm.NumpyLSTM(moved, numpy_lstm.log_and_sign(P), OUTPUT_SCALE)

  state = lstm(0.0).updates(grads[:first])[1] if first else None

  def loss(epsilon):
    outputs, _ = lstm(epsilon).updates(grads[seen], state)
    return WEIGHT * np.sum((targets[seen] - outputs) ** 2) / (2 * 3)

  return numpy_lstm.derivative(loss)


def along(meta_grads, direction):
  products = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), meta_grads, direction)
  return sum(jax.tree.leaves(products))


def constants_of(state):
  """Problem by problem."""
  return [
    jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k]), state.problems.constants)
    for k in range(state.restart.size)
  ]


def random_direction(tree, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), tree)


@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_the_imitation_loss_for_each_truncation(key):
  init, estimate = programs()
  meta_params = small_meta_params()
  state = init(bowl(), meta_params, key)
  for first in range(0, HORIZON, UNROLL):
    meta_grads, state, info = estimate(bowl(), meta_params, state, jax.random.fold_in(key, first))
    problems = constants_of(state)
    for seed in range(3):
      direction = random_direction(meta_params, seed)
      expected = [derivative_along(direction, meta_params, one, first, HORIZON) for one in problems]
      np.testing.assert_allclose(along(meta_grads, direction), np.mean(expected), rtol=1e-6)
    losses = [imitation_loss(meta_params, one, first) for one in problems]
    np.testing.assert_allclose(info.meta_loss, np.mean(losses), rtol=1e-10)
    curves = [teachers_way(one, HORIZON)[0][first : first + UNROLL + 1] for one in problems]
    np.testing.assert_allclose(info.losses, np.mean(curves, axis=0), rtol=1e-10)
    np.testing.assert_allclose(info.meta_grad_norm, optax.tree.norm(meta_grads), rtol=1e-12)
    np.testing.assert_array_equal(state.restart, [first + UNROLL == HORIZON] * PROBLEMS)
  before = state.problems.constants.start
  _, state, _ = estimate(bowl(), meta_params, state, jax.random.fold_in(key, HORIZON))
  assert not np.any(np.isclose(before, state.problems.constants.start))
  np.testing.assert_array_equal(state.problems.step, [UNROLL] * PROBLEMS)


@pytest.mark.usefixtures("x64")
def test_problems_on_which_the_teacher_fails_are_dropped_and_counted(key):
  init, estimate = programs()
  meta_params = small_meta_params()
  optimizee = bowl((0, 0, 0, 0, *DEFECTS))
  state = init(optimizee, meta_params, key)
  meta_grads, state, info = estimate(optimizee, meta_params, state, key)
  problems = constants_of(state)
  good = [one for one in problems if one.defect == 0]
  assert 0 < len(good) < PROBLEMS
  assert int(info.num_diverged) == PROBLEMS - len(good)
  direction = random_direction(meta_params, 0)
  expected = [derivative_along(direction, meta_params, one, 0, UNROLL) for one in good]
  np.testing.assert_allclose(along(meta_grads, direction), np.mean(expected), rtol=1e-6)
  np.testing.assert_array_equal(state.restart, [one.defect != 0 for one in problems])


def sgd_with_a_learned_rate():
  def optimizer(meta_params):
    return optax.sgd(meta_params)

  return learned_opt.LearnedOptimizer(lambda key: jnp.array(0.05), optimizer)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("remat", [False, True])
def test_any_student_learns_from_any_teacher(remat, key):
  """Gradient descent at rate 0.05 from gradient descent at 0.1: closed form by hand."""
  estimator = estimators.imitation(3, 3, teacher=optax.sgd(0.1), weight=2.0, remat=remat)
  init, estimate = programs_of(estimator, sgd_with_a_learned_rate())
  meta_grad, state, info = estimate(
    bowl(), jnp.array(0.05), init(bowl(), jnp.array(0.05), key), key
  )
  (constants,) = constants_of(state)
  theta, squares = constants.start, 0.0
  for _ in range(3):
    grad = bowl_grad(constants)(theta)
    theta, squares = theta - 0.1 * grad, squares + np.sum(grad**2)
  np.testing.assert_allclose(meta_grad, 2.0 * (0.05 - 0.1) * squares / 3, rtol=1e-10)
  np.testing.assert_allclose(info.meta_loss, 2.0 * (0.05 - 0.1) ** 2 * squares / 6, rtol=1e-10)
  np.testing.assert_allclose(state.problems.params[0], theta, rtol=1e-10)
  perfect, _, info = estimate(bowl(), jnp.array(0.1), state, key)
  assert abs(float(perfect)) + float(info.meta_loss) < 1e-12


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"unroll_length": 20, "horizon": 50}, ValueError, "multiple .* horizon=40 would work"),
    ({"meta_batch_size": 0}, ValueError, "meta_batch_size must be at least 1, got 0"),
    ({"teacher": 0.01}, TypeError, r"teacher must be an optax .* optax\.adam\(0\.01\), got float"),
    ({"weight": 0.0}, ValueError, "weight must be positive and finite, got 0.0"),
    ({"weight": np.inf}, ValueError, "weight must be positive and finite, got inf"),
  ],
)
def test_imitation_refuses(options, error, message):
  with pytest.raises(error, match=message):
    estimators.imitation(**options)


# --- The coin.


@functools.cache
def parts():
  """The two estimators of a meta-training with imitation."""
  return (
    estimators.truncated_backprop(UNROLL, HORIZON, PROBLEMS),
    estimators.imitation(UNROLL, HORIZON, PROBLEMS),
  )


def run(estimator, key, num_steps):
  """The estimates of some outer steps with fixed meta-params, and the states; one program."""
  sgd = sgd_with_a_learned_rate()

  @jax.jit
  def scan(key):
    def step(state, key):
      meta_grads, state, info = estimator.estimate(bowl(), sgd, jnp.array(0.05), state, key)
      return state, (state, meta_grads, info)

    state = estimator.init(bowl(), sgd, jnp.array(0.05), key)
    return jax.lax.scan(step, state, jax.random.split(key, num_steps))[1]

  return scan(key)


def test_each_part_goes_on_with_its_own_problems_while_the_other_waits(key):
  num_steps, traces = 12, []

  def traced(part):
    def estimate(*args):
      traces.append(part)
      return part.estimate(*args)

    return part._replace(estimate=estimate)

  first, second = map(traced, parts())
  states, _, info = run(estimators.mixture(first, second, 0.5), key, num_steps)
  assert len(traces) == 2
  taken = [(np.diff(part.problems.step[:, 0], prepend=0) != 0) for part in states]
  np.testing.assert_array_equal(taken[0], ~taken[1])
  for part, turns in zip(states, taken, strict=True):
    assert 2 < turns.sum() < num_steps
    counts = np.cumsum(turns)
    steps = np.where(counts > 0, (UNROLL * counts - 1) % HORIZON + 1, 0)
    np.testing.assert_array_equal(part.problems.step[:, 0], steps)
    # The second truncation of a problem begins where its first one ended.
    first, second = np.flatnonzero(turns)[:2]
    np.testing.assert_allclose(info.losses[second, 0], info.losses[first, -1], rtol=1e-6)


def counted(name, seen):
  """A quick estimator, which notes its turns and counts them in its state."""

  def init(optimizee, learned_optimizer, meta_params, key):
    return jnp.array(0), jax.random.uniform(key)

  def estimate(optimizee, learned_optimizer, meta_params, state, key):
    jax.debug.callback(lambda: seen.append(name))
    drawn = jax.random.uniform(key)
    info = learned_opt.Info(drawn, jnp.zeros(3), jnp.array(0), drawn)
    return meta_params + drawn, (state[0] + 1, state[1] + drawn), info

  return learned_opt.MetaGradientEstimator(init, estimate, horizon=10)


def test_without_its_second_part_a_mixture_is_the_first_bit_for_bit(key):
  first, second = counted("first", []), counted("second", [])
  states, *estimates = run(estimators.mixture(first, second, 0.0), key, 4)
  expected_states, *expected = run(first, key, 4)
  chex.assert_trees_all_equal(estimates, expected)
  chex.assert_trees_all_equal(states.first, expected_states)
  np.testing.assert_array_equal(states.second[0], [0] * 4)
  states, *_ = run(estimators.mixture(first, second, 1.0), key, 4)
  np.testing.assert_array_equal(states.first[0], [0] * 4)
  # Their problems are not the same ones.
  assert states.first[1][0] != states.second[1][0]


def test_coin_falls_as_often_as_it_should_and_only_one_part_runs(key):
  seen = []
  estimator = estimators.mixture(counted("first", seen), counted("second", seen), 0.3)
  states, *_ = run(estimator, key, 1000)
  jax.effects_barrier()
  first, second = int(states.first[0][-1]), int(states.second[0][-1])
  assert first + second == len(seen) == 1000
  assert seen.count("second") == second
  assert abs(second - 300) < 4 * np.sqrt(1000 * 0.3 * 0.7)


@pytest.mark.parametrize(
  ("arguments", "error", "message"),
  [
    ((*parts(), 1.5), ValueError, "probability must be between 0 and 1, got 1.5"),
    ((*parts(), -0.1), ValueError, "probability must be between 0 and 1, got -0.1"),
    ((parts()[0], 0.3, 0.3), TypeError, "second must be a MetaGradientEstimator, got float"),
    ((None, parts()[0], 0.3), TypeError, "first must be a MetaGradientEstimator, got NoneType"),
  ],
)
def test_mixture_refuses(arguments, error, message):
  with pytest.raises(error, match=message):
    estimators.mixture(*arguments)


def test_parts_must_have_equally_long_unrolls(key):
  estimator = estimators.mixture(parts()[0], estimators.imitation(4, 8), 0.5)
  with pytest.raises(ValueError, match=r"unrolls of one length, got \[4, 2\]"):
    run(estimator, key, 1)


def test_horizon_of_a_mixture_is_that_of_its_first_part():
  assert estimators.mixture(parts()[0], estimators.imitation(UNROLL, 8), 0.5).horizon == HORIZON
