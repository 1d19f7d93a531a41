"""`stack_step` as one Pallas kernel a direction, for NVIDIA GPUs.

The mathematics, with its factors of one half, is that of `learned_opt.kernels.lstm`; the README
beside this file derives it. XLA writes the gates of every layer to memory between its products and
its elementwise kernels, and reads them again: four times as much as the state. Here a program of
the grid loads a tile of coordinates, takes it through all layers, and writes only the next state.
The backward kernel computes the gates again in the same way, writes the cotangents of the cells,
and adds up the gradients of the weights over the tiles of one program. The sums of the programs are
added outside. There are no atomics: the result is the same every time.

Triton's tiles have sides that are powers of two, and its products sides of at least 16. Features
are therefore rounded up by masks, in the loads and not in memory: what lies outside reads as zero.
Such a unit has z = 0 and c = 0, hence c' = h' = 0 and no influence. A coordinate beyond the last
one has nonzero outputs (the bias), but they are not stored, and its cotangents read as zeros, so
that it adds nothing to the gradients.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from learned_opt.kernels.lstm import CellState, LayerWeights, stack_step

# The side of the smallest operand of a product on tensor cores.
_MIN_SIDE = 16
# The gates of a wider layer do not fit in registers, and its products are large enough for those of
# the library: `fused_stack_step` takes the plain form.
_MAX_HIDDEN = 32
# Coordinates a tile. The backward kernel fills all 255 registers and spills; of the sizes that were
# compiled (16, 32, 64) it spills least with 32.
_FORWARD_TILE = 64
_BACKWARD_TILE = 32
# Each program of the backward kernel leaves a sum of gradients as large as the weights: enough
# programs to fill the largest GPU several times over, few enough that their sums stay small beside
# the state.
_MAX_BACKWARD_PROGRAMS = 1024


class _Sizes(NamedTuple):
  """The features of one layer, before they are rounded up."""

  inputs: int
  hidden: int


class _Plan(NamedTuple):
  """What a kernel is specialised to."""

  layers: tuple[_Sizes, ...]
  num_coordinates: int
  tile: int
  tiles_per_program: int
  interpret: bool


class _Tile(NamedTuple):
  """One tile of the coordinates that a program owns.

  Attributes:
    columns: where the tile lies among them.
    valid: how many coordinates there are from its first one on; at least `size` but at the end.
  """

  columns: Any
  valid: Any


class _Activations(NamedTuple):
  """What the backward pass computes again, for one layer of one tile."""

  x: jax.Array
  c: jax.Array
  h: jax.Array
  gates: tuple[jax.Array, ...]
  tanh_c: jax.Array


def stack_step_pallas(
  layers: tuple[LayerWeights, ...],
  x: jax.Array,
  cells: tuple[CellState, ...],
  *,
  interpret: bool = False,
  tile: int | None = None,
) -> tuple[CellState, ...]:
  """`stack_step` as a kernel for NVIDIA GPUs; the gates never leave the chip.

  Differentiable once, in reverse mode, with respect to the weights and the cells; the inputs `x`
  are taken to be constants, their cotangent is zero. Products are summed and gates computed in
  float32 (in float64 where an operand is). Their precision is JAX's default, as in the plain form:
  TF32 for float32 on GPUs that have it, full under ``jax.default_matmul_precision("float32")``.

  Args:
    layers: the weights, layer by layer, of any floating dtype.
    x: inputs of the first layer, ``[in, coordinates]``.
    cells: the state, layer by layer, ``[hidden, coordinates]`` each, of any floating dtype.
    interpret: run the kernel's operations one by one on any platform, to test it.
    tile: coordinates that are worked on together, a power of two and at least 16; by default
      64, in the backward pass 32.

  Returns:
    The next state, in the dtypes of `cells`. (`stack_step` promotes, so that narrow cells under
    wide weights come out wide.)

  Raises:
    ValueError: if `tile` is not a power of two of at least 16, if there are not as many cells as
      layers, or if a shape does not fit its layer.
    TypeError: if an array is not floating.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.kernels.lstm import CellState, layer_weights
    >>> from learned_opt.kernels.lstm_pallas import stack_step_pallas
    >>> weights = layer_weights(jnp.ones((2 + 3, 12)), jnp.zeros(12), forget_bias=1.0)
    >>> cells = (CellState(jnp.zeros((3, 7)), jnp.zeros((3, 7))),)
    >>> stack_step_pallas((weights,), jnp.ones((2, 7)), cells, interpret=True)[0].h.shape
    (3, 7)
  """
  _check(layers, x, cells)
  if tile is not None and (tile < _MIN_SIDE or tile & (tile - 1)):
    raise ValueError(f"tile must be a power of two of at least {_MIN_SIDE}, got {tile}")
  return _kernel_step(interpret, tile)(layers, x, cells)


def fused_stack_step(
  layers: tuple[LayerWeights, ...], x: jax.Array, cells: tuple[CellState, ...]
) -> tuple[CellState, ...]:
  """`stack_step_pallas` on NVIDIA GPUs, `stack_step` on every other platform.

  The platform is that for which the program is compiled, which only then keeps the one form. The
  plain form also serves layers of more than 32 units, whose gates do not fit on the chip.

  Differentiable once, in reverse mode, with respect to the weights and the cells; the inputs `x`
  are taken to be constants, their cotangent is zero.

  Args:
    layers: the weights, layer by layer, of any floating dtype.
    x: inputs of the first layer, ``[in, coordinates]``.
    cells: the state, layer by layer, ``[hidden, coordinates]`` each, of any floating dtype.

  Returns:
    The next state, in the dtypes of `cells`.

  Raises:
    ValueError: if there are not as many cells as layers, or if a shape does not fit its layer.
    TypeError: if an array is not floating.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.kernels.lstm import CellState, layer_weights
    >>> from learned_opt.kernels.lstm_pallas import fused_stack_step
    >>> weights = layer_weights(jnp.ones((2 + 3, 12)), jnp.zeros(12), forget_bias=1.0)
    >>> cells = (CellState(jnp.zeros((3, 7)), jnp.zeros((3, 7))),)
    >>> fused_stack_step((weights,), jnp.ones((2, 7)), cells)[0].h.shape
    (3, 7)
  """
  _check(layers, x, cells)
  if x.shape[1] == 0 or max(cell.h.shape[0] for cell in cells) > _MAX_HIDDEN:
    return _plain(layers, x, cells)
  return _platform_step(layers, x, cells)


def _check(layers, x, cells) -> None:
  if len(layers) != len(cells) or not layers:
    raise ValueError(f"cells must be as many as layers, got {len(cells)} for {len(layers)}")
  for leaf in jax.tree.leaves((layers, x, cells)):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise TypeError(f"layers, x and cells must be floating arrays, got {leaf.dtype}")
  features, num_coordinates = x.shape
  for index, (weights, cell) in enumerate(zip(layers, cells, strict=True)):
    hidden = cell.h.shape[0]
    expected = [(4 * hidden, columns) for columns in (features, hidden, 1)]
    expected += [(hidden, num_coordinates)] * 2
    got = [array.shape for array in (*weights, *cell)]
    if got != expected:
      raise ValueError(
        f"layers[{index}] and cells[{index}] must have the shapes {expected}, got {got}"
      )
    features = hidden


# The steps: each has a forward and a backward form under one VJP. Were the choice of the platform
# differentiated instead, each step would keep the residuals of both forms.


def _differentiable(forward, backward):
  @jax.custom_vjp
  def step(layers, x, cells):
    return forward(layers, x, cells)

  step.defvjp(
    lambda *args: (step(*args), args), lambda args, cotangents: backward(*args, cotangents)
  )
  return step


@functools.cache
def _kernel_step(interpret: bool, tile: int | None):
  return _differentiable(
    functools.partial(_forward, interpret=interpret, tile=tile),
    functools.partial(_backward, interpret=interpret, tile=tile),
  )


def _plain(layers, x, cells):
  return _cast_like(stack_step(layers, x, cells), cells)


def _plain_backward(layers, x, cells, cotangents):
  return jax.vjp(_plain, layers, x, cells)[1](cotangents)


_platform_step = _differentiable(
  lambda *args: jax.lax.platform_dependent(*args, cuda=_forward, default=_plain),
  lambda *args: jax.lax.platform_dependent(*args, cuda=_backward, default=_plain_backward),
)


# The wrappers of the kernels.


def _forward(layers, x, cells, *, interpret=False, tile=None):
  plan = _plan(layers, x, cells, tile or _FORWARD_TILE, interpret)
  # A tuple of outputs is as many arguments of the kernel.
  (new_cells,) = pl.pallas_call(
    functools.partial(_forward_kernel, plan),
    out_shape=(jax.tree.map(_like, cells),),
    grid=(pl.cdiv(plan.num_coordinates, plan.tile),),
    in_specs=_specs(plan, x, cells),
    out_specs=(jax.tree.map(functools.partial(_columns_spec, plan), cells),),
    compiler_params=_compiler_params(plan),
    interpret=interpret,
    name="lstm_stack_step",
  )(layers, x, cells)
  return new_cells


def _backward(layers, x, cells, cotangents, *, interpret=False, tile=None):
  plan = _plan(layers, x, cells, tile or _BACKWARD_TILE, interpret, _MAX_BACKWARD_PROGRAMS)
  num_programs = pl.cdiv(plan.num_coordinates, plan.tile * plan.tiles_per_program)
  dtype = _accumulator(*(leaf.dtype for leaf in jax.tree.leaves((layers, x, cells))))
  sums = jax.tree.map(lambda w: jax.ShapeDtypeStruct((num_programs, *w.shape), dtype), layers)
  columns_spec = functools.partial(_columns_spec, plan)
  sums, cell_grads = pl.pallas_call(
    functools.partial(_backward_kernel, plan),
    out_shape=(sums, jax.tree.map(_like, cells)),
    grid=(num_programs,),
    in_specs=(*_specs(plan, x, cells), jax.tree.map(columns_spec, cells)),
    out_specs=(
      _weights_specs(plan, (None,), lambda program: (program, 0, 0)),
      jax.tree.map(columns_spec, cells),
    ),
    compiler_params=_compiler_params(plan),
    interpret=interpret,
    name="lstm_stack_step_backward",
  )(layers, x, cells, cotangents)
  grads = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sums)
  return _cast_like(grads, layers), jnp.zeros_like(x), cell_grads


def _plan(layers, x, cells, tile, interpret, max_programs=None) -> _Plan:
  sizes = tuple(
    _Sizes(weights.x.shape[1], cell.h.shape[0]) for weights, cell in zip(layers, cells, strict=True)
  )
  tiles = pl.cdiv(x.shape[1], tile)
  tiles_per_program = 1 if max_programs is None else pl.cdiv(tiles, max_programs)
  return _Plan(sizes, x.shape[1], tile, tiles_per_program, interpret)


def _compiler_params(plan: _Plan) -> plgpu.CompilerParams:
  # A warp owns 16 rows, that is coordinates, of every product of the chain: with more warps than
  # that, Triton has several compute the same rows. No loop has loads to run ahead: one stage.
  return plgpu.CompilerParams(num_warps=min(8, plan.tile // _MIN_SIDE), num_stages=1)


def _like(array):
  return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _cast_like(tree, like):
  return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def _accumulator(*dtypes) -> Any:
  return functools.reduce(jnp.promote_types, dtypes, jnp.float32)


def _side(size: int) -> int:
  return max(_MIN_SIDE, pl.next_power_of_2(size))


def _specs(plan: _Plan, x, cells):
  columns_spec = functools.partial(_columns_spec, plan)
  weights_specs = _weights_specs(plan, (), lambda program: (0, 0))
  return (weights_specs, columns_spec(x), jax.tree.map(columns_spec, cells))


def _weights_specs(plan: _Plan, leading: tuple[None, ...], index_map):
  """One block for all of an array, and so much more that the last gate can be rounded up."""
  specs = []
  for size in plan.layers:
    rows = 3 * size.hidden + _side(size.hidden)
    # The bias is no factor of a product: a single column will do.
    columns = (_side(size.inputs), _side(size.hidden), 1)
    blocks = ((*leading, rows, width) for width in columns)
    block_specs: Any = (pl.BlockSpec(block, index_map) for block in blocks)
    specs.append(LayerWeights(*block_specs))
  return tuple(specs)


def _columns_spec(plan: _Plan, array) -> pl.BlockSpec:
  block = (_side(array.shape[0]), plan.tile * plan.tiles_per_program)
  return pl.BlockSpec(block, lambda program: (0, program))


# The kernels. Their arguments are references to the blocks, in the trees of the wrappers.


def _forward_kernel(plan: _Plan, layers, x, cells, new_cells) -> None:
  tile = _tile(plan, pl.program_id(0), 0)
  value = _load_columns(x, tile, plan.layers[0].inputs)
  for size, weights, cell, new_cell in zip(plan.layers, layers, cells, new_cells, strict=True):
    (c, value), _ = _layer(plan, size, tile, weights, value, cell)
    _store_columns(new_cell.c, tile, size.hidden, c)
    _store_columns(new_cell.h, tile, size.hidden, value)


def _backward_kernel(plan: _Plan, layers, x, cells, cotangents, sums, cell_grads) -> None:
  # Outside of the loop, in which the interpreter does not know it.
  program = pl.program_id(0)

  def add_tile(index, _=None):
    tile = _tile(plan, program, index)
    _backward_tile(plan, tile, index, layers, x, cells, cotangents, sums, cell_grads)
    # Other threads may read the sums, for the next tile, than wrote them. (The interpreter has
    # neither threads nor barriers.)
    if plan.tiles_per_program > 1 and not plan.interpret:
      plgpu.debug_barrier()

  if plan.tiles_per_program == 1:
    add_tile(0)
  else:
    jax.lax.fori_loop(0, plan.tiles_per_program, add_tile, None)


def _backward_tile(
  plan: _Plan, tile, index, layers, x, cells, cotangents, sums, cell_grads
) -> None:
  """Writes the cells' cotangents of one tile; adds its gradients to the sums of the program."""
  inputs = [_load_columns(x, tile, plan.layers[0].inputs)]
  for size, weights, cell in zip(plan.layers[:-1], layers, cells, strict=False):
    inputs.append(_layer(plan, size, tile, weights, inputs[-1], cell)[0].h)
  above = 0.0
  for level in reversed(range(len(plan.layers))):
    size, weights, cell, refs = plan.layers[level], layers[level], cells[level], sums[level]
    # Again for all layers but the last: the registers do not hold the gates of two layers.
    _, kept = _layer(plan, size, tile, weights, inputs[level], cell)
    dtype = kept.tanh_c.dtype
    c_bar = _load_columns(cotangents[level].c, tile, size.hidden).astype(dtype)
    h_bar = _load_columns(cotangents[level].h, tile, size.hidden).astype(dtype) + above
    i, j, f, o = kept.gates
    d = c_bar + 0.5 * h_bar * (1.0 + o) * (1.0 - kept.tanh_c * kept.tanh_c)
    _store_columns(cell_grads[level].c, tile, size.hidden, 0.5 * d * (1.0 + f))
    z_bars = (
      0.5 * d * j * (1.0 - i * i),
      0.5 * d * (1.0 + i) * (1.0 - j * j),
      0.5 * d * kept.c * (1.0 - f * f),
      0.5 * h_bar * kept.tanh_c * (1.0 - o * o),
    )
    h_grad, above = jnp.zeros_like(d), 0.0
    for gate, z_bar in enumerate(z_bars):
      _add_to_sum(refs.bias, gate, size.hidden, 1, index, jnp.sum(z_bar, axis=0)[:, None])
      z_bar = z_bar.astype(kept.h.dtype)
      _add_to_sum(refs.x, gate, size.hidden, size.inputs, index, _dot(plan, z_bar.T, kept.x))
      _add_to_sum(refs.h, gate, size.hidden, size.hidden, index, _dot(plan, z_bar.T, kept.h))
      h_grad += _dot(
        plan, z_bar, _load_gate(weights.h, gate, size.hidden, size.hidden, z_bar.dtype)
      )
      if level:  # The inputs of the first layer are constants.
        above += _dot(
          plan, z_bar, _load_gate(weights.x, gate, size.hidden, size.inputs, z_bar.dtype)
        )
    _store_columns(cell_grads[level].h, tile, size.hidden, h_grad)


