"""The kernel for GPUs against the plain form, interpreted on the CPU; and its lowering to CUDA."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learned_opt.kernels import lstm_pallas
from learned_opt.kernels.lstm import CellState, LayerWeights, stack_step
from learned_opt.kernels.lstm_pallas import fused_stack_step, stack_step_pallas

# (hidden size of each layer, inputs, coordinates, tile)
SHAPES = {
  "three_unequal_layers": ((4, 20, 7), 1, 7, 16),
  "wide_many_inputs": ((33,), 17, 513, None),
}
ALL = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def random_arguments(hidden_sizes, num_inputs, num_coordinates, dtype="float32"):
  rng = np.random.default_rng(1)

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  layers, cells, features = [], [], num_inputs
  for hidden in hidden_sizes:
    shapes = ((4 * hidden, features), (4 * hidden, hidden), (4 * hidden, 1))
    layers.append(LayerWeights(*(normal(*shape) * 0.3 for shape in shapes)))
    cells.append(CellState(normal(hidden, num_coordinates), normal(hidden, num_coordinates)))
    features = hidden
  return tuple(layers), normal(num_inputs, num_coordinates), tuple(cells)


def value_and_vjp(step):
  """The next state, and the cotangents of all arguments for a cotangent that differs everywhere.

  The inputs are constants, as the kernel takes them to be.
  """

  def run(layers, x, cells, cotangents):
    def of_constants(layers, x, cells):
      return step(layers, jax.lax.stop_gradient(x), cells)

    new_cells, vjp = jax.vjp(of_constants, layers, x, cells)
    return new_cells, vjp(cotangents)

  return jax.jit(run)


def interpreted(tile=None):
  return lambda *args: stack_step_pallas(*args, interpret=True, tile=tile)


def assert_close(expected, got, rtol):
  """Relative to the largest element of each array."""
  chex.assert_trees_all_equal_shapes_and_dtypes(expected, got)
  for want, have in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
    want, have = np.asarray(want, np.float64), np.asarray(have, np.float64)
    np.testing.assert_allclose(have, want, rtol=rtol, atol=rtol * np.max(np.abs(want)))


def check_step(step, shape, dtype, rtol):
  args = random_arguments(*shape, dtype=dtype)
  cotangents = jax.tree.map(jnp.cos, args[2])
  expected = value_and_vjp(stack_step)(*args, cotangents)
  got = value_and_vjp(step)(*args, cotangents)
  assert_close(expected, got, rtol)
  assert not np.any(got[1][1])


@ALL
def test_kernel_equals_plain_form(shape):
  *shape, tile = shape
  check_step(interpreted(tile), shape, "float32", 1e-5)


def test_kernel_equals_plain_form_in_float64(x64):
  check_step(interpreted(), ((4,), 2, 1), "float64", 1e-12)


@pytest.mark.parametrize("weights_dtype", ["bfloat16", "float32"])
def test_bfloat16_state_loses_no_more_than_its_storage(weights_dtype):
  layers, x, cells = random_arguments((5,), 2, 20, "bfloat16")
  layers = jax.tree.map(lambda leaf: leaf.astype(weights_dtype), layers)
  got = value_and_vjp(interpreted(16))(layers, x, cells, cells)
  chex.assert_trees_all_equal_dtypes(got, (cells, (layers, x, cells)))
  # The plain form in float32 on the same numbers. (In bfloat16 it is several times less exact.)
  args = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (layers, x, cells, cells))
  expected = value_and_vjp(stack_step)(*args)
  widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), got)
  assert_close(expected, widened, 2.0**-7)


def test_backward_kernel_sums_over_the_tiles_of_a_program(monkeypatch):
  monkeypatch.setattr(lstm_pallas, "_MAX_BACKWARD_PROGRAMS", 2)
  # 6 tiles for 2 programs, the last tile not full.
  check_step(interpreted(16), ((4,), 2, 90), "float32", 1e-5)


def rolled(step):
  """The gradient through 5 steps, as an unroll takes it."""

  def objective(layers, cells, inputs):
    def body(cells, x):
      cells = step(layers, x, cells)
      return cells, jnp.sum(jnp.sin(3.0 * cells[-1].h))

    cells, values = jax.lax.scan(body, cells, inputs)
    return jnp.sum(values) + jnp.sum(cells[0].c ** 2)

  return jax.grad(objective, argnums=(0, 1))


@pytest.mark.parametrize("step", [interpreted(16), fused_stack_step], ids=["kernel", "fused"])
def test_gradient_through_scan(step):
  layers, _, cells = random_arguments((5,), 2, 7)
  inputs = jnp.asarray(np.random.default_rng(3).normal(size=(5, 2, 7)), jnp.float32)
  expected = jax.jit(rolled(stack_step))(layers, cells, inputs)
  assert_close(expected, jax.jit(rolled(step))(layers, cells, inputs), 1e-5)


@pytest.mark.parametrize("step", [interpreted(16), fused_stack_step], ids=["kernel", "fused"])
def test_vmap_over_problems(step):
  layers, x, cells = random_arguments((5,), 2, 14)
  x, cells = jax.tree.map(lambda a: a.reshape(-1, 2, 7).swapaxes(0, 1), (x, cells))

  def mapped(step):
    return value_and_vjp(jax.vmap(step, in_axes=(None, 0, 0)))(layers, x, cells, cells)

  assert_close(mapped(stack_step), mapped(step), 1e-5)


def both_directions(layers, x, cells):
  return value_and_vjp(fused_stack_step)(layers, x, cells, cells)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_to_one_kernel_a_direction_for_cuda(dtype):
  args = random_arguments((20, 20), 2, 7, dtype)
  text = jax.jit(both_directions).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("custom_call @__gpu$xla.gpu.triton") == 2
  assert "stablehlo.dot_general" not in text


def test_lowers_for_cuda_with_a_loop_over_tiles():
  args = random_arguments((20,), 2, 64 * lstm_pallas._MAX_BACKWARD_PROGRAMS + 1)
  text = jax.jit(both_directions).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("custom_call @__gpu$xla.gpu.triton") == 2


def test_wide_layers_take_the_plain_form_on_cuda():
  args = random_arguments((33,), 2, 7)
  text = jax.jit(both_directions).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
  assert "triton" not in text


def test_no_choice_of_platform_is_left_on_cpu():
  args = random_arguments((20, 20), 2, 7)
  text = jax.jit(both_directions).lower(*args).compile().as_text() or ""
  assert "tanh" in text
  assert "conditional" not in text
  assert "triton" not in text


def test_no_coordinates():
  args = random_arguments((4,), 2, 0)
  chex.assert_trees_all_equal_shapes_and_dtypes(fused_stack_step(*args), args[2])


def test_errors_name_the_argument():
  layers, x, cells = random_arguments((4,), 2, 7)
  with pytest.raises(ValueError, match="tile must be a power of two"):
    stack_step_pallas(layers, x, cells, interpret=True, tile=24)
  with pytest.raises(ValueError, match="cells must be as many as layers, got 2 for 1"):
    fused_stack_step(layers, x, cells * 2)
  with pytest.raises(ValueError, match="must have the shapes"):
    fused_stack_step(layers, x[:1], cells)
  with pytest.raises(TypeError, match="floating"):
    fused_stack_step(layers, x.astype(int), cells)
