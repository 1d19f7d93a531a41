"""Random quadratics: the paper's first experiment (section 3.1), and some of known condition."""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from learned_opt import _draws
from learned_opt.base import Optimizee
from learned_opt.optimizees._orthogonal import random_orthogonal

_DRAWS = {"uniform": _draws.uniform, "gaussian": _draws.normal}


class QuadraticConstants(NamedTuple):
  """The constants of one problem: ``w`` is ``[dimension, dimension]``, ``y`` ``[dimension]``."""

  w: jax.Array
  y: jax.Array


def quadratic(
  dimension: int = 10,
  distribution: Literal["uniform", "gaussian"] = "uniform",
  gradient_scale: float = 1.0,
  initial_scale: float = 0.01,
) -> Optimizee:
  """f(theta) = |W theta - y|^2, with W, y and theta_0 redrawn for each problem.

  Source: Andrychowicz et al. (2016), section 3.1, in ten dimensions. The text draws W and y from
  a Gaussian; the published curves, which start at E|y|^2 = 10/3, are those of the released code's
  uniform distribution on [0, 1).

  Args:
    dimension: n, the number of coordinates.
    distribution: of W and y, ``"uniform"`` on [0, 1) or ``"gaussian"`` of unit variance.
    gradient_scale: what an optimizer sees of the gradient is multiplied by it; the loss is not.
      The released code's loss is a mean over 128 problems, so its optimizer sees 1 / 128 of each
      problem's own gradient.
    initial_scale: standard deviation of theta_0.

  Returns:
    The optimizee; its params are a float32 ``[dimension]`` vector.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> import jax
    >>> from learned_opt import optimizees
    >>> optimizee = optimizees.quadratic(dimension=3)
    >>> params, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> params.shape, constants.w.shape, constants.y.shape
    ((3,), (3, 3), (3,))
  """
  if dimension < 1:
    raise ValueError(f"dimension must be at least 1, got {dimension}")
  if distribution not in _DRAWS:
    raise ValueError(f"distribution must be 'uniform' or 'gaussian', got {distribution!r}")
  if not (math.isfinite(gradient_scale) and gradient_scale > 0):
    raise ValueError(f"gradient_scale must be positive and finite, got {gradient_scale}")
  _check_initial_scale(initial_scale)
  return _quadratic(dimension, distribution, float(gradient_scale), float(initial_scale))


# Equal arguments give the same functions, however they are passed: no second compilation for them.
@functools.cache
def _quadratic(
  dimension: int, distribution: str, gradient_scale: float, initial_scale: float
) -> Optimizee:
  draw = _DRAWS[distribution]

  def init(key, data):
    del data
    w_key, y_key, theta_key = jax.random.split(key, 3)
    w = draw(w_key, (dimension, dimension))
    y = draw(y_key, (dimension,))
    theta = initial_scale * _draws.normal(theta_key, (dimension,))
    return theta, QuadraticConstants(w, y)

  def loss(params, constants, data, key):
    del data, key
    return _squared_residual(scale_gradient(params, gradient_scale), constants)

  return Optimizee(init, loss)


def conditioned_quadratic(
  dimension: int = 10,
  condition_number: float = 1000.0,
  initial_scale: float = 0.01,
  noise: float = 0.0,
) -> Optimizee:
  """f(theta) = |W theta - y|^2, whose Hessian 2 W^T W has a given condition number.

  W = S Q with a rotation or reflection Q that is uniform over all of them (Haar) and a diagonal S,
  redrawn for each problem. The largest and the smallest eigenvalue of the Hessian are 2 and
  2 / `condition_number`; those in between are drawn log-uniformly, as with a spectrum that is
  always the same gradient descent in as many steps, of lengths that can be learned by heart,
  arrives at the minimum. A second rotation on the left of W would change no loss.

  y = W theta* with a standard Gaussian theta*, so that the minimum is zero, and as far from the
  start along the flat directions as along the steep ones.

  With noise, y_t = y + noise * epsilon_t with a standard Gaussian epsilon_t of each step. The
  gradient is then off by -2 noise W^T epsilon_t, whose covariance is proportional to the Hessian:
  the noisy quadratic model of minibatches (Zhang et al. 2019). The loss of a step is
  |W theta - y_t|^2, whose expectation is larger than that without noise by n noise^2.

  Args:
    dimension: n, the number of coordinates, at least 2.
    condition_number: of the Hessian, and so the square of that of W.
    initial_scale: standard deviation of theta_0.
    noise: standard deviation of what is added to y at each step.

  Returns:
    The optimizee; its params are a float32 ``[dimension]`` vector.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizees
    >>> optimizee = optimizees.conditioned_quadratic(dimension=3, condition_number=100.0)
    >>> params, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> round(float(jnp.linalg.cond(constants.w)), 3)
    10.0
  """
  if dimension < 2:
    raise ValueError(f"dimension must be at least 2, got {dimension}")
  if not (math.isfinite(condition_number) and condition_number >= 1):
    raise ValueError(f"condition_number must be finite and at least 1, got {condition_number}")
  _check_initial_scale(initial_scale)
  if not (math.isfinite(noise) and noise >= 0):
    raise ValueError(f"noise must be finite and not negative, got {noise}")
  return _conditioned_quadratic(
    dimension, float(condition_number), float(initial_scale), float(noise)
  )


@functools.cache
def _conditioned_quadratic(
  dimension: int, condition_number: float, initial_scale: float, noise: float
) -> Optimizee:
  def init(key, data):
    del data
    q_key, s_key, y_key, theta_key = jax.random.split(key, 4)
    between = _draws.uniform(s_key, (dimension - 2,))
    s = condition_number ** (-jnp.concatenate([jnp.array([0.0, 1.0]), between]) / 2)
    w = s[:, None] * random_orthogonal(q_key, dimension)
    y = w @ _draws.normal(y_key, (dimension,))
    theta = initial_scale * _draws.normal(theta_key, (dimension,))
    return theta, QuadraticConstants(w, y)

  def loss(params, constants, data, key):
    del data
    if noise:
      y = constants.y + noise * _draws.normal(key, (dimension,))
      constants = constants._replace(y=y)
    return _squared_residual(params, constants)

  return Optimizee(init, loss)


def _squared_residual(params: jax.Array, constants: QuadraticConstants) -> jax.Array:
  return jnp.sum((constants.w @ params - constants.y) ** 2)


def _check_initial_scale(initial_scale: float) -> None:
  if not (math.isfinite(initial_scale) and initial_scale >= 0):
    raise ValueError(f"initial_scale must be finite and not negative, got {initial_scale}")


def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
  """X itself, whose gradient is multiplied by a factor.

  Example:
    >>> import jax
    >>> from learned_opt.optimizees.quadratic import scale_gradient
    >>> value, grad = jax.value_and_grad(lambda x: scale_gradient(x, 0.5) ** 2)(3.0)
    >>> float(value), float(grad)
    (9.0, 3.0)
  """
  return x if factor == 1.0 else factor * x + jax.lax.stop_gradient((1.0 - factor) * x)
