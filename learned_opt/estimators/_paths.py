"""What the two ways to the same meta-gradient have in common, and where they are chosen."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from learned_opt.base import InnerState, Trajectory


class SegmentGradient(NamedTuple):
  """Meta-gradient of one unroll of a batch of problems.

  Attributes:
    meta_grads: the mean over the problems that did not diverge, zero if all did.
    meta_losses: ``[problems]``.
    diverged: bool ``[problems]``.
    trajectory: with a leading axis of problems.
    problems: the problems after the unroll.
  """

  meta_grads: chex.ArrayTree
  meta_losses: jax.Array
  diverged: jax.Array
  trajectory: Trajectory
  problems: InnerState


class Path(NamedTuple):
  """One way to compute the meta-gradient of one unroll.

  Attributes:
    draw: ``(optimizee, learned_optimizer, meta_params, keys) -> problems``.
    choose: ``(condition [problems], problems, problems) -> problems``, as `jnp.where`.
    gradient: ``(optimizee, learned_optimizer, meta_params, problems, key) -> SegmentGradient``;
      the key is for what the estimate itself draws.
  """

  draw: Callable[..., InnerState]
  choose: Callable[[jax.Array, InnerState, InnerState], InnerState]
  gradient: Callable[..., SegmentGradient]


def where(condition: jax.Array, on_true: Any, on_false: Any) -> Any:
  """`jnp.where` over trees whose leaves have the axis of the condition first."""

  def select(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(select, on_true, on_false)


def all_finite(tree: chex.ArrayTree) -> jax.Array:
  """Which elements of the first axis, shared by all leaves, hold finite numbers only."""
  finite = [jnp.isfinite(leaf) for leaf in jax.tree.leaves(tree)]
  return jnp.stack([leaf.reshape(leaf.shape[0], -1).all(1) for leaf in finite]).all(0)


def mean_where(keep: jax.Array, leaf: jax.Array, if_none: float = jnp.nan) -> jax.Array:
  """The mean over those elements of the first axis that are to be kept."""
  total = jnp.sum(where(keep, leaf, jnp.zeros_like(leaf)), axis=0)
  number = jnp.sum(keep)
  return jnp.where(number > 0, total / jnp.maximum(number, 1).astype(leaf.dtype), if_none)
