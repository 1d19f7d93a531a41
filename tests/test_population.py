"""Populations: each member is the meta-training of its own key and learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learned_opt import estimators, meta_train, optimizees, optimizers, population

PARTS = (
  optimizees.quadratic(dimension=2),
  optimizers.lstm(hidden_size=4, preprocessing=optimizers.Identity(), output_scale=1.0),
  estimators.truncated_backprop(unroll_length=5, horizon=10, meta_batch_size=2),
)
KEYS = jax.random.split(jax.random.key(3), 3)
RATES = np.array([1e-3, 1e-2, 3e-2], np.float32)


def run(keys=KEYS, hyperparams=RATES, num_outer_steps=4, **options):
  options = {"validate_every": 2, "num_validation_problems": 3, **options}
  return population.run(
    *PARTS, keys=keys, hyperparams=hyperparams, num_outer_steps=num_outer_steps, **options
  )


@pytest.fixture(scope="module")
def finished():
  """Three members, four outer steps. Not to be changed."""
  return run()


def test_members_are_the_meta_trainings_of_their_keys_and_rates(finished):
  for key, rate, member in zip(KEYS, RATES, finished.members, strict=True):
    alone = meta_train.run(
      *PARTS,
      num_outer_steps=4,
      key=key,
      outer_optimizer=population.adam(float(rate)),
      validate_every=2,
      num_validation_problems=3,
    )
    assert member.best_step == alone.best_step
    np.testing.assert_allclose(member.best_loss, alone.best_loss, rtol=1e-4)
    np.testing.assert_allclose(member.history.meta_loss, alone.history.meta_loss, rtol=1e-4)
    np.testing.assert_allclose(
      member.history.validation_loss, alone.history.validation_loss, rtol=1e-4
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
      member.meta_params,
      alone.meta_params,
    )


def test_members_differ_by_key_and_by_rate():
  some = run(keys=KEYS[np.array([0, 0, 1])], hyperparams=RATES[np.array([0, 1, 1])])
  first, second, third = (member.history.meta_loss for member in some.members)
  assert first[0] == second[0] != third[0]
  assert first[1] != second[1]


def test_the_best_member_has_the_lowest_validation_loss(finished):
  assert finished.best.best_loss == min(min(m.history.validation_loss) for m in finished.members)
  assert finished.best.history.validation_step == [2, 4]


def test_a_continued_population_is_the_uninterrupted_one_bit_for_bit(finished):
  half = run(num_outer_steps=2)
  histories = [member.history for member in half.members]
  whole = run(state=half.state, histories=histories)
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.tree.map(_data, whole.state),
    jax.tree.map(_data, finished.state),
  )
  for ours, theirs in zip(whole.members, finished.members, strict=True):
    assert ours.history.meta_loss == theirs.history.meta_loss
    assert ours.history.validation_loss == theirs.history.validation_loss


def _data(leaf):
  return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_a_state_that_has_come_too_far_is_refused(finished):
  with pytest.raises(ValueError, match="state is at outer step 4, beyond num_outer_steps=2"):
    run(num_outer_steps=2, state=finished.state)


def test_a_member_that_diverges_stops_nobody():
  trained = run(hyperparams=np.array([1e-3, 1e30, 1e-2], np.float32))
  assert [bool(np.isfinite(member.best_loss)) for member in trained.members] == [True, False, True]
  assert trained.members[1].history.num_diverged[-1] == 2


def test_a_population_that_diverges_as_a_whole_is_an_error():
  with pytest.raises(FloatingPointError, match="every problem diverged in each of the outer steps"):
    run(hyperparams=np.full(3, 1e30, np.float32), num_outer_steps=6)


def test_other_rates_and_keys_run_the_same_program(finished):
  del finished
  before = population._dispatch._cache_size()
  run(keys=KEYS[::-1], hyperparams=RATES * 2)
  assert population._dispatch._cache_size() == before


def test_callbacks_see_all_members_and_ctrl_c_keeps_them():
  seen = []

  def callback(progress):
    seen.append((progress.outer_step, progress.validated, len(progress.histories)))
    if len(seen) == 2:
      raise KeyboardInterrupt

  stopped = run(num_outer_steps=6, callbacks=[callback])
  assert seen == [(2, True, 3), (4, True, 3)]
  assert stopped.interrupted
  assert stopped.state.outer_step.tolist() == [4, 4, 4]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"hyperparams": RATES[:2]}, r"leading axis of members each, got keys: 3, hyperparams: 2"),
    ({"hyperparams": {"rate": np.float32(1.0)}}, r"hyperparams\['rate'\]: no axis"),
    ({"histories": [meta_train.History()]}, "histories: 1"),
    ({"keys": KEYS[0], "hyperparams": RATES[:1]}, "keys: no axis"),
    ({"validate_every": 0}, "validate_every must be at least 1, got 0"),
    ({"num_validation_problems": 0}, "num_validation_problems must be at least 1, got 0"),
    ({"steps_per_dispatch": 3}, "num_outer_steps=3 would work"),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_compiled(options, message):
  with pytest.raises(ValueError, match=message):
    run(**options)
