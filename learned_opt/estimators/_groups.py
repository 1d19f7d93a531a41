"""Groups of tensors, each of which a coordinatewise rule of its own updates as one long vector."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import _coordinates
from learned_opt.base import CoordinatewiseRule, PartitionedRule


class Group(NamedTuple):
  """Tensors that one rule updates.

  Attributes:
    rule: their rule.
    positions: of the tensors among the leaves of a problem's params.
    name: under which the meta-params of the rule are found; None if it has them all.
  """

  rule: CoordinatewiseRule
  positions: tuple[int, ...]
  name: str | None = None

  def own(self, meta_params: Any) -> Any:
    """The meta-params of its rule."""
    return meta_params if self.name is None else meta_params[self.name]

  def select(self, params: chex.ArrayTree) -> list[jax.Array]:
    """Its tensors."""
    leaves = jax.tree.leaves(params)
    return [leaves[position] for position in self.positions]


def groups_of(
  declared: CoordinatewiseRule | PartitionedRule, params: chex.ArrayTree
) -> tuple[Group, ...]:
  """The groups that have tensors, for params with a leading axis of problems.

  Raises:
    ValueError: if a tensor is in a group that has no rule.
  """
  shapes = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(params)]
  if isinstance(declared, CoordinatewiseRule):
    return (Group(declared, tuple(range(len(shapes)))),)
  rules: dict[str, Any] = {**declared.rules}
  positions: dict[str, list[int]] = {name: [] for name in rules}
  for position, shape in enumerate(shapes):
    name = declared.group_of(shape)
    if name not in positions:
      raise ValueError(
        f"group_of must return one of {', '.join(positions)}, got {name!r} for a tensor of shape "
        f"{shape.shape}"
      )
    positions[name].append(position)
  return tuple(Group(rules[name], tuple(found), name) for name, found in positions.items() if found)


def concatenate(
  groups: Sequence[Group], tree: chex.ArrayTree, dtype: np.dtype
) -> tuple[jax.Array, ...]:
  """The coordinates of each group as one vector."""
  return tuple(_coordinates.concatenate(group.select(tree), dtype) for group in groups)


def unflatten(
  groups: Sequence[Group], vectors: Sequence[jax.Array], params: chex.ArrayTree
) -> chex.ArrayTree:
  """A vector for each group as a tree with the shapes and dtypes of the params."""
  leaves, treedef = jax.tree.flatten(params)
  for group, vector in zip(groups, vectors, strict=True):
    own = group.select(params)
    parts: Any = _coordinates.unflatten(vector, own, own)
    for position, part in zip(group.positions, parts, strict=True):
      leaves[position] = part
  return treedef.unflatten(leaves)


def join_meta_grads(
  groups: Sequence[Group], meta_grads: Sequence[Any], meta_params: chex.ArrayTree
) -> Any:
  """The gradients of the groups as that of the meta-params; zero where a rule has no tensors."""
  if [group.name for group in groups] == [None]:
    return meta_grads[0]
  joined = {**jax.tree.map(jnp.zeros_like, meta_params)}
  return joined | {group.name: one for group, one in zip(groups, meta_grads, strict=True)}
