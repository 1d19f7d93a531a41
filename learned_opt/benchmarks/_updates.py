"""The ways to compute one update of many parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from learned_opt import _coordinates, optimizers
from learned_opt.base import LearnedOptimizer
from learned_opt.optimizers.lstm import CoordinatewiseLSTM

REFERENCE = "plain"


class UpdatePath(NamedTuple):
  """One way to compute an update.

  Attributes:
    make: ``(architecture, meta_params) -> tx``.
    cores: whether it runs in a process that is set up by `learned_opt.devices`, the state and the
      parameters split over all local devices.
  """

  make: Callable[[LearnedOptimizer, chex.ArrayTree], optax.GradientTransformation]
  cores: bool = False


def _adam(lstm: LearnedOptimizer, meta_params: chex.ArrayTree) -> optax.GradientTransformation:
  del lstm, meta_params
  return optax.adam(1e-3)


def _default(lstm: LearnedOptimizer, meta_params: chex.ArrayTree) -> optax.GradientTransformation:
  return lstm.optimizer(meta_params)


def _plain(lstm: LearnedOptimizer, meta_params: chex.ArrayTree) -> optax.GradientTransformation:
  """The Flax module of one coordinate under `vmap`, as XLA lowers it, with a row a coordinate."""
  options = {**(lstm.config or {})}
  del options["state_dtype"]  # That of the weights, here.
  module: Any = CoordinatewiseLSTM(**options)

  def init(params):
    return jax.tree.map(jnp.transpose, lstm.optimizer(meta_params).init(params))

  def update(updates, state: Any, params=None):
    h = state.layers[0].h
    grads = _coordinates.flatten(updates, params, h.dtype, h.shape[0])
    step = jax.vmap(functools.partial(module.apply, {"params": meta_params}))
    flat, state = step(grads, state)
    return _coordinates.unflatten(flat, updates, params), state

  return optax.GradientTransformation(init, update)


# The reference first.
PATHS: dict[str, UpdatePath] = {
  REFERENCE: UpdatePath(_plain),
  "default": UpdatePath(_default),
  "default-cores": UpdatePath(_default, cores=True),
  "adam": UpdatePath(_adam),
}

UPDATE_PATHS = tuple(PATHS)

# The one whose paths those are; it updates one vector.
LSTM = "lstm"

# For how many steps those plan that do; it takes no time.
_NUM_STEPS = 1000

# Others, which update square matrices and know one path.
_OTHERS: dict[str, Callable[[], LearnedOptimizer]] = {
  "adafac_mlp": optimizers.adafac_mlp,
  "celo": functools.partial(optimizers.celo, num_steps=_NUM_STEPS),
  "celo2": optimizers.celo2,
  "celo2_base": functools.partial(optimizers.celo2, newton_schulz=False),
  "celo_adam": functools.partial(optimizers.celo_adam, num_steps=_NUM_STEPS),
  "learned_muon": functools.partial(optimizers.learned_muon, num_steps=_NUM_STEPS),
  "learned_sgd": optimizers.learned_sgd,
  "mlp": optimizers.mlp,
  "nn_adam": optimizers.nn_adam,
  "star": optimizers.star,
  "velo": functools.partial(optimizers.velo, num_steps=_NUM_STEPS),
}

UPDATE_OPTIMIZERS = (LSTM, *_OTHERS)

# Of the matrices that the others update.
MATRIX_SIZE = 1000


def matrices(make: Callable[..., jax.Array], size: int) -> list[jax.Array]:
  """So many numbers as square matrices, and what is left as a vector.

  >>> [leaf.shape for leaf in matrices(jax.numpy.zeros, 2_000_003)]
  [(1000, 1000), (1000, 1000), (3,)]
  """
  number, left = divmod(size, MATRIX_SIZE**2)
  shapes = [(MATRIX_SIZE, MATRIX_SIZE)] * number + [(left,)] * bool(left)
  return [make(shape) for shape in shapes]


def architecture_of(optimizer: str, lstm: LearnedOptimizer) -> LearnedOptimizer:
  """That of one of `UPDATE_OPTIMIZERS`; Adam has none, and gets the LSTM's."""
  return _OTHERS[optimizer]() if optimizer in _OTHERS else lstm


def shard(mesh: jax.sharding.Mesh | None, tree: Any) -> Any:
  """Splits each array over the mesh, along its longest axis that divides evenly."""
  if mesh is None:
    return tree

  def place(leaf: jax.Array) -> jax.Array:
    axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
    spec: list[Any] = [None] * leaf.ndim
    if axes:
      spec[max(axes, key=lambda axis: leaf.shape[axis])] = mesh.axis_names
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

  return jax.tree.map(place, tree)
