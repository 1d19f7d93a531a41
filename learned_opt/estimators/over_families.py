"""One estimator on several families of problems at once."""

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from learned_opt.base import Info, MetaGradientEstimator
from learned_opt.estimators import _paths
from learned_opt.families import Families, map_groups


def over_families(
  estimator: MetaGradientEstimator, max_norm: float | None = None
) -> MetaGradientEstimator:
  """The mean of an estimator's estimates on each family of problems.

  Each family has problems, noise and an estimator state of its own, so that an estimate is as
  unbiased as the estimator; its variance is that of the mean. Families of equal structure run in
  one `vmap` (see `learned_opt.families`). A family all of whose problems diverged is left out. As
  losses of different families have different scales, `meta_losses.mean_log`, whose gradient does
  not depend on them, or an estimator that takes signs gives them equal weight. Backpropagation
  through long unrolls may explode in one family and not in the others: its estimate is then all
  that the mean contains, unless `max_norm` bounds it.

  `Info` is the mean over families: of meta-losses and losses over those that did not diverge as a
  whole; numbers of problems are sums.

  Args:
    estimator: any.
    max_norm: longer estimates of a family are scaled down to this norm, before the mean is taken;
      with a norm below those of all of them, each family has the same say. None means that none
      is; bounded estimates have a bias.

  Returns:
    The estimator; its `estimate` takes `Families`, whose every member gets as many problems as
    the estimator has.

  Raises:
    TypeError: if `estimator` is none; from `init`, if it is given a single optimizee.
    ValueError: if `max_norm` is not positive and finite.

  Example:
    >>> import jax
    >>> from learned_opt import estimators, optimizees, optimizers
    >>> from learned_opt.families import families
    >>> estimator = estimators.over_families(estimators.truncated_backprop(5, 10))
    >>> both = families(optimizees.quadratic(2), optimizees.logistic_regression(2))
    >>> lstm = optimizers.lstm(hidden_size=2)
    >>> meta_params = lstm.init(jax.random.key(0))
    >>> state = jax.eval_shape(
    ...   lambda key: estimator.init(both, lstm, meta_params, key), jax.random.key(1)
    ... )
    >>> [part.problems.params.shape for part in state]  # families, problems, coordinates
    [(1, 1, 2), (1, 1, 2)]
  """
  if not isinstance(estimator, MetaGradientEstimator):
    raise TypeError(f"estimator must be a MetaGradientEstimator, got {type(estimator).__name__}")
  if max_norm is not None and not (math.isfinite(max_norm) and max_norm > 0):
    raise ValueError(f"max_norm must be positive and finite, or None, got {max_norm}")

  def init(families: Any, learned_optimizer, meta_params, key) -> tuple[Any, ...]:
    _check_families(families)

    def init_one(optimizee, key):
      return estimator.init(optimizee, learned_optimizer, meta_params, key)

    return tuple(map_groups(init_one, families, key))

  def estimate(families: Any, learned_optimizer, meta_params, state, key):
    _check_families(families)

    def estimate_one(optimizee, key, state):
      return estimator.estimate(optimizee, learned_optimizer, meta_params, state, key)

    grads, states, infos = zip(*map_groups(estimate_one, families, key, state), strict=True)
    grads, info = _concatenate(grads), _concatenate(infos)
    if max_norm is not None:
      grads = jax.vmap(functools.partial(_clip, max_norm))(grads)
    alive = jnp.isfinite(info.meta_loss)
    meta_grads = jax.tree.map(lambda leaf: _paths.mean_where(alive, leaf, if_none=0.0), grads)
    return meta_grads, states, _mean_info(info, alive, optax.tree.norm(meta_grads))

  return MetaGradientEstimator(init, estimate, estimator.horizon)


def _clip(max_norm: float, meta_grads: chex.ArrayTree) -> chex.ArrayTree:
  scale = jnp.minimum(1.0, max_norm / optax.tree.norm(meta_grads))
  return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), meta_grads)


def _mean_info(info: Info, alive: jax.Array, meta_grad_norm: jax.Array) -> Info:
  def join(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.integer):
      return jnp.sum(leaf, axis=0, dtype=leaf.dtype)
    return _paths.mean_where(alive, leaf)

  return jax.tree.map(join, info)._replace(meta_grad_norm=meta_grad_norm)


def _concatenate(by_group: tuple[Any, ...]) -> Any:
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *by_group)


def _check_families(families: Any) -> None:
  if not isinstance(families, Families):
    raise TypeError(
      "over_families needs learned_opt.families.families(...) in place of an optimizee, got "
      f"{type(families).__name__}"
    )
