"""Meta-gradients against finite differences, a numpy model and closed forms."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import optax
import pytest
from cases import (
  DEFECTS,
  ESTIMATORS,
  OPTIMIZEES,
  bowl,
  bowl_grad,
  bowl_loss,
  images,
  meta_params_of,
  tiny_lstm,
)

import learned_opt
from learned_opt import estimators, meta_losses, optimizees, optimizers
from learned_opt.estimators import _particles, drop_diverged

HORIZON, META_BATCH_SIZE, P, OUTPUT_SCALE = 6, 8, 3.0, 0.3
WEIGHTS = np.array([0.5, -1.0, 2.0, 0.0, 1.5, 3.0])


def jitted(estimator, learned_optimizer):
  """`init` and `estimate` without the learned optimizer; the optimizee is an argument."""

  @jax.jit
  def init(optimizee, meta_params, key):
    return estimator.init(optimizee, learned_optimizer, meta_params, key)

  @jax.jit
  def estimate(optimizee, meta_params, state, key):
    return estimator.estimate(optimizee, learned_optimizer, meta_params, state, key)

  return init, estimate


def first_estimate(estimator, learned_optimizer, optimizee, meta_params, key):
  """One estimate of fresh problems; one program, which compiles faster than two."""

  @jax.jit
  def run(optimizee, meta_params, key):
    state = estimator.init(optimizee, learned_optimizer, meta_params, key)
    return estimator.estimate(optimizee, learned_optimizer, meta_params, state, key)

  return run(optimizee, meta_params, key)


def small_lstm():
  return tiny_lstm(hidden_size=3, preprocessing=optimizers.LogAndSign(P), output_scale=OUTPUT_SCALE)


def small_meta_params(seed=0):
  return meta_params_of(small_lstm(), seed, np.float64)


class Programs:
  """The two programs of one row of the table, shared by its tests; counts its traces."""

  def __init__(self, case):
    self.num_traces = 0
    self.reference, self.noise = REFERENCES[case.reference], case.noise
    self.unroll_length = case.unroll_length or HORIZON
    self.rtol = 1e-10 if case.noise is None else 1e-7
    self.num_truncations = HORIZON // self.unroll_length
    estimator = case.make(
      horizon=HORIZON,
      meta_batch_size=META_BATCH_SIZE,
      meta_loss=meta_losses.weighted_sum(WEIGHTS),
    )

    def estimate(optimizee, learned_optimizer, *args):
      self.num_traces += 1
      return estimator.estimate(optimizee, learned_optimizer, *args)

    self.init, self.estimate = jitted(estimator._replace(estimate=estimate), small_lstm())


@functools.cache
def programs_of(name):
  return Programs(ESTIMATORS[name])


@pytest.fixture(params=ESTIMATORS)
def programs(request, x64):
  return programs_of(request.param)


def unstack(tree, index):
  return jax.tree.map(lambda leaf: np.asarray(leaf[index]), tree)


# --- The numpy references: functions of phi whose derivative an estimate must equal.


class Segment(NamedTuple):
  """One truncation of one problem: where it starts, and what its losses weigh."""

  loss: object
  grad: object
  theta: np.ndarray
  lstm_state: object
  weights: np.ndarray


def true_gradient(segment: Segment, lstm):
  """phi -> sum_s w_s f(theta_s(phi)), optimized anew for each phi."""

  def meta_loss(phi):
    num_steps = len(segment.weights)
    losses, *_ = numpy_lstm.optimize(
      lstm(phi), segment.loss, segment.grad, segment.theta, num_steps, segment.lstm_state
    )
    return np.sum(segment.weights * losses[1:])

  return meta_loss


def first_order_gradient(segment: Segment, lstm):
  """phi -> sum_t <u_t(phi; g), R_t> for the gradients recorded at phi = 0."""
  _, grads, *_ = numpy_lstm.optimize(
    lstm(0.0),
    segment.loss,
    segment.grad,
    segment.theta,
    len(segment.weights),
    segment.lstm_state,
  )
  return lambda phi: numpy_lstm.first_order_objective(
    lstm(phi), grads[:-1], segment.weights[:, None] * grads[1:], segment.lstm_state
  )


REFERENCES = {
  "true_gradient": true_gradient,
  "first_order_gradient": first_order_gradient,
}


def lines(meta_params, num_lines=3):
  """Random directions, and for each `epsilon -> the numpy LSTM at phi + epsilon direction`."""
  for seed in range(num_lines):
    rng = np.random.default_rng(seed)
    direction = jax.tree.map(lambda leaf, rng=rng: rng.normal(size=leaf.shape), meta_params)
    yield direction, line(meta_params, direction)


def line(meta_params, direction):
  def lstm(epsilon):
    moved = jax.tree.map(lambda leaf, d: np.asarray(leaf) + epsilon * d, meta_params, direction)
    return numpy_lstm.NumpyLSTM(moved, numpy_lstm.log_and_sign(P), OUTPUT_SCALE)

  return lstm


def noise_of(meta_params, keys):
  """The standard normal numbers of each particle in each estimate, ``[estimate][particle]``."""
  settings = _particles.check_settings(None, 1, META_BATCH_SIZE, meta_losses.mean, 1.0)
  draw = jax.jit(
    lambda key: _particles.draw_noise(
      settings, meta_params, jax.random.fold_in(key, _particles.NOISE)
    )
  )
  drawn = [draw(key) for key in keys]
  return [[unstack(noise, index) for index in range(META_BATCH_SIZE)] for noise in drawn]


def slope_times_weight(kind, constants, meta_params, noise, unroll_length, truncation, direction):
  """What one particle says of one truncation as sigma goes to zero, along a direction.

  The loss differs between the signs by what the noise did in the truncations before, too.

  Args:
    kind: of the noise, see `EstimatorCase`.
    constants: of the bowl.
    meta_params: phi.
    noise: standard normal, one tree a truncation.
    unroll_length: U.
    truncation: which one.
    direction: a tree like phi.
  """
  epsilons = [noise[0]] * len(noise) if kind == "kept" else noise
  own = [line(meta_params, epsilon) for epsilon in epsilons]

  def loss(step):
    theta, lstm_state = constants.start, None
    for index in range(truncation + 1):
      # What is shared goes on from the sign +, which for a tiny sigma is where phi comes.
      moves = index == truncation or kind != "fresh"
      losses, _, theta, lstm_state = numpy_lstm.optimize(
        own[index](step if moves else 0.0),
        bowl_loss(constants),
        bowl_grad(constants),
        theta,
        unroll_length,
        lstm_state,
      )
    first = truncation * unroll_length
    return np.sum(WEIGHTS[first : first + unroll_length] * losses[1:])

  weights = {
    "fresh": epsilons[truncation],
    "kept": epsilons[truncation],
    "summed": jax.tree.map(lambda *leaves: sum(leaves), *epsilons[: truncation + 1]),
  }
  return numpy_lstm.derivative(loss) * along(weights[kind], direction)


def expected_along(programs, constants, meta_params, keys, direction, line):
  """What the first estimates must be; None stands for a problem that has diverged."""
  unroll_length = programs.unroll_length
  good = [index for index, one in enumerate(constants) if one is not None]
  if programs.noise in (None, "tiny"):
    cut = [list(segments(constants[index], line(0.0), unroll_length)) for index in good]
    cut = [problems for problems, _ in zip(zip(*cut, strict=True), keys, strict=False)]
    return [mean_derivative(programs.reference, problems, line) for problems in cut]
  noise = noise_of(meta_params, keys)

  def said(index, truncation):
    own = [epsilons[index] for epsilons in noise]
    return slope_times_weight(
      programs.noise, constants[index], meta_params, own, unroll_length, truncation, direction
    )

  return [
    sum(said(index, truncation) for index in good) / META_BATCH_SIZE
    for truncation in range(len(keys))
  ]


def along(meta_grads, direction):
  products = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * d), meta_grads, direction)
  return sum(jax.tree.leaves(products))


def segments(constants, lstm, unroll_length):
  """Cuts the optimization of one bowl into truncations."""
  loss, grad = bowl_loss(constants), bowl_grad(constants)
  theta, lstm_state = constants.start, None
  for first in range(0, HORIZON, unroll_length):
    yield Segment(loss, grad, theta, lstm_state, WEIGHTS[first : first + unroll_length])
    _, _, theta, lstm_state = numpy_lstm.optimize(
      lstm, loss, grad, theta, unroll_length, lstm_state
    )


def test_estimate_is_its_reference_for_each_truncation(programs, key):
  """Along random directions in phi, on asymmetric problems, with a weight for each step."""
  meta_params = small_meta_params()
  state, estimates = programs.init(bowl(), meta_params, key), []
  for step in range(programs.num_truncations):
    step_key = jax.random.fold_in(key, step)
    meta_grads, state, _ = programs.estimate(bowl(), meta_params, state, step_key)
    estimates.append(meta_grads)
  constants = [unstack(state.problems.constants, index) for index in range(META_BATCH_SIZE)]
  keys = [jax.random.fold_in(key, step) for step in range(programs.num_truncations)]
  for direction, line in lines(meta_params, num_lines=3 if programs.noise is None else 1):
    expected = expected_along(programs, constants, meta_params, keys, direction, line)
    found = [along(meta_grads, direction) for meta_grads in estimates]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def mean_derivative(reference, problems, line):
  return np.mean([numpy_lstm.derivative(reference(segment, line)) for segment in problems])


META_LOSSES = {
  "mean_log": (meta_losses.mean_log, lambda f: 1 / (f.size * (f + 1e-6))),
  "mean_log_above": (meta_losses.mean_log_above(0.1), lambda f: 1 / (f.size * (f + 0.1))),
  "mean_log_rising": (
    meta_losses.mean_log_above(0.1, rising_over=4),
    lambda f: (1 + np.arange(f.size)) / (4 * f.size * (f + 0.1)),
  ),
  "users_own": (
    lambda losses, steps: jnp.sum(losses**2 / steps),
    lambda f: 2 * f / (1 + np.arange(f.size)),
  ),
}


def test_equal_floors_are_one_meta_loss():
  assert meta_losses.mean_log_above(1) is meta_losses.mean_log_above(1.0)


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_floor_of_a_meta_loss_is_positive_and_finite(floor):
  with pytest.raises(ValueError, match="floor must be positive and finite, got"):
    meta_losses.mean_log_above(floor)


def test_losses_rise_over_at_least_one_step():
  with pytest.raises(ValueError, match="rising_over must be at least 1 step, or None, got 0"):
    meta_losses.mean_log_above(0.1, rising_over=0)


@pytest.mark.parametrize(("meta_loss", "weights_at"), META_LOSSES.values(), ids=META_LOSSES)
def test_any_meta_loss_weighs_the_losses_by_its_derivatives(meta_loss, weights_at, key, x64):
  meta_params = small_meta_params()
  estimator = estimators.full_unroll(horizon=4, meta_loss=meta_loss)
  meta_grads, state, info = first_estimate(estimator, small_lstm(), bowl(), meta_params, key)
  constants = unstack(state.problems.constants, 0)
  loss, grad = bowl_loss(constants), bowl_grad(constants)
  for direction, line in lines(meta_params):
    losses, *_ = numpy_lstm.optimize(line(0.0), loss, grad, constants.start, 4)
    segment = Segment(loss, grad, constants.start, None, weights_at(losses[1:]))
    expected = numpy_lstm.derivative(first_order_gradient(segment, line))
    np.testing.assert_allclose(along(meta_grads, direction), expected, rtol=1e-6, atol=1e-10)
  expected_loss = meta_loss(jnp.asarray(losses[1:]), jnp.arange(1, 5))
  np.testing.assert_allclose(info.meta_loss, expected_loss, rtol=1e-10)


def _outer_loss(params, constants, data, key):
  del constants, data, key
  return jnp.sum(jnp.sin(params) * jnp.arange(3))


def test_first_order_gradient_of_an_outer_loss(key, x64):
  """The optimizer sees the gradients of the loss; the rewards are those of the outer loss."""
  meta_params = small_meta_params()
  optimizee = dataclasses.replace(bowl(), outer_loss=_outer_loss)
  estimator = estimators.full_unroll(horizon=4)
  meta_grads, state, _ = first_estimate(estimator, small_lstm(), optimizee, meta_params, key)
  constants = unstack(state.problems.constants, 0)
  model = numpy_lstm.NumpyLSTM(meta_params, numpy_lstm.log_and_sign(P), OUTPUT_SCALE)
  theta, thetas, grads, lstm_state = constants.start, [], [], model.zero_state(3)
  for _ in range(4):
    grads.append(bowl_grad(constants)(theta))
    update, lstm_state = model.update(grads[-1], lstm_state)
    theta = theta + update
    thetas.append(theta)
  grads, rewards = np.array(grads), np.cos(np.array(thetas)) * np.arange(3)
  for direction, line in lines(meta_params):

    def objective(phi, line=line):
      return numpy_lstm.first_order_objective(line(phi), grads, rewards)

    expected = numpy_lstm.derivative(objective)
    np.testing.assert_allclose(along(meta_grads, direction), expected, rtol=1e-6, atol=1e-10)


def first_order_gradient_of_a_rate(optimizee, rate, problem):
  """f(theta_1) and its derivative by the rate of one step of gradient descent, in closed form."""
  theta, constants, data = problem.params, problem.constants, optimizee.data
  start, end = (jax.random.fold_in(problem.key, step) for step in (0, 1))
  grads = jax.grad(optimizee.loss)(theta, constants, data, start)
  theta = jax.tree.map(lambda leaf, g: leaf - rate * g, theta, grads)
  if optimizee.outer_loss is None:
    loss, key = optimizee.loss, end
  else:
    loss, key = optimizee.outer_loss, jax.random.fold_in(end, 1)
  value, reward = jax.value_and_grad(loss)(theta, constants, data, key)
  return value, -optax.tree.vdot(reward, grads)


@pytest.mark.parametrize("case", OPTIMIZEES.values(), ids=OPTIMIZEES)
def test_first_order_gradient_of_every_optimizee_equals_a_closed_form(case, key):
  """Trees of tensors, minibatches and outer losses."""
  sgd = learned_opt.LearnedOptimizer(lambda key: jnp.array(0.2), optax.sgd)
  estimator = estimators.full_unroll(horizon=1, meta_batch_size=2)

  @jax.jit
  def both(optimizee, rate, key):
    state = estimator.init(optimizee, sgd, rate, key)
    # The problems that `init` drew are the ones to go on with, so that their start is known.
    kept = state._replace(restart=jnp.zeros_like(state.restart))
    meta_grad, _, info = estimator.estimate(optimizee, sgd, rate, kept, key)
    closed_form = functools.partial(first_order_gradient_of_a_rate, optimizee, rate)
    expected = jax.tree.map(jnp.mean, jax.vmap(closed_form)(state.problems))
    return (info.meta_loss, meta_grad), expected

  estimated, expected = both(case.make(), jnp.array(0.2), key)
  chex.assert_trees_all_close(estimated, expected, rtol=1e-4, atol=1e-8)
  assert abs(float(expected[1])) > 1e-6


def test_any_optimizer_can_be_meta_trained(key, x64):
  """A learned rate for SGD, and a gradient clip that mixes coordinates; closed form by hand."""
  sgd = learned_opt.LearnedOptimizer(
    lambda key: jnp.array(0.2),
    lambda phi: optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(phi)),
  )
  estimator = estimators.full_unroll(horizon=3)
  meta_grad, state, _ = first_estimate(estimator, sgd, bowl(), jnp.array(0.2), key)
  constants = unstack(state.problems.constants, 0)
  grad, theta = bowl_grad(constants), constants.start
  slope, expected = np.zeros(3), 0.0
  for _ in range(3):
    clipped = grad(theta) * min(1.0, 0.5 / np.linalg.norm(grad(theta)))
    theta, slope = theta - 0.2 * clipped, slope - clipped
    expected += grad(theta) @ slope
  np.testing.assert_allclose(meta_grad, expected, rtol=1e-10)


# --- Truncations.


def test_truncated_is_full_when_the_horizon_is_one_unroll(key):
  lstm = tiny_lstm()
  meta_params = meta_params_of(lstm)
  results = []
  for estimator in (
    estimators.truncated_backprop(3, 3, 2, meta_losses.mean),
    estimators.full_unroll(3, 2, meta_losses.mean),
  ):
    results.append(first_estimate(estimator, lstm, bowl(), meta_params, key))
  chex.assert_trees_all_equal(*results)


def test_each_loss_is_counted_once_and_problems_are_replaced_at_the_horizon(programs, key):
  meta_params, unroll_length = small_meta_params(), programs.unroll_length
  model = numpy_lstm.NumpyLSTM(meta_params, numpy_lstm.log_and_sign(P), OUTPUT_SCALE)
  state, starts = programs.init(bowl(), meta_params, key), []
  for episode in range(2):
    total, curves = 0.0, []
    for step in range(programs.num_truncations):
      step_key = jax.random.fold_in(key, 10 * episode + step)
      meta_grads, state, info = programs.estimate(bowl(), meta_params, state, step_key)
      total += float(info.meta_loss)
      curves.append(np.asarray(info.losses))
      np.testing.assert_allclose(info.meta_grad_norm, optax.tree.norm(meta_grads), rtol=1e-12)
      assert (int(info.num_diverged), info.num_diverged.dtype) == (0, jnp.int32)
      done = (step + 1) * unroll_length
      np.testing.assert_array_equal(state.problems.step, [done] * META_BATCH_SIZE)
      np.testing.assert_array_equal(state.restart, [done == HORIZON] * META_BATCH_SIZE)
    losses = mean_curve(model, state.problems.constants, range(META_BATCH_SIZE), HORIZON)
    np.testing.assert_allclose(total, np.sum(WEIGHTS * losses[1:]), rtol=programs.rtol)
    np.testing.assert_allclose(curves[0], losses[: unroll_length + 1], rtol=programs.rtol)
    np.testing.assert_allclose(curves[-1], losses[-unroll_length - 1 :], rtol=programs.rtol)
    starts.append(np.asarray(state.problems.constants.start))
  assert not np.any(np.isclose(*starts))


def mean_curve(model, constants, indices, num_steps):
  """The mean losses of some problems, by the numpy model."""
  problems = [unstack(constants, index) for index in indices]
  curves = [
    numpy_lstm.optimize(model, bowl_loss(c), bowl_grad(c), c.start, num_steps)[0] for c in problems
  ]
  return np.mean(curves, axis=0)


def test_same_key_same_bits_and_other_keys_other_problems(programs, key):
  meta_params = small_meta_params()
  state = programs.init(bowl(), meta_params, key)
  first = programs.estimate(bowl(), meta_params, state, key)
  chex.assert_trees_all_equal(first, programs.estimate(bowl(), meta_params, state, key))
  other = programs.estimate(bowl(), meta_params, state, jax.random.key(9))
  assert float(first[2].meta_loss) != float(other[2].meta_loss)
  chex.assert_trees_all_equal_shapes_and_dtypes(first[0], meta_params)


def test_the_key_matters_only_where_problems_are_replaced(programs, key):
  meta_params = small_meta_params()
  state = programs.init(bowl(), meta_params, key)
  kept = state._replace(restart=jnp.zeros_like(state.restart))
  if programs.unroll_length == HORIZON:  # Nothing is ever carried.
    results = [programs.estimate(bowl(), meta_params, s, key) for s in (kept, state)]
  else:
    results = [programs.estimate(bowl(), meta_params, kept, k) for k in jax.random.split(key)]
  if programs.noise is not None:
    results = [(state.problems.constants, state.problems.step) for _, state, _ in results]
  chex.assert_trees_all_equal(*results)


def test_one_trace(programs, key):
  """Other meta-params, keys, data, and a second outer step: the tests before this one, too."""
  losses = []
  for seed in range(2):
    meta_params, optimizee = small_meta_params(seed), bowl([0] * 7 + [seed])
    state = programs.init(optimizee, meta_params, jax.random.key(seed))
    for step in range(2):
      step_key = jax.random.fold_in(key, step)
      meta_grads, state, info = programs.estimate(optimizee, meta_params, state, step_key)
      meta_params = jax.tree.map(lambda p, g: p - 1e-3 * g, meta_params, meta_grads)
      losses.append(float(info.meta_loss))
  assert len(set(losses)) == 4
  assert programs.num_traces == 1


# --- Problems that diverge.


def test_diverged_problems_are_dropped_counted_and_replaced(programs, key):
  optimizee, meta_params = bowl((0, 0, 0, 0, *DEFECTS)), small_meta_params()
  state = programs.init(optimizee, meta_params, key)
  meta_grads, state, info = programs.estimate(optimizee, meta_params, state, key)
  bad = np.asarray(state.problems.constants.defect) != 0
  assert 0 < np.sum(bad) < META_BATCH_SIZE
  assert int(info.num_diverged) == np.sum(bad)
  ((direction, line),) = lines(meta_params, num_lines=1)
  constants = [None if b else unstack(state.problems.constants, i) for i, b in enumerate(bad)]
  (expected,) = expected_along(programs, constants, meta_params, [key], direction, line)
  np.testing.assert_allclose(along(meta_grads, direction), expected, rtol=1e-6)
  curve = mean_curve(
    line(0.0), state.problems.constants, np.flatnonzero(~bad), programs.unroll_length
  )
  np.testing.assert_allclose(info.losses, curve, rtol=programs.rtol)
  weights = WEIGHTS[: programs.unroll_length]
  np.testing.assert_allclose(info.meta_loss, np.sum(weights * curve[1:]), rtol=programs.rtol)
  replaced = bad | (programs.unroll_length == HORIZON)
  np.testing.assert_array_equal(state.restart, replaced)
  _, after, _ = programs.estimate(optimizee, meta_params, state, jax.random.key(1))
  same = after.problems.constants.start == state.problems.constants.start
  np.testing.assert_array_equal(np.all(same, axis=1), ~replaced)
  steps = np.where(replaced, programs.unroll_length, 2 * programs.unroll_length)
  np.testing.assert_array_equal(after.problems.step, steps)


@pytest.mark.parametrize("defect", DEFECTS)
def test_if_all_diverge_the_estimate_is_zero_and_the_loss_nan(programs, defect, key):
  optimizee, meta_params = bowl([defect] * 8), small_meta_params()
  state = programs.init(optimizee, meta_params, key)
  meta_grads, state, info = programs.estimate(optimizee, meta_params, state, key)
  chex.assert_trees_all_equal(meta_grads, jax.tree.map(jnp.zeros_like, meta_params))
  assert int(info.num_diverged) == META_BATCH_SIZE
  assert np.isnan(info.meta_loss)
  assert np.all(np.isnan(info.losses))
  np.testing.assert_array_equal(state.restart, [True] * META_BATCH_SIZE)


def test_drop_diverged_names_the_problem_of_each_bad_leaf():
  losses = jnp.array([1.0, 2.0, jnp.inf, 4.0])
  grads = {"a": jnp.array([1.0, jnp.nan, 3.0, 5.0]), "b": jnp.ones((4, 2, 2)).at[3].set(3.0)}
  mean, diverged = drop_diverged(losses, grads)
  np.testing.assert_array_equal(diverged, [False, True, True, False])
  np.testing.assert_allclose(mean["a"], 3.0)
  np.testing.assert_allclose(mean["b"], np.full((2, 2), 2.0))


# --- Data are arguments.


@pytest.mark.parametrize("case", ESTIMATORS.values(), ids=ESTIMATORS)
def test_a_data_set_is_no_constant_of_the_program(case, key):
  lstm = tiny_lstm()
  meta_params = meta_params_of(lstm)
  init, estimate = jitted(case.make(horizon=HORIZON), lstm)
  dataset = images((30_000, 1, 1))
  optimizee = optimizees.mlp_classifier(dataset, (3,), batch_size=4)
  state = jax.eval_shape(init, optimizee, meta_params, key)
  program = estimate.lower(optimizee, meta_params, state, key).as_text()
  assert len(program) < dataset.train[0].nbytes


# --- Errors.


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"unroll_length": 20, "horizon": 50}, ValueError, "multiple .* horizon=40 would work"),
    ({"unroll_length": 20, "horizon": 10}, ValueError, "multiple .* horizon=20 would work"),
    ({"unroll_length": 0}, ValueError, "unroll_length must be at least 1, got 0"),
    ({"horizon": -5}, ValueError, "horizon must be at least 1, got -5"),
    ({"meta_batch_size": 0}, ValueError, "meta_batch_size must be at least 1, got 0"),
    ({"meta_loss": "sum"}, TypeError, "meta_loss must be a function .* got 'sum'"),
    ({"meta_loss": lambda losses, steps: losses}, ValueError, "finite scalar"),
    ({"meta_loss": meta_losses.weighted_sum([1.0] * 99)}, ValueError, "a weight for each step"),
  ],
  ids=["remainder", "short", "unroll", "horizon", "batch", "type", "vector", "weights"],
)
def test_truncated_backprop_refuses(options, error, message):
  with pytest.raises(error, match=message):
    estimators.truncated_backprop(**options)


@pytest.mark.parametrize("options", [{"horizon": 0}, {"meta_batch_size": 0}], ids=repr)
def test_full_unroll_refuses(options):
  with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least 1, got 0"):
    estimators.full_unroll(**options)


@pytest.mark.parametrize("case", ESTIMATORS.values(), ids=ESTIMATORS)
def test_horizon_is_told(case):
  assert case.make(horizon=9).horizon == 9
