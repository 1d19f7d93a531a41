"""Updates from features and a small network, of small tensors at once and of large ones by rows.

A large tensor is read twice: for the mean squares of its features, then for the features again and
the network. Neither features nor hidden units are ever written as a whole. All tensors of equal
shape are treated side by side, some rows of each at a time, so that the program is as long for many
layers as for one, but for the reading and the writing of rows.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt.optimizers import _features, _mlp, _tensors
from learned_opt.optimizers._features import Accumulators, Decays

# Coordinates, of all tensors of a group together, that are treated at once; their features stay in
# the cache.
_BLOCK = 2**16

# Coordinates of a group from which on it is treated block by block.
_MIN_BLOCKED = 2**18


class FeatureRule(NamedTuple):
  """An update of a tensor from normalised features of its coordinates.

  What a tensor is updated with is `shared`, which all tensors have in common, and `extra`, what it
  has of its own, None if there is nothing.

  Attributes:
    groups: names of the features, see `_features.feature_groups`.
    decays: ``shared -> Decays``.
    network: ``(shared, extra) -> weights``, see `_mlp.init_mlp`.
    output: ``(outputs, features) -> direction``, coordinate by coordinate: of the network's outputs
      and a dictionary of the features by name, as they were before normalisation.
    finish: ``(shared, extra, param, direction) -> update`` of a whole tensor; it is added.
    max_gradient: the magnitude that gradients are clipped to.
    inputs: ``shared -> [inputs]``, further inputs of the network; None if there are none.
    vector_groups: the features of tensors of rank less than two, the first of `groups`; None if
      they have all.
    squares_epsilon: see `_features.feature_groups`.
    diagonal_epsilon: likewise.
    norm_epsilon: see `_features.normalizers`.
    last_axes: likewise.
  """

  groups: tuple[str, ...]
  decays: Callable[[Any], Decays]
  network: Callable[[Any, Any], _mlp.Weights]
  output: Callable[[list[jax.Array], dict[str, jax.Array]], jax.Array]
  finish: Callable[[Any, Any, jax.Array, jax.Array], jax.Array]
  max_gradient: float
  inputs: Callable[[Any], jax.Array] | None = None
  vector_groups: tuple[str, ...] | None = None
  squares_epsilon: float = 1e-6
  diagonal_epsilon: float = 1e-6
  norm_epsilon: float = 1e-5
  last_axes: int | None = None

  def update(self, shared: Any, inputs: Any, state: Accumulators) -> tuple[jax.Array, Accumulators]:
    """The update of one tensor, a `_tensors.TensorFunction`."""
    grad, param, *own = inputs
    extra = own[0] if own else None
    state = self.accumulate(shared, grad, state)
    grad = self.clip(grad)
    names, weights = self.groups, self.network(shared, extra)
    groups = _features.feature_groups(
      names,
      grad,
      param,
      state,
      squares_epsilon=self.squares_epsilon,
      diagonal_epsilon=self.diagonal_epsilon,
    )
    if grad.ndim < 2 and self.vector_groups is not None:
      names, groups = self.vector_groups, groups[: len(self.vector_groups)]
      weights = _mlp.first_inputs(weights, sum(group.shape[0] for group in groups))
    further = None if self.inputs is None else self.inputs(shared)
    joined = _mlp.join(weights, groups)
    outputs = _mlp.apply_mlp(weights, joined, self.normalizers(joined), further)
    direction = self.output(outputs, dict(zip(names, groups, strict=True)))
    return self.finish(shared, extra, param, direction), state

  def accumulate(
    self,
    shared: Any,
    grad: jax.Array,
    state: Accumulators,
    means: Sequence[jax.Array] | None = None,
  ) -> Accumulators:
    """The running averages with this gradient in them."""
    return _features.update_accumulators(self.decays(shared), self.clip(grad), state, means)

  def clip(self, grad: jax.Array) -> jax.Array:
    """The gradient that the rule sees."""
    return jnp.clip(grad, -self.max_gradient, self.max_gradient)

  def normalizers(self, groups: Sequence[jax.Array]) -> list[jax.Array]:
    """What the features are multiplied by."""
    return _features.normalizers(groups, self.norm_epsilon, self.last_axes)

  def update_group(
    self, shared: Any, inputs: Sequence[Any], states: Sequence[Any], dtype: np.dtype
  ) -> tuple[list[jax.Array], list[Accumulators]] | None:
    """The updates of large tensors of equal shape, by rows; None where that is not possible.

    Args:
      shared: what all tensors have in common.
      inputs: for each tensor ``(grad, param)`` or ``(grad, param, extra)``, of any dtypes.
      states: their running averages.
      dtype: in which to compute; the updates get the params' dtypes.
    """
    shape, number = inputs[0][0].shape, len(inputs)
    axes = _features.factored_axes(shape)
    if not isinstance(states[0], Accumulators) or axes is None:
      return None
    if min(axes) < len(shape) - 2 or number * math.prod(shape) < _MIN_BLOCKED:
      return None
    grads, params, *extras = map(list, zip(*inputs, strict=True))
    extras = extras[0] if extras else [None] * number
    extra = _tensors.stack(extras)
    weights = jax.vmap(self.network, (None, 0), axis_size=number)(shared, extra)
    if not _mlp.is_small(jax.tree.map(lambda leaf: leaf[0], weights)):
      return None
    means = _factored_means(self, grads, dtype)
    states = [
      self.accumulate(shared, grad.astype(dtype), state, tuple(mean[k] for mean in means))
      for k, (grad, state) in enumerate(zip(grads, states, strict=True))
    ]
    directions = _directions(self, shared, weights, grads, params, states, dtype)
    updates: list[jax.Array] = []
    for param, one, direction in zip(params, extras, directions, strict=True):
      if updates:  # One after the other, or there would be memory for what all make on the way.
        direction, updates[-1] = jax.lax.optimization_barrier((direction, updates[-1]))
      update = self.finish(shared, one, param.astype(dtype), direction)
      updates.append(update.astype(param.dtype))
    return updates, states


def adafac_rule(
  output: Callable[[list[jax.Array], dict[str, jax.Array]], jax.Array],
) -> FeatureRule:
  """That of adafac_mlp and STAR: 28 features and the time, ``shared = (network, decays, step)``.

  Args:
    output: see `FeatureRule`; what it gives is the update.
  """
  return FeatureRule(
    groups=_features.ADAFAC_GROUPS,
    decays=lambda shared: shared[1],
    network=lambda shared, extra: shared[0],
    output=output,
    finish=lambda shared, extra, param, direction: direction,
    max_gradient=1e6,
    inputs=lambda shared: _features.time_features(shared[2], shared[1].momenta.dtype),
  )


def feature_transformation(
  name: str,
  rule: FeatureRule,
  dtype: np.dtype,
  shared: Callable[[jax.Array], Any],
  numbers: Decays,
) -> optax.GradientTransformationExtraArgs:
  """The transformation of a rule whose tensors have nothing of their own.

  Args:
    name: of the optimizer.
    rule: the rule.
    dtype: in which to compute.
    shared: ``step -> shared``; `step` counts earlier updates.
    numbers: see `_features.init_accumulators`.
  """
  return _tensors.tensorwise_transformation(
    dtype,
    name,
    init=lambda shape: _features.init_accumulators(shape, numbers, dtype),
    update=rule.update,
    shared=shared,
    shape_of_state=lambda accumulators: accumulators.momenta.shape[1:],
    group_function=functools.partial(rule.update_group, dtype=dtype),
  )


# These do not vary along one axis of a tensor of rank two.
_VECTORS = ("rows", "columns", "rsqrt_rows", "rsqrt_columns")


def _factored_means(
  rule: FeatureRule, grads: Sequence[jax.Array], dtype: np.dtype
) -> list[jax.Array]:
  """As `_features.factored_means` of the squares of all gradients, stacked."""
  shape, number = grads[0].shape, len(grads)
  block = _block_size(shape, number)

  def add(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    over_last, sums = carry
    squares = jnp.square(rule.clip(_rows_of_all(grads, index, block, dtype)))
    rows = jnp.mean(squares, -1, keepdims=True)
    axis = over_last.ndim - 2
    over_last = jax.lax.dynamic_update_slice_in_dim(over_last, rows, index * block, axis)
    return over_last, sums + squares

  zeros = (
    jnp.zeros((number, *shape[:-1], 1), dtype),
    jnp.zeros((number, *shape[:-2], block, shape[-1]), dtype),
  )
  over_last, sums = jax.lax.fori_loop(0, shape[-2] // block, add, zeros)
  means = over_last, jnp.sum(sums, -2, keepdims=True) / shape[-2]
  # The first is the one over the largest axis.
  axes = _features.factored_axes(shape)
  return list(means if axes == (len(shape) - 2, len(shape) - 1) else means[::-1])


def _rows(x: jax.Array, index: jax.Array, block: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, index * block, block, x.ndim - 2)


def _rows_of_all(
  xs: Sequence[jax.Array], index: jax.Array, block: int, dtype: np.dtype
) -> jax.Array:
  return jnp.stack([_rows(x, index, block).astype(dtype) for x in xs])


def _directions(
  rule: FeatureRule,
  shared: Any,
  weights: _mlp.Weights,
  grads: Sequence[jax.Array],
  params: Sequence[jax.Array],
  states: Sequence[Accumulators],
  dtype: np.dtype,
) -> list[jax.Array]:
  """What the rule's `output` gives, for tensors of equal shape; the weights are stacked."""
  shape, number = grads[0].shape, len(grads)
  block = _block_size(shape, number)
  num_blocks = shape[-2] // block
  names = [name for name in rule.groups if name not in _VECTORS]

  factored = _tensors.stack([state.factored for state in states])
  vectors = jax.vmap(lambda one: _features.vector_features(one, shape, rule.diagonal_epsilon))(
    factored
  )

  def part_of(tree: chex.ArrayTree, index: jax.Array) -> Any:
    """Rows of what varies with them, the rest as it is."""
    return jax.tree.map(lambda x: _rows(x, index, block) if x.shape[-2] == shape[-2] else x, tree)

  def read(index: jax.Array) -> Any:
    """Some rows of all tensors, ``[tensors, ..., rows, columns]``, for `features` of one."""
    some = functools.partial(_rows_of_all, index=index, block=block, dtype=dtype)
    averages = (some([getattr(state, name) for state in states]) for name in ("momenta", "squares"))
    return some(grads), some(params), Accumulators(*averages, ()), part_of(vectors, index)

  def features(grad, param, averages, vectors) -> list[jax.Array]:
    grad = rule.clip(grad)
    return _features.select_features(names, grad, param, averages, vectors, rule.squares_epsilon)

  def add_squares(index: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
    groups = jax.vmap(features)(*read(index))
    return [x + jnp.square(group) for x, group in zip(sums, groups, strict=True)]

  first = jnp.zeros((), jnp.int32)
  like = jax.eval_shape(lambda index: jax.vmap(features)(*read(index)), first)
  zeros = [jnp.zeros(x.shape, dtype) for x in like]
  sums = jax.lax.fori_loop(0, num_blocks, add_squares, zeros)
  full_scales = jax.vmap(
    lambda squares: [
      _features.rsqrt_mean(x / num_blocks, rule.norm_epsilon, rule.last_axes) for x in squares
    ]
  )(sums)

  def prepare(weights: _mlp.Weights, vectors, full_scales):
    """The network's layers, the kernels of features, and what vectors contribute, of one tensor."""
    by_name = {name: getattr(vectors, name) for name in _VECTORS}
    scales = dict(zip(names, full_scales, strict=True))
    lone = [name for name in rule.groups if name in _VECTORS]
    scales.update(zip(lone, rule.normalizers([by_name[name] for name in lone]), strict=True))
    sizes = [scales[name].shape[0] for name in rule.groups]
    further = None if rule.inputs is None else rule.inputs(shared)
    kernels, layers = _mlp.split_kernel(weights, sizes, further)
    kernels = dict(zip(rule.groups, kernels, strict=True))
    parts = _mlp.contributions(*([x[name] for name in lone] for x in (kernels, by_name, scales)))
    return layers, [kernels[name] for name in names], parts

  prepared = jax.vmap(prepare)(weights, vectors, full_scales)
  # Vectors count little, and would be computed again for each coordinate.
  layers, kernels, parts = jax.lax.optimization_barrier(prepared)

  def direction(one) -> jax.Array:
    (layers, kernels, scales), parts, rows = one
    groups = features(*rows)
    outputs = _mlp.apply_by_number(layers, kernels, groups, scales, parts)
    return rule.output(outputs, dict(zip(names, groups, strict=True)))

  def write(index: jax.Array, whole: list[jax.Array]) -> list[jax.Array]:
    # One tensor after the other: XLA's code for different weights side by side is slow. A
    # conditional, which is always taken, keeps the computation apart from the writing: else XLA
    # would make one loop of both, which is slow, too.
    own = layers, kernels, full_scales
    always = jax.lax.optimization_barrier(index < num_blocks)

    def one(tensor) -> jax.Array:
      like = jax.eval_shape(direction, tensor)
      return jax.lax.cond(always, direction, lambda _: jnp.zeros(like.shape, like.dtype), tensor)

    part = jax.lax.map(one, (own, part_of(parts, index), read(index)))
    return [
      jax.lax.dynamic_update_slice_in_dim(x, part[k], index * block, x.ndim - 2)
      for k, x in enumerate(whole)
    ]

  return jax.lax.fori_loop(0, num_blocks, write, [jnp.zeros(shape, dtype) for _ in grads])


def _block_size(shape: tuple[int, ...], number: int) -> int:
  """How many rows are treated at once: a divisor of their number."""
  most = max(1, _BLOCK * shape[-2] // (number * math.prod(shape)))
  return max(size for size in range(1, min(most, shape[-2]) + 1) if shape[-2] % size == 0)
