"""Several devices: one virtual device a core on CPUs, and the mesh over which work is shared.

XLA spreads a single operation over the cores of a CPU. The operations of a learned optimizer are
too small for that: two cores are hardly faster than one. With one virtual device a core, each
core has its own share of the problems or coordinates instead, and nearly twice the rate on two
cores. The program is the same one that runs on several accelerators.

    from learned_opt import devices

    devices.use_cores()  # before JAX runs anything
    with devices.use(devices.mesh()):
      result = meta_train.run(...)

The command line does this unless told otherwise. Under a mesh of one's own (`jax.set_mesh`) that
has an axis called ``"devices"``, the work is shared along that axis. Results do not depend on the
number of devices, to rounding, and no random number does.
"""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "devices"

Tree = TypeVar("Tree")

# Every virtual device holds its own copy of the data set.
_MAX_CORES = 8
# By their names in XLA_FLAGS. The first keeps single operations on one core; with the second, loops
# use the widest registers that the processor has, where XLA would stop at 256 bits.
_FLAGS = {"xla_cpu_multi_thread_eigen": "false", "xla_cpu_prefer_vector_width": "512"}
_OTHER_WAY = "xla_force_host_platform_device_count"


def use_cores(num_cores: int | None = None) -> bool:
  """Has JAX make one virtual device of each CPU core; call it before JAX runs anything.

  Also keeps XLA from spreading single operations over the cores and lets it use the processor's
  widest registers, through the environment variable ``XLA_FLAGS``, as far as that does not say
  otherwise. Does nothing if the user has configured the CPU devices (``JAX_NUM_CPU_DEVICES``
  or ``--xla_force_host_platform_device_count`` in ``XLA_FLAGS``), or if JAX runs already.

  Args:
    num_cores: how many; None means all that this process may use, at most 8. With 1, JAX stays as
      it is.

  Returns:
    Whether virtual devices were set up.

  Raises:
    ValueError: if `num_cores` is not positive.

  Example:
    >>> import jax
    >>> from learned_opt import devices
    >>> _ = jax.devices()  # JAX runs: too late.
    >>> devices.use_cores()
    False
  """
  if num_cores is not None and num_cores < 1:
    raise ValueError(f"num_cores must be at least 1, got {num_cores}")
  number = min(num_usable_cores(), _MAX_CORES) if num_cores is None else num_cores
  flags = os.environ.get("XLA_FLAGS", "")
  configured = _OTHER_WAY in flags or jax.config.jax_num_cpu_devices != -1  # pyright: ignore[reportAttributeAccessIssue]
  if number == 1 or configured:
    return False
  try:
    jax.config.update("jax_num_cpu_devices", number)
  except RuntimeError:
    return False
  ours = [f"--{name}={value}" for name, value in _FLAGS.items() if name not in flags]
  os.environ["XLA_FLAGS"] = " ".join([flags, *ours]).strip()
  return True


def num_usable_cores() -> int:
  """The CPU cores that this process may use.

  Example:
    >>> from learned_opt import devices
    >>> devices.num_usable_cores() >= 1
    True
  """
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def mesh(num_devices: int | None = None) -> Mesh | None:
  """This process's devices of JAX's default platform, as a mesh of one axis, ``"devices"``.

  Args:
    num_devices: how many of them; None means all.

  Returns:
    The mesh; None for a single device, which needs none.

  Raises:
    ValueError: if there are not so many devices.

  Example:
    >>> from learned_opt import devices
    >>> devices.mesh(1) is None
    True
  """
  there = jax.local_devices()
  if num_devices is not None and not 1 <= num_devices <= len(there):
    raise ValueError(f"num_devices must be between 1 and {len(there)}, got {num_devices}")
  chosen = there[:num_devices]
  if len(chosen) == 1:
    return None
  return Mesh(np.asarray(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def use(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
  """Shares the work in the block among the devices of a mesh; None shares nothing.

  Example:
    >>> from learned_opt import devices
    >>> with devices.use(devices.mesh(1)):
    ...   devices.num_shards()
    1
  """
  return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def num_shards() -> int:
  """Among how many devices the surrounding mesh shares the work; 1 without a mesh.

  Example:
    >>> from learned_opt import devices
    >>> devices.num_shards()
    1
  """
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else dict(mesh.shape).get(AXIS, 1)


def share(tree: Tree, axis: int = 0) -> Tree:
  """Asks XLA to share the arrays of a traced function among the devices, along one axis.

  Args:
    tree: arrays, or keys.
    axis: the axis; arrays where its length is no multiple of the number of devices stay as they
      are.

  Returns:
    The same values.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt import devices
    >>> devices.share(jnp.arange(2.0)).tolist()
    [0.0, 1.0]
  """
  number = num_shards()
  if number == 1:
    return tree

  def constrain(leaf: jax.Array) -> jax.Array:
    where = axis % leaf.ndim
    if leaf.shape[where] % number:
      return leaf
    spec = PartitionSpec(*[AXIS if index == where else None for index in range(leaf.ndim)])
    return jax.lax.with_sharding_constraint(leaf, spec)

  return jax.tree.map(constrain, tree)


def share_minibatch(tree: Tree) -> Tree:
  """Shares a minibatch among virtual devices, where its problem is the only one.

  For losses whose gradient costs much more than to add it up over devices. Without this, each
  device would compute all of it, and the cores would compete. Under `vmap` over as many problems as
  there are devices, or a multiple, arrays stay as they are: the problems are shared. So they do on
  accelerators, where the others would only wait.

  Args:
    tree: arrays whose first axis is that of the minibatch. No derivatives are taken with respect to
      them.

  Returns:
    The same values.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt import devices
    >>> devices.share_minibatch(jnp.arange(2.0)).tolist()
    [0.0, 1.0]
  """
  if num_shards() == 1 or jax.default_backend() != "cpu":
    return tree
  return jax.tree.map(_share_unless_mapped(0), tree)


@functools.cache
def _share_unless_mapped(axis: int) -> Callable[[jax.Array], jax.Array]:
  @jax.custom_batching.custom_vmap
  def share_leaf(leaf: jax.Array) -> jax.Array:
    return share(leaf, axis)

  @share_leaf.def_vmap
  def _(axis_size: int, in_batched: list[bool], leaf: jax.Array) -> tuple[jax.Array, bool]:
    (mapped,) = in_batched
    if not mapped:
      return share_leaf(leaf), False
    if axis_size % num_shards() == 0:
      return leaf, True
    return _share_unless_mapped(axis + 1)(leaf), True

  return share_leaf


def replicate(tree: Tree) -> Tree:
  """A copy of the arrays on each device of the surrounding mesh, inside or outside of `jax.jit`.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt import devices
    >>> devices.replicate(jnp.arange(2.0)).tolist()
    [0.0, 1.0]
  """
  if num_shards() == 1:
    return tree
  if any(
    isinstance(leaf, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]
    for leaf in jax.tree.leaves(tree)
  ):
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)
  return jax.device_put(tree, NamedSharding(jax.sharding.get_mesh(), PartitionSpec()))
