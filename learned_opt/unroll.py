"""Inner steps: the only scan over the optimization of one problem.

One inner step at theta_t (paper, section 2):

    grad_t = d f(theta_t) / d theta,  (update_t, h_{t+1}) = m(grad_t, h_t; phi),
    theta_{t+1} = theta_t + update_t.

Everything here is for one problem; callers `vmap`.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import optax

from learned_opt.base import InnerState, Optimizee, Trajectory

# Folded into the key of a step for what the outer loss draws.
_OUTER_LOSS = 1


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


def inner_step(
  optimizee: Optimizee,
  tx: optax.GradientTransformation,
  state: InnerState,
  *,
  second_order: bool = False,
) -> tuple[InnerState, jax.Array]:
  """Applies one update to one problem.

  `tx.update` is given ``value``, ``grad`` and ``value_fn`` (the loss on the same minibatch) as
  extra keywords; by optax's contract a transformation ignores those that it does not know.

  Args:
    optimizee: the distribution of problems.
    tx: the bound transformation.
    state: the problem at step t.
    second_order: whether to differentiate through the optimizee's gradient. The default is the
      paper's first-order rule: the derivative of grad_t with respect to phi is taken to be zero.

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

  def value_fn(params: chex.ArrayTree) -> jax.Array:
    return optimizee.loss(params, state.constants, optimizee.data, key)

  loss, grads = jax.value_and_grad(value_fn)(state.params)
  # What the optimizer sees is detached; the loss that is returned is not, as the meta-loss is
  # made of it.
  value = loss
  if not second_order:
    grads, value = jax.lax.stop_gradient((grads, loss))
  updates, opt_state = optax.with_extra_args_support(tx).update(
    grads, state.opt_state, state.params, value=value, grad=grads, value_fn=value_fn
  )
  params = optax.apply_updates(state.params, updates)
  return state._replace(params=params, opt_state=opt_state, step=state.step + 1), loss


def unroll(
  optimizee: Optimizee,
  tx: optax.GradientTransformation,
  state: InnerState,
  num_steps: int,
  *,
  second_order: bool = False,
  remat: bool = False,
) -> tuple[InnerState, Trajectory]:
  """Applies `num_steps` updates to one problem, in one `jax.lax.scan`.

  The loss is evaluated once more after the last update, so that the last update of an unroll
  receives its gradient when a meta-loss of the `Trajectory` is differentiated.

  Args:
    optimizee: the distribution of problems.
    tx: the bound transformation.
    state: the problem at step s.
    num_steps: U, the number of updates.
    second_order: see `inner_step`.
    remat: whether the backward pass recomputes each inner step instead of keeping its
      intermediate values: memory for the carried states only, for about a third more time.

  Returns:
    The problem at step s + U, and the losses along the way.

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
  step = functools.partial(inner_step, optimizee, tx, second_order=second_order)

  def body(state: InnerState, _) -> tuple[InnerState, tuple[jax.Array, jax.Array | None]]:
    new_state, loss = step(state)
    if optimizee.outer_loss is None:
      return new_state, (loss, None)
    outer_loss = optimizee.outer_loss(
      new_state.params, new_state.constants, optimizee.data, outer_loss_key(new_state)
    )
    return new_state, (loss, outer_loss)

  if remat:
    # XLA cannot merge the recomputation with the forward pass across a scan's iterations, so the
    # barriers that would prevent it are not needed.
    body = jax.checkpoint(body, prevent_cse=False)
  state, (losses, outer_losses) = jax.lax.scan(body, state, length=num_steps)
  last = optimizee.loss(state.params, state.constants, optimizee.data, step_key(state))
  losses = jnp.append(losses, last)
  return state, Trajectory(losses, losses[1:] if outer_losses is None else outer_losses)
