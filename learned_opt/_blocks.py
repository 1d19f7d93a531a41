"""Functions of many rows, computed block by block, so that nothing large is made on the way."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp

from learned_opt import devices

# (weights, inputs, state) -> (outputs, state): all arrays but the weights have the rows first.
RowFunction = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]

_whole = False


@contextlib.contextmanager
def as_a_whole() -> Iterator[None]:
  """What is traced in this context takes all rows at once, on one device.

  For XLA's cost analysis, which counts the work of a loop once, and that of one device only.
  """
  global _whole
  before, _whole = _whole, True
  try:
    yield
  finally:
    _whole = before


def in_blocks(function: RowFunction, plain: RowFunction, block_size: int) -> RowFunction:
  """Computes a function of rows block by block, the rows of all vmapped calls side by side.

  Args:
    function: ``(weights, inputs, state) -> (outputs, state)``; the weights are any pytree, all
      other arrays have the rows as their first axis, and rows do not depend on one another. The
      outputs have the shape and dtype of the inputs.
    plain: the same function, to rounding, which is differentiated in its place.
    block_size: rows of a block.

  Returns:
    The function. Under a mesh its rows are shared among the devices.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt._blocks import in_blocks
    >>> def add(weights, inputs, state):
    ...   return weights * inputs + state, state + 1
    >>> outputs, _ = in_blocks(add, add, block_size=2)(2.0, jnp.arange(5.0), jnp.zeros(5))
    >>> outputs.tolist()
    [0.0, 2.0, 4.0, 6.0, 8.0]
  """

  @jax.custom_batching.custom_vmap
  def rows(weights, inputs, state):
    return _in_blocks(function, block_size, weights, inputs, state)

  @rows.def_vmap
  def rows_of_all(axis_size, is_batched, weights, inputs, state):
    if any(jax.tree.leaves(is_batched[0])) or not all(jax.tree.leaves(is_batched[1:])):
      axes = jax.tree.map(lambda batched: 0 if batched else None, is_batched)
      outputs = jax.vmap(plain, in_axes=tuple(axes))(weights, inputs, state)
    else:
      join = functools.partial(jax.tree.map, lambda leaf: leaf.reshape(-1, *leaf.shape[2:]))
      split = functools.partial(
        jax.tree.map, lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:])
      )
      outputs = split(rows(weights, *join((inputs, state))))
    return outputs, jax.tree.map(lambda leaf: True, outputs)

  call = jax.custom_jvp(lambda weights, inputs, state: rows(weights, inputs, state))

  @call.defjvp
  def differentiate_plain(primals, tangents):
    return jax.jvp(plain, primals, tangents)

  return call


def _in_blocks(
  function: RowFunction,
  block_size: int,
  weights: chex.ArrayTree,
  inputs: jax.Array,
  state: chex.ArrayTree,
) -> tuple[jax.Array, Any]:
  num_rows, num_shards = inputs.shape[0], devices.num_shards()
  if _whole or num_rows % num_shards:
    num_shards = 1
  num_blocks, num_left = divmod(num_rows // num_shards, block_size)
  shared = jax.vmap(functools.partial(function, weights))

  def to_shards(leaf: jax.Array) -> jax.Array:
    shards = leaf.reshape(num_shards, -1, *leaf.shape[1:])
    return devices.share(shards) if num_shards > 1 else shards

  def rows(leaf: jax.Array, start: jax.Array | int, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(leaf, start, size, axis=1)

  def add_block(start: jax.Array | int, size: int, carry):
    outputs, state = carry
    block = (rows(inputs, start, size), jax.tree.map(lambda leaf: rows(leaf, start, size), state))
    # XLA would fuse the reading of a block with the writing of its results, several times over,
    # and copy the whole state for it. A conditional, which is always taken, keeps them apart.
    always = jax.lax.optimization_barrier(start < num_rows)
    block = jax.lax.cond(always, shared, lambda *unchanged: unchanged, *block)
    return jax.tree.map(
      lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, start, axis=1),
      (outputs, state),
      block,
    )

  inputs, state = jax.tree.map(to_shards, (inputs, state))
  if _whole or num_blocks + bool(num_left) <= 1:
    carry = shared(inputs, state)
  else:
    carry = jax.lax.fori_loop(
      0,
      num_blocks,
      lambda index, carry: add_block(index * block_size, block_size, carry),
      (jnp.zeros_like(inputs), state),
    )
    if num_left:
      carry = add_block(num_blocks * block_size, num_left, carry)
  return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), carry)
