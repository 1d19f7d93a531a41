"""Functions of many coordinates, computed block by block: nothing large is made on the way."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from learned_opt import devices

# (weights, inputs, state) -> (outputs, state): all but the weights have the coordinates last.
Function = Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]]

# Coordinates of a block. On a CPU, what an LSTM makes of so many on the way stays in the cache next
# to a core; `learned-opt bench update` measures it. Accelerators want large blocks.
_BLOCK = 256
_BLOCK_ON_ACCELERATORS = 2**16

# Numbers that the widest vector registers hold.
LANES = 16

_whole = False


@contextlib.contextmanager
def as_a_whole() -> Iterator[None]:
  """What is traced in this context takes all coordinates at once, on one device.

  For XLA's cost analysis, which counts the work of a loop once, and that of one device only.
  """
  global _whole
  before, _whole = _whole, True
  try:
    yield
  finally:
    _whole = before


def in_blocks(function: Function, plain: Function, block_size: int | None = None) -> Function:
  """Computes a function of coordinates block by block.

  Args:
    function: ``(weights, inputs, state) -> (outputs, state)``; the weights are any pytree, all
      other arrays have the coordinates as their last axis, and these do not depend on one another.
      The outputs have the shape and dtype of the inputs.
    plain: the same function, to rounding, which is differentiated in its place.
    block_size: coordinates of a block; None chooses as many as the device likes.

  Returns:
    The function. Under `jax.vmap`, problems with few coordinates share a block. Under a mesh the
    problems, or the coordinates of a single one, are shared among the devices. On CPUs, a state in
    bfloat16 is updated by `plain`, as a whole.

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
  def problems(weights, inputs, state):
    return _in_blocks(function, block_size or _default_block(), weights, inputs, state)

  @problems.def_vmap
  def problems_of_all(axis_size, is_batched, weights, inputs, state):
    if any(jax.tree.leaves(is_batched[0])) or not all(jax.tree.leaves(is_batched[1:])):
      axes = jax.tree.map(lambda batched: 0 if batched else None, is_batched)
      outputs = jax.vmap(jax.vmap(plain, (None, 0, 0)), tuple(axes))(weights, inputs, state)
    else:
      join = functools.partial(jax.tree.map, lambda leaf: leaf.reshape(-1, *leaf.shape[2:]))
      split = functools.partial(
        jax.tree.map, lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:])
      )
      outputs = split(problems(weights, *join((inputs, state))))
    return outputs, jax.tree.map(lambda leaf: True, outputs)

  @jax.custom_jvp
  def call(weights, inputs, state):
    one = jax.tree.map(lambda leaf: leaf[None], (inputs, state))
    return jax.tree.map(lambda leaf: leaf[0], problems(weights, *one))

  @call.defjvp
  def differentiate_plain(primals, tangents):
    return jax.jvp(plain, primals, tangents)

  def unless_narrow(weights, inputs, state):
    # In a loop that writes to bfloat16 arrays, XLA's CPU backend widens all of them in each turn.
    narrow = any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state))
    chosen = plain if narrow and jax.default_backend() == "cpu" else call
    return chosen(weights, inputs, state)

  return unless_narrow


def _default_block() -> int:
  return _BLOCK if jax.default_backend() == "cpu" else _BLOCK_ON_ACCELERATORS


class _Part(NamedTuple):
  """Some problems and some of their coordinates: where they start, and how many there are."""

  problem: jax.Array | int
  coordinate: jax.Array | int
  num_problems: int
  num_coordinates: int

  def read(self, leaf: jax.Array) -> jax.Array:
    """``[all problems, ..., all coordinates] -> [..., problems x coordinates]``."""
    leaf = jax.lax.dynamic_slice_in_dim(leaf, self.problem, self.num_problems, 0)
    leaf = jax.lax.dynamic_slice_in_dim(leaf, self.coordinate, self.num_coordinates, -1)
    leaf = jnp.moveaxis(leaf, 0, -2)
    return leaf.reshape(*leaf.shape[:-2], -1)

  def write(self, leaf: jax.Array, new: jax.Array) -> jax.Array:
    """The inverse of `read`."""
    new = new.reshape(*new.shape[:-1], self.num_problems, self.num_coordinates)
    between = (0,) * (leaf.ndim - 2)
    return jax.lax.dynamic_update_slice(
      leaf, jnp.moveaxis(new, -2, 0), (self.problem, *between, self.coordinate)
    )


