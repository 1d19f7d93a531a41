"""An estimator for a part of the meta-params, the rest being constants."""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from learned_opt.base import CoordinatewiseRule, LearnedOptimizer, MetaGradientEstimator


def of_part(estimator: MetaGradientEstimator, parts: Sequence[str]) -> MetaGradientEstimator:
  """The estimate for some of the meta-params; that for all others is zero.

  To go on with weights that are there already, of which a part is to learn: the outputs of a
  network, say, or the schedule and not the directions. Evolution strategies perturb that part
  alone, so that their variance is that of a problem with so few unknowns.

  Args:
    estimator: any.
    parts: which meta-params are trained, by their keys from the root, such as
      ``"scheduler/rate"``; all below a name are meant.

  Returns:
    The estimator.

  Raises:
    TypeError: if `estimator` is none, or `parts` is a single string.
    ValueError: if there are no parts; from `init`, if the meta-params have no such part.

  Example:
    >>> import jax
    >>> from learned_opt import estimators, optimizees, optimizers
    >>> estimator = estimators.of_part(estimators.truncated_backprop(2, 4), ["output"])
    >>> quadratic, lstm = optimizees.quadratic(2), optimizers.lstm(hidden_size=2)
    >>> meta_params = lstm.init(jax.random.key(0))
    >>> state = estimator.init(quadratic, lstm, meta_params, jax.random.key(1))
    >>> grads, *_ = estimator.estimate(quadratic, lstm, meta_params, state, jax.random.key(2))
    >>> [name for name, part in grads.items() if any(leaf.any() for leaf in jax.tree.leaves(part))]
    ['output']
  """
  if not isinstance(estimator, MetaGradientEstimator):
    raise TypeError(f"estimator must be a MetaGradientEstimator, got {type(estimator).__name__}")
  if isinstance(parts, str):
    raise TypeError(f"parts must be a sequence of names, got the string {parts!r}")
  parts = tuple(parts)
  if not parts:
    raise ValueError("parts must name at least one part of the meta-params")

  def init(optimizee, learned_optimizer, meta_params, key):
    trained = _trained(parts, meta_params)
    architecture = _architecture_of_part(learned_optimizer, meta_params, trained)
    return estimator.init(optimizee, architecture, _take(meta_params, trained), key)

  def estimate(optimizee, learned_optimizer, meta_params, state, key):
    trained = _trained(parts, meta_params)
    architecture = _architecture_of_part(learned_optimizer, meta_params, trained)
    own = _take(meta_params, trained)
    grads, state, info = estimator.estimate(optimizee, architecture, own, state, key)
    return _put(jax.tree.map(jnp.zeros_like, meta_params), trained, grads), state, info

  return MetaGradientEstimator(init, estimate, estimator.horizon)


def _trained(parts: tuple[str, ...], meta_params: chex.ArrayTree) -> list[int]:
  """The positions of the leaves that are trained."""
  paths = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(meta_params)
  ]
  for part in parts:
    if not any(_is_below(path, part) for path in paths):
      raise ValueError(f"the meta-params have no part {part!r}: there are {', '.join(paths)}")
  return [i for i, path in enumerate(paths) if any(_is_below(path, part) for part in parts)]


def _is_below(path: str, part: str) -> bool:
  """Whether a leaf is the part or in it.

  >>> _is_below("scheduler/rate/bias", "scheduler/rate"), _is_below("layer_10", "layer_1")
  (True, False)
  """
  return path == part or path.startswith(f"{part}/")


def _take(meta_params: chex.ArrayTree, positions: list[int]) -> tuple[Any, ...]:
  leaves = jax.tree.leaves(meta_params)
  return tuple(leaves[i] for i in positions)


def _put(meta_params: chex.ArrayTree, positions: list[int], part: Any) -> Any:
  leaves, treedef = jax.tree.flatten(meta_params)
  for i, leaf in zip(positions, part, strict=True):
    leaves[i] = leaf
  return treedef.unflatten(leaves)


def _architecture_of_part(
  whole: LearnedOptimizer, meta_params: chex.ArrayTree, positions: list[int]
) -> LearnedOptimizer:
  """The architecture whose meta-params are those leaves, the rest as they are."""

  def complete(part: Any) -> Any:
    return _put(meta_params, positions, part)

  rule = whole.coordinatewise
  if isinstance(rule, CoordinatewiseRule):
    init, update = rule
    rule = CoordinatewiseRule(
      lambda part, number: init(complete(part), number),
      lambda part, grads, state: update(complete(part), grads, state),
    )
  else:
    rule = None
  return LearnedOptimizer(
    init=lambda key: _take(whole.init(key), positions),
    optimizer=lambda part: whole.optimizer(complete(part)),
    coordinatewise=rule,
  )
