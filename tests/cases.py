"""The tables of the contract tests: a row an architecture, an optimizee, an estimator.

A new implementation adds its row and meets every contract test. What it does not promise is a field
of its row, never a name in a test.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import learned_opt
from learned_opt import ImageDataset, estimators, optimizees, optimizers


@dataclasses.dataclass(frozen=True)
class OptimizerCase:
  """A learned-optimizer architecture.

  Attributes:
    make: the factory's call; equal calls must give transformations that do not retrace.
    num_meta_params: their number.
    coordinatewise: updates do not depend on how coordinates are ordered or grouped into tensors.
  """

  make: Callable[[], learned_opt.LearnedOptimizer]
  num_meta_params: int
  coordinatewise: bool = True


@dataclasses.dataclass(frozen=True)
class OptimizeeCase:
  """A family of problems.

  Attributes:
    make: the factory's call.
    num_coordinates: of one problem's params.
    stochastic: whether the loss depends on the step's key.
    has_metrics: whether it tells more to the evaluation than its loss.
  """

  make: Callable[[], learned_opt.Optimizee]
  num_coordinates: int
  stochastic: bool
  has_metrics: bool = False


@dataclasses.dataclass(frozen=True)
class EstimatorCase:
  """A meta-gradient estimator.

  Attributes:
    make: ``(**options) -> estimator`` for the options `horizon` and `meta_batch_size`.
    unroll_length: inner steps of one estimate; None if it is the horizon.
    biased: whether the mean estimate differs from the gradient of the meta-loss over the horizon.
    reference: what equals one estimate, or its mean over keys where the estimate is noisy:
      the name of a function in test_estimators.py.
  """

  make: Callable[..., learned_opt.MetaGradientEstimator]
  unroll_length: int | None
  biased: bool
  reference: str


def tiny_lstm(**options) -> learned_opt.LearnedOptimizer:
  """A quick LSTM, for the tests that are not about its size."""
  options = {"hidden_size": 4, "output_scale": 0.1, **options}
  return optimizers.lstm(**options)


def meta_params_of(architecture: learned_opt.LearnedOptimizer, seed=0, dtype=np.float32):
  """Meta-params of the right shapes drawn in numpy, which compiles nothing; all are different."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(architecture.init, jax.random.key(0))
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), dtype), shapes)


def images(num_images=(30, 12, 9), shape=(6, 5, 1), num_classes=4, seed=0) -> ImageDataset:
  """Random images, splits of different sizes; every class occurs in each split."""
  rng = np.random.default_rng(seed)

  def split(n):
    labels = rng.permutation(np.arange(n) % num_classes).astype(np.int32)
    return rng.integers(0, 256, (n, *shape), np.uint8), labels

  return ImageDataset(*map(split, num_images))


class Bowl(NamedTuple):
  """The constants of one problem of `bowl`."""

  matrix: jax.Array
  target: jax.Array


def bowl(dimension: int = 3) -> learned_opt.Optimizee:
  """An asymmetric problem that is no quadratic: sum_i c_i log cosh(A theta - y)_i, c = 1, 2, ...

  Smooth, so that finite differences are exact; `bowl_loss` and `bowl_grad` are its numpy form.
  """
  return learned_opt.Optimizee(_bowl_init(dimension), _bowl_loss)


_BOWL_INITS = {}


def _bowl_init(dimension):
  def init(key, data):
    del data
    matrix_key, target_key, theta_key = jax.random.split(key, 3)
    constants = Bowl(
      jax.random.normal(matrix_key, (dimension, dimension)),
      1.0 + jax.random.uniform(target_key, (dimension,)),
    )
    return 0.3 * jax.random.normal(theta_key, (dimension,)), constants

  return _BOWL_INITS.setdefault(dimension, init)


def _bowl_loss(params, constants, data, key):
  del data, key
  residual = constants.matrix @ params - constants.target
  weights = jnp.arange(1.0, residual.size + 1, dtype=params.dtype)
  return jnp.sum(weights * (jnp.logaddexp(residual, -residual) - jnp.log(2.0)))


def bowl_loss(constants: Bowl):
  """theta -> loss, in numpy."""
  matrix, target = np.asarray(constants.matrix), np.asarray(constants.target)
  weights = np.arange(1.0, target.size + 1)
  return lambda theta: np.sum(weights * np.log(np.cosh(matrix @ theta - target)))


def bowl_grad(constants: Bowl):
  """theta -> gradient, in numpy, by hand."""
  matrix, target = np.asarray(constants.matrix), np.asarray(constants.target)
  weights = np.arange(1.0, target.size + 1)
  return lambda theta: matrix.T @ (weights * np.tanh(matrix @ theta - target))


OPTIMIZERS = {
  "lstm": OptimizerCase(optimizers.lstm, num_meta_params=5141),
  "lstm_scale_one_layer": OptimizerCase(
    lambda: optimizers.lstm(1, 3, optimizers.Scale(0.5), 0.1, 0.0),
    num_meta_params=(1 + 3 + 1) * 12 + 4,
  ),
}

OPTIMIZEES = {
  "quadratic": OptimizeeCase(optimizees.quadratic, num_coordinates=10, stochastic=False),
  "quadratic_gaussian": OptimizeeCase(
    lambda: optimizees.quadratic(4, "gaussian", gradient_scale=0.5),
    num_coordinates=4,
    stochastic=False,
  ),
  "mlp_classifier": OptimizeeCase(
    lambda: optimizees.mlp_classifier(images(), hidden_sizes=(3,), batch_size=8),
    num_coordinates=31 * 3 + 4 * 4,
    stochastic=True,
    has_metrics=True,
  ),
  "mlp_classifier_outer_split": OptimizeeCase(
    lambda: optimizees.mlp_classifier(
      images(), (3, 2), "tanh", batch_size=8, outer_split="validation"
    ),
    num_coordinates=31 * 3 + 4 * 2 + 3 * 4,
    stochastic=True,
    has_metrics=True,
  ),
}

ESTIMATORS = {
  "truncated_backprop": EstimatorCase(
    lambda **options: estimators.truncated_backprop(unroll_length=3, **options),
    unroll_length=3,
    biased=True,
    reference="first_order_gradient",
  ),
  "truncated_backprop_second_order": EstimatorCase(
    lambda **options: estimators.truncated_backprop(unroll_length=3, second_order=True, **options),
    unroll_length=3,
    biased=True,
    reference="true_gradient",
  ),
  "full_unroll": EstimatorCase(
    estimators.full_unroll,
    unroll_length=None,
    biased=True,
    reference="first_order_gradient",
  ),
  "full_unroll_second_order": EstimatorCase(
    lambda **options: estimators.full_unroll(second_order=True, **options),
    unroll_length=None,
    biased=False,
    reference="true_gradient",
  ),
  "full_unroll_remat": EstimatorCase(
    lambda **options: estimators.full_unroll(remat=True, **options),
    unroll_length=None,
    biased=True,
    reference="first_order_gradient",
  ),
}
