"""Optimizees made of other optimizees, against their equations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import images

from learned_opt import optimizees


def mlp():
  return optimizees.mlp_classifier(images(), (3,), batch_size=4, outer_split="validation")


def test_scaling_changes_the_coordinates_and_nothing_else(key):
  plain, scaled = mlp(), optimizees.random_scaling(mlp(), radius=2.0)
  params, scaled_constants = jax.jit(scaled.init)(key, scaled.data)
  scales, constants = scaled_constants
  back = jax.tree.map(jnp.multiply, scales, params)
  rest = (plain.data, jax.random.key(1))
  for name in ("loss", "outer_loss"):
    expected = getattr(plain, name)(back, constants, *rest)
    found = getattr(scaled, name)(params, scaled_constants, *rest)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
  chex.assert_trees_all_close(
    scaled.metrics(params, scaled_constants, plain.data),
    plain.metrics(back, constants, plain.data),
    rtol=1e-6,
  )
  # It starts where the plain one does, which is near zero.
  spread = [float(jnp.std(leaf)) for leaf in jax.tree.leaves(back)]
  assert max(spread) < 0.02


def test_factors_are_log_uniform_and_of_each_coordinate():
  scaled = optimizees.random_scaling(optimizees.quadratic(500), radius=3.0)
  _, (scales, _) = jax.jit(jax.vmap(scaled.init, in_axes=(0, None)))(
    jax.random.split(jax.random.key(0), 20), ()
  )
  logs = np.log(np.asarray(scales, np.float64)).ravel()
  assert abs(logs).max() < 3.0 + 1e-6
  np.testing.assert_allclose(logs.mean(), 0.0, atol=4 * np.sqrt(3.0 / logs.size))
  np.testing.assert_allclose(logs.var(), 3.0, rtol=0.05)
  assert len(np.unique(scales)) > 9_900


def test_the_helper_adds_its_own_loss(key):
  plain, helped = mlp(), optimizees.convex_helper(mlp(), dimension=4, radius=1.0)
  params, constants = jax.jit(helped.init)(key, helped.data)
  np.testing.assert_array_equal(params.helper, 0.0)
  a = np.asarray(constants.helper.constants)
  assert abs(a).max() < 1
  x = jnp.array([0.0, 0.5, -2.0, 40.0])
  step_key = jax.random.key(1)
  for name in ("loss", "outer_loss"):
    expected = getattr(plain, name)(params.problem, constants.problem, plain.data, step_key)
    expected += np.mean(np.minimum((np.asarray(constants.helper.scales * x) - a) ** 2, 10.0))
    found = getattr(helped, name)(params._replace(helper=x), constants, plain.data, step_key)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
  chex.assert_trees_all_close(
    helped.metrics(params, constants, plain.data),
    plain.metrics(params.problem, constants.problem, plain.data),
  )


def test_made_twice_they_are_one_trace(key):
  @jax.jit
  @chex.assert_max_traces(n=1)
  def start(optimizee, key):
    params, constants = optimizee.init(key, optimizee.data)
    return optimizee.loss(params, constants, optimizee.data, key)

  def make():
    quadratic = optimizees.random_scaling(optimizees.quadratic(3), 1.0)
    return optimizees.convex_helper(quadratic, dimension=2)

  assert float(start(make(), key)) == float(start(make(), key))


def test_bad_numbers_are_refused():
  with pytest.raises(ValueError, match="radius must be finite and not negative, got -1"):
    optimizees.random_scaling(optimizees.quadratic(), radius=-1.0)
  with pytest.raises(ValueError, match="dimension must be at least 1, got 0"):
    optimizees.convex_helper(optimizees.quadratic(), dimension=0)
  with pytest.raises(ValueError, match="radius must be finite"):
    optimizees.convex_helper(optimizees.quadratic(), radius=float("nan"))
