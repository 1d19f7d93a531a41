"""What the per-parameter MLP optimizers see of a tensor: running averages, and features of them.

Written for one tensor. A vector of decays gives as many running averages, on a first axis; what
does not vary along an axis of the tensor has size one there, so that everything broadcasts. Source:
Metz et al. (2022), "Practical tradeoffs between memory, compute, and performance in learned
optimizers", appendix; the constants are those of its released code.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# How many steps ago things began, on eleven scales.
TIME_SCALES = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)

# The order of the groups in the weights of adafac_mlp and STAR: 28 features.
ADAFAC_GROUPS = (
  "grad",
  "param",
  "momenta",
  "squares",
  "scaled_momenta",
  "rsqrt_squares",
  "factored_grads",
  "rows",
  "columns",
  "rsqrt_rows",
  "rsqrt_columns",
  "factored_momenta",
)

# The order in those of VeLO and Celo: 30 features. Celo 2 has, for tensors of rank less than two,
# those up to "scaled_grads" only.
VELO_GROUPS = (
  "grad",
  "clipped_grad",
  "param",
  "momenta",
  "squares",
  "scaled_momenta",
  "rsqrt_squares",
  "factored_grads",
  "scaled_grads",
  "rows",
  "columns",
  "rsqrt_rows",
  "rsqrt_columns",
  "factored_momenta",
)

_TINY = 1e-30
_FLOOR = 1e-9
_MIN_DIFFERENTIABLE = 1e-18


class Decays(NamedTuple):
  """The decays of the running averages, each a vector; an empty one if there are none of its kind.

  Attributes:
    momenta: of the gradients, ``[K]``.
    squares: of their squares, ``[J]``.
    factored: of their squares' means over rows and over columns, ``[N]``.
  """

  momenta: Any
  squares: Any
  factored: Any


class Accumulators(NamedTuple):
  """The running averages of one tensor, without a correction of their bias.

  Attributes:
    momenta: ``[K, *shape]``.
    squares: ``[J, *shape]``.
    factored: two arrays, ``[N, *shape]`` but of size one along the second of `factored_axes` (the
      rows) and along the first (the columns); for tensors of rank less than two one array
      ``[N, *shape]``.
  """

  momenta: jax.Array
  squares: jax.Array
  factored: tuple[jax.Array, ...]


class VectorFeatures(NamedTuple):
  """What the factored averages give, ``[N, *shape]`` with size one along an axis for rank two.

  Attributes:
    rows: the averages of rows.
    columns: those of columns; for lower ranks than two, the same.
    rsqrt_rows: 1 / sqrt(rows + 1e-8).
    rsqrt_columns: likewise.
    grad_factors: what the factored gradients are a product of, besides the gradient.
    momenta_factors: likewise.
  """

  rows: jax.Array
  columns: jax.Array
  rsqrt_rows: jax.Array
  rsqrt_columns: jax.Array
  grad_factors: tuple[jax.Array, ...]
  momenta_factors: tuple[jax.Array, ...]


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
  """The second largest and the largest axis, later axes being larger where they are equal.

  >>> factored_axes((3, 3, 4, 5)), factored_axes((7, 2)), factored_axes((2, 2)), factored_axes((4,))
  ((2, 3), (1, 0), (0, 1), None)
  """
  if len(shape) < 2:
    return None
  second, largest = np.argsort(shape, kind="stable")[-2:]
  return int(second), int(largest)


def learned_decays(initial: Sequence[float], offsets: jax.Array) -> jax.Array:
  """Decays that are learned: beta = 1 - exp(10 u) for u = log(1 - initial) / 10 + offset.

  Args:
    initial: the decays where the offsets are zero.
    offsets: as many numbers.

  Returns:
    The decays, in the dtype of the offsets.

  >>> learned_decays((0.9, 0.99), jnp.array([0.0, -0.1])).tolist()
  [0.89999..., 0.99632...]
  """
  u = jnp.log(1 - jnp.asarray(initial, offsets.dtype)) / 10
  return 1 - jnp.exp(10 * (u + offsets))


# The published initial decays.
INITIAL_DECAYS = {
  "momenta": (0.9, 0.99, 0.999),
  "squares": (0.999,),
  "factored": (0.9, 0.99, 0.999),
}


def init_offsets() -> dict[str, jax.Array]:
  """Meta-params: offsets of zero for all of `INITIAL_DECAYS`."""
  return {name: jnp.zeros(len(decays), jnp.float32) for name, decays in INITIAL_DECAYS.items()}


def decays_of(offsets: dict[str, jax.Array]) -> Decays:
  """The decays for offsets as of `init_offsets`."""
  return Decays(**{name: learned_decays(INITIAL_DECAYS[name], offsets[name]) for name in offsets})


def init_accumulators(shape: Sequence[int], numbers: Decays, dtype: np.dtype) -> Accumulators:
  """Averages of a tensor of which nothing was seen; no two arrays share a buffer.

  Args:
    shape: of the tensor; a scalar is to be taken as ``(1,)``.
    numbers: how many of each kind, or any vectors of these sizes.
    dtype: of the averages.
  """
  momenta, squares, factored = (
    number if isinstance(number, int) else len(number) for number in numbers
  )
  axes = factored_axes(shape)
  shapes = [tuple(shape)] if axes is None else [_with_one(shape, axis) for axis in reversed(axes)]
  return Accumulators(
    jnp.zeros((momenta, *shape), dtype),
    jnp.zeros((squares, *shape), dtype),
    tuple(jnp.zeros((factored, *one), dtype) for one in shapes),
  )


def update_accumulators(
  decays: Decays,
  grad: jax.Array,
  accumulators: Accumulators,
  means: Sequence[jax.Array] | None = None,
) -> Accumulators:
  """The averages after one more gradient.

  Args:
    decays: of the dtype of the averages. Those of squares count as what is nearest in [0, 1].
    grad: the gradient, of the tensor's shape and that dtype.
    accumulators: the averages before.
    means: of `factored_means`, where they are known.
  """
  decays = Decays(decays.momenta, *(jnp.clip(beta, 0.0, 1.0) for beta in decays[1:]))
  square = jnp.square(grad)
  means = factored_means(square) if means is None else means
  return Accumulators(
    mix(decays.momenta, accumulators.momenta, grad),
    mix(decays.squares, accumulators.squares, square),
    tuple(
      mix(decays.factored, old, mean + _TINY)
      for old, mean in zip(accumulators.factored, means, strict=True)
    ),
  )


def factored_means(square: jax.Array) -> list[jax.Array]:
  """What is averaged in `Accumulators.factored`: means over rows and columns, or all squares."""
  axes = factored_axes(square.shape)
  if axes is None:
    return [square]
  return [jnp.mean(square, axis, keepdims=True) for axis in reversed(axes)]


def feature_groups(
  names: Sequence[str],
  grad: jax.Array,
  param: jax.Array,
  accumulators: Accumulators,
  *,
  squares_epsilon: float = 1e-6,
  diagonal_epsilon: float = 1e-6,
) -> list[jax.Array]:
  """The features of a tensor's coordinates, before they are normalised.

  With the averages m, r (of squares) and, for rank two or more, the rows' and columns' factors R
  and C of 1 / sqrt(r) (Shazeer and Stern, 2018, "Adafactor"):

      grad g, clipped_grad clip(g, -.1, .1), param p, momenta m, squares r,
      scaled_momenta m / sqrt(r + e), rsqrt_squares 1 / sqrt(r + e), scaled_grads g / sqrt(r + e),
      factored_grads g R C, factored_momenta m R C, and the rows' and columns' averages v as they
      are and as 1 / sqrt(v + 1e-8).

  For lower ranks the rows and the columns are the average of squares itself.

  Args:
    names: which groups, in which order, such as `ADAFAC_GROUPS`.
    grad: the gradient.
    param: the parameters, of the same shape and dtype.
    accumulators: with this gradient in them; as many momenta as factored averages.
    squares_epsilon: e.
    diagonal_epsilon: of the factored momenta of lower ranks, m (v + diagonal_epsilon)^(-1/2).

  Returns:
    One array a group, ``[features, *shape]``, with size one along axes on which it does not depend.
  """
  vectors = vector_features(accumulators.factored, grad.shape, diagonal_epsilon)
  return select_features(names, grad, param, accumulators, vectors, squares_epsilon)


def vector_features(
  factored: tuple[jax.Array, ...], shape: tuple[int, ...], diagonal_epsilon: float
) -> VectorFeatures:
  """What the factored averages of a tensor of this shape give."""
  rows, columns = factored if len(factored) == 2 else (factored[0], factored[0])
  axes = factored_axes(shape)
  if axes is None:
    grad_factors = (_floored_rsqrt(rows + _FLOOR),)
    momenta_factors = (_differentiable_rsqrt(rows + diagonal_epsilon),)
  else:
    means = jnp.mean(rows, 1 + axes[0], keepdims=True)
    grad_factors = _floored_rsqrt(rows / (means + _FLOOR)), _floored_rsqrt(columns)
    momenta_factors = grad_factors
  rsqrt_rows, rsqrt_columns = (jax.lax.rsqrt(x + 1e-8) for x in (rows, columns))
  return VectorFeatures(rows, columns, rsqrt_rows, rsqrt_columns, grad_factors, momenta_factors)


def select_features(
  names: Sequence[str],
  grad: jax.Array,
  param: jax.Array,
  accumulators: Accumulators,
  vectors: VectorFeatures,
  squares_epsilon: float,
) -> list[jax.Array]:
  """As `feature_groups`, for a part of a tensor, too, where the vectors are of the whole."""
  momenta, squares, _ = accumulators
  rsqrt_squares = jax.lax.rsqrt(squares + squares_epsilon)
  groups = {
    "grad": grad[None],
    "clipped_grad": jnp.clip(grad, -0.1, 0.1)[None],
    "param": param[None],
    "momenta": momenta,
    "squares": squares,
    "scaled_momenta": momenta * rsqrt_squares,
    "rsqrt_squares": rsqrt_squares,
    "scaled_grads": grad[None] * rsqrt_squares,
    "factored_grads": _product(grad[None], vectors.grad_factors),
    "rows": vectors.rows,
    "columns": vectors.columns,
    "rsqrt_rows": vectors.rsqrt_rows,
    "rsqrt_columns": vectors.rsqrt_columns,
    "factored_momenta": _product(momenta, vectors.momenta_factors),
  }
  return [groups[name] for name in names]


def normalizers(
  groups: Sequence[jax.Array], epsilon: float = 1e-5, last_axes: int | None = None
) -> list[jax.Array]:
  """What each feature is to be multiplied by, so that its mean square becomes about one.

  Args:
    groups: of `feature_groups`.
    epsilon: added to the mean square.
    last_axes: the means are over so many of the tensor's last axes, None means all.

  Returns:
    One array a group, of size one along the axes of the means.
  """
  return [rsqrt_mean(jnp.square(group), epsilon, last_axes) for group in groups]


def rsqrt_mean(squares: jax.Array, epsilon: float, last_axes: int | None) -> jax.Array:
  """1 / sqrt(mean + epsilon) over all axes but the first, or over so many last ones."""
  axes = tuple(range(1, squares.ndim))
  axes = axes if last_axes is None else axes[-last_axes:]
  return jax.lax.rsqrt(epsilon + jnp.mean(squares, axes, keepdims=True))


def time_features(step: jax.Array, dtype: np.dtype) -> jax.Array:
  """tanh(step / scale - 1) for each of the `TIME_SCALES`; `step` counts earlier updates.

  >>> time_features(jnp.array(3), jnp.float32)[:2].tolist()
  [0.964..., 0.0]
  """
  return jnp.tanh(step.astype(dtype) / jnp.asarray(TIME_SCALES, dtype) - 1)


def _with_one(shape: Sequence[int], axis: int) -> tuple[int, ...]:
  return (*shape[:axis], 1, *shape[axis + 1 :])


def mix(decays: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
  """The averages beta old + (1 - beta) new for each of the decays, on the first axis of `old`."""
  decays = decays.reshape(-1, *(1,) * new.ndim)
  return decays * old + (1 - decays) * new[None]


def _differentiable_rsqrt(x: jax.Array) -> jax.Array:
  """1 / sqrt(x), taken to be constant where the derivative would not be finite."""
  tiny = x < _MIN_DIFFERENTIABLE
  root = jax.lax.stop_gradient(jax.lax.rsqrt(x))
  return jnp.where(tiny, root, jax.lax.rsqrt(jnp.where(tiny, 1.0, x)))


def _product(x: jax.Array, factors: Sequence[jax.Array]) -> jax.Array:
  for factor in factors:
    x = x * factor
  return x


def _floored_rsqrt(x: jax.Array) -> jax.Array:
  return jax.lax.rsqrt(jnp.maximum(x, _FLOOR))
