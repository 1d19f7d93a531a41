"""NTM-BFGS and NTM-L-BFGS: an LSTM with a shared memory (Andrychowicz et al. 2016, appendix D).

Quasi-Newton methods keep an estimate M of the inverse Hessian, read it by a product with a vector,
and write to it by adding outer products. Here a coordinatewise controller, an LSTM with global
averaging cells, learns what to read and what to write. With n coordinates, step t is

    i_t = M_t r_t
    (u_t, r_{t+1}, a_{t,w}, b_{t,w}, state) = controller(g_t, i_t, state)
    M_{t+1} = M_t + sum_w a_{t,w} b_{t,w}^T

where u is the update and r, a, b are vectors of one number a coordinate. What is read arrives one
step after it was asked for. One read and three writes can be BFGS, exactly.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from learned_opt import _draws
from learned_opt.base import LearnedOptimizer
from learned_opt.kernels.lstm import CellState
from learned_opt.optimizers._cells import check_lstm_options, zero_cells
from learned_opt.optimizers._flat import flat_transformation
from learned_opt.optimizers._gac import GlobalAveragingLSTM, check_num_global
from learned_opt.optimizers._preprocessing import Identity, Preprocessing


class Memory(NamedTuple):
  """A matrix M of n x n numbers, whatever it is kept as.

  Attributes:
    init: ``(num_coordinates, dtype) -> state``.
    read: ``(state, r) -> M r`` for ``[n, reads]`` arrays.
    write: ``(state, a, b) -> state`` of M + a b^T for ``[n, writes]`` arrays.
  """

  init: Callable[[int, np.dtype], Any]
  read: Callable[[Any, jax.Array], jax.Array]
  write: Callable[[Any, jax.Array, jax.Array], Any]


class Pairs(NamedTuple):
  """The last pairs that were written, ``[n, pairs]`` each, the oldest first."""

  a: jax.Array
  b: jax.Array


class NTMState(NamedTuple):
  """Optimizer state.

  Attributes:
    layers: of the controller, one `CellState` a layer.
    reads: r, what is to be read next, ``[coordinates, reads]``.
    memory: M, ``[coordinates, coordinates]``, or the `Pairs` it is made of.
  """

  layers: tuple[CellState, ...]
  reads: jax.Array
  memory: Any


def dense_memory(initial: float = 1.0) -> Memory:
  """M as a matrix that starts as `initial` times the identity: n^2 numbers.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.optimizers.ntm import dense_memory
    >>> memory = dense_memory()
    >>> state = memory.write(memory.init(2, jnp.float32), jnp.ones((2, 1)), jnp.eye(2)[:, :1])
    >>> state.tolist(), memory.read(state, jnp.array([[1.0], [10.0]])).tolist()
    ([[2.0, 0.0], [1.0, 1.0]], [[2.0], [11.0]])
  """
  return Memory(
    init=lambda num_coordinates, dtype: initial * jnp.eye(num_coordinates, dtype=dtype),
    read=lambda matrix, r: matrix @ r,
    write=lambda matrix, a, b: matrix + a @ b.T,
  )


def low_rank_memory(num_pairs: int, initial: float = 1.0) -> Memory:
  """M as `initial` times the identity plus the last `num_pairs` outer products: 2 m n numbers.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.optimizers.ntm import low_rank_memory
    >>> memory = low_rank_memory(num_pairs=4)
    >>> state = memory.write(memory.init(2, jnp.float32), jnp.ones((2, 1)), jnp.eye(2)[:, :1])
    >>> memory.read(state, jnp.array([[1.0], [10.0]])).tolist()
    [[2.0], [11.0]]
  """

  def init(num_coordinates: int, dtype: np.dtype) -> Pairs:
    shape = (num_coordinates, num_pairs)
    return Pairs(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  def read(pairs: Pairs, r: jax.Array) -> jax.Array:
    return initial * r + pairs.a @ (pairs.b.T @ r)

  def write(pairs: Pairs, a: jax.Array, b: jax.Array) -> Pairs:
    number = a.shape[1]
    return Pairs(
      jnp.concatenate([pairs.a[:, number:], a], axis=1),
      jnp.concatenate([pairs.b[:, number:], b], axis=1),
    )

  return Memory(init, read, write)


class Controller(nn.Module):
  """The network for all coordinates: preprocessing, LSTM layers with averaging cells, linear."""

  hidden_size: int
  num_global: int
  num_reads: int
  num_writes: int
  preprocessing: Preprocessing
  output_scale: float
  head_scale: float
  forget_bias: float

  @nn.compact
  def __call__(
    self, grads: jax.Array, read: jax.Array, layers: tuple[CellState, ...]
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, tuple[CellState, ...]]:
    """Maps ``[n]`` gradients, ``[n, reads]`` of what was read, and the state.

    Returns:
      Updates ``[n]``, which are *added*; r ``[n, reads]``; a and b, ``[n, writes]``; the state.
    """
    stack = GlobalAveragingLSTM(self.hidden_size, self.num_global, self.forget_bias, name="stack")
    h, layers = stack(jnp.concatenate([self.preprocessing(grads), read], axis=1), layers)
    init = _draws.truncated_normal_init(self.hidden_size**-0.5)
    updates = nn.Dense(1, kernel_init=init, name="output")(h)[:, 0]
    num_heads = self.num_reads + 2 * self.num_writes
    heads = self.head_scale * nn.Dense(num_heads, kernel_init=init, name="heads")(h)
    r, a, b = jnp.split(heads, (self.num_reads, self.num_reads + self.num_writes), axis=1)
    return self.output_scale * updates, r, a, b, layers


def ntm_bfgs(
  num_layers: int = 2,
  hidden_size: int = 20,
  num_global: int = 3,
  num_reads: int = 1,
  num_writes: int = 3,
  preprocessing: Preprocessing = Identity(),
  output_scale: float = 1.0,
  head_scale: float = 0.1,
  initial_memory: float = 1.0,
  forget_bias: float = 1.0,
) -> LearnedOptimizer:
  """An LSTM that reads and writes a matrix of n x n numbers for n coordinates.

  For problems of up to some thousand coordinates: its state holds n^2 numbers.

  Source: Andrychowicz et al. (2016), appendix D. Open there, and chosen here: linear heads, r_0 of
  zero, the numbers of heads and averaging cells with which BFGS is possible.

  Args:
    num_layers: LSTM layers of the controller.
    hidden_size: units of each layer.
    num_global: units of each layer that are averaged over the coordinates.
    num_reads: read heads.
    num_writes: write heads.
    preprocessing: what the network sees of a gradient; by default the gradient itself.
    output_scale: factor of the updates.
    head_scale: factor of what the heads give out.
    initial_memory: M_0 is this times the identity.
    forget_bias: added to the forget gates when the network runs.

  Returns:
    The architecture.

  Raises:
    ValueError: if a size is out of its range or a factor is not finite.
    TypeError: if `preprocessing` is not one of those in `learned_opt.optimizers`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.ntm_bfgs()
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> updates["w"].shape, state.memory.shape
    ((3, 2), (8, 8))
  """
  check_lstm_options(num_layers, hidden_size, preprocessing, output_scale, forget_bias)
  _check_heads(num_global, hidden_size, num_reads, num_writes, head_scale, initial_memory)
  return _ntm(
    FrozenDict(
      num_layers=num_layers,
      hidden_size=hidden_size,
      num_global=num_global,
      num_reads=num_reads,
      num_writes=num_writes,
      preprocessing=preprocessing,
      output_scale=float(output_scale),
      head_scale=float(head_scale),
      initial_memory=float(initial_memory),
      forget_bias=float(forget_bias),
    )
  )


def ntm_lbfgs(
  num_layers: int = 2,
  hidden_size: int = 20,
  num_global: int = 3,
  num_reads: int = 1,
  num_writes: int = 3,
  num_pairs: int = 30,
  preprocessing: Preprocessing = Identity(),
  output_scale: float = 1.0,
  head_scale: float = 0.1,
  initial_memory: float = 1.0,
  forget_bias: float = 1.0,
) -> LearnedOptimizer:
  """`ntm_bfgs` with a memory that forgets: the last `num_pairs` outer products and no others.

  The state is linear in the number of coordinates.

  Source: Andrychowicz et al. (2016), appendix D.

  Args:
    num_layers: LSTM layers of the controller.
    hidden_size: units of each layer.
    num_global: units of each layer that are averaged over the coordinates.
    num_reads: read heads.
    num_writes: write heads.
    num_pairs: outer products that are kept; 30 are those of ten steps with three write heads.
    preprocessing: what the network sees of a gradient; by default the gradient itself.
    output_scale: factor of the updates.
    head_scale: factor of what the heads give out.
    initial_memory: M is this times the identity beside the outer products.
    forget_bias: added to the forget gates when the network runs.

  Returns:
    The architecture.

  Raises:
    ValueError: if a size is out of its range or a factor is not finite.
    TypeError: if `preprocessing` is not one of those in `learned_opt.optimizers`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.ntm_lbfgs(num_pairs=6)
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = jnp.ones(100)
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> state.memory.a.shape
    (100, 6)
  """
  check_lstm_options(num_layers, hidden_size, preprocessing, output_scale, forget_bias)
  _check_heads(num_global, hidden_size, num_reads, num_writes, head_scale, initial_memory)
  if num_pairs < num_writes:
    raise ValueError(f"num_pairs must be at least num_writes={num_writes}, got {num_pairs}")
  return _ntm(
    FrozenDict(
      num_layers=num_layers,
      hidden_size=hidden_size,
      num_global=num_global,
      num_reads=num_reads,
      num_writes=num_writes,
      num_pairs=num_pairs,
      preprocessing=preprocessing,
      output_scale=float(output_scale),
      head_scale=float(head_scale),
      initial_memory=float(initial_memory),
      forget_bias=float(forget_bias),
    )
  )


def _check_heads(num_global, hidden_size, num_reads, num_writes, head_scale, initial_memory):
  check_num_global(num_global, hidden_size)
  for name, number in (("num_reads", num_reads), ("num_writes", num_writes)):
    if number < 1:
      raise ValueError(f"{name} must be at least 1, got {number}")
  for name, factor in (("head_scale", head_scale), ("initial_memory", initial_memory)):
    if not math.isfinite(factor):
      raise ValueError(f"{name} must be finite, got {factor}")


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _ntm(config: Any) -> LearnedOptimizer:
  """With the memory of `ntm_lbfgs` if `config` has a number of pairs, else that of `ntm_bfgs`."""
  num_pairs, initial = config.get("num_pairs"), config["initial_memory"]
  memory = dense_memory(initial) if num_pairs is None else low_rank_memory(num_pairs, initial)
  num_layers, hidden_size, num_reads = (
    config[name] for name in ("num_layers", "hidden_size", "num_reads")
  )
  module: Any = Controller(
    **{name: config[name] for name in Controller.__dataclass_fields__ if name in config}
  )

  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    dtype = np.dtype(np.float32)
    layers = zero_cells(num_layers, (1, hidden_size), dtype)
    return module.init(key, jnp.zeros(1, dtype), jnp.zeros((1, num_reads), dtype), layers)["params"]

  def zero_state(dtype: np.dtype, num_coordinates: int) -> NTMState:
    return NTMState(
      zero_cells(num_layers, (num_coordinates, hidden_size), dtype),
      jnp.zeros((num_coordinates, num_reads), dtype),
      memory.init(num_coordinates, dtype),
    )

  def update(meta_params, grads: jax.Array, state: NTMState) -> tuple[jax.Array, NTMState]:
    read = memory.read(state.memory, state.reads)
    updates, reads, a, b, layers = module.apply({"params": meta_params}, grads, read, state.layers)
    return updates, NTMState(layers, reads, memory.write(state.memory, a, b))

  def optimizer(meta_params):
    dtype = jax.tree.leaves(meta_params)[0].dtype
    return flat_transformation(
      dtype,
      init=functools.partial(zero_state, dtype),
      update=functools.partial(update, meta_params),
      num_coordinates=lambda state: state.reads.shape[0],
    )

  name = "ntm_bfgs" if num_pairs is None else "ntm_lbfgs"
  return LearnedOptimizer(init, optimizer, name, config)