def _add_to_sum(ref, gate: int, rows: int, columns: int, index, value: jax.Array) -> None:
  # In memory: the registers have no room for the sums of all weights.
  view = ref.at[pl.ds(gate * rows, _side(rows)), :]
  inside = _inside(view.shape, rows, columns)
  if not isinstance(index, int):
    value += plgpu.load(view, mask=inside & (index > 0), other=0)
  plgpu.store(view, value.astype(ref.dtype), mask=inside)


def _layer(
  plan: _Plan, size: _Sizes, tile: _Tile, weights, x: jax.Array, cell
) -> tuple[CellState, _Activations]:
  # A product has operands of one dtype.
  operand = jnp.result_type(weights.h.dtype, cell.h.dtype, x.dtype)
  x = x.astype(operand)
  h = _load_columns(cell.h, tile, size.hidden).astype(operand)

  def gate(index):
    a = _load_gate(weights.x, index, size.hidden, size.inputs, operand)
    b = _load_gate(weights.h, index, size.hidden, size.hidden, operand)
    bias = _load_gate(weights.bias, index, size.hidden, 1, _accumulator(operand))
    return jnp.tanh(_dot(plan, x, a.T) + _dot(plan, h, b.T) + bias.T)

  i, j, f, o = gates = tuple(map(gate, range(4)))
  c = _load_columns(cell.c, tile, size.hidden).astype(i.dtype)
  new_c = 0.5 * ((1.0 + f) * c + (1.0 + i) * j)
  tanh_c = jnp.tanh(new_c)
  # Rounded as it is stored, so that the next layer sees what the plain form's sees.
  new_h = (0.5 * (1.0 + o) * tanh_c).astype(cell.h.dtype)
  return CellState(new_c, new_h), _Activations(x, c, h, gates, tanh_c)


