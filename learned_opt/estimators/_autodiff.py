"""Autodiff through the scan, problem by problem: the reference, and its first-order short cut."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from learned_opt import devices
from learned_opt.base import InnerState, LearnedOptimizer, MetaLoss, Optimizee, Trajectory
from learned_opt.estimators import _paths
from learned_opt.unroll import init_inner_state, unroll


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
  finite = _paths.all_finite((meta_losses, meta_grads))
  grads = jax.tree.map(lambda leaf: _paths.mean_where(finite, leaf, if_none=0.0), meta_grads)
  return grads, ~finite


def autodiff_path(
  unroll_length: int,
  meta_loss: MetaLoss,
  *,
  horizon: int | None = None,
  second_order: bool = False,
  single_gradient: bool = False,
  remat: bool = False,
) -> _paths.Path:
  """Differentiates through `learned_opt.unroll.unroll`; any optimizee, any learned optimizer."""

  def draw(optimizee, learned_optimizer, meta_params, keys) -> InnerState:
    tx = learned_optimizer.optimizer(meta_params)
    return jax.vmap(lambda key: init_inner_state(optimizee, tx, key))(keys)

  def problem_loss(
    meta_params: chex.ArrayTree,
    optimizee: Optimizee,
    learned_optimizer: LearnedOptimizer,
    state: InnerState,
  ):
    tx = learned_optimizer.optimizer(meta_params)
    new_state, trajectory = unroll(
      optimizee,
      tx,
      state,
      unroll_length,
      horizon=horizon,
      second_order=second_order,
      single_gradient=single_gradient,
      remat=remat,
    )
    steps = state.step + jnp.arange(1, unroll_length + 1)
    return meta_loss(trajectory.outer_losses, steps), (new_state, trajectory)

  def gradient(optimizee, learned_optimizer, meta_params, problems, key) -> _paths.SegmentGradient:
    del key

    def loss(meta_params: chex.ArrayTree, problem: InnerState):
      return problem_loss(meta_params, optimizee, learned_optimizer, problem)

    return mean_gradient(loss, meta_params, problems)

  return _paths.Path(draw, _paths.where, gradient)


def mean_gradient(
  problem_loss: Callable[..., tuple[jax.Array, tuple[InnerState, Trajectory]]],
  meta_params: chex.ArrayTree,
  problems: InnerState,
) -> _paths.SegmentGradient:
  """The mean over problems of the derivative of ``(meta_params, problem) -> loss, (end, losses)``.

  Problems that diverge are left out, as by `drop_diverged`.
  """

  def one_problem(problem: InnerState):
    return jax.value_and_grad(problem_loss, has_aux=True)(meta_params, problem)

  problems = devices.share(problems)
  (losses, (problems, trajectory)), grads = jax.vmap(one_problem)(problems)
  meta_grads, diverged = drop_diverged(losses, grads)
  return _paths.SegmentGradient(meta_grads, losses, diverged, trajectory, problems)
