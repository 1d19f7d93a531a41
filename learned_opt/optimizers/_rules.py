"""Updates of tensors from features of their coordinates and a small network."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt.optimizers import _by_rows, _features, _mlp, _tensors
from learned_opt.optimizers._features import Accumulators, Decays


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
    grads, params, *extras = map(list, zip(*inputs, strict=True))
    extras = extras[0] if extras else [None] * len(grads)
    weights = jax.vmap(self.network, (None, 0), axis_size=len(grads))(
      shared, _tensors.stack(extras)
    )
    if not (isinstance(states[0], Accumulators) and _by_rows.is_possible(grads, weights)):
      return None
    means = _by_rows.factored_means(grads, self.clip, dtype)
    states = [
      self.accumulate(shared, grad.astype(dtype), state, tuple(mean[k] for mean in means))
      for k, (grad, state) in enumerate(zip(grads, states, strict=True))
    ]
    further = None if self.inputs is None else self.inputs(shared)
    directions = _by_rows.directions(self, weights, further, grads, params, states, dtype)
    updates: list[jax.Array] = []
    for param, extra, direction in zip(params, extras, directions, strict=True):
      if updates:  # One after the other, or there would be memory for what all make on the way.
        direction, updates[-1] = jax.lax.optimization_barrier((direction, updates[-1]))
      update = self.finish(shared, extra, param.astype(dtype), direction)
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