def _parts(
  num_problems: int, num_coordinates: int, block_size: int
) -> list[tuple[int, Callable[[jax.Array | int], _Part]]]:
  """All coordinates of all problems in blocks: pairs of a number of blocks of one shape, and which.

  >>> [(number, which(number - 1)) for number, which in _parts(2, 5, 4)]
  [(2, _Part(problem=1, coordinate=0, num_problems=1, num_coordinates=4)), \
(2, _Part(problem=1, coordinate=4, num_problems=1, num_coordinates=1))]
  """
  if num_coordinates <= block_size:
    together = max(1, min(num_problems, block_size // max(1, num_coordinates)))
    whole, left = divmod(num_problems, together)
    parts = [
      (whole, lambda index: _Part(index * together, 0, together, num_coordinates)),
      (min(left, 1), lambda index: _Part(whole * together, 0, left, num_coordinates)),
    ]
  else:
    block_size = _without_rest(num_coordinates, block_size)
    whole, left = divmod(num_coordinates, block_size)
    parts = [
      (
        num_problems * whole,
        lambda index: _Part(index // whole, index % whole * block_size, 1, block_size),
      ),
      (num_problems * min(left, 1), lambda index: _Part(index, whole * block_size, 1, left)),
    ]
  return [part for part in parts if part[0]]


def _without_rest(num_coordinates: int, block_size: int) -> int:
  """A slightly smaller block of whole registers that leaves no rest, for one program less.

  >>> _without_rest(8112, 256), _without_rest(1000, 256)
  (208, 256)
  """
  candidates = range(block_size, block_size * 3 // 4, -1)
  whole = (size for size in candidates if size % LANES == 0 and num_coordinates % size == 0)
  return next(whole, block_size)


def blockwise(
  function: Function, weights: chex.ArrayTree, inputs: jax.Array, state: chex.ArrayTree
) -> tuple[jax.Array, Any]:
  """What `in_blocks` computes, on one device and without rules for `jax.vmap` and derivatives.

  >>> blockwise(lambda w, x, s: (w * x, s + x), 2.0, jnp.ones(3), jnp.zeros(3))[1].tolist()
  [1.0, 1.0, 1.0]
  """
  one = jax.tree.map(lambda leaf: leaf[None], (inputs, state))
  new = _in_blocks_of_shard(function, _default_block(), weights, *one)
  return jax.tree.map(lambda leaf: leaf[0], new)


def _in_blocks(
  function: Function,
  block_size: int,
  weights: chex.ArrayTree,
  inputs: jax.Array,
  state: chex.ArrayTree,
) -> tuple[jax.Array, Any]:
  """For arrays of ``[problems, ..., coordinates]``."""
  in_shard = functools.partial(_in_blocks_of_shard, function, block_size, weights)
  num_shards = devices.num_shards()
  axis = 0 if inputs.shape[0] % num_shards == 0 else -1
  if _whole or num_shards == 1 or inputs.shape[axis] % num_shards:
    return in_shard(inputs, state)

  def to_shards(leaf: jax.Array) -> jax.Array:
    index = axis % leaf.ndim
    sizes = (num_shards, leaf.shape[index] // num_shards)
    shape = (*leaf.shape[:index], *sizes, *leaf.shape[index + 1 :])
    return devices.share(jnp.moveaxis(leaf.reshape(shape), index, 0))

  def from_shards(leaf: jax.Array) -> jax.Array:
    index = axis % (leaf.ndim - 1)
    leaf = jnp.moveaxis(leaf, 0, index)
    size = num_shards * leaf.shape[index + 1]
    return leaf.reshape(*leaf.shape[:index], size, *leaf.shape[index + 2 :])

  return jax.tree.map(from_shards, jax.vmap(in_shard)(*jax.tree.map(to_shards, (inputs, state))))


def _in_blocks_of_shard(
  function: Function,
  block_size: int,
  weights: chex.ArrayTree,
  inputs: jax.Array,
  state: chex.ArrayTree,
) -> tuple[jax.Array, Any]:
  num_problems, num_coordinates = inputs.shape
  parts = _parts(num_problems, num_coordinates, block_size)
  update = functools.partial(function, weights)
  if _whole or sum(number for number, _ in parts) <= 1:
    whole = _Part(0, 0, num_problems, num_coordinates)
    new = update(*jax.tree.map(whole.read, (inputs, state)))
    return jax.tree.map(whole.write, (inputs, state), new)

  def add_block(which: Callable[[jax.Array], _Part], index: jax.Array, carry):
    part, (outputs, state) = which(index), carry
    block = jax.tree.map(part.read, (inputs, state))
    # XLA would fuse the reading of a block with the writing of its results, several times over,
    # and copy the whole state for it. A conditional, which is always taken, keeps them apart.
    always = jax.lax.optimization_barrier(jnp.asarray(part.problem) < num_problems)
    block = jax.lax.cond(always, update, lambda *unchanged: unchanged, *block)
    return jax.tree.map(part.write, (outputs, state), block)

  carry = (jnp.zeros_like(inputs), state)
  for number, which in parts:
    carry = jax.lax.fori_loop(0, number, functools.partial(add_block, which), carry)
  return carry
