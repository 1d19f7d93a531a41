"""Logistic regression on points that are drawn for each problem."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import _draws
from learned_opt.base import Optimizee
from learned_opt.optimizees._orthogonal import random_orthogonal


class LogisticConstants(NamedTuple):
  """The points of one problem, ``[num_points, dimension]``, and their signs ``[num_points]``."""

  points: jax.Array
  signs: jax.Array


def logistic_regression(
  dimension: int = 10,
  num_points: int = 100,
  condition_number: float = 100.0,
  flipped: float = 0.1,
  l2: float = 1e-3,
  batch_size: int | None = None,
) -> Optimizee:
  """f(theta) = mean_i log(1 + exp(-s_i <x_i, theta>)) + l2 / 2 |theta|^2; convex.

  Points are Gaussian with standard deviations between 1 and 1 / sqrt(condition_number), spaced
  evenly in their logarithm, along random axes that the problem draws; the signs are those of a
  random hyperplane, some of them flipped. Soft-max regression on images is
  ``mlp_classifier(dataset, hidden_sizes=())``.

  Source: a family of the training problems of Wichrowska et al. (2017), section 4.

  Args:
    dimension: coordinates of theta.
    num_points: of one problem.
    condition_number: of the points' covariance.
    flipped: the probability that a sign is flipped, between 0 and 1/2.
    l2: weight of the regulariser.
    batch_size: points of one minibatch, drawn with replacement by the step's key; None means all
      points, without noise.

  Returns:
    The optimizee; its params are a float32 ``[dimension]`` vector that starts at a standard
    Gaussian point.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> import jax
    >>> from learned_opt import optimizees
    >>> optimizee = optimizees.logistic_regression(dimension=3)
    >>> params, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> params.shape, constants.points.shape
    ((3,), (100, 3))
  """
  for name, size in {
    "dimension": dimension,
    "num_points": num_points,
    "batch_size": 1 if batch_size is None else batch_size,
  }.items():
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")
  if not (math.isfinite(condition_number) and condition_number >= 1):
    raise ValueError(f"condition_number must be finite and at least 1, got {condition_number}")
  if not 0 <= flipped <= 0.5:
    raise ValueError(f"flipped must be between 0 and 1/2, got {flipped}")
  if not (math.isfinite(l2) and l2 >= 0):
    raise ValueError(f"l2 must be finite and not negative, got {l2}")
  return _logistic_regression(
    dimension, num_points, float(condition_number), float(flipped), float(l2), batch_size
  )


# Equal arguments give the same functions, however they are passed: no second compilation for them.
@functools.cache
def _logistic_regression(
  dimension: int,
  num_points: int,
  condition_number: float,
  flipped: float,
  l2: float,
  batch_size: int | None,
) -> Optimizee:
  scales = condition_number ** -np.linspace(0.0, 0.5, dimension, dtype=np.float32)

  def init(key, data):
    del data
    axes_key, points_key, plane_key, flip_key, theta_key = jax.random.split(key, 5)
    along = _draws.normal(points_key, (num_points, dimension)) * scales[None]
    points = along @ random_orthogonal(axes_key, dimension)
    signs = jnp.sign(points @ _draws.normal(plane_key, (dimension,)))
    signs = jnp.where(jax.random.bernoulli(flip_key, flipped, (num_points,)), -signs, signs)
    return _draws.normal(theta_key, (dimension,)), LogisticConstants(points, signs)

  def loss(params, constants, data, key):
    del data
    points, signs = constants
    if batch_size is not None:
      index = jax.random.randint(key, (batch_size,), 0, num_points)
      points, signs = points[index], signs[index]
    losses = jax.nn.softplus(-signs * (points @ params))
    return jnp.mean(losses) + l2 / 2 * jnp.sum(params**2)

  return Optimizee(init, loss)
