"""Meta-gradients by backpropagation through the unrolled optimization (paper, section 2)."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from learned_opt.base import (
  Info,
  InnerState,
  LearnedOptimizer,
  MetaGradientEstimator,
  MetaLoss,
  Optimizee,
  Trajectory,
)
from learned_opt.meta_losses import check_meta_loss, weighted_sum
from learned_opt.unroll import init_inner_state, unroll


class TruncatedState(NamedTuple):
  """Estimator state: the problems in the middle of their optimization.

  Attributes:
    problems: an `InnerState` whose leaves have a leading axis of `meta_batch_size`.
    restart: bool ``[meta_batch_size]``, the problems that are replaced before the next unroll.
  """

  problems: InnerState
  restart: jax.Array


def truncated_backprop(
  unroll_length: int = 20,
  horizon: int = 100,
  meta_batch_size: int = 1,
  meta_loss: MetaLoss = weighted_sum(),
  *,
  second_order: bool = False,
  remat: bool = False,
) -> MetaGradientEstimator:
  """Backpropagation through one truncation of `unroll_length` steps at a time.

  A problem's params and optimizer state are carried, detached, from one truncation to the next
  until it has seen `horizon` inner steps; then a fresh problem takes its place. Each loss
  f(theta_1), ..., f(theta_horizon) belongs to exactly one truncation: the one that made its last
  update, which therefore receives its gradient. Biased unless ``unroll_length == horizon``.

  Problems that diverge are left out by `drop_diverged`, and replaced before the next truncation.

  Source: Andrychowicz et al. (2016), section 2; the defaults are those of its MNIST experiment.

  Args:
    unroll_length: U, inner steps of one truncation and hence of one outer step.
    horizon: inner steps of one problem, a multiple of `unroll_length`.
    meta_batch_size: problems optimized side by side; the estimate is their mean.
    meta_loss: one of `learned_opt.meta_losses`, or any function of that signature.
    second_order: whether to differentiate through the optimizee's gradients.
    remat: whether to recompute each inner step in the backward pass, to save memory.

  Returns:
    The estimator.

  Raises:
    ValueError: if a size is not positive, `horizon` is not a multiple of `unroll_length`, or
      `meta_loss` does not give a finite scalar.
    TypeError: if `meta_loss` is not a function.

  Example:
    >>> import jax
    >>> from learned_opt import estimators, optimizees, optimizers
    >>> optimizee, lstm = optimizees.quadratic(), optimizers.lstm()
    >>> estimator = estimators.truncated_backprop(unroll_length=5, horizon=10)
    >>> meta_params = lstm.init(jax.random.key(0))
    >>> state = estimator.init(optimizee, lstm, meta_params, jax.random.key(1))
    >>> meta_grads, state, info = estimator.estimate(
    ...   optimizee, lstm, meta_params, state, jax.random.key(2)
    ... )
    >>> state.problems.step.tolist(), int(info.num_diverged)
    ([5], 0)
  """
  _check_positive(unroll_length=unroll_length, horizon=horizon, meta_batch_size=meta_batch_size)
  if horizon % unroll_length:
    near = max(horizon // unroll_length, 1) * unroll_length
    raise ValueError(
      f"horizon must be a multiple of unroll_length, got horizon={horizon} and "
      f"unroll_length={unroll_length}; horizon={near} would work"
    )
  check_meta_loss(meta_loss, horizon)

  def draw(optimizee, learned_optimizer, meta_params, key) -> InnerState:
    tx = learned_optimizer.optimizer(meta_params)
    keys = jax.random.split(key, meta_batch_size)
    return jax.vmap(lambda key: init_inner_state(optimizee, tx, key))(keys)

  def init(optimizee, learned_optimizer, meta_params, key) -> TruncatedState:
    problems = draw(optimizee, learned_optimizer, meta_params, key)
    return TruncatedState(problems, jnp.ones(meta_batch_size, bool))

  def problem_loss(
    meta_params: chex.ArrayTree,
    optimizee: Optimizee,
    learned_optimizer: LearnedOptimizer,
    state: InnerState,
  ) -> tuple[jax.Array, tuple[InnerState, Trajectory]]:
    new_state, trajectory = unroll(
      optimizee,
      learned_optimizer.optimizer(meta_params),
      state,
      unroll_length,
      second_order=second_order,
      remat=remat,
    )
    steps = state.step + jnp.arange(1, unroll_length + 1)
    return meta_loss(trajectory.outer_losses, steps), (new_state, trajectory)

  def estimate(optimizee, learned_optimizer, meta_params, state: TruncatedState, key):
    fresh = draw(optimizee, learned_optimizer, meta_params, key)
    problems = _where(state.restart, fresh, state.problems)

    def gradient(problem: InnerState):
      return jax.value_and_grad(problem_loss, has_aux=True)(
        meta_params, optimizee, learned_optimizer, problem
      )

    (losses, (problems, trajectories)), grads = jax.vmap(gradient)(problems)
    meta_grads, diverged = drop_diverged(losses, grads)
    info = Info(
      meta_loss=_mean_where(~diverged, losses),
      losses=_mean_where(~diverged, trajectories.losses),
      num_diverged=jnp.sum(diverged, dtype=jnp.int32),
      meta_grad_norm=optax.global_norm(meta_grads),
    )
    return meta_grads, TruncatedState(problems, diverged | (problems.step >= horizon)), info

  return MetaGradientEstimator(init, estimate, horizon)


def full_unroll(
  horizon: int = 100,
  meta_batch_size: int = 1,
  meta_loss: MetaLoss = weighted_sum(),
  *,
  second_order: bool = False,
  remat: bool = False,
) -> MetaGradientEstimator:
  """Backpropagation through the whole optimization of fresh problems, `horizon` steps at once.

  The gradient of the meta-loss itself under the first-order rule, exactly so if `second_order`;
  memory grows with the horizon.

  Args:
    horizon: inner steps of one problem.
    meta_batch_size: problems optimized side by side; the estimate is their mean.
    meta_loss: one of `learned_opt.meta_losses`, or any function of that signature.
    second_order: whether to differentiate through the optimizee's gradients.
    remat: whether to recompute each inner step in the backward pass, to save memory.

  Returns:
    The estimator.

  Raises:
    ValueError: if a size is not positive or `meta_loss` does not give a finite scalar.
    TypeError: if `meta_loss` is not a function.

  Example:
    >>> from learned_opt import estimators, meta_losses
    >>> estimators.full_unroll(horizon=50, meta_loss=meta_losses.final).horizon
    50
  """
  return truncated_backprop(
    unroll_length=horizon,
    horizon=horizon,
    meta_batch_size=meta_batch_size,
    meta_loss=meta_loss,
    second_order=second_order,
    remat=remat,
  )


def drop_diverged(
  meta_losses: jax.Array, meta_grads: chex.ArrayTree
) -> tuple[chex.ArrayTree, jax.Array]:
  """The mean meta-gradient over the problems whose loss and gradient are finite.

  A problem has diverged if its meta-loss or any element of its meta-gradient is NaN or infinite.
  It then contributes nothing, and the mean is over the others; if all diverged it is zero.

  Args:
    meta_losses: ``[problems]``.
    meta_grads: a tree of ``[problems, ...]`` arrays.

  Returns:
    The mean meta-gradient, and a bool ``[problems]`` array that is true where one diverged.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.estimators import drop_diverged
    >>> grads, diverged = drop_diverged(jnp.array([1.0, jnp.nan]), jnp.array([2.0, 5.0]))
    >>> float(grads), diverged.tolist()
    (2.0, [False, True])
  """
  leaves = [meta_losses, *jax.tree.leaves(meta_grads)]
  finite = jnp.stack([_all_finite(leaf) for leaf in leaves]).all(0)
  grads = jax.tree.map(lambda leaf: _mean_where(finite, leaf, if_none=0.0), meta_grads)
  return grads, ~finite


def _all_finite(leaf: jax.Array) -> jax.Array:
  return jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(1)


def _mean_where(keep: jax.Array, leaf: jax.Array, if_none: float = jnp.nan) -> jax.Array:
  total = jnp.sum(_where(keep, leaf, jnp.zeros_like(leaf)), axis=0)
  number = jnp.sum(keep)
  return jnp.where(number > 0, total / jnp.maximum(number, 1).astype(leaf.dtype), if_none)


def _where(condition: jax.Array, on_true: chex.ArrayTree, on_false: chex.ArrayTree):
  def select(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)

  return jax.tree.map(select, on_true, on_false)


def _check_positive(**sizes: int) -> None:
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")
