"""The outer loop: reproducible, resumable, honest about what happened."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import NAN_AFTER_THE_START, bowl, tiny_lstm

import learned_opt
import learned_opt.evaluate
from learned_opt import _outer_loop, estimators, meta_train, optimizees

ESTIMATOR = estimators.truncated_backprop(unroll_length=3, horizon=6, meta_batch_size=4)
OUTER = meta_train.with_clipping(optax.adam(3e-2), 1.0)


def train(num_outer_steps=8, optimizee=None, seed=0, **options):
  options = {
    "num_outer_steps": num_outer_steps,
    "validate_every": 2,
    "num_validation_problems": 4,
    "outer_optimizer": OUTER,
    "key": jax.random.key(seed),
    **options,
  }
  return meta_train.run(optimizee or bowl(), tiny_lstm(), ESTIMATOR, **options)


@pytest.fixture(scope="module")
def finished():
  return train()


def test_training_lowers_the_validation_loss():
  result = train(60, validate_every=20)
  assert result.history.validation_loss[-1] < 0.8 * result.history.validation_loss[0]
  assert result.stopped == "finished"


def test_same_seed_same_bits_other_seed_others(finished):
  chex.assert_trees_all_equal(train().meta_params, finished.meta_params)
  other = train(seed=1)
  assert other.history.meta_loss != finished.history.meta_loss


def test_resumed_run_is_the_uninterrupted_one(finished):
  half = train(4)
  assert int(half.state.outer_step) == 4
  resumed = train(8, state=half.state, history=half.history)
  chex.assert_trees_all_equal(resumed.meta_params, finished.meta_params)
  chex.assert_trees_all_equal(resumed.state.meta_params, finished.state.meta_params)
  assert resumed.history.meta_loss == finished.history.meta_loss
  assert resumed.history.validation_loss == finished.history.validation_loss
  assert resumed.history.validation_step == [2, 4, 6, 8]
  assert resumed.history.seconds == sorted(resumed.history.seconds)


def test_number_of_steps_in_a_dispatch_does_not_matter(finished):
  chex.assert_trees_all_close(
    train(steps_per_dispatch=1).meta_params, finished.meta_params, rtol=1e-5, atol=1e-6
  )


def test_best_meta_params_are_those_of_the_best_validation(finished):
  losses = finished.history.validation_loss
  assert finished.best_loss == min(losses)
  assert finished.best_step == finished.history.validation_step[int(np.argmin(losses))]
  at_best = train(finished.best_step)
  chex.assert_trees_all_equal(at_best.state.meta_params, finished.meta_params)


def test_validation_problems_are_the_same_each_time_and_not_those_of_training():
  seen = []

  def init(key, data):
    del data
    jax.debug.callback(lambda k: seen.append(tuple(np.ravel(k))), jax.random.key_data(key))
    return jax.random.normal(key, (2,)), ()

  optimizee = learned_opt.Optimizee(init, lambda params, c, d, k: jnp.sum(jnp.cosh(params)))
  validated = []

  def validation_init(key, data):
    del data
    jax.debug.callback(lambda k: validated.append(tuple(np.ravel(k))), jax.random.key_data(key))
    return jax.random.normal(key, (2,)), ()

  validation = learned_opt.Optimizee(validation_init, optimizee.loss)
  train(4, optimizee=optimizee, validation_optimizee=validation)
  jax.effects_barrier()
  assert len(validated) == 2 * 4
  assert len(set(validated)) == 4
  assert not set(validated) & set(seen)


def test_patience_stops_early():
  # An outer learning rate of zero never improves on the first validation.
  result = train(20, outer_optimizer=_frozen(), patience=3)
  assert result.stopped == "early"
  assert result.history.validation_step == [2, 4, 6, 8]
  assert result.best_step == 2


def _frozen():
  return optax.set_to_zero()


def test_interruption_keeps_the_best_so_far(finished):
  def interrupt(progress):
    if progress.outer_step == 4:
      raise KeyboardInterrupt

  result = train(8, callbacks=[interrupt])
  assert result.stopped == "interrupted"
  assert result.history.meta_loss == finished.history.meta_loss[:4]
  resumed = train(8, state=result.state)
  chex.assert_trees_all_equal(resumed.meta_params, finished.meta_params)


def test_interruption_before_the_first_validation_gives_the_latest():
  def interrupt(progress):
    raise KeyboardInterrupt

  result = train(4, validate_every=4, steps_per_dispatch=2, callbacks=[interrupt])
  assert result.best_loss == np.inf
  chex.assert_trees_all_equal(result.meta_params, result.state.meta_params)


def test_callbacks_see_progress():
  seen = []
  train(
    4,
    steps_per_dispatch=1,
    callbacks=[lambda p: seen.append((p.outer_step, p.validated, int(p.state.outer_step)))],
  )
  assert seen == [(1, False, 1), (2, True, 2), (3, False, 3), (4, True, 4)]


def test_starts_from_given_meta_params_and_validates_them_first(finished):
  seen = []
  result = train(
    8,
    meta_params=finished.meta_params,
    outer_optimizer=_frozen(),
    patience=2,
    callbacks=[lambda p: seen.append((p.outer_step, p.validated, int(p.state.best_step)))],
  )
  chex.assert_trees_all_equal(result.meta_params, finished.meta_params)
  # The caller's arrays survive although the loop donates its state.
  assert np.all(np.isfinite(jax.tree.leaves(finished.meta_params)[0]))
  assert seen == [(0, True, 0), (2, True, 0), (4, True, 0)]
  assert result.stopped == "early"
  assert result.history.validation_step == [0, 2, 4]
  assert set(result.history.validation_loss) == {finished.best_loss} == {result.best_loss}


def test_a_start_that_is_not_finite_takes_nothing_of_the_patience(finished):
  infinite = learned_opt.Optimizee.from_functions(
    lambda key: jnp.zeros(3), lambda params, key: jnp.sum(params) + jnp.inf
  )
  start = {"meta_params": finished.meta_params, "validation_optimizee": infinite}
  result = train(8, patience=1, **start)
  assert result.history.validation_step == [0, 2]
  assert result.best_loss == np.inf


def test_validation_may_be_for_other_steps_than_training():
  result = train(2, validation_steps=9)
  curves = learned_opt.evaluate.learning_curves(
    bowl(),
    tiny_lstm().optimizer,
    result.state.meta_params,
    jax.random.split(jax.random.fold_in(jax.random.key(0), _outer_loop.VALIDATION), 4),
    9,
  )
  np.testing.assert_allclose(
    result.history.validation_loss, [np.mean(curves.losses[:, -1])], rtol=1e-5
  )


def test_history_counts_the_problems_that_were_dropped():
  result = train(
    4, optimizee=bowl([0] * 5 + [NAN_AFTER_THE_START] * 3), validation_optimizee=bowl()
  )
  num_diverged = np.array(result.history.num_diverged)
  assert 0 < num_diverged.sum() < 4 * 4
  for tree in (result.history.meta_loss, result.history.meta_grad_norm, result.state.meta_params):
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def test_one_trace_for_other_seeds_and_equal_factories():
  count = 0

  def loss(params, constants, data, key):
    nonlocal count
    count += 1
    return bowl().loss(params, constants, data, key)

  optimizee = dataclasses.replace(bowl(), loss=loss)
  train(2, optimizee=optimizee)
  before = count
  train(4, optimizee=optimizee, seed=1)
  # The check of the optimizee traces its loss anew for each run; nothing else does.
  train(4, optimizee=optimizee, seed=2)
  checks = 2 * (count - before) // 4
  assert count - before == 2 * checks <= 2 * 2


def test_clipping_bounds_the_norm():
  tx = meta_train.with_clipping(optax.sgd(1.0), 0.5)
  grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
  updates, _ = tx.update(grads, tx.init(grads))
  assert float(optax.tree.norm(updates)) == pytest.approx(0.5, rel=1e-6)
  assert meta_train.with_clipping(OUTER, None) is OUTER
  with pytest.raises(ValueError, match="max_meta_grad_norm"):
    meta_train.with_clipping(OUTER, 0.0)


def test_every_problem_diverging_is_an_error():
  def loss(params, constants, data, key):
    del constants, data, key
    # Finite where the problem starts, not after the first update.
    return jnp.where(params[0] == 1.0, jnp.sum(params), jnp.nan)

  optimizee = learned_opt.Optimizee(lambda key, data: (jnp.ones(2), ()), loss)
  with pytest.raises(FloatingPointError, match="every problem diverged"):
    train(2, optimizee=optimizee)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"num_outer_steps": 0}, "num_outer_steps must be at least 1"),
    ({"validate_every": 0}, "validate_every must be at least 1"),
    ({"patience": 0}, "patience must be at least 1"),
    ({"num_validation_problems": 0}, "num_validation_problems must be at least 1"),
    ({"validation_steps": 0}, "validation_steps must be at least 1, got 0"),
    ({"num_outer_steps": 7}, "num_outer_steps=7 .* num_outer_steps=6 would work"),
    ({"steps_per_dispatch": 3}, "must be a multiple of steps_per_dispatch"),
  ],
)
def test_bad_numbers_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    train(**options)


def test_state_and_meta_params_exclude_each_other(finished):
  with pytest.raises(ValueError, match="either state or meta_params"):
    train(state=finished.state, meta_params=finished.meta_params)
  with pytest.raises(ValueError, match="beyond num_outer_steps"):
    train(2, state=finished.state)


def test_malformed_optimizees_are_refused():
  with pytest.raises(TypeError, match=r"learned_opt\.Optimizee, got function"):
    train(optimizee=lambda params: params)
  integer = learned_opt.Optimizee.from_functions(
    lambda key: jnp.zeros(2, jnp.int32), lambda params, key: 0.0
  )
  with pytest.raises(TypeError, match="int32"):
    train(optimizee=integer)
  vector = learned_opt.Optimizee.from_functions(
    lambda key: jnp.zeros(2), lambda params, key: params
  )
  with pytest.raises(TypeError, match="scalar"):
    train(optimizee=vector)
  nan_gradient = learned_opt.Optimizee.from_functions(
    lambda key: {"w": jnp.zeros(2)}, lambda params, key: jnp.sum(jnp.sqrt(params["w"]) * 0.0)
  )
  with pytest.raises(FloatingPointError, match=r"params\['w'\]"):
    train(optimizee=nan_gradient)
  infinite = learned_opt.Optimizee.from_functions(
    lambda key: jnp.zeros(2), lambda params, key: jnp.sum(params) + jnp.inf
  )
  with pytest.raises(FloatingPointError, match="loss is inf"):
    train(optimizee=infinite)


def test_quadratics_train_with_the_default_outer_optimizer():
  result = meta_train.run(
    optimizees.quadratic(dimension=2),
    tiny_lstm(),
    ESTIMATOR,
    num_outer_steps=2,
    validate_every=1,
    key=jax.random.key(0),
  )
  assert np.all(np.isfinite(result.history.validation_loss))
  assert result.seconds > result.compile_seconds > 0
