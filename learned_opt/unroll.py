"""Inner steps: the only scan over the optimization of one problem.

One inner step at theta_t (paper, section 2):

    grad_t = d f(theta_t) / d theta,  (update_t, h_{t+1}) = m(grad_t, h_t; phi),
    theta_{t+1} = theta_t + update_t.

Everything here is for one problem; callers `vmap`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from learned_opt.base import InnerState, LossFn, Optimizee, Trajectory

# Folded into the key of a step for what the outer loss draws.
_OUTER_LOSS = 1


class Renewal(NamedTuple):
  """A fresh problem that takes the place of another in the middle of an unroll.

  Attributes:
    after: int32 scalar, the updates that the old problem still sees. The inner step after them
      does no update: its loss is the old problem's last, and the fresh problem follows. Never, if
      the unroll has no more steps than that.
    problem: the fresh problem at step 0, with an `opt_state` of the same shape.
    horizon: of the fresh problem.
  """

  after: jax.Array
  problem: InnerState
  horizon: chex.Numeric


def init_inner_state(
  optimizee: Optimizee, tx: optax.GradientTransformation, key: chex.PRNGKey
) -> InnerState:
  """Draws one problem and the state in which its optimization starts.

  Args:
    optimizee: the distribution of problems.
    tx: the bound transformation.
    key: the problem's key; it decides the problem and all its minibatches.

  Returns:
    The state at step 0.

  Example:
    >>> import jax, optax
    >>> from learned_opt import optimizees
    >>> from learned_opt.unroll import init_inner_state
    >>> state = init_inner_state(optimizees.quadratic(), optax.sgd(0.01), jax.random.key(0))
    >>> state.params.shape, int(state.step)
    ((10,), 0)
  """
  init_key, run_key = jax.random.split(key)
  params, constants = optimizee.init(init_key, optimizee.data)
  return InnerState(params, tx.init(params), constants, run_key, jnp.zeros((), jnp.int32))


def step_key(state: InnerState) -> chex.PRNGKey:
  """The key of the inner loss at this step: it draws the minibatch.

  Example:
    >>> import jax, optax
    >>> from learned_opt import optimizees, unroll
    >>> state = unroll.init_inner_state(optimizees.quadratic(), optax.sgd(0.01), jax.random.key(0))
    >>> bool(unroll.step_key(state) == jax.random.fold_in(state.key, 0))
    True
  """
  return jax.random.fold_in(state.key, state.step)


def outer_loss_key(state: InnerState) -> chex.PRNGKey:
  """The key of the outer loss at this step, independent of the inner loss's.

  Example:
    >>> import jax, optax
    >>> from learned_opt import optimizees, unroll
    >>> state = unroll.init_inner_state(optimizees.quadratic(), optax.sgd(0.01), jax.random.key(0))
    >>> bool(unroll.outer_loss_key(state) == unroll.step_key(state))
    False
  """
  return jax.random.fold_in(step_key(state), _OUTER_LOSS)


@jax.custom_vjp
def with_gradient(loss: jax.Array, params: chex.ArrayTree, grads: chex.ArrayTree) -> jax.Array:
  """The loss, whose derivative with respect to the params is known to be `grads`.

  Reverse mode then never walks through the function that gave the loss, and nothing of its forward
  pass is kept: one gradient an inner step serves the optimizer and the meta-gradient.

  Args:
    loss: scalar.
    params: any pytree.
    grads: the derivative of the loss, as the params; taken to be constant.

  Returns:
    The loss.

  Example:
    >>> import jax
    >>> from learned_opt.unroll import with_gradient
    >>> float(jax.grad(lambda x: 3.0 * with_gradient(x**2, x, 5.0))(1.0))
    15.0
  """
  del params, grads
  return loss


def _with_gradient_fwd(loss, params, grads):
  del params
  return loss, grads


def _with_gradient_bwd(grads, cotangent):
  params_bar = jax.tree.map(lambda grad: cotangent.astype(grad.dtype) * grad, grads)
  return jnp.zeros_like(cotangent), params_bar, jax.tree.map(jnp.zeros_like, grads)


with_gradient.defvjp(_with_gradient_fwd, _with_gradient_bwd)


def inner_step(
  optimizee: Optimizee,
  tx: optax.GradientTransformation,
  state: InnerState,
  *,
  horizon: chex.Numeric | None = None,
  second_order: bool = False,
  single_gradient: bool = False,
) -> tuple[InnerState, jax.Array]:
  """Applies one update to one problem.

  `tx.update` is given ``value``, ``grad`` and ``value_fn`` (the loss on the same minibatch) as
  extra keywords, and the horizon as ``num_steps`` if there is one; by optax's contract a
  transformation ignores those that it does not know.

  Args:
    optimizee: the distribution of problems.
    tx: the bound transformation.
    state: the problem at step t.
    horizon: the number of updates that the problem is going to see, an integer scalar, for
      optimizers that plan ahead; None if nobody knows.
    second_order: whether to differentiate through the optimizee's gradient. The default is the
      paper's first-order rule: the derivative of grad_t with respect to phi is taken to be zero.
    single_gradient: whether reverse mode takes the derivative of the returned loss to be that
      gradient (`with_gradient`), instead of walking through the optimizee once more. First order
      only; equal to rounding.

  Returns:
    The problem at step t + 1, and the scalar loss f(theta_t).

  Example:
    >>> import jax, optax
    >>> from learned_opt import optimizees
    >>> from learned_opt.unroll import init_inner_state, inner_step
    >>> optimizee, tx = optimizees.quadratic(), optax.sgd(0.01)
    >>> state = init_inner_state(optimizee, tx, jax.random.key(0))
    >>> state, loss = inner_step(optimizee, tx, state)
    >>> int(state.step), loss.shape
    (1, ())
  """
  key = step_key(state)

  def value_fn(params: chex.ArrayTree, num_steps: chex.Numeric | None = None) -> jax.Array:
    # optax's line searches hand what they do not know to this function, which must take it.
    del num_steps
    return optimizee.loss(params, state.constants, optimizee.data, key)

  at = jax.lax.stop_gradient(state.params) if single_gradient else state.params
  loss, grads = jax.value_and_grad(value_fn)(at)
  # What the optimizer sees is detached; the loss that is returned is not, as the meta-loss is
  # made of it.
  value = loss
  if not second_order:
    grads, value = jax.lax.stop_gradient((grads, loss))
  if single_gradient:
    loss = with_gradient(value, state.params, grads)
  planned = {} if horizon is None else {"num_steps": horizon}
  updates, opt_state = optax.with_extra_args_support(tx).update(
    grads, state.opt_state, state.params, value=value, grad=grads, value_fn=value_fn, **planned
  )
  params = optax.apply_updates(state.params, updates)
  return state._replace(params=params, opt_state=opt_state, step=state.step + 1), loss


def unroll(
  optimizee: Optimizee,
  tx: optax.GradientTransformation,
  state: InnerState,
  num_steps: int,
  *,
  horizon: chex.Numeric | None = None,
  second_order: bool = False,
  single_gradient: bool = False,
  remat: bool = False,
  renewal: Renewal | None = None,
) -> tuple[InnerState, Trajectory]:
  """Applies `num_steps` updates to one problem, in one `jax.lax.scan`.

  The loss is evaluated once more after the last update, so that the last update of an unroll
  receives its gradient when a meta-loss of the `Trajectory` is differentiated.

  Args:
    optimizee: the distribution of problems.
    tx: the bound transformation.
    state: the problem at step s.
    num_steps: U, the number of updates.
    horizon: see `inner_step`: what the optimizer is told, of which the unroll may be a part.
    second_order: see `inner_step`.
    single_gradient: see `inner_step`; holds for the outer losses, too.
    remat: whether the backward pass recomputes each inner step instead of keeping its
      intermediate values: memory for the carried states only, for about a third more time.
    renewal: a fresh problem to go on with where this one ends inside the unroll.

  Returns:
    The problem at step s + U, and the losses along the way.

  Raises:
    ValueError: if both `second_order` and `single_gradient`.

  Example:
    >>> import jax, optax
    >>> from learned_opt import optimizees
    >>> from learned_opt.unroll import init_inner_state, unroll
    >>> optimizee, tx = optimizees.quadratic(), optax.sgd(0.01)
    >>> state = init_inner_state(optimizee, tx, jax.random.key(0))
    >>> state, trajectory = unroll(optimizee, tx, state, 20)
    >>> trajectory.losses.shape, bool(trajectory.losses[-1] < trajectory.losses[0])
    ((21,), True)
  """
  if second_order and single_gradient:
    raise ValueError("single_gradient is first order: it cannot go with second_order")
  step = functools.partial(
    inner_step,
    optimizee,
    tx,
    second_order=second_order,
    single_gradient=single_gradient,
  )

  step_at = functools.partial(_step_or_renew, step, renewal, horizon)

  def evaluate(loss_fn: LossFn, state: InnerState, key: chex.PRNGKey) -> jax.Array:
    if not single_gradient:
      return loss_fn(state.params, state.constants, optimizee.data, key)
    loss, grads = jax.value_and_grad(loss_fn)(
      jax.lax.stop_gradient(state.params), state.constants, optimizee.data, key
    )
    return with_gradient(loss, state.params, grads)

  def body(state: InnerState, index) -> tuple[InnerState, tuple[jax.Array, jax.Array | None]]:
    new_state, loss = step_at(index, state)
    if optimizee.outer_loss is None:
      return new_state, (loss, None)
    outer_loss = evaluate(optimizee.outer_loss, new_state, outer_loss_key(new_state))
    return new_state, (loss, outer_loss)

  if remat:
    # XLA cannot merge the recomputation with the forward pass across a scan's iterations, so the
    # barriers that would prevent it are not needed.
    body = jax.checkpoint(body, prevent_cse=False)
  indices = None if renewal is None else jnp.arange(num_steps)
  state, (losses, outer_losses) = jax.lax.scan(body, state, indices, length=num_steps)
  last = evaluate(optimizee.loss, state, step_key(state))
  losses = jnp.append(losses, last)
  return state, Trajectory(losses, losses[1:] if outer_losses is None else outer_losses)


def _step_or_renew(
  step: Callable[..., tuple[InnerState, jax.Array]],
  renewal: Renewal | None,
  horizon: chex.Numeric | None,
  index: jax.Array,
  state: InnerState,
) -> tuple[InnerState, jax.Array]:
  if renewal is None:
    return step(state, horizon=horizon)
  if horizon is not None:
    horizon = jnp.where(index > renewal.after, renewal.horizon, horizon)
  stepped, loss = step(state, horizon=horizon)
  is_over = functools.partial(jnp.where, index == renewal.after)
  return jax.tree.map(is_over, renewal.problem, stepped), loss
