"""Sums over a whole split, of which a network sees a part at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# How many elements of the test split a network sees at once.
_METRICS_BATCH = 500


def sum_in_batches(sums: Callable[[Any], Any], arrays: Any) -> Any:
  """The sums over all elements of the arrays' first axis, of which so many are seen at once."""
  length = jax.tree.leaves(arrays)[0].shape[0]
  batch = min(_METRICS_BATCH, length)
  whole = length // batch * batch
  batches = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, batch, *leaf.shape[1:]), arrays)
  totals = jax.tree.map(jnp.sum, jax.lax.map(sums, batches))
  if whole == length:
    return totals
  rest = sums(jax.tree.map(lambda leaf: leaf[whole:], arrays))
  return jax.tree.map(jnp.add, totals, rest)


def mean_in_batches(values_of: Callable[[jax.Array], jax.Array], array: jax.Array) -> jax.Array:
  """The mean of what a function gives each element of the first axis, likewise."""
  return sum_in_batches(lambda batch: jnp.sum(values_of(batch)), array) / array.shape[0]
