"""Learning from a teacher: the student is to propose the updates that the teacher makes."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt.base import InnerState, MetaGradientEstimator
from learned_opt.estimators import _paths
from learned_opt.estimators._autodiff import mean_gradient
from learned_opt.estimators._truncations import check_truncations, truncations
from learned_opt.unroll import init_inner_state, unroll


class Lesson(NamedTuple):
  """The optimizer state of a problem that the teacher optimizes.

  Attributes:
    teacher: the teacher's state.
    student: the student's, which sees the same gradients.
    error: scalar, the squared differences of their updates, summed over the steps of an unroll.
  """

  teacher: Any
  student: Any
  error: jax.Array


def imitation(
  unroll_length: int = 20,
  horizon: int = 100,
  meta_batch_size: int = 1,
  teacher: optax.GradientTransformation = optax.adam(0.01),
  *,
  weight: float = 1e4,
  remat: bool = False,
) -> MetaGradientEstimator:
  """The gradient of how much the proposed updates differ from a teacher's, along its trajectory.

  The teacher optimizes the problems; the student, the learned optimizer, is given the gradients
  there, and its updates m_t(phi) are compared with the teacher's u_t, over the n coordinates:

      weight * sum_t 1 / (2 n) sum_i (u_ti - m_ti(phi))^2

  Nothing is differentiated but the student. `mixture` makes it a part of a meta-training. The state
  is carried over truncations as that of `truncated_backprop`; problems whose losses or whose
  gradient are not finite are left out as by `drop_diverged`. In the `Info`, the meta-loss is the
  one above, and the losses are the teacher's.

  Source: Chen et al. (2020), where the imitation has an outer optimizer of its own.

  Args:
    unroll_length: U, inner steps of one truncation and hence of one outer step.
    horizon: inner steps of one problem, a multiple of `unroll_length`.
    meta_batch_size: problems optimized side by side; the estimate is their mean.
    teacher: any optax transformation.
    weight: brings the squares of small updates to the size of a meta-loss, with which they may
      share the outer optimizer. The default is for a teacher that moves by about 0.01, as Adam at
      that rate: a student that stands still then has a loss of about 1/2 a step.
    remat: whether to recompute each inner step in the backward pass, to save memory.

  Returns:
    The estimator.

  Raises:
    ValueError: if a size or the weight is not positive, or `horizon` is not a multiple of
      `unroll_length`.
    TypeError: if `teacher` is not an optax transformation.

  Example:
    >>> import jax, optax
    >>> from learned_opt import estimators, optimizees, optimizers
    >>> optimizee, lstm = optimizees.quadratic(), optimizers.lstm()
    >>> estimator = estimators.imitation(5, 10, teacher=optax.rmsprop(0.01))
    >>> meta_params = lstm.init(jax.random.key(0))
    >>> state = estimator.init(optimizee, lstm, meta_params, jax.random.key(1))
    >>> meta_grads, state, info = estimator.estimate(
    ...   optimizee, lstm, meta_params, state, jax.random.key(2)
    ... )
    >>> bool(info.meta_loss > 0), state.problems.step.tolist()
    (True, [5])
  """
  check_truncations(unroll_length, horizon, meta_batch_size)
  if not isinstance(teacher, optax.GradientTransformation):
    raise TypeError(
      "teacher must be an optax transformation such as optax.adam(0.01), "
      f"got {type(teacher).__name__}"
    )
  if not (math.isfinite(weight) and weight > 0):
    raise ValueError(f"weight must be positive and finite, got {weight}")

  def draw(optimizee, learned_optimizer, meta_params, keys) -> InnerState:
    tx = _observed(teacher, learned_optimizer.optimizer(meta_params))
    return jax.vmap(lambda key: init_inner_state(optimizee, tx, key))(keys)

  def gradient(optimizee, learned_optimizer, meta_params, problems, key) -> _paths.SegmentGradient:
    del key

    def problem_loss(meta_params, problem: InnerState):
      tx = _observed(teacher, learned_optimizer.optimizer(meta_params))
      lesson: Lesson = problem.opt_state
      start = problem._replace(opt_state=lesson._replace(error=jnp.zeros_like(lesson.error)))
      end, trajectory = unroll(optimizee, tx, start, unroll_length, horizon=horizon, remat=remat)
      is_finite = jnp.all(jnp.isfinite(trajectory.losses))
      return jnp.where(is_finite, weight * end.opt_state.error, jnp.nan), (end, trajectory)

    return mean_gradient(problem_loss, meta_params, problems)

  path = _paths.Path(draw, _paths.where, gradient)
  return truncations(lambda _: path, unroll_length, horizon, meta_batch_size)


def _observed(
  teacher: optax.GradientTransformation, student: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
  """The teacher; its state keeps count of how far the student's updates are from its own."""
  teacher, student = optax.with_extra_args_support(teacher), optax.with_extra_args_support(student)

  def init(params) -> Lesson:
    return Lesson(teacher.init(params), student.init(params), jnp.zeros(()))

  def update(updates, state, params=None, **extra):
    targets, teacher_state = teacher.update(updates, state.teacher, params, **extra)
    outputs, student_state = student.update(updates, state.student, params, **extra)
    differences = optax.tree.sub(outputs, targets)
    error = optax.tree.norm(differences, squared=True) / (2 * optax.tree.size(differences))
    error = state.error + error.astype(state.error.dtype)
    return targets, Lesson(teacher_state, student_state, error)

  return optax.GradientTransformationExtraArgs(init, update)
