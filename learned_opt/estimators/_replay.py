"""The replay path: backpropagation decoupled over coordinates.

Under the first-order rule the updates u_t(phi; g_1, ..., g_t) of a purely coordinatewise optimizer
depend on phi and on gradients that count as constants. As theta_s = theta_0 + sum_{t<s} u_t,

    d/dphi sum_s L(f_s(theta_s)) = d/dphi sum_s w_s <g_s, sum_{t<s} u_t(phi)>,
    w_s = dL/df_s,  g_s = grad f_s(theta_s),

with w_s and g_s held constant: no derivative of the optimizee is needed beyond the gradients g_s
that the inner steps have computed anyway. The optimization runs once, without a backward pass, and
keeps the g_s. Then the optimizer alone is replayed, forwards and backwards, in blocks of
coordinates small enough for the cache; coordinates of all problems lie side by side, shared among
the devices of the surrounding mesh.

**Memory** for n coordinates of all problems together, U inner steps and an optimizer state of s
bytes a coordinate: 4 U n bytes of gradients (twice that with an outer loss), s n bytes each for
the state before and after the unroll, and a working set of `_layout` that depends on none of
these. If the states of all steps, U s n bytes, are at most `_HISTORY_BYTES`, the first pass keeps
them as well, and the replay need not compute them again. Else the replay does, of one block at a
time; where U is long, it keeps the state of the first step of each segment of about `_SEGMENT`
steps only, and runs the steps between once more.

**Groups.** Where groups of tensors have rules of their own, all of this is done for each; the
gradients g_s come from one pass.

**Sampled.** The gradient is a sum over coordinates: a few of each tensor, drawn at random, give an
unbiased estimate of it, and only these are replayed.

Equal to `learned_opt.estimators._autodiff`, to rounding, for float32 params.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import _blocks, _coordinates, devices
from learned_opt.base import CoordinatewiseRule, InnerState, MetaLoss, Optimizee, Trajectory
from learned_opt.estimators import _paths
from learned_opt.estimators._groups import (
  Group,
  concatenate,
  groups_of,
  join_meta_grads,
  unflatten,
)
from learned_opt.unroll import init_inner_state, outer_loss_key, step_key

# Steps whose states the replay of a block keeps at once.
_SEGMENT = 32

# Bytes of optimizer states up to which the first pass keeps them all: the replay need not go
# forwards then.
_HISTORY_BYTES = 2**28

# Bytes of optimizer states that the replay of a block keeps at once. On a CPU, what stays in the
# cache of a core; `learned-opt bench meta-gradient` measures it. Accelerators want large blocks.
_KEPT_BYTES = 2**21
_KEPT_BYTES_ON_ACCELERATORS = 2**30

# Coordinates of a shard that are updated at once: to keep the states of blocks takes copies.
_UNBLOCKED = 2**13


class _Kept(NamedTuple):
  """What the forward pass keeps of one inner step for one group of tensors of all problems.

  Attributes:
    grads: ``[shards, coordinates]``, at theta_t.
    outer_grads: ``[shards, coordinates]``, at theta_{t+1}; None without an outer loss.
    opt_state: the optimizer's state at theta_t, ``[shards, ..., coordinates]`` leaves; None if it
      is to be computed again.
  """

  grads: jax.Array
  outer_grads: jax.Array | None = None
  opt_state: chex.ArrayTree | None = None


class _Record(NamedTuple):
  """What the forward pass keeps of one inner step, for all problems.

  Attributes:
    losses: ``[problems]``, at theta_t.
    kept: for each group of tensors.
    outer_losses: ``[problems]``, at theta_{t+1}; None without an outer loss.
  """

  losses: jax.Array
  kept: tuple[_Kept, ...]
  outer_losses: jax.Array | None = None


class _Layout(NamedTuple):
  """How n coordinates are laid out: ``[shards, blocks x block_size]``, filled up at the end.

  Attributes:
    num_coordinates: n.
    num_shards: one a device.
    num_blocks: of each shard.
    block_size: coordinates that are replayed side by side.
    keeps_states: whether the first pass keeps the optimizer's states of all steps.
  """

  num_coordinates: int
  num_shards: int
  num_blocks: int
  block_size: int
  keeps_states: bool

  def split(self, leaf: jax.Array) -> jax.Array:
    """``[..., n] -> [shards, ..., coordinates of a shard]``, filled up with zeros."""
    # Replicated here and in `join`, because XLA would share n coordinates unevenly, and move them.
    leaf = devices.replicate(leaf)
    padding = self.num_shards * self.num_blocks * self.block_size - self.num_coordinates
    leaf = jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, padding)])
    shards = leaf.reshape(*leaf.shape[:-1], self.num_shards, -1)
    return devices.share(jnp.moveaxis(shards, -2, 0))

  def join(self, leaf: jax.Array) -> jax.Array:
    """``[shards, ..., coordinates of a shard] -> [..., n]``."""
    rows = jnp.moveaxis(devices.replicate(leaf), 0, -2)
    return rows.reshape(*rows.shape[:-2], -1)[..., : self.num_coordinates]

  def block(self, index: jax.Array, leaf: jax.Array) -> jax.Array:
    """One block of a leaf of one shard, along its last axis."""
    return jax.lax.dynamic_slice_in_dim(leaf, index * self.block_size, self.block_size, -1)


class _Replayed(NamedTuple):
  """Which coordinates are replayed, and how they are laid out.

  Attributes:
    layout: of those that are replayed.
    indices: of these among all, int32 ``[coordinates]``, as many of each problem, problem after
      problem; None for all in their order.
    counts: how many coordinates each stands for, ``[coordinates]``; None for one.
  """

  layout: _Layout
  indices: jax.Array | None = None
  counts: jax.Array | None = None

  def take(self, leaf: jax.Array) -> jax.Array:
    """``[..., n] -> [shards, ..., coordinates of a shard]``."""
    if self.indices is not None:
      leaf = jnp.take(devices.replicate(leaf), self.indices, axis=-1)
    return self.layout.split(leaf)


class _Plan(NamedTuple):
  """How one group of tensors is updated and replayed.

  Attributes:
    group: the tensors and their rule.
    layout: of all of their coordinates.
    replayed: those that are replayed.
  """

  group: Group
  layout: _Layout
  replayed: _Replayed


def replay_path(
  unroll_length: int, meta_loss: MetaLoss, sample_size: int | None = None
) -> _paths.Path:
  """For learned optimizers that declare a `CoordinatewiseRule`, or several; first order only.

  The optimizer state of the batch of problems has, for each group of tensors that has a rule of its
  own, that of one long vector of coordinates, problem after problem.

  Args:
    unroll_length: U.
    meta_loss: of the losses of the unroll.
    sample_size: coordinates of each tensor that are replayed; None for all.
  """

  def draw(optimizee, learned_optimizer, meta_params, keys) -> InnerState:
    problems = jax.vmap(lambda key: init_inner_state(optimizee, optax.identity(), key))(keys)
    groups = groups_of(learned_optimizer.coordinatewise, problems.params)
    return problems._replace(
      opt_state=tuple(
        group.rule.init(group.own(meta_params), _coordinates.count(group.select(problems.params)))
        for group in groups
      )
    )

  def choose(condition, on_true: InnerState, on_false: InnerState) -> InnerState:
    def choose_coordinates(on_true: jax.Array, on_false: jax.Array) -> jax.Array:
      by_coordinate = jnp.repeat(condition, on_true.shape[-1] // condition.shape[0])
      return jnp.where(by_coordinate, on_true, on_false)

    opt_state = jax.tree.map(choose_coordinates, on_true.opt_state, on_false.opt_state)
    chosen = _paths.where(
      condition, on_true._replace(opt_state=()), on_false._replace(opt_state=())
    )
    return chosen._replace(opt_state=opt_state)

  def gradient(optimizee, learned_optimizer, meta_params, problems, key) -> _paths.SegmentGradient:
    plans = [
      _plan(group, meta_params, problems.params, unroll_length, sample_size, key)
      for group in groups_of(learned_optimizer.coordinatewise, problems.params)
    ]
    end, records, last = _run(optimizee, plans, meta_params, problems, unroll_length)
    losses = jnp.concatenate([records.losses, last.losses[None]])
    outer_losses = losses[1:] if records.outer_losses is None else records.outer_losses

    steps = problems.step[None] + jnp.arange(1, unroll_length + 1)[:, None]
    meta_losses, weights = jax.vmap(jax.value_and_grad(meta_loss), in_axes=1, out_axes=(0, 1))(
      outer_losses, steps
    )
    finite = _paths.all_finite((meta_losses, weights.T, losses.T, outer_losses.T, end.params))
    parts = list(zip(plans, problems.opt_state, records.kept, last.kept, strict=True))
    for plan, _, kept, kept_last in parts:
      finite &= _finite_problems(plan.replayed.layout, (kept, kept_last), losses.shape[1])
    weights = jnp.where(finite, weights, 0.0)
    totals = [_replay(*part, meta_params, weights, finite) for part in parts]
    total = join_meta_grads([plan.group for plan in plans], totals, meta_params)
    # A sum that overflows although each problem is finite cannot be blamed on one of them.
    sum_is_finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(total)]).all()
    finite &= sum_is_finite
    number = jnp.maximum(jnp.sum(finite), 1)
    meta_grads = jax.tree.map(lambda leaf: jnp.where(sum_is_finite, leaf / number, 0.0), total)
    trajectory = Trajectory(losses.T, outer_losses.T)
    return _paths.SegmentGradient(meta_grads, meta_losses, ~finite, trajectory, end)

  return _paths.Path(draw, choose, gradient)


def _plan(
  group: Group,
  meta_params: chex.ArrayTree,
  params: chex.ArrayTree,
  num_steps: int,
  sample_size: int | None,
  key: chex.PRNGKey,
) -> _Plan:
  """How the tensors of a group of all problems are updated, and a sample of them replayed."""
  layout_of = functools.partial(_layout, group.rule, group.own(meta_params), num_steps)
  own = group.select(params)
  layout = layout_of(_coordinates.count(own))
  if sample_size is None or max((leaf[0].size for leaf in own), default=0) <= sample_size:
    return _Plan(group, layout, _Replayed(layout))
  indices, counts = _sample(key, params, group.positions, sample_size)
  replayed = layout_of(indices.size)._replace(keeps_states=False)
  return _Plan(group, layout._replace(keeps_states=False), _Replayed(replayed, indices, counts))


def _layout(
  rule: CoordinatewiseRule, meta_params: chex.ArrayTree, num_steps: int, num_coordinates: int
) -> _Layout:
  """Blocks whose kept states fit in the cache, of equal sizes, in each shard."""
  num_shards = devices.num_shards()
  per_shard = max(1, math.ceil(num_coordinates / num_shards))
  state = jax.eval_shape(lambda phi: rule.init(phi, 1), meta_params)
  state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  keeps_states = num_steps * num_coordinates * state_bytes <= _HISTORY_BYTES
  largest = _block_size(state_bytes * min(num_steps, _SEGMENT))
  num_blocks = math.ceil(per_shard / largest)
  block_size = math.ceil(per_shard / num_blocks)
  if num_blocks > 1:
    block_size = math.ceil(block_size / _blocks.LANES) * _blocks.LANES
    num_blocks = math.ceil(per_shard / block_size)
  return _Layout(num_coordinates, num_shards, num_blocks, block_size, keeps_states)


def _block_size(bytes_per_coordinate: int) -> int:
  """The most coordinates that are replayed side by side."""
  kept = _KEPT_BYTES if jax.default_backend() == "cpu" else _KEPT_BYTES_ON_ACCELERATORS
  return max(_blocks.LANES, kept // max(1, bytes_per_coordinate) // _blocks.LANES * _blocks.LANES)


def _run(
  optimizee: Optimizee,
  plans: Sequence[_Plan],
  meta_params: chex.ArrayTree,
  problems: InnerState,
  num_steps: int,
) -> tuple[InnerState, _Record, _Record]:
  """Runs the batch; the last record is that of theta_U, where no update follows."""
  dtype = jax.tree.leaves(meta_params)[0].dtype
  groups = [plan.group for plan in plans]

  def loss_and_grad(loss_fn, key, problem: InnerState):
    loss, grads = jax.value_and_grad(loss_fn)(
      problem.params, problem.constants, optimizee.data, key
    )
    return loss, concatenate(groups, grads, dtype)

  def inner(problem: InnerState):
    return loss_and_grad(optimizee.loss, step_key(problem), problem)

  def outer(problem: InnerState):
    return loss_and_grad(optimizee.outer_loss, outer_loss_key(problem), problem)

  def in_shards(function, vectors: InnerState) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    losses, grads = jax.vmap(function)(devices.share(vectors))
    return losses, tuple(one.reshape(-1) for one in grads)

  def update(plan: _Plan, grads: jax.Array, opt_state) -> tuple[jax.Array, Any]:
    layout, rule = plan.layout, plan.group.rule
    in_blocks = layout.num_blocks * layout.block_size > _UNBLOCKED
    function = functools.partial(_blocks.blockwise, rule.update) if in_blocks else rule.update
    own = plan.group.own(meta_params)
    updates, opt_state = jax.vmap(functools.partial(function, own))(layout.split(grads), opt_state)
    return layout.join(updates), opt_state

  def body(state: InnerState, _) -> tuple[InnerState, _Record]:
    vectors = state._replace(opt_state=())
    losses, grads = in_shards(inner, vectors)
    updates, opt_states = zip(*map(update, plans, grads, state.opt_state), strict=True)
    by_problem = [one.reshape(losses.shape[0], -1) for one in updates]
    params = jax.vmap(
      lambda params, updates: optax.apply_updates(params, unflatten(groups, updates, params))
    )(state.params, by_problem)
    vectors = vectors._replace(params=params, step=state.step + 1)
    kept = [_Kept(plan.replayed.take(one)) for plan, one in zip(plans, grads, strict=True)]
    record = _Record(losses, ())
    if optimizee.outer_loss is not None:
      outer_losses, outer_grads = in_shards(outer, vectors)
      record = record._replace(outer_losses=outer_losses)
      kept = [
        one._replace(outer_grads=plan.replayed.take(outer))
        for plan, one, outer in zip(plans, kept, outer_grads, strict=True)
      ]
    kept = [
      one._replace(opt_state=before) if plan.layout.keeps_states else one
      for plan, one, before in zip(plans, kept, state.opt_state, strict=True)
    ]
    return vectors._replace(opt_state=opt_states), record._replace(kept=tuple(kept))

  def to_shards(plan: _Plan, opt_state) -> Any:
    return jax.tree.map(plan.layout.split, opt_state)

  def from_shards(plan: _Plan, opt_state) -> Any:
    return jax.tree.map(plan.layout.join, opt_state)

  start = problems._replace(opt_state=tuple(map(to_shards, plans, problems.opt_state)))
  end, records = jax.lax.scan(body, start, length=num_steps)
  losses, grads = in_shards(inner, end._replace(opt_state=()))
  kept = tuple(_Kept(plan.replayed.take(one)) for plan, one in zip(plans, grads, strict=True))
  end = end._replace(opt_state=tuple(map(from_shards, plans, end.opt_state)))
  return end, records, _Record(losses, kept)


def _replay(
  plan: _Plan,
  opt_state: chex.ArrayTree,
  records: _Kept,
  last: _Kept,
  meta_params: chex.ArrayTree,
  weights: jax.Array,
  finite: jax.Array,
) -> chex.ArrayTree:
  """d/dphi sum_s w_s <g_s, sum_{t<s} u_t(phi)> of one group, summed over problems.

  Args:
    plan: of the group.
    opt_state: the optimizer's state before the first step, ``[..., coordinates]`` leaves.
    records: of the steps.
    last: of the end.
    meta_params: phi, of all groups.
    weights: w_s, ``[steps, problems]``, zero for problems that are to be left out.
    finite: ``[problems]``, those that are not.
  """
  rule, meta_params = plan.group.rule, plan.group.own(meta_params)
  replayed, num_problems = plan.replayed, weights.shape[1]
  layout = replayed.layout
  state = jax.tree.map(replayed.take, opt_state)
  counts = None if replayed.counts is None else layout.split(replayed.counts)
  problem_of = layout.split(
    jnp.arange(layout.num_coordinates) // max(1, layout.num_coordinates // num_problems)
  )

  def add_block(index, total):
    block = functools.partial(layout.block, index)
    problems = block(problem_of)
    keep = finite[problems]
    grads = jnp.where(keep, block(records.grads), 0.0)
    if records.outer_grads is None:
      last_grads = jnp.where(keep, block(last.grads), 0.0)
      outer_grads = jnp.concatenate([grads[1:], last_grads[None]])
    else:
      outer_grads = jnp.where(keep, block(records.outer_grads), 0.0)
    kept = records.opt_state is not None
    states = jax.tree.map(
      lambda leaf: jnp.where(_like(keep, leaf, kept), block(leaf), 0.0),
      records.opt_state if kept else state,
    )
    directions = weights[:, problems] * outer_grads
    if counts is not None:
      directions *= block(counts)[None].astype(directions.dtype)
    replay = functools.partial(_replay_block, rule, meta_params, kept)
    grad = jax.vmap(replay, in_axes=(1 if kept else 0, 1, 1))(states, grads, directions)
    return jax.tree.map(jnp.add, total, grad)

  total = jax.tree.map(
    lambda leaf: devices.share(jnp.zeros((layout.num_shards, *leaf.shape), leaf.dtype)), meta_params
  )
  if layout.num_blocks == 1:
    total = add_block(0, total)
  else:
    total = jax.lax.fori_loop(0, layout.num_blocks, add_block, total)
  return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), total)


def _replay_block(
  rule: CoordinatewiseRule,
  meta_params: chex.ArrayTree,
  kept: bool,
  states: chex.ArrayTree,
  grads: jax.Array,
  directions: jax.Array,
) -> chex.ArrayTree:
  """The gradient for one block of coordinates.

  Args:
    rule: the optimizer.
    meta_params: phi.
    kept: whether `states` are those before each step, with an axis of steps, or that before the
      first step.
    states: of the optimizer.
    grads: g_0, ..., g_{U-1}, ``[steps, coordinates]``.
    directions: w_1 g_1, ..., w_U g_U, ``[steps, coordinates]``.
  """
  dtype = jax.tree.leaves(meta_params)[0].dtype

  def forward(state, grad):
    return rule.update(meta_params, grad, state)[1], state

  def widened(state):
    """As wide as the meta-params: a narrow state is rounded as it was, its cotangents are not."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, dtype)), state)

  def backward(carry, inputs):
    state_bar, update_bar, total = carry
    state, grad, direction = inputs
    state = widened(state)
    update_bar += direction
    _, vjp = jax.vjp(lambda phi, state: rule.update(phi, grad, state), meta_params, state)
    grad, state_bar = vjp((update_bar, state_bar))
    return (state_bar, update_bar, jax.tree.map(jnp.add, total, grad)), None

  def segment_backward(carry, inputs):
    state, grads, directions = inputs
    _, states = jax.lax.scan(forward, state, grads)
    return jax.lax.scan(backward, carry, (states, grads, directions), reverse=True)

  def start(state):
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    return zeros(widened(state)), jnp.zeros(grads.shape[-1:], grads.dtype), zeros(meta_params)

  if kept:
    before = jax.tree.map(lambda leaf: leaf[0], states)
    return jax.lax.scan(backward, start(before), (states, grads, directions), reverse=True)[0][-1]
  num_segments = math.ceil(len(grads) / _SEGMENT)
  if num_segments == 1:
    return segment_backward(start(states), (states, grads, directions))[0][-1]

  length = math.ceil(len(grads) / num_segments)

  def in_segments(leaf: jax.Array) -> jax.Array:
    """``[steps, coordinates]``, with steps of direction zero at the end, in equal segments."""
    leaf = jnp.pad(leaf, ((0, num_segments * length - len(leaf)), (0, 0)))
    return leaf.reshape(num_segments, length, -1)

  grads, directions = in_segments(grads), in_segments(directions)
  _, before = jax.lax.scan(
    lambda state, grads: (jax.lax.scan(forward, state, grads)[0], state), states, grads
  )
  inputs = (before, grads, directions)
  return jax.lax.scan(segment_backward, start(states), inputs, reverse=True)[0][-1]


