"""Optax transformations of rules for one vector of all coordinates."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from learned_opt import _coordinates


def flat_transformation(
  dtype: np.dtype,
  init: Callable[[int], Any],
  update: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
  num_coordinates: Callable[[Any], int],
) -> optax.GradientTransformationExtraArgs:
  """The transformation of a tree, whose leaves are one vector, leaf after leaf.

  Args:
    dtype: of the vectors; updates get the params' dtypes.
    init: ``num_coordinates -> state``.
    update: ``(grads, state) -> (updates, state)``, with ``[coordinates]`` gradients and updates.
    num_coordinates: of those that a state was made for.

  Returns:
    The transformation; it needs no params, and ignores further keywords.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.optimizers._flat import flat_transformation
    >>> tx = flat_transformation(
    ...   jnp.float32, jnp.zeros, lambda grads, sums: (-grads, sums + grads), lambda sums: sums.size
    ... )
    >>> params = {"b": jnp.ones(1), "w": jnp.ones(2)}
    >>> updates, state = tx.update(params, tx.init(params))
    >>> updates["w"].tolist(), state.tolist()
    ([-1.0, -1.0], [1.0, 1.0, 1.0])
  """

  def init_fn(params):
    return init(_coordinates.count(params))

  def update_fn(updates, state, params=None, **extra_args):
    del extra_args
    grads = _coordinates.flatten(updates, params, dtype, num_coordinates(state))
    flat_updates, state = update(grads, state)
    return _coordinates.unflatten(flat_updates, updates, params), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
