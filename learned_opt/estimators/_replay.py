"""The replay path: backpropagation decoupled over coordinates.

Under the first-order rule the updates u_t(phi; g_1, ..., g_t) of a purely coordinatewise optimizer
depend on phi and on gradients that count as constants. As theta_s = theta_0 + sum_{t<s} u_t,

    d/dphi sum_s L(f_s(theta_s)) = d/dphi sum_t <u_t(phi), R_t>,
    R_t = sum_{s>t} w_s g_s,  w_s = dL/df_s,  g_s = grad f_s(theta_s),

with R_t held constant: no derivative of the optimizee is needed beyond the gradients g_s that the
inner steps have computed anyway. The optimization runs once, without a backward pass, and keeps
the g_s. Then the optimizer alone is replayed, forwards and backwards, in blocks of coordinates
small enough for the cache; coordinates of all problems lie side by side.

Equal to `learned_opt.estimators._autodiff`, to rounding, for float32 params.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from learned_opt import _coordinates
from learned_opt.base import CoordinatewiseRule, InnerState, MetaLoss, Optimizee, Trajectory
from learned_opt.estimators import _paths
from learned_opt.unroll import init_inner_state, outer_loss_key, step_key

# Coordinates replayed side by side: 20 steps of the paper's LSTM then keep 4 MB.
BLOCK = 512


class _Record(NamedTuple):
  """What the forward pass keeps of one inner step, for all problems.

  Attributes:
    losses: ``[problems]``, at theta_t.
    grads: ``[problems, n]``, at theta_t.
    outer_losses: ``[problems]``, at theta_{t+1}; None without an outer loss.
    outer_grads: ``[problems, n]``, at theta_{t+1}; None without an outer loss.
  """

  losses: jax.Array
  grads: jax.Array
  outer_losses: jax.Array | None
  outer_grads: jax.Array | None


def replay_path(unroll_length: int, meta_loss: MetaLoss) -> _paths.Path:
  """For learned optimizers that declare a `CoordinatewiseRule`; first order only.

  The optimizer state of the batch of problems is that of one long vector of coordinates, problem
  after problem.
  """

  def draw(optimizee, learned_optimizer, meta_params, keys) -> InnerState:
    problems = jax.vmap(lambda key: init_inner_state(optimizee, optax.identity(), key))(keys)
    num_coordinates = _coordinates.count(problems.params)
    return problems._replace(
      opt_state=learned_optimizer.coordinatewise.init(meta_params, num_coordinates)
    )

  def choose(condition, on_true: InnerState, on_false: InnerState) -> InnerState:
    per_problem = _coordinates.count(on_true.params) // condition.shape[0]
    by_coordinate = jnp.repeat(condition, per_problem)
    opt_state = jax.tree.map(
      functools.partial(_where_last, by_coordinate), on_true.opt_state, on_false.opt_state
    )
    chosen = _paths.where(
      condition, on_true._replace(opt_state=()), on_false._replace(opt_state=())
    )
    return chosen._replace(opt_state=opt_state)

  def gradient(optimizee, learned_optimizer, meta_params, problems) -> _paths.SegmentGradient:
    rule = learned_optimizer.coordinatewise
    end, records, last = _run(optimizee, rule, meta_params, problems, unroll_length)
    grads = jnp.concatenate([records.grads, last.grads[None]])
    losses = jnp.concatenate([records.losses, last.losses[None]])
    if records.outer_losses is None:
      outer_losses, outer_grads = losses[1:], grads[1:]
    else:
      outer_losses, outer_grads = records.outer_losses, records.outer_grads

    steps = problems.step[None] + jnp.arange(1, unroll_length + 1)[:, None]
    meta_losses, weights = jax.vmap(jax.value_and_grad(meta_loss), in_axes=1, out_axes=(0, 1))(
      outer_losses, steps
    )
    to_come = jnp.cumsum((weights[..., None] * outer_grads)[::-1], axis=0)[::-1]
    finite = _paths.all_finite(
      (meta_losses, end.params, jnp.moveaxis(grads, 1, 0), jnp.moveaxis(to_come, 1, 0))
    )
    keep = functools.partial(_zero_unless, jnp.repeat(finite, grads.shape[2]))
    total = _replay(
      rule,
      meta_params,
      jax.tree.map(keep, problems.opt_state),
      keep(grads[:-1].reshape(unroll_length, -1)),
      keep(to_come.reshape(unroll_length, -1)),
    )
    # A sum that overflows although each problem is finite cannot be blamed on one of them.
    sum_is_finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(total)]).all()
    finite &= sum_is_finite
    number = jnp.maximum(jnp.sum(finite), 1)
    meta_grads = jax.tree.map(lambda leaf: jnp.where(sum_is_finite, leaf / number, 0.0), total)
    trajectory = Trajectory(losses.T, outer_losses.T)
    return _paths.SegmentGradient(meta_grads, meta_losses, ~finite, trajectory, end)

  return _paths.Path(draw, choose, gradient)


def _run(
  optimizee: Optimizee,
  rule: CoordinatewiseRule,
  meta_params: chex.ArrayTree,
  problems: InnerState,
  num_steps: int,
) -> tuple[InnerState, _Record, _Record]:
  """Runs the batch; the last record is that of theta_U, where no update follows."""
  dtype = jax.tree.leaves(meta_params)[0].dtype

  def loss_and_grad(loss_fn, key, problem: InnerState):
    loss, grads = jax.value_and_grad(loss_fn)(
      problem.params, problem.constants, optimizee.data, key
    )
    return loss, _coordinates.concatenate(grads, dtype)

  def inner(problem: InnerState):
    return loss_and_grad(optimizee.loss, step_key(problem), problem)

  def outer(problem: InnerState):
    return loss_and_grad(optimizee.outer_loss, outer_loss_key(problem), problem)

  def body(state: InnerState, _) -> tuple[InnerState, _Record]:
    vectors = state._replace(opt_state=())
    losses, grads = jax.vmap(inner)(vectors)
    updates, opt_state = rule.update(meta_params, grads.reshape(-1), state.opt_state)
    updates = jax.vmap(_coordinates.unflatten, in_axes=(0, 0, 0))(
      updates.reshape(grads.shape), state.params, state.params
    )
    vectors = vectors._replace(
      params=optax.apply_updates(state.params, updates), step=state.step + 1
    )
    if optimizee.outer_loss is None:
      outer_losses = outer_grads = None
    else:
      outer_losses, outer_grads = jax.vmap(outer)(vectors)
    record = _Record(losses, grads, outer_losses, outer_grads)
    return vectors._replace(opt_state=opt_state), record

  end, records = jax.lax.scan(body, problems, length=num_steps)
  return end, records, _Record(*jax.vmap(inner)(end._replace(opt_state=())), None, None)


def _replay(
  rule: CoordinatewiseRule,
  meta_params: chex.ArrayTree,
  state: chex.ArrayTree,
  grads: jax.Array,
  cotangents: jax.Array,
) -> chex.ArrayTree:
  """d/dphi sum_t <u_t(phi; grads), cotangents_t>, block by block.

  Args:
    rule: the optimizer.
    meta_params: phi.
    state: the optimizer's state before the first step, ``[..., coordinates]`` leaves.
    grads: ``[steps, coordinates]``.
    cotangents: R_t, ``[steps, coordinates]``.
  """

  def inner_product(meta_params, state, grads, cotangents):
    def body(state, inputs):
      grad, cotangent = inputs
      updates, state = rule.update(meta_params, grad, state)
      return state, jnp.vdot(updates, cotangent)

    return jnp.sum(jax.lax.scan(body, state, (grads, cotangents))[1])

  def add_block(total, block):
    return jax.tree.map(jnp.add, total, jax.grad(inner_product)(meta_params, *block)), None

  size = min(BLOCK, grads.shape[-1])
  blocks = jax.tree.map(functools.partial(_blocks, size), (state, grads, cotangents))
  return jax.lax.scan(add_block, jax.tree.map(jnp.zeros_like, meta_params), blocks)[0]


def _blocks(size: int, leaf: jax.Array) -> jax.Array:
  """``[..., n] -> [blocks, ..., size]``, padded with zeros, which add nothing to the sum."""
  padding = -leaf.shape[-1] % size
  leaf = jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, padding)])
  return jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], -1, size), -2, 0)


def _where_last(condition: jax.Array, on_true: jax.Array, on_false: jax.Array) -> jax.Array:
  """`jnp.where` with the condition along the last axis, that of the coordinates."""
  return jnp.where(condition.reshape((1,) * (on_true.ndim - 1) + (-1,)), on_true, on_false)


def _zero_unless(keep: jax.Array, leaf: jax.Array) -> jax.Array:
  return _where_last(keep, leaf, jnp.zeros_like(leaf))