def _sample(
  key: chex.PRNGKey, params: chex.ArrayTree, positions: Sequence[int], sample_size: int
) -> tuple[jax.Array, jax.Array]:
  """Draws coordinates of some tensors of each problem, without replacement.

  Args:
    key: decides which.
    params: of the problems, leaves with a leading axis of problems.
    positions: of the tensors among the leaves.
    sample_size: coordinates of a tensor; of smaller ones all are taken.

  Returns:
    `indices` and `counts` of `_Replayed`.
  """
  leaves = jax.tree.leaves(params)
  num_problems = leaves[0].shape[0]
  sizes = np.array([leaves[position][0].size for position in positions])
  starts = np.cumsum(sizes) - sizes
  drawn = np.minimum(sizes, sample_size)

  def of_problem(key: chex.PRNGKey) -> jax.Array:
    keys = jax.random.split(key, len(leaves))[np.asarray(positions)]
    return jnp.concatenate(
      [
        start + (jax.random.permutation(key, size)[:number] if number < size else jnp.arange(size))
        for key, size, start, number in zip(keys, sizes, starts, drawn, strict=True)
      ]
    )

  indices = jax.vmap(of_problem)(jax.random.split(key, num_problems))
  indices += sizes.sum() * jnp.arange(num_problems)[:, None]
  counts = np.repeat(sizes / np.maximum(drawn, 1), drawn)
  return indices.reshape(-1), jnp.tile(jnp.asarray(counts), num_problems)


def _like(keep: jax.Array, leaf: jax.Array, kept: bool) -> jax.Array:
  """``[shards, coordinates]`` with axes for the features of a leaf between the two."""
  num_features = leaf.ndim - (3 if kept else 2)
  return keep.reshape(keep.shape[0], *(1,) * num_features, keep.shape[1])


def _finite_problems(layout: _Layout, records: Iterable[_Kept], num_problems: int) -> jax.Array:
  """Which problems have finite gradients only, ``[problems]``."""
  finite = jnp.ones((), bool)
  for record in records:
    for grads in (record.grads, record.outer_grads):
      if grads is not None:
        steps = grads.reshape(-1, *grads.shape[-2:])
        finite &= jnp.isfinite(steps).all(0)
  return layout.join(finite).reshape(num_problems, -1).all(1)
