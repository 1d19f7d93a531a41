"""Large tensors of equal shape, updated side by side, some rows of each at a time.

A tensor is read twice: for the mean squares of its features, then for the features again and the
network. Neither features nor hidden units are ever written as a whole. The program is as long for
many layers as for one, but for the reading and the writing of rows.

Rows are along the last but one axis. For CPUs, whose caches are why; accelerators take tensors as a
whole.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.optimizers import _features, _mlp, _tensors
from learned_opt.optimizers._features import Accumulators

# A `_rules.FeatureRule`, whose file imports this one.
FeatureRule = Any

# Coordinates, of all tensors of a group together, that are treated at once: their features stay in
# the cache.
_BLOCK = 2**16

# Coordinates of a tensor, from which on it is updated by rows.
_MIN_SIZE = 2**16

# The features that do not vary along one axis of a tensor of rank two.
_VECTORS = ("rows", "columns", "rsqrt_rows", "rsqrt_columns")


def is_possible(grads: Sequence[jax.Array], weights: _mlp.Weights) -> bool:
  """Whether tensors of equal shape are to be updated by rows, with a network for each.

  They are if they are large, their factored axes are the last two, and the network is small.
  """
  shape = grads[0].shape
  axes = _features.factored_axes(shape)
  if axes is None or min(axes) < len(shape) - 2 or math.prod(shape) < _MIN_SIZE:
    return False
  one = jax.eval_shape(lambda: jax.tree.map(lambda leaf: leaf[0], weights))
  return jax.default_backend() == "cpu" and _mlp.is_small(one)


def factored_means(
  grads: Sequence[jax.Array], clip: Callable[[jax.Array], jax.Array], dtype: np.dtype
) -> list[jax.Array]:
  """`_features.factored_means` of the squares of all clipped gradients, stacked."""
  shape, number = grads[0].shape, len(grads)
  block = block_size(shape, number)

  def add(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    over_last, sums = carry
    squares = jnp.square(clip(_rows_of_all(grads, index, block, dtype)))
    return _write_rows(over_last, jnp.mean(squares, -1, keepdims=True), index), sums + squares

  lead, (num_rows, num_columns) = shape[:-2], shape[-2:]
  zeros = (
    jnp.zeros((number, *lead, num_rows, 1), dtype),
    jnp.zeros((number, *lead, block, num_columns), dtype),
  )
  over_last, sums = jax.lax.fori_loop(0, num_rows // block, add, zeros)
  over_rows = jnp.sum(sums, -2, keepdims=True) / num_rows
  # The one over the largest axis comes first.
  is_last_largest = _features.factored_axes(shape) == (len(shape) - 2, len(shape) - 1)
  return [over_last, over_rows] if is_last_largest else [over_rows, over_last]


class _Group(NamedTuple):
  """Tensors of equal shape.

  Attributes:
    rule: how they are updated.
    grads: their gradients, of any dtype.
    params: their parameters.
    states: their running averages, with the gradients in them.
    vectors: `_features.VectorFeatures`, stacked.
    dtype: in which to compute.
  """

  rule: FeatureRule
  grads: Sequence[jax.Array]
  params: Sequence[jax.Array]
  states: Sequence[Accumulators]
  vectors: _features.VectorFeatures
  dtype: np.dtype

  @property
  def shape(self) -> tuple[int, ...]:
    return self.grads[0].shape

  @property
  def block(self) -> int:
    return block_size(self.shape, len(self.grads))

  @property
  def num_blocks(self) -> int:
    return self.shape[-2] // self.block

  @property
  def names(self) -> list[str]:
    """The features that vary along all axes."""
    return [name for name in self.rule.groups if name not in _VECTORS]

  def part_of(self, tree: chex.ArrayTree, index: jax.Array) -> Any:
    """Rows of what varies with them, the rest as it is."""
    num_rows, block = self.shape[-2], self.block
    return jax.tree.map(lambda x: _rows(x, index, block) if x.shape[-2] == num_rows else x, tree)

  def read(self, index: jax.Array) -> tuple[Any, ...]:
    """Some rows of all tensors, stacked: what `features` takes of one."""

    def some(xs: Sequence[jax.Array]) -> jax.Array:
      return _rows_of_all(xs, index, self.block, self.dtype)

    momenta, squares = (some(xs) for xs in list(zip(*self.states, strict=True))[:2])
    averages = Accumulators(momenta, squares, ())
    return some(self.grads), some(self.params), averages, self.part_of(self.vectors, index)

  def features(self, grad, param, averages, vectors) -> list[jax.Array]:
    """Those of `names`, for rows of one tensor."""
    return _features.select_features(
      self.names, self.rule.clip(grad), param, averages, vectors, self.rule.squares_epsilon
    )

  def mean_squares(self) -> list[jax.Array]:
    """Of those features, over blocks: the mean over a block's coordinates is that over all."""

    def features(index: jax.Array) -> list[jax.Array]:
      return jax.vmap(self.features)(*self.read(index))

    def add(index: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
      return [x + jnp.square(group) for x, group in zip(sums, features(index), strict=True)]

    like = jax.eval_shape(features, jnp.zeros((), jnp.int32))
    zeros = [jnp.zeros(x.shape, x.dtype) for x in like]
    return [x / self.num_blocks for x in jax.lax.fori_loop(0, self.num_blocks, add, zeros)]


class _Prepared(NamedTuple):
  """What the network needs of a tensor besides rows, stacked.

  Attributes:
    layers: see `_mlp.split_kernel`.
    kernels: likewise, of the features that vary along all axes.
    scales: what these are multiplied by.
    parts: what the others contribute, see `_mlp.contributions`.
  """

  layers: list[_mlp.Layer]
  kernels: list[jax.Array]
  scales: list[jax.Array]
  parts: list[jax.Array]


def directions(
  rule: FeatureRule,
  weights: _mlp.Weights,
  inputs: jax.Array | None,
  grads: Sequence[jax.Array],
  params: Sequence[jax.Array],
  states: Sequence[Accumulators],
  dtype: np.dtype,
) -> list[jax.Array]:
  """What the rule's `output` gives, for tensors of equal shape.

  Args:
    rule: how the tensors are updated.
    weights: their networks, stacked.
    inputs: what these have as further inputs.
    grads: the gradients, of any dtype.
    params: the parameters, of any dtype.
    states: the running averages, with the gradients in them.
    dtype: in which to compute, and of the directions.
  """
  shape = grads[0].shape
  vectors = jax.vmap(lambda one: _features.vector_features(one, shape, rule.diagonal_epsilon))(
    _tensors.stack([state.factored for state in states])
  )
  group = _Group(rule, grads, params, states, vectors, dtype)
  prepared = jax.vmap(lambda *one: _prepare(group, inputs, *one))(
    weights, vectors, group.mean_squares()
  )
  # What vectors contribute would be computed again for each coordinate.
  prepared = jax.lax.optimization_barrier(prepared)

  def direction(tensor) -> jax.Array:
    one, rows = tensor
    features = group.features(*rows)
    outputs = _mlp.apply_by_number(one.layers, one.kernels, features, one.scales, one.parts)
    return rule.output(outputs, dict(zip(group.names, features, strict=True)))

  def write(index: jax.Array, whole: list[jax.Array]) -> list[jax.Array]:
    # A conditional, which is always taken, keeps the computation apart from the writing: XLA would
    # make one loop of both, which is several times as slow.
    always = jax.lax.optimization_barrier(index < group.num_blocks)

    def one(tensor) -> jax.Array:
      like = jax.eval_shape(direction, tensor)
      return jax.lax.cond(always, direction, lambda _: jnp.zeros(like.shape, like.dtype), tensor)

    # One tensor after the other: XLA's code for different weights side by side is slow, too.
    parts = group.part_of(prepared.parts, index)
    rows = jax.lax.map(one, (prepared._replace(parts=parts), group.read(index)))
    return [_write_rows(x, rows[k], index) for k, x in enumerate(whole)]

  return jax.lax.fori_loop(0, group.num_blocks, write, [jnp.zeros(shape, dtype) for _ in grads])


def _prepare(group: _Group, inputs, weights, vectors, mean_squares) -> _Prepared:
  rule = group.rule
  lone = [name for name in rule.groups if name in _VECTORS]
  by_name = {name: getattr(vectors, name) for name in lone}
  scales = dict(zip(lone, rule.normalizers([*by_name.values()]), strict=True))
  for name, squares in zip(group.names, mean_squares, strict=True):
    scales[name] = _features.rsqrt_mean(squares, rule.norm_epsilon, rule.last_axes)
  sizes = [scales[name].shape[0] for name in rule.groups]
  kernels, layers = _mlp.split_kernel(weights, sizes, inputs)
  kernels = dict(zip(rule.groups, kernels, strict=True))
  parts = _mlp.contributions(
    [kernels[name] for name in lone],
    [by_name[name] for name in lone],
    [scales[name] for name in lone],
  )
  kernels, full_scales = ([x[name] for name in group.names] for x in (kernels, scales))
  return _Prepared(layers, kernels, full_scales, parts)


def block_size(shape: tuple[int, ...], number: int) -> int:
  """How many rows are treated at once of each of so many tensors: a divisor of their number.

  >>> block_size((1000, 1000), 1), block_size((1000, 1000), 10), block_size((7, 2**20), 1)
  (50, 5, 1)
  """
  most = max(1, _BLOCK * shape[-2] // (number * math.prod(shape)))
  return max(size for size in range(1, min(most, shape[-2]) + 1) if shape[-2] % size == 0)


def _rows(x: jax.Array, index: jax.Array, block: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, index * block, block, x.ndim - 2)


def _rows_of_all(
  xs: Sequence[jax.Array], index: jax.Array, block: int, dtype: np.dtype
) -> jax.Array:
  return jnp.stack([_rows(x, index, block).astype(dtype) for x in xs])


def _write_rows(x: jax.Array, rows: jax.Array, index: jax.Array) -> jax.Array:
  axis = x.ndim - 2
  return jax.lax.dynamic_update_slice_in_dim(x, rows, index * rows.shape[axis], axis)
