"""Functions of one tensor, applied to all tensors of a tree."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import _coordinates
from learned_opt.base import check_params


class TensorwiseState(NamedTuple):
  """State of an optimizer that treats each tensor as such.

  Attributes:
    step: int32 scalar, the number of updates so far.
    tensors: the params' tree, with what is kept of a tensor in its place, such as its running
      averages.
  """

  step: jax.Array
  tensors: Any


# (shared, inputs, state) -> (outputs, state), for one tensor.
TensorFunction = Callable[[Any, Any, Any], tuple[Any, Any]]
GroupFunction = Callable[
  [Any, Sequence[Any], Sequence[Any]], tuple[Sequence[Any], Sequence[Any]] | None
]

# Numbers in the inputs of a group, from which on its tensors are treated one after the other.
_MIN_LARGE = 2**20

# Tensors of a large group, from which on a loop is worth the copies of the one at hand: with fewer,
# they would take more than a quarter of what adafac_mlp keeps of all.
_MIN_LOOPED = 12

# Coordinates of each of them, from which on the loop is as fast as one over stacked tensors.
_MIN_LOOPED_SIZE = 2**14


def map_tensors(
  function: TensorFunction,
  shared: chex.ArrayTree,
  inputs: Sequence[Any],
  states: Sequence[Any],
  group_function: GroupFunction | None = None,
) -> tuple[list[Any], list[Any]]:
  """Applies a function to each tensor; those of equal shapes and dtypes are compiled once.

  Args:
    function: ``(shared, inputs, state) -> (outputs, state)`` for one tensor; all are pytrees.
    shared: what all tensors have in common, such as weights and the step.
    inputs: for each tensor, for example its gradient and its parameters.
    states: for each tensor; what comes back has the same structure, shapes and dtypes.
    group_function: ``(shared, inputs, states) -> (outputs, states)`` for tensors of equal shapes,
      or None for those that it cannot take; another way to compute the same.

  Returns:
    The outputs and the states, in the order of the inputs.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.optimizers._tensors import map_tensors
    >>> def add(shared, x, total):
    ...   return shared * jnp.max(x), total + x
    >>> xs = [jnp.arange(2.0), jnp.ones(3), -jnp.ones(2)]
    >>> maxima, _ = map_tensors(add, 2.0, xs, xs)
    >>> [float(maximum) for maximum in maxima]
    [2.0, 2.0, -2.0]
  """
  outputs: list[Any] = [None] * len(inputs)
  new_states: list[Any] = [None] * len(inputs)
  for indices in _groups(list(zip(inputs, states, strict=True))):
    group = [[trees[i] for i in indices] for trees in (inputs, states)]
    results = _map_group(function, group_function, shared, *group)
    for i, output, state in zip(indices, *results, strict=True):
      outputs[i], new_states[i] = output, state
  return outputs, new_states


def _map_group(
  function: TensorFunction,
  group_function: GroupFunction | None,
  shared: chex.ArrayTree,
  inputs: Sequence[Any],
  states: Sequence[Any],
) -> tuple[Sequence[Any], Sequence[Any]]:
  """Side by side what is small, one after the other what is large."""
  sizes = [leaf.size for leaf in jax.tree.leaves(inputs)]
  is_large = sum(sizes) >= _MIN_LARGE
  # An accelerator would wait for the host at each branch of a loop over arrays that are apart.
  loops = is_large and max(sizes) >= _MIN_LOOPED_SIZE and jax.default_backend() == "cpu"

  def as_group(inputs: Sequence[Any], states: Sequence[Any]) -> Any:
    return None if group_function is None else group_function(shared, inputs, states)

  def one(tensor: Any, state: Any) -> tuple[Any, Any]:
    results = as_group([tensor], [state])
    return function(shared, tensor, state) if results is None else (results[0][0], results[1][0])

  if loops and len(inputs) >= _MIN_LOOPED:
    return _one_after_another(one, inputs, states)
  if (results := as_group(inputs, states)) is not None:
    return results
  if loops and len(inputs) > 1:
    return _one_after_another(one, inputs, states)
  stacked = stack(inputs), stack(states)
  if is_large and len(inputs) > 1:
    results = jax.lax.map(lambda tensor: function(shared, *tensor), stacked)
  else:
    results = jax.vmap(function, in_axes=(None, 0, 0))(shared, *stacked)
  outputs, states = (
    [jax.tree.map(lambda leaf, at=k: leaf[at], tree) for k in range(len(inputs))]
    for tree in results
  )
  return outputs, states


def _one_after_another(
  function: Callable[[Any, Any], tuple[Any, Any]], inputs: Sequence[Any], states: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
  """Applies ``(input, state) -> (output, state)`` in a loop that compiles it once.

  What is copied is one tensor at a time, in and out: the arrays are never stacked. Each needs a
  branch that reads it and one that writes it, which hold copies alone and are compiled in no time.
  """
  like, _ = jax.eval_shape(function, inputs[0], states[0])
  outputs = [jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like) for _ in inputs]

  def replace_one(index: jax.Array, pairs: list[Any]) -> list[Any]:
    tensors = [(tensor, state) for tensor, (_, state) in zip(inputs, pairs, strict=True)]
    branches = [lambda tensors, at=k: tensors[at] for k in range(len(tensors))]
    new = function(*jax.lax.switch(index, branches, tensors))
    return [
      jax.lax.cond(index == k, lambda new, old: new, lambda new, old: old, new, pair)
      for k, pair in enumerate(pairs)
    ]

  pairs = list(zip(outputs, states, strict=True))
  pairs = jax.lax.fori_loop(0, len(pairs), replace_one, pairs)
  return [output for output, _ in pairs], [state for _, state in pairs]


def tensorwise_transformation(
  dtype: np.dtype,
  name: str,
  init: Callable[[tuple[int, ...]], Any],
  update: TensorFunction,
  shared: Callable[[jax.Array], Any],
  shape_of_state: Callable[[Any], tuple[int, ...]],
  group_function: GroupFunction | None = None,
) -> optax.GradientTransformationExtraArgs:
  """The transformation of a function of one tensor, its gradient and its parameters.

  Args:
    dtype: in which to compute; updates get the params' dtypes.
    name: of the optimizer, for errors.
    init: ``shape -> state`` of a tensor.
    update: see `update_tree`.
    shared: ``step -> shared``, what `update` gets for all tensors; `step` counts earlier updates.
    shape_of_state: see `update_tree`.
    group_function: see `update_tree`.

  Returns:
    The transformation; it needs params, and ignores further keywords.
  """

  def init_fn(params):
    return TensorwiseState(jnp.zeros((), jnp.int32), init_tree(init, params))

  def update_fn(updates, state: Any, params=None, **extra_args):
    del extra_args
    updates, tensors = update_tree(
      update,
      shared(state.step),
      updates,
      params,
      state.tensors,
      shape_of_state,
      dtype=dtype,
      name=name,
      init=init,
      group_function=group_function,
    )
    step: Any = optax.safe_increment(state.step)
    return updates, TensorwiseState(step, tensors)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def init_tree(init: Callable[[tuple[int, ...]], Any], params: chex.ArrayTree) -> Any:
  """The params' tree, with ``init(shape)`` in place of each tensor; a scalar's shape is (1,)."""
  check_params(params)
  return jax.tree.map(lambda leaf: init(jnp.shape(leaf) or (1,)), params)


def update_tree(
  function: TensorFunction,
  shared: chex.ArrayTree,
  grads: chex.ArrayTree,
  params: chex.ArrayTree | None,
  states: chex.ArrayTree,
  shape_of_state: Callable[[Any], tuple[int, ...]],
  *,
  dtype: np.dtype,
  name: str,
  init: Callable[[tuple[int, ...]], Any],
  extras: Sequence[Any] | None = None,
  group_function: GroupFunction | None = None,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
  """One update of a tree by a function of one tensor that reads its parameters.

  Args:
    function: ``(shared, (grad, param), state) -> (update, state)``, or ``(grad, param, extra)``;
      the first two are of the given dtype and of rank one at least. So is the update, which is
      added.
    shared: see `map_tensors`.
    grads: any pytree.
    params: the same, of the dtypes that the updates are to have.
    states: of `init_tree`.
    shape_of_state: the shape of the tensor that a state was made for.
    dtype: in which to compute.
    name: of the optimizer, for errors.
    init: what `init_tree` was given.
    extras: one pytree a tensor, in the order of the tree's leaves, for what differs between them.
    group_function: see `map_tensors`; its inputs have the dtypes that they come with, and its
      updates those of the params. It gets no scalars.

  Returns:
    The updates and the states.

  Raises:
    TypeError: if a gradient is not real floating point.
    ValueError: if there are no params, or the trees or the state do not agree.
  """
  parts = check_tensors(grads, params, states, init, shape_of_state, name)
  leaves, treedef = jax.tree.flatten(grads)
  # Where there are no leaves, the params may be None.
  tensors = list(zip(leaves, jax.tree.leaves(params), strict=True))
  inputs = tensors if extras is None else [(*t, e) for t, e in zip(tensors, extras, strict=True)]

  def one(shared, inputs, state):
    grad, param, *extra = inputs
    shape = grad.shape or (1,)
    update, state = function(
      shared, (grad.reshape(shape).astype(dtype), param.reshape(shape).astype(dtype), *extra), state
    )
    return update.reshape(grad.shape).astype(param.dtype), state

  updates, new = [jnp.zeros_like(param) for _, param in tensors], list(parts)
  filled = [i for i, leaf in enumerate(leaves) if leaf.size]
  some = [inputs[i] for i in filled], [parts[i] for i in filled]
  results = map_tensors(one, shared, *some, group_function)
  for i, update, state in zip(filled, *results, strict=True):
    updates[i], new[i] = update, state
  return treedef.unflatten(updates), treedef.unflatten(new)


def check_tensors(
  grads: chex.ArrayTree,
  params: chex.ArrayTree | None,
  states: chex.ArrayTree,
  init: Callable[[tuple[int, ...]], Any],
  shape_of_state: Callable[[Any], tuple[int, ...]],
  name: str,
) -> list[Any]:
  """The state of each tensor; raises as `update_tree` does."""
  _coordinates.check_gradients(grads, params)
  if params is None and jax.tree.leaves(grads):
    raise ValueError(f"{name} reads the parameters: call tx.update(grads, state, params) with them")
  leaves, treedef = jax.tree.flatten(grads)
  # Where there are no leaves, neither the params nor the states have any.
  parts = [
    as_made(part, jnp.shape(leaf) or (1,), init)
    for part, leaf in zip(treedef.flatten_up_to(states), leaves, strict=True)
  ]
  shapes = [shape_of_state(state) for state in parts]
  if shapes != [jnp.shape(leaf) or (1,) for leaf in leaves]:
    found, expected = sum(map(jnp.size, leaves)), sum(map(np.prod, shapes))
    raise ValueError(
      f"updates have {found} coordinates, but the optimizer's state was made for {int(expected)}, "
      "or for tensors of other shapes: call tx.init with the params that these gradients belong to"
    )
  return parts


def as_made(state: Any, shape: tuple[int, ...], init: Callable[[tuple[int, ...]], Any]) -> Any:
  """A tensor's state in the types that `init` gave it.

  `flax.nnx` keeps it as nested mappings, with the names of fields and positions as keys.
  """
  like = jax.eval_shape(lambda: init(shape))
  if jax.tree.structure(state) == jax.tree.structure(like):
    return state
  leaves = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
  paths = [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(like)]
  if set(paths) != set(leaves):
    return state
  return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in paths])


def _names(path: jax.tree_util.KeyPath) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def filled_positions(tree: chex.ArrayTree) -> list[int]:
  """The positions of the leaves that have coordinates.

  >>> filled_positions({"a": np.ones(2), "b": np.ones((0, 3)), "c": np.ones(())})
  [0, 2]
  """
  return [i for i, leaf in enumerate(jax.tree.leaves(tree)) if 0 not in jnp.shape(leaf)]


def row_numbers(tree: chex.ArrayTree) -> list[np.int32]:
  """For each leaf its row in arrays with one row a leaf that has coordinates; else 0.

  >>> list(map(int, row_numbers({"a": np.ones(2), "b": np.ones((0, 3)), "c": np.ones(())})))
  [0, 0, 1]
  """
  rows = {position: row for row, position in enumerate(filled_positions(tree))}
  return [np.int32(rows.get(i, 0)) for i in range(len(jax.tree.leaves(tree)))]


def _groups(trees: Sequence[Any]) -> list[list[int]]:
  """The indices of equal structures, shapes and dtypes, in the order of their first."""
  groups: dict[Any, list[int]] = {}
  for index, tree in enumerate(trees):
    leaves, structure = jax.tree.flatten(tree)
    key = structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    groups.setdefault(key, []).append(index)
  return list(groups.values())


def stack(trees: Sequence[Any]) -> Any:
  """One tree of all, with a first axis for them."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
