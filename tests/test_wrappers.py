"""Optimizees made of other optimizees, against their equations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import images

from learned_opt import Optimizee, optimizees


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


@pytest.mark.parametrize(("per", "number"), [("tensor", 4), ("problem", 1)])
def test_factors_of_tensors_and_of_problems(per, number, key):
  scaled = optimizees.random_scaling(mlp(), radius=np.log(1000), per=per)
  params, drawn = jax.jit(scaled.init)(key, scaled.data)
  scales, constants = drawn
  factors = [float(scale) for scale in jax.tree.leaves(scales)]
  assert len(factors) == 4
  assert len(set(factors)) == number
  assert 1e-3 < min(factors) <= max(factors) < 1e3
  back = jax.tree.map(jnp.multiply, scales, params)
  found = scaled.loss(params, drawn, scaled.data, key)
  np.testing.assert_allclose(found, mlp().loss(back, constants, scaled.data, key), rtol=1e-5)


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
  with pytest.raises(ValueError, match="per must be one of coordinate, tensor, problem, got 'all'"):
    optimizees.random_scaling(optimizees.quadratic(), per="all")
  for bad in ((0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))):
    with pytest.raises(ValueError, match="low and high must be 0 < low <= high"):
      optimizees.noisy_gradients(optimizees.quadratic(), *bad)
  with pytest.raises(ValueError, match="max_minibatches must be at least 1, got 0"):
    optimizees.random_batch_size(optimizees.quadratic(), 0)
  with pytest.raises(ValueError, match="precision must be 'bfloat16' or 'float16', got 'int8'"):
    optimizees.low_precision(optimizees.quadratic(), "int8")


# --- Augmentation.


def linear() -> Optimizee:
  """<g, theta> with a gradient that is known, in two tensors of different scales."""
  grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.full(5, 0.1)}
  return Optimizee.from_functions(
    lambda key: {"a": jnp.ones(2), "b": jnp.ones(5)},
    lambda params, grads, key: sum(jnp.vdot(params[k], grads[k]) for k in ("a", "b")),
    data=grads,
  )


def test_noise_is_relative_to_each_tensors_gradient(key):
  noisy = optimizees.noisy_gradients(linear(), 0.5, 0.5)
  params, constants = noisy.init(key, noisy.data)
  np.testing.assert_allclose(constants.drawn, 0.5, rtol=1e-6)
  number = 4000
  values, grads = jax.jit(jax.vmap(jax.value_and_grad(noisy.loss), in_axes=(None, None, None, 0)))(
    params, constants, noisy.data, jax.random.split(key, number)
  )
  np.testing.assert_allclose(values, 7.5, rtol=1e-6)
  for name, size in (("a", np.sqrt(12.5)), ("b", 0.1)):
    errors = (np.asarray(grads[name]) - np.asarray(noisy.data[name])) / size
    assert abs(errors.mean()) < 4 * 0.5 / np.sqrt(errors.size)
    assert abs(errors.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * errors.size)
  # Coordinates and tensors have noise of their own.
  together = np.concatenate([grads["a"], grads["b"]], axis=1)
  correlations = np.corrcoef(together.T) - np.eye(7)
  assert abs(correlations).max() < 4.5 / np.sqrt(number)


def test_strengths_are_log_uniform_and_of_each_problem():
  noisy = optimizees.noisy_gradients(optimizees.quadratic(2), 0.01, 1.0)
  _, constants = jax.jit(jax.vmap(noisy.init, in_axes=(0, None)))(
    jax.random.split(jax.random.key(0), 3000), ()
  )
  logs = np.log10(np.asarray(constants.drawn, np.float64))
  assert -2 <= logs.min() < -1.99 < -0.01 < logs.max() <= 1e-6
  assert abs(logs.mean() + 1) < 4 * np.sqrt(4 / 12 / 3000)


def gaussian() -> Optimizee:
  """theta times what the step's key draws: the variance tells the size of the minibatch."""
  return Optimizee.from_functions(
    lambda key: jnp.ones(()), lambda theta, key: theta * jax.random.normal(key)
  )


def test_a_batch_of_m_has_the_noise_of_m_draws(key):
  optimizee = optimizees.random_batch_size(gaussian(), 4)
  params, constants = optimizee.init(key, ())
  losses = jax.jit(
    jax.vmap(jax.vmap(optimizee.loss, in_axes=(None, None, None, 0)), in_axes=(None, 0, None, None))
  )(params, constants._replace(drawn=jnp.array([1, 2, 4])), (), jax.random.split(key, 5000))
  for number, found in zip((1, 2, 4), np.asarray(losses, np.float64), strict=True):
    assert abs(found.mean()) < 4 / np.sqrt(number * 5000)
    assert abs(found.std() * np.sqrt(number) - 1) < 4 / np.sqrt(2 * 5000)


def test_numbers_of_minibatches_are_log_uniform():
  optimizee = optimizees.random_batch_size(gaussian(), 4)
  _, constants = jax.jit(jax.vmap(optimizee.init, in_axes=(0, None)))(
    jax.random.split(jax.random.key(0), 5000), ()
  )
  found = np.bincount(constants.drawn, minlength=5)[1:] / 5000
  expected = np.diff(np.log(np.arange(1, 6))) / np.log(5)
  assert abs(found - expected).max() < 4.5 * np.sqrt(0.25 / 5000)


def test_params_and_gradients_are_rounded(key):
  """Against numpy's own rounding to nearest of the bits."""
  plain, low = optimizees.quadratic(6), optimizees.low_precision(optimizees.quadratic(6))
  params, constants = low.init(key, ())
  params = params + jnp.arange(6.0) / 7

  def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)

  value, grad = jax.jit(jax.value_and_grad(low.loss))(params, constants, (), key)
  expected, expected_grad = jax.jit(jax.value_and_grad(plain.loss))(
    rounded(params), constants, (), key
  )
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_array_equal(grad, rounded(expected_grad))
  assert float(value) != float(plain.loss(params, constants, (), key))


def test_outer_losses_and_metrics_have_no_noise(key):
  for wrap in (optimizees.noisy_gradients, optimizees.random_batch_size):
    plain, wrapped = mlp(), wrap(mlp())
    params, constants = jax.jit(wrapped.init)(key, wrapped.data)
    np.testing.assert_array_equal(
      wrapped.outer_loss(params, constants, plain.data, key),
      plain.outer_loss(params, constants.constants, plain.data, key),
    )
