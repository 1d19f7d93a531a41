"""One step of a stack of LSTM layers for many coordinates, features first, with its own VJP.

The plain form of the same network is `learned_opt.optimizers.lstm.CoordinatewiseLSTM`, written for
one coordinate and `vmap`ped. Here all arrays are ``[features, coordinates]``, so that a gate is a
block of whole rows and the coordinates lie side by side.

**Forward.** z = A x + B h + b holds the gates i, j, f, o of one layer. A sigmoid is a hyperbolic
tangent, sigmoid(a) = (1 + tanh(a / 2)) / 2, so the rows of i, f and o are halved beforehand and a
single pass of tanh over z serves all gates:

    t = tanh(z);  i, f, o = (1 + t) / 2;  j = t;  c' = f c + i j;  h' = o tanh(c').

**Backward.** Nothing but x, h and c is kept from the forward pass; t and c' are computed again.
With T = tanh(c') and the cotangents H of h' and C of c':

    D = C + H o (1 - T^2)                                   the cotangent of c', over all paths
    D f                                                     the cotangent of c
    (D j, D i, D c, H T)                                    the cotangents of i, j, f, o
    Z = (D j / 2, D i, D c / 2, H T / 2) (1 - t^2)          the cotangent of z
    Z x^T, Z h^T, Z 1, A^T Z, B^T Z                         those of A, B, b, x, h

The cotangent of x is added to H of the layer below, whose h' is x.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LayerWeights(NamedTuple):
  """Weights of one layer as `layer_weights` makes them.

  Attributes:
    x: A, ``[4 hidden, in]``.
    h: B, ``[4 hidden, hidden]``.
    bias: b, ``[4 hidden, 1]``.
  """

  x: jax.Array
  h: jax.Array
  bias: jax.Array


class CellState(NamedTuple):
  """State of one LSTM layer.

  ``[hidden, coordinates]`` arrays here and in the optimizers whose coordinates are treated apart;
  ``[coordinates, hidden]`` in those that mix coordinates, or have one such state a tensor.

  Attributes:
    c: the cells.
    h: the outputs.
  """

  c: jax.Array
  h: jax.Array


class _Activations(NamedTuple):
  """What the backward pass computes again: inputs, ``tanh(z)``, ``tanh(c')``."""

  x: jax.Array
  gates: jax.Array
  tanh_c: jax.Array


def layer_weights(kernel: jax.Array, bias: jax.Array, forget_bias: float) -> LayerWeights:
  """Weights of a layer in the form that `stack_step` takes.

  Args:
    kernel: ``[in + hidden, 4 hidden]``, gates in the order i, j, f, o.
    bias: ``[4 hidden]``.
    forget_bias: added to the bias of f.

  Returns:
    The weights, transposed, with the forget bias, the rows of i, f and o halved.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.kernels.lstm import layer_weights
    >>> weights = layer_weights(jnp.ones((2 + 3, 12)), jnp.zeros(12), forget_bias=1.0)
    >>> [w.shape for w in weights]
    [(12, 2), (12, 3), (12, 1)]
  """
  hidden = bias.shape[0] // 4
  offsets = jnp.repeat(jnp.array([0.0, 0.0, forget_bias, 0.0], bias.dtype), hidden)
  halves = jnp.repeat(jnp.array([0.5, 1.0, 0.5, 0.5], bias.dtype), hidden)[:, None]
  rows = kernel.T * halves
  return LayerWeights(rows[:, :-hidden], rows[:, -hidden:], (bias + offsets)[:, None] * halves)


def _advance(layers, x, cells) -> tuple[tuple[CellState, ...], list[_Activations]]:
  new_cells, activations = [], []
  for weights, cell in zip(layers, cells, strict=True):
    gates = jnp.tanh(weights.x @ x + weights.h @ cell.h + weights.bias)
    i, j, f, o = jnp.split(gates, 4)
    c = 0.5 * ((1.0 + f) * cell.c + (1.0 + i) * j)
    tanh_c = jnp.tanh(c)
    activations.append(_Activations(x, gates, tanh_c))
    x = 0.5 * (1.0 + o) * tanh_c
    new_cells.append(CellState(c, x))
  return tuple(new_cells), activations


@jax.custom_vjp
def stack_step(
  layers: tuple[LayerWeights, ...], x: jax.Array, cells: tuple[CellState, ...]
) -> tuple[CellState, ...]:
  """Advances a stack of layers by one step.

  Differentiable in reverse mode.

  Args:
    layers: the weights, layer by layer.
    x: inputs of the first layer, ``[in, coordinates]``.
    cells: the state, layer by layer.

  Returns:
    The next state; the output of the stack is the last layer's ``h``.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.kernels.lstm import CellState, layer_weights, stack_step
    >>> weights = layer_weights(jnp.ones((2 + 3, 12)), jnp.zeros(12), forget_bias=1.0)
    >>> cells = (CellState(jnp.zeros((3, 7)), jnp.zeros((3, 7))),)
    >>> stack_step((weights,), jnp.ones((2, 7)), cells)[0].h.shape
    (3, 7)
  """
  return _advance(layers, x, cells)[0]


def _stack_step_fwd(layers, x, cells):
  return stack_step(layers, x, cells), (layers, x, cells)


def _stack_step_bwd(residuals, cotangents):
  layers, x, cells = residuals
  _, activations = _advance(layers, x, cells)
  above = 0.0
  backwards = []
  for weights, cell, (inputs, gates, tanh_c), cotangent in zip(
    reversed(layers), reversed(cells), reversed(activations), reversed(cotangents), strict=True
  ):
    grads, above, cell_grads = _layer_bwd(
      weights, cell, inputs, gates, tanh_c, CellState(cotangent.c, cotangent.h + above)
    )
    backwards.append((grads, cell_grads))
  layer_grads, cell_grads = zip(*reversed(backwards), strict=True)
  return layer_grads, above, cell_grads


def _layer_bwd(weights, cell, x, gates, tanh_c, cotangent):
  hidden = tanh_c.shape[0]
  i, j, f, o = jnp.split(gates, 4)
  d = cotangent.c + 0.5 * cotangent.h * (1.0 + o) * (1.0 - tanh_c**2)
  parts = (
    0.5 * d * j * (1.0 - i**2),
    0.5 * d * (1.0 + i) * (1.0 - j**2),
    0.5 * d * cell.c * (1.0 - f**2),
    0.5 * cotangent.h * tanh_c * (1.0 - o**2),
  )
  # Written in place, block by block: XLA's CPU backend turns a concatenation here into one loop
  # with a branch for each element, which costs more than the products below.
  z = jnp.zeros_like(gates)
  for index, part in enumerate(parts):
    z = z.at[index * hidden : (index + 1) * hidden].set(part)
  # A product with ones, because XLA's CPU backend does not vectorise a sum along rows.
  ones = jnp.ones((z.shape[1], 1), z.dtype)
  grads = LayerWeights(z @ x.T, z @ cell.h.T, z @ ones)
  return grads, weights.x.T @ z, CellState(0.5 * d * (1.0 + f), weights.h.T @ z)


stack_step.defvjp(_stack_step_fwd, _stack_step_bwd)
