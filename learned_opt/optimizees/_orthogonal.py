"""Random orthogonal matrices without LAPACK.

`jax.random.orthogonal` calls it, once for each matrix. XLA cannot share such calls among devices.
It gathers their inputs on each, and on CPU devices the calls and the gathering can wait for each
other for ever.
"""

import chex
import jax
import jax.numpy as jnp

from learned_opt import _draws


def random_orthogonal(key: chex.PRNGKey, size: int) -> jax.Array:
  """A matrix of the uniform (Haar) distribution, by Gram and Schmidt on Gaussian columns.

  Args:
    key: decides it.
    size: of the matrix.

  Returns:
    ``[size, size]``, float32.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt.optimizees._orthogonal import random_orthogonal
    >>> q = random_orthogonal(jax.random.key(0), 5)
    >>> bool(jnp.allclose(q.T @ q, jnp.eye(5), atol=1e-5))
    True
  """
  columns = _draws.normal(key, (size, size), jnp.float32)

  def add_column(index: jax.Array, found: jax.Array) -> jax.Array:
    column = columns[index]
    # Once is not enough in float32, twice is (Giraud et al. 2005).
    for _ in range(2):
      column = column - found.T @ (found @ column)
    return found.at[index].set(column / jnp.linalg.norm(column))

  return jax.lax.fori_loop(0, size, add_column, jnp.zeros_like(columns))
