"""Orthogonalized steps of matrices (Jordan et al. 2024, "Muon")."""

import jax
import jax.numpy as jnp

from learned_opt.optimizers import _features

_NUM_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_MATRIX_EPSILON = 1e-8
_NORM_EPSILON = 1e-9

# Keeps roots and their derivatives finite.
_TINY = 1e-30


def orthogonalize(x: jax.Array) -> jax.Array:
  """Newton-Schulz steps towards the nearest orthogonal matrix, of the last two axes.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.optimizers._orthogonal import orthogonalize
    >>> singular_values = jnp.linalg.svd(orthogonalize(jnp.diag(jnp.array([9.0, 1.0]))))[1]
    >>> bool(jnp.all((0.6 < singular_values) & (singular_values < 1.3)))
    True
  """
  wide = x.shape[-2] <= x.shape[-1]
  x = x if wide else jnp.matrix_transpose(x)
  x = x / (jnp.sqrt(jnp.sum(jnp.square(x), (-2, -1), keepdims=True) + _TINY) + _MATRIX_EPSILON)
  a, b, c = _COEFFICIENTS

  def step(x, _):
    gram = x @ jnp.matrix_transpose(x)
    return a * x + (b * gram + c * gram @ gram) @ x, None

  x, _ = jax.lax.scan(step, x, length=_NUM_STEPS)
  return x if wide else jnp.matrix_transpose(x)


def rms_normalized(x: jax.Array) -> jax.Array:
  """With a root mean square of one over the last two axes.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.optimizers._orthogonal import rms_normalized
    >>> rms_normalized(jnp.full((2, 2), 3.0)).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
  """
  return x * _features.rsqrt_mean(jnp.square(x)[None], _NORM_EPSILON, last_axes=2)[0]
