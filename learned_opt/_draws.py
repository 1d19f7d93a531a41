"""Random arrays in programs that compile fast.

The numbers are those of `jax.random` and of flax's initializers, to rounding. They are drawn as a
vector of whole registers, which is cut and gets its shape afterwards: on CPUs XLA unrolls loops
over short axes, and would spend a second on the 200 weights of a layer of shape (20, 10), and two
on the kernels of a small convolution.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer

# Numbers of 32 bits that the widest vector registers hold.
_LANES = 16

# The standard deviation of a Gaussian of standard deviation one, cut off at two of them.
_DEVIATION_WITHIN_TWO = 0.87962566103423978


def uniform(
  key: chex.PRNGKey,
  shape: Sequence[int] = (),
  dtype: Any = float,
  minval: chex.Numeric = 0.0,
  maxval: chex.Numeric = 1.0,
) -> jax.Array:
  """What `jax.random.uniform` draws between two scalars.

  >>> key = jax.random.key(0)
  >>> bool((uniform(key, (3, 2)) == jax.random.uniform(key, (3, 2))).all())
  True
  """
  size = math.prod(shape)
  whole = -(-size // _LANES) * _LANES
  return jax.random.uniform(key, (whole,), dtype, minval, maxval)[:size].reshape(shape)


def normal(key: chex.PRNGKey, shape: Sequence[int] = (), dtype: Any = float) -> jax.Array:
  """What `jax.random.normal` draws.

  >>> key = jax.random.key(0)
  >>> bool(jnp.allclose(normal(key, (3, 2)), jax.random.normal(key, (3, 2))))
  True
  """
  return _normal(key, tuple(shape), jax.dtypes.canonicalize_dtype(dtype))


def truncated_normal(key: chex.PRNGKey, shape: Sequence[int] = (), dtype: Any = float) -> jax.Array:
  """What `jax.random.truncated_normal` draws between -2 and 2.

  >>> key = jax.random.key(0)
  >>> bool(jnp.allclose(truncated_normal(key, (5,)), jax.random.truncated_normal(key, -2, 2, (5,))))
  True
  """
  return _truncated_normal(key, tuple(shape), jax.dtypes.canonicalize_dtype(dtype))


def normal_init(stddev: float) -> Initializer:
  """What `flax.linen.initializers.normal` is."""
  return _scaled(normal, stddev)


def truncated_normal_init(stddev: float) -> Initializer:
  """What `flax.linen.initializers.truncated_normal` is."""
  return _scaled(truncated_normal, stddev)


def lecun_normal_init() -> Initializer:
  """What `flax.linen.initializers.lecun_normal` is: of the variance 1 / fan-in."""

  def init(key, shape, dtype=None, out_sharding=None):
    del out_sharding
    dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    deviation = np.sqrt(np.array(1 / math.prod(shape[:-1]), dtype))
    stddev = deviation / np.array(_DEVIATION_WITHIN_TWO, dtype)
    return truncated_normal(key, shape, dtype) * jnp.asarray(stddev, dtype)

  return init


def _scaled(draw: Callable[..., jax.Array], stddev: float) -> Initializer:
  def init(key, shape, dtype=None, out_sharding=None):
    del out_sharding
    dtype = float if dtype is None else dtype
    return draw(key, shape, dtype) * jnp.asarray(stddev, dtype)

  return init


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: chex.PRNGKey, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
  lowest = np.nextafter(np.array(-1, dtype), np.array(0, dtype))
  return _from_uniform(uniform(key, shape, dtype, lowest, 1.0))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _truncated_normal(key: chex.PRNGKey, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
  edge, root = np.array(2, dtype), np.array(np.sqrt(2), dtype)
  low, high = (jax.lax.erf(x / root) for x in (-edge, edge))
  drawn = _from_uniform(uniform(key, shape, dtype, low, high))
  largest = np.nextafter(edge, np.array(0, dtype))
  return jnp.clip(drawn, -largest, largest)


def _from_uniform(u: jax.Array) -> jax.Array:
  return jnp.asarray(np.sqrt(2), u.dtype) * jax.lax.erf_inv(u)