def _dot(plan: _Plan, a: jax.Array, b: jax.Array) -> jax.Array:
  dtype = _accumulator(a.dtype)
  if plan.interpret:
    # CPUs do not multiply narrow operands into a wide sum. Widened first, they give the same.
    a, b = a.astype(dtype), b.astype(dtype)
  return jnp.dot(a, b, preferred_element_type=dtype)


def _tile(plan: _Plan, program, index) -> _Tile:
  first = index * plan.tile
  before = program * (plan.tile * plan.tiles_per_program) + first
  return _Tile(pl.ds(first, plan.tile), plan.num_coordinates - before)


def _load_gate(ref, gate: int, rows: int, columns: int, dtype) -> jax.Array:
  return _load(ref, (pl.ds(gate * rows, _side(rows)), slice(None)), rows, columns).astype(dtype)


def _load_columns(ref, tile: _Tile, rows: int) -> jax.Array:
  """``[coordinates, features]``: on the chip, coordinates are rows."""
  return _load(ref, (slice(None), tile.columns), rows, tile.valid).T


def _store_columns(ref, tile: _Tile, rows: int, value: jax.Array) -> None:
  _store(ref, (slice(None), tile.columns), rows, tile.valid, value.T)


def _load(ref, index, rows, columns) -> jax.Array:
  view = ref.at[index]
  return plgpu.load(view, mask=_inside(view.shape, rows, columns), other=0)


def _store(ref, index, rows, columns, value: jax.Array) -> None:
  view = ref.at[index]
  plgpu.store(view, value.astype(ref.dtype), mask=_inside(view.shape, rows, columns))


def _inside(shape: tuple[int, ...], rows, columns) -> jax.Array:
  row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  column = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  return (row < rows) & (column < columns)
