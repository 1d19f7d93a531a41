"""Meta-gradients by backpropagation through the unrolled optimization (paper, section 2)."""

import functools
from typing import Literal, TypeAlias, get_args

from learned_opt.base import LearnedOptimizer, MetaGradientEstimator, MetaLoss
from learned_opt.estimators import _paths
from learned_opt.estimators._autodiff import autodiff_path
from learned_opt.estimators._replay import replay_path
from learned_opt.estimators._truncations import check_positive, check_truncations, truncations
from learned_opt.meta_losses import check_meta_loss, weighted_sum

PathName: TypeAlias = Literal["auto", "autodiff", "single_gradient", "replay"]


def truncated_backprop(
  unroll_length: int = 20,
  horizon: int = 100,
  meta_batch_size: int = 1,
  meta_loss: MetaLoss = weighted_sum(),
  *,
  second_order: bool = False,
  remat: bool = False,
  path: PathName = "auto",
  replayed_coordinates: int | None = None,
) -> MetaGradientEstimator:
  """Backpropagation through one truncation of `unroll_length` steps at a time.

  A problem's params and optimizer state are carried, detached, from one truncation to the next
  until it has seen `horizon` inner steps; then a fresh problem takes its place. Each loss
  f(theta_1), ..., f(theta_horizon) belongs to exactly one truncation: the one that made its last
  update, which therefore receives its gradient. Biased unless ``unroll_length == horizon``.

  Problems that diverge are left out as by `drop_diverged`, and replaced before the next truncation.

  Source: Andrychowicz et al. (2016), section 2; the defaults are those of its MNIST experiment.

  Args:
    unroll_length: U, inner steps of one truncation and hence of one outer step.
    horizon: inner steps of one problem, a multiple of `unroll_length`.
    meta_batch_size: problems optimized side by side; the estimate is their mean.
    meta_loss: one of `learned_opt.meta_losses`, or any function of that signature.
    second_order: whether to differentiate through the optimizee's gradients.
    remat: whether to recompute each inner step in the backward pass, to save memory.
    path: how the gradient is computed, with equal results to rounding. ``"autodiff"``
      differentiates through the scan, the reference; ``"single_gradient"`` does so without walking
      through the optimizee a second time, and is possible for first-order gradients;
      ``"replay"`` differentiates the optimizer alone, in blocks of coordinates, and is possible
      for first-order gradients of purely coordinatewise optimizers, with `remat` implied;
      ``"auto"`` takes the last of these that is possible.
    replayed_coordinates: how many coordinates of each tensor of a problem the replay goes back
      through, drawn anew for each outer step; None for all. The estimate stays unbiased, as those
      that are drawn count for all of their tensor, and its cost comes close to that of running the
      problems. Needs the replay.

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
  check_truncations(unroll_length, horizon, meta_batch_size)
  if path not in get_args(PathName):
    names = ", ".join(repr(name) for name in get_args(PathName))
    raise ValueError(f"path must be one of {names}, got {path!r}")
  if second_order and path in ("single_gradient", "replay"):
    raise ValueError(f"path={path!r} is first order: use path='autodiff' with second_order=True")
  if replayed_coordinates is not None:
    check_positive(replayed_coordinates=replayed_coordinates)
    if second_order or path in ("autodiff", "single_gradient"):
      raise ValueError(
        "replayed_coordinates needs the replay: use path='auto' or 'replay' and "
        f"second_order=False, got path={path!r} and second_order={second_order}"
      )
  check_meta_loss(meta_loss, horizon)
  through_the_scan = functools.partial(
    autodiff_path, unroll_length, meta_loss, horizon=horizon, remat=remat
  )

  def path_for(learned_optimizer: LearnedOptimizer) -> _paths.Path:
    replays = learned_optimizer.coordinatewise is not None
    if not replays and (path == "replay" or replayed_coordinates is not None):
      asked = "path='replay'" if replayed_coordinates is None else "replayed_coordinates"
      raise ValueError(
        f"{asked} needs a purely coordinatewise optimizer; {learned_optimizer.name} declares "
        "no CoordinatewiseRule. path='single_gradient' works for all"
      )
    if second_order or path == "autodiff":
      return through_the_scan(second_order=second_order)
    if path == "single_gradient" or not replays:
      return through_the_scan(single_gradient=True)
    return replay_path(unroll_length, meta_loss, replayed_coordinates)

  return truncations(path_for, unroll_length, horizon, meta_batch_size)


def full_unroll(
  horizon: int = 100,
  meta_batch_size: int = 1,
  meta_loss: MetaLoss = weighted_sum(),
  *,
  second_order: bool = False,
  remat: bool = False,
  path: PathName = "auto",
  replayed_coordinates: int | None = None,
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
    path: how the gradient is computed, with equal results to rounding. ``"autodiff"``
      differentiates through the scan, the reference; ``"single_gradient"`` does so without walking
      through the optimizee a second time, and is possible for first-order gradients;
      ``"replay"`` differentiates the optimizer alone, in blocks of coordinates, and is possible
      for first-order gradients of purely coordinatewise optimizers, with `remat` implied;
      ``"auto"`` takes the last of these that is possible.
    replayed_coordinates: how many coordinates of each tensor of a problem the replay goes back
      through, drawn anew for each outer step; None for all. The estimate stays unbiased, as those
      that are drawn count for all of their tensor, and its cost comes close to that of running the
      problems. Needs the replay.

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
    path=path,
    replayed_coordinates=replayed_coordinates,
  )
