"""The convolution of the optimizees against XLA's own, as flax calls it."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learned_opt import base, datasets, optimizees
from learned_opt.optimizees._convolution import Conv, convolve, max_pool


def _xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _inputs(kernel_size: tuple[int, int], batch: tuple[int, ...] = ()) -> tuple[jax.Array, ...]:
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (*batch, 2, 7, 5, 3), jnp.float64)
  kernel = jax.random.normal(keys[1], (*batch, *kernel_size, 3, 4), jnp.float64)
  return x, kernel, jax.random.normal(keys[2], (*batch, 2, 7, 5, 4), jnp.float64)


@pytest.mark.parametrize("kernel_size", [(5, 5), (3, 3), (1, 1), (2, 4), (9, 6)])
def test_equal_xlas_with_its_derivatives(kernel_size):
  with jax.enable_x64(True):
    x, kernel, cotangent = _inputs(kernel_size)
    outputs, pull = jax.vjp(jax.jit(convolve), x, kernel)
    expected, pull_expected = jax.vjp(_xla, x, kernel)
    chex.assert_trees_all_close(outputs, expected, rtol=1e-12)
    chex.assert_trees_all_close(pull(cotangent), pull_expected(cotangent), rtol=1e-12)


@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0)])
def test_maps_over_images_and_kernels(in_axes):
  with jax.enable_x64(True):
    x, kernel, _ = _inputs((3, 3), batch=(4,))
    args = [leaf if axis == 0 else leaf[0] for leaf, axis in zip((x, kernel), in_axes, strict=True)]
    one_by_one = [
      _xla(*(a[i] if axis == 0 else a for a, axis in zip(args, in_axes, strict=True)))
      for i in range(4)
    ]
    chex.assert_trees_all_close(
      jax.vmap(convolve, in_axes)(*args), jnp.stack(one_by_one), rtol=1e-12
    )


def test_has_a_second_derivative():
  with jax.enable_x64(True):
    x, kernel, _ = _inputs((3, 3))

    def penalty(convolution, kernel):
      gradient = jax.grad(lambda kernel: jnp.sum(jnp.sin(convolution(x, kernel))))(kernel)
      return jnp.sum(gradient**2)

    chex.assert_trees_all_close(
      jax.grad(lambda kernel: penalty(convolve, kernel))(kernel),
      jax.grad(lambda kernel: penalty(_xla, kernel))(kernel),
      rtol=1e-10,
    )


def test_the_layer_is_flaxs():
  inits = {"kernel_init": nn.initializers.normal(), "bias_init": nn.initializers.normal()}
  x = jax.random.normal(jax.random.key(1), (2, 6, 6, 3))
  ours, theirs = Conv(4, (5, 5), **inits), nn.Conv(4, (5, 5), **inits)
  variables = ours.init(jax.random.key(0), x)
  chex.assert_trees_all_equal(variables, theirs.init(jax.random.key(0), x))
  np.testing.assert_allclose(
    ours.apply(variables, x), theirs.apply(variables, x), rtol=2e-5, atol=1e-6
  )


@pytest.mark.parametrize("size", [(6, 4), (7, 4), (1, 5)])
def test_max_pool_is_flaxs_with_its_gradient(size):
  with jax.enable_x64(True):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3), jnp.float64)
    pooled, pull = jax.vjp(jax.jit(max_pool), x)
    flaxs = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2), padding="SAME")
    expected, pull_expected = jax.vjp(flaxs, x)
    chex.assert_trees_all_equal(pooled, expected)
    cotangent = jax.random.normal(jax.random.key(1), pooled.shape, jnp.float64)
    chex.assert_trees_all_equal(pull(cotangent), pull_expected(cotangent))


def test_max_pool_has_a_gradient_where_its_argument_is_computed_twice(key):
  # As XLA does without optimizations, with roundings of its own.
  base.check_optimizee(optimizees.conv_classifier(datasets.load("digits")), key)
