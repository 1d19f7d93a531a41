"""Where computations run: on a CPU, one virtual device a core."""

import contextlib
from collections.abc import Iterator

import jax


def use_cores() -> None:
  """Makes one virtual CPU device a core, if JAX has not started yet.

  Example:
    >>> from learned_opt import devices
    >>> devices.use_cores()
  """


def mesh() -> jax.sharding.Mesh | None:
  """A mesh over all local devices, None if there is only one.

  Example:
    >>> from learned_opt import devices
    >>> devices.mesh() is None or devices.mesh().size > 1
    True
  """
  return None


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh | None) -> Iterator[None]:
  """Within the block, outer steps are sharded over the mesh.

  Example:
    >>> from learned_opt import devices
    >>> with devices.use(devices.mesh()):
    ...   pass
  """
  del mesh
  yield
