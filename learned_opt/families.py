"""Several optimizees at once: what general-purpose optimizers are trained on.

`Families` go to `meta_train.run` in place of one optimizee, with an estimator that
`estimators.over_families` has made of any other. All run in one program: optimizees of equal
structure, such as the same network on several data sets of equal size, side by side in one `vmap`;
the others one after the other.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.base import Optimizee


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["groups"], meta_fields=["indices"]
)
@dataclasses.dataclass(frozen=True)
class Families:
  """Optimizees, those of equal structure together. Make one with `families`.

  A pytree, as an `Optimizee` is: an argument of jitted functions.

  Attributes:
    groups: an `Optimizee` each, whose data have a leading axis of the optimizees in the group.
    indices: which of the optimizees that `families` was given are in each group.
  """

  groups: tuple[Optimizee, ...]
  indices: tuple[tuple[int, ...], ...]

  def __len__(self) -> int:
    """How many optimizees there are."""
    return sum(map(len, self.indices))


def families(*optimizees: Optimizee) -> Families:
  """Puts optimizees together, to be trained on at the same time, each as much as the others.

  Those whose functions are the same, as those of equal calls of a factory are, and whose data have
  the same shapes run in one `vmap`. `datasets.cut_to_equal_sizes` makes data sets have them.

  Args:
    optimizees: one or more.

  Returns:
    The families. Arrays are copied, as those of a group become one.

  Raises:
    TypeError: if one is no `Optimizee`.
    ValueError: if there is none.

  Example:
    >>> from learned_opt import optimizees
    >>> from learned_opt.families import families
    >>> both = families(
    ...   optimizees.quadratic(), optimizees.logistic_regression(), optimizees.quadratic()
    ... )
    >>> len(both), both.indices
    (3, ((0, 2), (1,)))
  """
  if not optimizees:
    raise ValueError("families needs at least one optimizee")
  by_structure: dict[Any, list[int]] = {}
  for index, optimizee in enumerate(optimizees):
    if not isinstance(optimizee, Optimizee):
      raise TypeError(
        f"families takes optimizees, got {type(optimizee).__name__} at position {index}"
      )
    leaves, treedef = jax.tree.flatten(optimizee)
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    by_structure.setdefault((treedef, shapes), []).append(index)
  groups = (
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *(optimizees[index] for index in group))
    for group in by_structure.values()
  )
  return Families(tuple(groups), tuple(map(tuple, by_structure.values())))


def members(problems: Optimizee | Families) -> tuple[Optimizee, ...]:
  """The optimizees of families, in the order in which they were given; or the only one.

  Example:
    >>> from learned_opt import optimizees
    >>> from learned_opt.families import families, members
    >>> quadratic, logistic = optimizees.quadratic(), optimizees.logistic_regression()
    >>> members(families(quadratic, logistic)) == (quadratic, logistic)
    True
    >>> members(quadratic) == (quadratic,)
    True
  """
  if not isinstance(problems, Families):
    return (problems,)
  found = {
    index: jax.tree.map(lambda leaf, position=position: leaf[position], group)
    for group, indices in zip(problems.groups, problems.indices, strict=True)
    for position, index in enumerate(indices)
  }
  return tuple(found[index] for index in sorted(found))


def map_groups(
  function: Callable[..., Any], problems: Families, key: chex.PRNGKey, *by_group: Any
) -> list[Any]:
  """Calls ``function(optimizee, key, *rest)`` for each optimizee, once in the program for a group.

  Args:
    function: of one optimizee, a key of its own, and what there is for it in `by_group`.
    problems: the families.
    key: each optimizee has its position folded into it.
    by_group: lists with a tree for each group, with a leading axis of its optimizees.

  Returns:
    A tree for each group, with that axis.

  Example:
    >>> import jax
    >>> from learned_opt import optimizees
    >>> from learned_opt.families import families, map_groups
    >>> both = families(optimizees.quadratic(3), optimizees.logistic_regression(2))
    >>> start = lambda optimizee, key: optimizee.init(key, optimizee.data)[0]
    >>> [params.shape for params in map_groups(start, both, jax.random.key(0))]
    [(1, 3), (1, 2)]
  """
  results = []
  for number, (group, indices) in enumerate(zip(problems.groups, problems.indices, strict=True)):
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(indices))
    arguments = (group, keys, *(trees[number] for trees in by_group))
    if len(indices) == 1:
      # Without a needless axis, which some programs are slower with.
      only = function(*jax.tree.map(lambda leaf: leaf[0], arguments))
      results.append(jax.tree.map(lambda leaf: leaf[None], only))
    else:
      results.append(jax.vmap(function)(*arguments))
  return results
