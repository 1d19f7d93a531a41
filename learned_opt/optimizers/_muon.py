"""Steps of Adam and of Muon (Jordan et al. 2024) side by side, at rates that an optimizer sets."""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import _coordinates
from learned_opt.optimizers import _orthogonal

_MAX_GRADIENT = 1000.0

# The factor by which a tensor's own rate may differ from that of all.
_LARGEST_FACTOR = 100.0

# The root mean square of an orthogonal step of full rank at the learning rate 1, about that of
# Adam's (Liu et al. 2025, "Muon is scalable for LLM training").
_MATRIX_SCALE = 0.2


class Moments(NamedTuple):
  """Of one tensor.

  Attributes:
    mean: running mean of the gradients.
    square: that of their squares; None for tensors whose steps are orthogonalized.
    alignment: scalar, running mean of the cosine of the gradients and `mean`; None if rates do not
      adapt.
    offset: the iterate without averaging, minus the average; None if nothing is averaged.
  """

  mean: jax.Array
  square: jax.Array | None
  alignment: Any = None
  offset: Any = None


class Adaptation(NamedTuple):
  """How a tensor's rate follows the angle between its gradients and their running mean.

  Attributes:
    gain: the logarithm of the factor of its rate where the two are parallel.
    matrix_gain: likewise, of tensors whose steps are orthogonalized.
    decay: of the running mean of the cosine.
  """

  gain: chex.Numeric
  matrix_gain: chex.Numeric
  decay: chex.Numeric


class Averaging(NamedTuple):
  """How the params are averaged along the way (Defazio et al. 2024, "The road less scheduled").

  Attributes:
    weight: of the average, the rest being that of the last iterate, where gradients are taken.
    order: k, where the average gives step t a weight of about t^(k - 1).
  """

  weight: chex.Numeric
  order: chex.Numeric


class Rates(NamedTuple):
  """What decides the steps of all tensors: scalars, and the number of updates so far.

  Attributes:
    step: int32.
    adam: learning rate of the tensors that Adam updates.
    decays: its beta_1 and beta_2.
    epsilon: its epsilon.
    matrix: learning rate of the tensors whose steps are orthogonalized, if there are any.
    matrix_decay: of their running means.
    adaptation: of each tensor's own factor, if there is one.
    averaging: of the params, if there is one.
  """

  step: jax.Array
  adam: jax.Array
  decays: tuple[chex.Numeric, chex.Numeric]
  epsilon: float
  matrix: Any = None
  matrix_decay: Any = None
  adaptation: Adaptation | None = None
  averaging: Averaging | None = None


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
  """As which matrix a tensor is orthogonalized; None for those that are not.

  Kernels of convolutions over images have four axes, the last of them for columns. Of tensors with
  three, such as Flax's attention has, either the first are the rows or the last the columns,
  whichever is closer to a square.

  >>> [matrix_shape(shape) for shape in ((2, 3), (5, 5, 3, 8), (32, 4, 8), (4, 8, 32), (5, 16, 32))]
  [(2, 3), (75, 8), (32, 32), (32, 32), (80, 32)]
  >>> [matrix_shape(shape) for shape in ((), (3,), (0, 3), (2, 2, 2, 2, 2))]
  [None, None, None, None]
  """
  if not 2 <= len(shape) <= 4 or 0 in shape:
    return None
  rows = math.prod(shape[:-1])
  if len(shape) == 3 and min(shape[0], shape[1] * shape[2]) > min(rows, shape[2]):
    rows = shape[0]
  return rows, math.prod(shape) // rows


def init_moments(
  params: Any,
  dtype: np.dtype,
  *,
  orthogonal: bool = False,
  adapts: bool = False,
  averages: bool = False,
) -> Any:
  """The params' tree, with the `Moments` of a tensor in its place, which are as few as can be.

  Args:
    params: any pytree.
    dtype: of the moments.
    orthogonal: whether the steps of matrices are orthogonalized.
    adapts: whether the rate of each tensor follows its gradients.
    averages: whether the params are averaged.

  Example:
    >>> moments = init_moments({"w": np.ones((2, 3)), "b": np.ones(3)}, np.float32, orthogonal=True)
    >>> moments["w"].square is None, moments["b"].square.tolist()
    (True, [0.0, 0.0, 0.0])
  """
  _coordinates.count(params)

  def zeros(leaf):
    mean, square, offset = (jnp.zeros(jnp.shape(leaf), dtype) for _ in range(3))
    return Moments(
      mean,
      None if orthogonal and matrix_shape(jnp.shape(leaf)) else square,
      jnp.zeros((), dtype) if adapts else None,
      offset if averages else None,
    )

  return jax.tree.map(zeros, params)


