"""Families of problems: one program, the mean of the estimates, and a whole meta-training."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import bowl, images, meta_params_of, tiny_lstm

from learned_opt import _outer_loop, datasets, estimators, meta_train, optimizees, runs, search
from learned_opt.estimators import mixture
from learned_opt.evaluate import learning_curves
from learned_opt.families import families, map_groups, members

LSTM = tiny_lstm()
PHI = meta_params_of(LSTM)


def mlp(seed, number=20):
  return optimizees.mlp_classifier(images((number, 9, 9), seed=seed), (2,), batch_size=4)


def three():
  """The first and the last are of equal structure."""
  return mlp(0), optimizees.conditioned_quadratic(3, 10.0), mlp(1)


def quick():
  """As `three`, for what is compiled."""
  return bowl(), optimizees.conditioned_quadratic(2, 10.0), bowl()


def truncated(**options):
  return estimators.truncated_backprop(2, 4, path="single_gradient", **options)


def test_equal_structures_are_put_together_and_come_back_in_order():
  given = three()
  together = families(*given)
  assert together.indices == ((0, 2), (1,))
  assert len(together) == 3
  assert together.groups[0].data.train[0].shape == (2, 20, 6, 5, 1)
  for one, back in zip(given, members(together), strict=True):
    assert jax.tree.structure(one) == jax.tree.structure(back)
    chex.assert_trees_all_equal(one, back)
  # Other functions, or other shapes, are another group.
  assert families(mlp(0), mlp(1, number=21)).indices == ((0,), (1,))
  assert families(optimizees.quadratic(2), optimizees.quadratic(3)).indices == ((0,), (1,))
  # Wrappers leave equal structures equal.
  scaled = [optimizees.random_scaling(mlp(seed), 6.9, per="problem") for seed in (0, 1)]
  assert families(*map(optimizees.noisy_gradients, scaled)).indices == ((0, 1),)


def test_each_member_has_a_key_of_its_own_wherever_it_stands(key):
  found = map_groups(lambda one, key: jax.random.key_data(key), families(*three()), key)
  expected = [jax.random.key_data(jax.random.fold_in(key, index)) for index in (0, 2, 1)]
  np.testing.assert_array_equal(np.concatenate(found), expected)


def test_an_estimate_is_the_mean_of_the_members_estimates(key):
  estimator = truncated(meta_batch_size=2)
  combined = estimators.over_families(estimator)
  together, (start_key, step_key) = families(*quick()), jax.random.split(key)

  @jax.jit
  def both(together, meta_params):
    state = combined.init(together, LSTM, meta_params, start_key)
    grads, state, info = combined.estimate(together, LSTM, meta_params, state, step_key)
    alone = []
    for index, one in enumerate(members(together)):
      fold = [jax.random.fold_in(k, index) for k in (start_key, step_key)]
      own = estimator.init(one, LSTM, meta_params, fold[0])
      alone.append(estimator.estimate(one, LSTM, meta_params, own, fold[1]))
    return (grads, state, info), alone

  (grads, state, info), alone = both(together, PHI)
  expected = jax.tree.map(lambda *leaves: sum(leaves) / 3, *[one[0] for one in alone])
  chex.assert_trees_all_close(grads, expected, rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(info.meta_loss, np.mean([a[2].meta_loss for a in alone]), rtol=1e-5)
  np.testing.assert_allclose(info.losses, np.mean([a[2].losses for a in alone], 0), rtol=1e-5)
  np.testing.assert_allclose(info.meta_grad_norm, optax.tree.norm(grads), rtol=1e-5)
  assert state[0].problems.step.tolist() == [[2, 2], [2, 2]]
  chex.assert_trees_all_close(
    state[1].problems.params[0], alone[1][1].problems.params, rtol=1e-4, atol=1e-6
  )


def test_longer_estimates_of_a_family_are_scaled_down(key):
  estimator = truncated()
  together = families(*quick())

  def estimate(estimator, together):
    state = estimator.init(together, LSTM, PHI, key)
    return estimator.estimate(together, LSTM, PHI, state, key)[0]

  @jax.jit
  def each(together):
    keys = [jax.random.fold_in(key, index) for index in range(len(together))]
    alone = []
    for one, own in zip(members(together), keys, strict=True):
      state = estimator.init(one, LSTM, PHI, own)
      alone.append(estimator.estimate(one, LSTM, PHI, state, own)[0])
    return alone

  alone = each(together)
  norms = np.array([optax.tree.norm(one) for one in alone])
  bound = float(np.median(norms))
  assert norms.min() < bound < norms.max()
  bounded = jax.jit(functools.partial(estimate, estimators.over_families(estimator, bound)))
  factors = np.minimum(1.0, bound / norms)
  expected = jax.tree.map(
    lambda *leaves: sum(f * leaf for f, leaf in zip(factors, leaves, strict=True)) / 3, *alone
  )
  chex.assert_trees_all_close(bounded(together), expected, rtol=1e-3, atol=1e-6)


def test_a_family_that_diverges_is_left_out_and_counted(key):
  estimator = truncated(meta_batch_size=3)
  combined = estimators.over_families(estimator)
  sound, broken = bowl(), bowl((1,) * 8)
  together = families(sound, broken)
  assert together.indices == ((0, 1),)

  @jax.jit
  def estimate(together, meta_params):
    state = combined.init(together, LSTM, meta_params, key)
    return combined.estimate(together, LSTM, meta_params, state, key)

  grads, _, info = estimate(together, PHI)
  alone, _, alone_info = estimate(families(sound), PHI)
  chex.assert_trees_all_close(grads, alone, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(info.meta_loss, alone_info.meta_loss, rtol=1e-5)
  assert int(info.num_diverged) == 3
  grads, _, info = estimate(families(broken), PHI)
  assert np.isnan(info.meta_loss)
  chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))


def test_the_program_does_not_grow_with_families_of_equal_structure(key):
  estimator = estimators.over_families(truncated())

  def size(*given):
    together = families(*given)

    def start(together, meta_params):
      return estimator.init(together, LSTM, meta_params, key)

    return len(jax.make_jaxpr(start)(together, PHI).eqns)

  assert size(mlp(0), mlp(1), mlp(2), mlp(3)) == size(mlp(0), mlp(1))
  assert size(mlp(0), mlp(1), bowl()) > size(mlp(0), mlp(1))


def test_meta_training_on_families_validates_by_relative_losses(key):
  together = families(bowl(), bowl())
  estimator = estimators.over_families(truncated())
  options = {"num_outer_steps": 2, "validate_every": 1, "num_validation_problems": 3, "key": key}
  result = meta_train.run(together, LSTM, estimator, **options)
  assert result.history.validation_step == [1, 2]
  # The last validation, of the meta-params that the run ended with, member by member.
  validation_key = jax.random.fold_in(key, _outer_loop.VALIDATION)
  ratios = []
  for index, one in enumerate(members(together)):
    keys = jax.random.split(jax.random.fold_in(validation_key, index), 3)
    curves = learning_curves(one, LSTM.optimizer, result.state.meta_params, keys, 4)
    ratios.append(curves.losses[:, -1].mean() / curves.losses[:, 0].mean())
  np.testing.assert_allclose(result.history.validation_loss[-1], np.mean(ratios), rtol=1e-4)


def test_a_recipe_on_families_is_trained_and_evaluated_elsewhere(tmp_path):
  options = {
    "learned_optimizer": LSTM,
    "estimator": estimators.over_families(truncated()),
    "num_outer_steps": 1,
    "validate_every": 1,
    "num_validation_problems": 1,
    "num_test_problems": 2,
    "num_tuning_problems": 1,
    "baselines": (),
  }
  together = families(bowl(), bowl())
  with pytest.raises(ValueError, match="a recipe on families needs a test_optimizee"):
    runs.Recipe("lstm", together, **options)
  recipe = runs.Recipe("lstm", together, test_optimizee=bowl(), **options)
  done = search.train(search.grid(recipe, (1e-3,), (0,)), tmp_path, num_problems=2, plots=False)
  assert all(np.isfinite(score.loss) for score in done.scores)
  assert done.evaluation.results["lstm"].mean.shape == (5,)


def test_data_sets_are_cut_to_equal_sizes():
  first, second = images((5, 3, 9)), images((4, 6, 7), seed=1)
  cut = datasets.cut_to_equal_sizes(first, second)
  for one, original in zip(cut, (first, second), strict=True):
    for split, number in zip(("train", "validation", "test"), (4, 3, 7), strict=True):
      chex.assert_trees_all_equal(
        getattr(one, split), tuple(part[:number] for part in getattr(original, split))
      )
  with pytest.raises(ValueError, match=r"images of one shape, got \[\(4, 4, 1\), \(6, 5, 1\)\]"):
    datasets.cut_to_equal_sizes(first, images(shape=(4, 4, 1)))


def test_what_is_no_family_is_refused(key):
  with pytest.raises(ValueError, match="at least one optimizee"):
    families()
  with pytest.raises(TypeError, match="families takes optimizees, got int at position 1"):
    families(bowl(), 3)
  with pytest.raises(TypeError, match="must be a MetaGradientEstimator, got Families"):
    estimators.over_families(families(bowl()))
  for wrong in (0, -1.0, float("nan"), float("inf")):
    with pytest.raises(ValueError, match=f"max_norm must be positive and finite.* got {wrong}"):
      estimators.over_families(truncated(), wrong)
  estimator = estimators.over_families(mixture(*[estimators.truncated_backprop(2, 4)] * 2, 0.5))
  with pytest.raises(TypeError, match=r"needs learned_opt.families.families.* got Optimizee"):
    estimator.init(bowl(), LSTM, PHI, key)
