"""A tree of arrays as one vector of coordinates, leaf after leaf, and back."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.base import check_params


def count(params: chex.ArrayTree) -> int:
  """The number of coordinates of a tree; raises `TypeError` for leaves that have none."""
  check_params(params)
  return sum(np.size(leaf) for leaf in jax.tree.leaves(params))


def name(tree: chex.ArrayTree, coordinate: int) -> str:
  """Where in a tree a coordinate is: the path of its leaf, and its index there.

  >>> tree = {"bias": np.zeros(()), "w": np.zeros((2, 3))}
  >>> name(tree, 0), name(tree, 5), name(np.zeros(3), 2)
  ('bias', 'w[1, 1]', 'params[2]')
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if coordinate < leaf.size:
      index = [int(i) for i in np.unravel_index(coordinate, leaf.shape)]
      return (path_name(path) or "params") + (str(index) if index else "")
    coordinate -= leaf.size
  raise IndexError("the tree does not have so many coordinates")


def path_name(path: jax.tree_util.KeyPath) -> str:
  """A path in a tree as people write it: ``layers.0.c``; empty for the whole tree."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


def flatten(
  grads: chex.ArrayTree, params: chex.ArrayTree | None, dtype: np.dtype, expected: int
) -> jax.Array:
  """All gradients as one ``[coordinates]`` vector of the given dtype.

  Args:
    grads: the gradients, any pytree.
    params: the parameters, where known: then both trees must agree.
    dtype: of the result.
    expected: the number of coordinates that the optimizer's state was made for.

  Raises:
    TypeError: if a leaf is not real floating point.
    ValueError: if the trees or the number of coordinates differ.
  """
  check_gradients(grads, params)
  found = count(grads)
  if found != expected:
    raise ValueError(
      f"updates have {found} coordinates, but the optimizer's state was made for {expected}: call "
      "tx.init with the params that these gradients belong to"
    )
  return concatenate(grads, dtype)


def concatenate(tree: chex.ArrayTree, dtype: np.dtype) -> jax.Array:
  """All leaves as one ``[coordinates]`` vector of the given dtype."""
  leaves = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)]
  return jnp.concatenate(leaves) if leaves else jnp.zeros((0,), dtype)


def unflatten(
  flat: jax.Array, grads: chex.ArrayTree, params: chex.ArrayTree | None
) -> chex.ArrayTree:
  """The vector as a tree with the shapes of `grads` and the dtypes of `params`, if given."""
  leaves, treedef = jax.tree.flatten(grads)
  like = leaves if params is None else jax.tree.leaves(params)
  ends = np.cumsum([jnp.size(leaf) for leaf in leaves])[:-1]
  parts = jnp.split(flat, ends)
  return treedef.unflatten(
    jnp.reshape(part, jnp.shape(leaf)).astype(jnp.result_type(target))
    for part, leaf, target in zip(parts, leaves, like, strict=False)
  )


def check_gradients(grads: chex.ArrayTree, params: chex.ArrayTree | None) -> None:
  """Raises as `flatten` does, but for the number of coordinates."""
  check_params(grads, "updates")
  if params is None:
    return
  if jax.tree.structure(grads) != jax.tree.structure(params):
    raise ValueError(
      "updates and params must have the same tree structure, got "
      f"{jax.tree.structure(grads)} and {jax.tree.structure(params)}"
    )
  for (path, grad), leaf in zip(
    jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(params), strict=True
  ):
    if jnp.shape(grad) != jnp.shape(leaf):
      where = jax.tree_util.keystr(path)
      raise ValueError(
        f"updates{where} has shape {jnp.shape(grad)}, but params{where} has {jnp.shape(leaf)}"
      )