def update_tree(grads: Any, moments: Any, params: Any, rates: Rates) -> tuple[Any, Any]:
  """A step of each tensor: Muon's for what is a matrix, if there is a rate for it, else Adam's.

  Args:
    grads: any pytree; clipped to +-1000.
    moments: of `init_moments`.
    params: None, or the same tree, of the dtypes that the updates are to have.
    rates: scalars of the moments' dtype.

  Returns:
    The updates and the moments.

  Raises:
    TypeError: if a gradient is not real floating point.
    ValueError: if there are no params, or the trees or the moments do not agree.
  """
  leaves, treedef, tensors = _check(grads, params, moments)
  likes = leaves if params is None else jax.tree.leaves(params)
  step = functools.partial(_update_tensor, rates)
  pairs = [step(*all_three) for all_three in zip(leaves, tensors, likes, strict=True)]
  updates, tensors = (treedef.unflatten(pair[k] for pair in pairs) for k in range(2))
  return updates, tensors


def _update_tensor(
  rates: Rates, grad: Any, moments: Moments, like: Any
) -> tuple[jax.Array, Moments]:
  dtype = moments.mean.dtype
  grad = jnp.clip(jnp.asarray(grad, dtype), -_MAX_GRADIENT, _MAX_GRADIENT)
  # Not by what the moments lack, which is no attribute in the states that Flax's NNX makes of them.
  shape = None if rates.matrix is None else matrix_shape(grad.shape)
  alignment: Any = None
  if rates.adaptation is not None:
    decay = rates.adaptation.decay
    alignment = decay * moments.alignment + (1 - decay) * _cosine(grad, moments.mean)
  if shape is not None:
    step, mean = _muon(rates, grad, moments.mean, shape)
    square = None
  else:
    step, mean, square = _adam(rates, grad, moments.mean, moments.square)
  if rates.adaptation is not None:
    gain = rates.adaptation.gain if shape is None else rates.adaptation.matrix_gain
    bound = math.log(_LARGEST_FACTOR)
    step *= jnp.exp(jnp.clip(gain * alignment, -bound, bound))
  offset: Any = None
  if rates.averaging is not None:
    step, offset = _average(rates.averaging, rates.step, step, moments.offset)
  return step.astype(jnp.result_type(like)), Moments(mean, square, alignment, offset)


def _average(
  averaging: Averaging, count: jax.Array, step: jax.Array, offset: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What the params do when the iterate z takes a step, and the next offset z - x.

  The params are y = weight x + (1 - weight) z, with the average x, which moves towards z by the
  share k / (t + k).
  """
  share: Any = averaging.order / (count.astype(step.dtype) + averaging.order)
  moved = offset + step
  rest = (1 - share) * moved
  return share * moved + (1 - averaging.weight) * (rest - offset), rest


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
  """Of the angle between two tensors; zero if one of them is.

  >>> [float(_cosine(jnp.array([0.0, 2.0]), jnp.array(b))) for b in ([0.0, -3.0], [0.0, 0.0])]
  [-1.0, 0.0]
  """
  squares = jnp.sum(jnp.square(a)), jnp.sum(jnp.square(b))
  nonzero = (squares[0] > 0) & (squares[1] > 0)
  # One for zero before the root, whose derivative there is infinite.
  norm_a, norm_b = (jnp.sqrt(jnp.where(nonzero, one, 1.0)) for one in squares)
  return jnp.where(nonzero, jnp.sum(a * b) / norm_a / norm_b, 0.0)


def _adam(
  rates: Rates, grad: jax.Array, mean: jax.Array, square: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
  beta_1, beta_2 = (jnp.asarray(beta, grad.dtype) for beta in rates.decays)
  count = (rates.step + 1).astype(grad.dtype)
  rate, bias = rates.adam / (1 - beta_1**count), 1 - beta_2**count
  mean = beta_1 * mean + (1 - beta_1) * grad
  square = beta_2 * square + (1 - beta_2) * jnp.square(grad)
  step = -rate * mean / (rates.epsilon + jnp.sqrt(square / bias + 1e-10))
  return step, mean, square


def _muon(
  rates: Rates, grad: jax.Array, mean: jax.Array, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
  decay = rates.matrix_decay
  mean = decay * mean + (1 - decay) * grad
  direction = decay * mean + (1 - decay) * grad
  scale = rates.matrix * _MATRIX_SCALE * math.sqrt(max(shape))
  step = -scale * _orthogonal.orthogonalize(direction.reshape(shape))
  return step.reshape(grad.shape), mean


def _check(grads: Any, params: Any, moments: Any) -> tuple[list[Any], Any, list[Moments]]:
  _coordinates.check_gradients(grads, params)
  leaves, treedef = jax.tree.flatten(grads)
  tensors = treedef.flatten_up_to(moments)
  shapes = [jnp.shape(leaf) for leaf in leaves], [one.mean.shape for one in tensors]
  if shapes[0] != shapes[1]:
    found, expected = (sum(map(math.prod, one)) for one in shapes)
    raise ValueError(
      f"updates have {found} coordinates, but the optimizer's state was made for {expected}, or "
      "for tensors of other shapes: call tx.init with the params that these gradients belong to"
    )
  return leaves, treedef, tensors
