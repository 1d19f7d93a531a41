"""BFGS and an exact line search, as optax transformations; L-BFGS is optax's.

Source: Nocedal and Wright, Numerical Optimization (2nd edition, 2006), sections 3.1 and 6.1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


class BFGSState(NamedTuple):
  """State of `scale_by_bfgs` for n coordinates.

  Attributes:
    inverse_hessian: ``[n, n]``, the estimate at `params`.
    params: ``[n]``, where the last gradient was taken.
    grads: ``[n]``, that gradient.
    begun: whether there was one.
    scaled: whether there was a pair of differences that gave the estimate its scale.
  """

  inverse_hessian: jax.Array
  params: jax.Array
  grads: jax.Array
  begun: jax.Array
  scaled: jax.Array


def scale_by_bfgs() -> optax.GradientTransformation:
  """Multiplies the gradient by the BFGS estimate H of the inverse Hessian.

  With the differences s of the params and y of the gradients since the last update (equation 6.17)

      H <- (I - s y^T / y^T s) H (I - y s^T / y^T s) + s s^T / y^T s.

  Before its first such update H becomes y^T s / y^T y times the identity (6.20). As in
  `optax.scale_by_lbfgs` it starts as min(1, 1 / |g|) times the identity, so that the first step is
  not longer than 1. Pairs without positive curvature, to rounding, are skipped.

  Returns:
    The transformation, which needs the params. Its state holds n^2 numbers.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt._quasi_newton import scale_by_bfgs
    >>> tx, params = scale_by_bfgs(), jnp.array([1.0, 0.0])
    >>> _, state = tx.update(4.0 * params, tx.init(params), params)
    >>> direction, state = tx.update(2.0 * params, state, params / 2)
    >>> direction.tolist()
    [0.5, 0.0]
  """

  def init(params: Any) -> BFGSState:
    x = jnp.zeros_like(ravel_pytree(params)[0])
    return BFGSState(jnp.eye(x.size, dtype=x.dtype), x, x, jnp.array(False), jnp.array(False))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, BFGSState]:
    if params is None:
      raise ValueError("BFGS needs the params: call update(grads, state, params)")
    g, unravel = ravel_pytree(updates)
    x, _ = ravel_pytree(params)
    s, y = x - state.params, g - state.grads
    resolution = jnp.finfo(g.dtype).eps * jnp.linalg.norm(y) * jnp.linalg.norm(s)
    usable = state.begun & (y @ s > resolution)
    identity = jnp.eye(x.size, dtype=x.dtype)
    h = jnp.where(state.begun, state.inverse_hessian, identity / jnp.fmax(1, jnp.linalg.norm(g)))
    # No division by zero where the result is not used.
    curvature, square = (jnp.where(usable, value, 1) for value in (y @ s, y @ y))
    start = jnp.where(state.scaled, h, curvature / square * identity)
    h = jnp.where(usable, _add_pair(start, s, y, curvature), h)
    state = BFGSState(h, x, g, jnp.array(True), state.scaled | usable)
    return unravel(h @ g), state

  return optax.GradientTransformation(init, update)


def _add_pair(h: jax.Array, s: jax.Array, y: jax.Array, curvature: jax.Array) -> jax.Array:
  # Multiplied out: n^2 operations instead of n^3.
  q = h @ y
  cross = jnp.outer(q, s)
  return h + ((1 + y @ q / curvature) * jnp.outer(s, s) - cross - cross.T) / curvature


def scale_by_exact_line_search() -> optax.GradientTransformationExtraArgs:
  """Goes against a direction d as far as a quadratic falls: updates = -(g.d / d.Hd) d.

  `update` needs the extra argument `value_fn`, from which it takes the slope g.d and the curvature
  d.Hd along d: about the price of one more gradient, as Hd is the difference of two. A method for
  quadratics alone could take its next gradient from Hd, and would need no other. On other losses
  this is Newton's step along the line, with no promise. Where nothing curves upwards it stays.

  Returns:
    The transformation.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt._quasi_newton import scale_by_exact_line_search
    >>> tx, params = scale_by_exact_line_search(), jnp.array([3.0, 1.0])
    >>> updates, _ = tx.update(
    ...   jnp.array([2.0, 2.0]), tx.init(params), params, value_fn=lambda x: jnp.sum(x**2)
    ... )
    >>> updates.tolist()
    [-2.0, -2.0]
  """

  def update(updates, state, params=None, *, value_fn, **extra_args):
    del extra_args

    def along(t: jax.Array) -> jax.Array:
      return value_fn(jax.tree.map(lambda x, d: x + t.astype(x.dtype) * d, params, updates))

    def slope(t: jax.Array) -> jax.Array:
      return jax.jvp(along, (t,), (jnp.ones_like(t),))[1]

    zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))
    downhill, curvature = jax.jvp(slope, (zero,), (jnp.ones_like(zero),))
    bends = curvature > 0
    length = jnp.where(bends, downhill / jnp.where(bends, curvature, 1), 0)
    return jax.tree.map(lambda d: -length.astype(d.dtype) * d, updates), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)  # pyright: ignore[reportArgumentType]
