"""The tables of the contract tests: a row an architecture, an optimizee, an estimator.

A new implementation adds its row and meets every contract test. What it does not promise is a field
of its row, never a name in a test.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

import learned_opt
from learned_opt import ImageDataset, estimators, optimizees, optimizers


@dataclasses.dataclass(frozen=True)
class OptimizerCase:
  """A learned-optimizer architecture.

  Attributes:
    make: the factory's call; equal calls must give transformations that do not retrace.
    num_meta_params: their number.
    coordinatewise: updates do not depend on how coordinates are ordered or grouped into tensors.
    reads_params: updates depend on the params, and cannot be had without them.
    has_state: whether its state holds arrays.
    state_like_params: whether the state has a part of its own for each tensor.
    random_init: whether different keys give different meta-params.
    bounded: whether updates are finite for all finite gradients.
    scale: of the updates where trajectories are compared, which are chaotic if steps are large.
    reads_loss: whether updates depend on the loss; `make` gives it where an update does not.
  """

  make: Callable[[], learned_opt.LearnedOptimizer]
  num_meta_params: int
  coordinatewise: bool = True
  reads_params: bool = False
  has_state: bool = True
  state_like_params: bool = False
  random_init: bool = True
  bounded: bool = True
  scale: float = 1.0
  reads_loss: bool = False


@dataclasses.dataclass(frozen=True)
class OptimizeeCase:
  """A family of problems.

  Attributes:
    make: the factory's call.
    num_coordinates: of one problem's params.
    stochastic: whether the loss depends on the step's key.
    has_metrics: whether it tells more to the evaluation than its loss.
    always_the_same_start: whether some params start at the same place in every problem.
  """

  make: Callable[[], learned_opt.Optimizee]
  num_coordinates: int
  stochastic: bool
  has_metrics: bool = False
  always_the_same_start: bool = False


@dataclasses.dataclass(frozen=True)
class EstimatorCase:
  """A meta-gradient estimator.

  Attributes:
    make: ``(**options) -> estimator`` for the options `horizon` and `meta_batch_size`.
    unroll_length: inner steps of one estimate; None if it is the horizon.
    biased: whether the mean estimate differs from the gradient of the meta-loss over the horizon.
    reference: what one estimate equals: the name of one of the references of test_estimators.py.
    noise: None if an estimate has none; ``"tiny"`` if it does not matter; else the estimate equals
      the reference along the noise of each particle, which is ``"fresh"`` in each truncation,
      ``"summed"`` over those of an episode, or ``"kept"`` for it.
  """

  make: Callable[..., learned_opt.MetaGradientEstimator]
  unroll_length: int | None
  biased: bool
  reference: str
  noise: str | None = None


def tiny_lstm(**options) -> learned_opt.LearnedOptimizer:
  """A quick LSTM, for the tests that are not about its size."""
  options = {"hidden_size": 4, "output_scale": 0.1, **options}
  return optimizers.lstm(**options)


def meta_params_of(architecture: learned_opt.LearnedOptimizer, seed=0, dtype=np.float32):
  """Meta-params of the right shapes drawn in numpy, which compiles nothing; all are different."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(architecture.init, jax.random.key(0))
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), dtype), shapes)


@functools.cache
def bound(case: OptimizerCase, seed=0) -> optax.GradientTransformationExtraArgs:
  """An architecture's transformation; one object for all tests, so that each program of its
  `update` is compiled once."""
  architecture = case.make()
  return architecture.optimizer(meta_params_of(architecture, seed))


def images(num_images=(30, 12, 9), shape=(6, 5, 1), num_classes=4, seed=0) -> ImageDataset:
  """Random images, splits of different sizes; every class occurs in each split."""
  rng = np.random.default_rng(seed)

  def split(n):
    labels = rng.permutation(np.arange(n) % num_classes).astype(np.int32)
    return rng.integers(0, 256, (n, *shape), np.uint8), labels

  return ImageDataset(*map(split, num_images))


def tiny_vgg(channels=(4, 5), seed=0, scale=0.2) -> dict[str, np.ndarray]:
  """Random weights of a network of one convolution a block, in the form of a file of weights."""
  rng = np.random.default_rng(seed)
  arrays = {"mean": rng.uniform(0.3, 0.6, 3), "std": rng.uniform(0.2, 0.4, 3)}
  for block, (inputs, outputs) in enumerate(itertools.pairwise((3, *channels)), start=1):
    arrays[f"conv{block}_1/kernel"] = rng.normal(0, scale, (3, 3, inputs, outputs))
    arrays[f"conv{block}_1/bias"] = rng.normal(0, scale, outputs)
  return arrays


def tiny_style(**options) -> learned_opt.Optimizee:
  """Neural style over two convolutions."""
  rng = np.random.default_rng(1)
  options = {
    "features": optimizees.VGGFeatures.from_arrays(tiny_vgg()),
    "contents": [rng.integers(0, 256, shape, np.uint8) for shape in ((9, 8, 3), (8, 12, 3))],
    "styles": rng.integers(0, 256, (2, 6, 6, 3), np.uint8),
    "size": 6,
    "content_layer": "conv2_1",
    "style_layers": ("conv1_1", "conv2_1"),
    **options,
  }
  return optimizees.neural_style(**options)


def text(num_characters=5, num_bytes=300, seed=0) -> learned_opt.TextDataset:
  """Random characters, all of which occur."""
  numbers = np.random.default_rng(seed).integers(0, num_characters, num_bytes).astype(np.uint8)
  splits = np.split(numbers, (num_bytes // 2, num_bytes - 70))
  return learned_opt.TextDataset(
    *splits, vocabulary=np.arange(97, 97 + num_characters, dtype=np.uint8)
  )


class Bowl(NamedTuple):
  """The constants of one problem of `bowl`; `defect` is 0 for problems that can be optimized."""

  matrix: jax.Array
  target: jax.Array
  start: jax.Array
  defect: jax.Array


# What can be wrong with a problem of `bowl`.
NAN_LOSS, NAN_GRADIENT, INFINITE_LOSS, NAN_AFTER_THE_START = DEFECTS = (1, 2, 3, 4)


def bowl(defects=(0, 0, 0, 0, 0, 0, 0, 0)) -> learned_opt.Optimizee:
  """An asymmetric problem that is no quadratic: sum_i c_i log cosh(A theta - y)_i, c = 1, 2, 3.

  Smooth, so that finite differences are exact; `bowl_loss` and `bowl_grad` are its numpy form.

  Args:
    defects: a problem gets one of these eight at random.
  """
  return learned_opt.Optimizee(_bowl_init, _bowl_loss, data=jnp.asarray(defects, jnp.int32))


def _bowl_init(key, data):
  # Few operations, as every program of the tests compiles them.
  draw = 2 * jax.random.uniform(key, (16,), jnp.float32).astype(float) - 1
  defect = data[(4 * (draw[15] + 1)).astype(int)]
  constants = Bowl(1.5 * draw[:9].reshape(3, 3), 1.5 + draw[9:12] / 2, draw[12:15] / 2, defect)
  return constants.start, constants


def _bowl_loss(params, constants, data, key):
  del data, key
  residual = constants.matrix @ params - constants.target
  loss = jnp.sum(jnp.arange(1.0, 4.0) * (jnp.logaddexp(residual, -residual) - math.log(2.0)))
  moved = jnp.any(params != constants.start)
  defect = constants.defect
  loss += jnp.where((defect == NAN_LOSS) | ((defect == NAN_AFTER_THE_START) & moved), jnp.nan, 0.0)
  loss += jnp.where(defect == INFINITE_LOSS, jnp.inf, 0.0)
  # The root has an infinite derivative at zero, which times zero is NaN.
  return (
    loss
    + jnp.sqrt(jnp.where(defect == NAN_GRADIENT, 0.0 * params[0], 1.0))
    - 1.0 * (defect != NAN_GRADIENT)
  )


def bowl_loss(constants: Bowl):
  """theta -> loss, in numpy."""
  weights = np.arange(1.0, 4.0)
  return lambda theta: np.sum(
    weights * np.log(np.cosh(constants.matrix @ theta - constants.target))
  )


def bowl_grad(constants: Bowl):
  """theta -> gradient, in numpy, by hand."""
  matrix, weights = constants.matrix, np.arange(1.0, 4.0)
  return lambda theta: matrix.T @ (weights * np.tanh(matrix @ theta - constants.target))


# Optimizers that look at each tensor as a whole, and at its parameters.
tensorwise = functools.partial(
  OptimizerCase, coordinatewise=False, reads_params=True, state_like_params=True
)


@dataclasses.dataclass(frozen=True)
class _Given:
  """A learned optimizer's `optimizer` with keywords for updates; equal for equal ones."""

  optimizer: Callable
  extras: FrozenDict

  def __call__(self, meta_params):
    tx = self.optimizer(meta_params)

    def update(updates, state, params=None, **extra_args):
      return tx.update(updates, state, params, **{**self.extras, **extra_args})

    return optax.GradientTransformationExtraArgs(tx.init, update)


def given(architecture: learned_opt.LearnedOptimizer, **extras) -> learned_opt.LearnedOptimizer:
  """One that reads further keywords, with values for updates that do without."""
  return architecture._replace(optimizer=_Given(architecture.optimizer, FrozenDict(extras)))


def _schedule_size(num_inputs, size):
  """Meta-params of a scheduler: two layers, where the LSTM starts, the LSTM, a rate."""
  return 2 * (num_inputs + 1) * size + 2 * size + (2 * size + 1) * 4 * size + size + 1


_LEARNED_MUON = dataclasses.replace(
  tensorwise(lambda: optimizers.learned_muon(num_steps=20), num_meta_params=6),
  reads_params=False,
  random_init=False,
  # The rates of random meta-params are about 1.
  scale=1e-2,
)

OPTIMIZERS = {
  "adafac_mlp": tensorwise(optimizers.adafac_mlp, num_meta_params=197),
  "celo": tensorwise(
    lambda: given(optimizers.celo(3, 1, 4, num_steps=20), value=1.0),
    num_meta_params=_schedule_size(18, 3) + (30 + 1) * 4 + (4 + 1) * 2,
    reads_loss=True,
  ),
  "celo2": tensorwise(
    lambda: optimizers.celo2(weight_decay=0.1, newton_schulz=False, num_layers=1, hidden_size=3),
    num_meta_params=(30 + 1) * 3 + (3 + 1),
  ),
  "celo_adam": dataclasses.replace(
    tensorwise(
      lambda: given(optimizers.celo_adam(3, num_steps=20), value=1.0),
      num_meta_params=_schedule_size(18, 3),
      reads_loss=True,
    ),
    reads_params=False,
  ),
  "hierarchical_rnn": dataclasses.replace(
    tensorwise(
      lambda: optimizers.hierarchical_rnn(4, 3, 2),
      # The cells, with two gates and a candidate each; what flows down; where they start; outputs.
      num_meta_params=(12 + 4 + 1) * 12
      + (16 + 3 + 1) * 9
      + (3 + 2 + 1) * 6
      + (4 + 3) * 12
      + 3 * 9
      + (4 + 3 + 2)
      + (4 + 4)
      + 3 * 5
      + 2,
    ),
    reads_params=False,
  ),
  "learned_muon": _LEARNED_MUON,
  "learned_muon_with_gains": dataclasses.replace(
    _LEARNED_MUON,
    make=lambda: optimizers.learned_muon(num_steps=20, gains=(4.0, 4.0)),
    num_meta_params=9,
  ),
  "learned_muon_with_gains_and_averaging": dataclasses.replace(
    _LEARNED_MUON,
    make=lambda: optimizers.learned_muon(num_steps=20, gains=(4.0, 4.0), averaging=(0.8, 4.0)),
    num_meta_params=11,
  ),
  "learned_sgd": OptimizerCase(
    optimizers.learned_sgd,
    num_meta_params=1,
    has_state=False,
    random_init=False,
    bounded=False,
    scale=1e-3,
  ),
  "lstm": OptimizerCase(optimizers.lstm, num_meta_params=5141),
  "lstm_bfloat16": OptimizerCase(
    lambda: optimizers.lstm(1, 4, state_dtype="bfloat16"), num_meta_params=(2 + 4 + 1) * 16 + 5
  ),
  "lstm_gac": OptimizerCase(
    lambda: optimizers.lstm_gac(1, 4, num_global=2),
    num_meta_params=(2 + 4 + 1) * 16 + 5,
    coordinatewise=False,
  ),
  "lstm_pair": OptimizerCase(
    lambda: optimizers.lstm_pair(1, 4), num_meta_params=2 * ((2 + 4 + 1) * 16 + 5)
  ),
  "mlp": tensorwise(lambda: optimizers.mlp(1, 4), num_meta_params=(19 + 1) * 4 + (4 + 1) * 2),
  "nn_adam": tensorwise(
    lambda: optimizers.nn_adam(3, learning_rate=0.01),
    num_meta_params=(19 + 3 + 1) * 12 + (3 + 1) * 4 + 2 * 3 + 4,
    scale=1e-3,
  ),
  "ntm_bfgs": OptimizerCase(
    lambda: optimizers.ntm_bfgs(1, 4, num_global=2),
    num_meta_params=(2 + 4 + 1) * 16 + 5 * (1 + 1 + 6),
    coordinatewise=False,
  ),
  "ntm_lbfgs": OptimizerCase(
    lambda: optimizers.ntm_lbfgs(1, 4, num_global=2, num_pairs=4),
    num_meta_params=(2 + 4 + 1) * 16 + 5 * (1 + 1 + 6),
    coordinatewise=False,
  ),
  "rnnprop": OptimizerCase(
    lambda: optimizers.rnnprop(1, 4), num_meta_params=3 * 4 + (4 + 4 + 1) * 16 + 5
  ),
  "rnn_mlp": tensorwise(
    lambda: given(optimizers.rnn_mlp(3, 1, 4), value=1.0),
    num_meta_params=(52 + 3 + 1) * 12
    + (3 + 1) * (18 + 17)
    + 2 * 3
    + 18
    + 16
    + (54 + 1) * 4
    + (4 + 1) * 18,
    reads_loss=True,
  ),
  "star": tensorwise(
    lambda: optimizers.star(1, 3, weight_decay=0.1, learned_nominal=True, learned_decay=True),
    num_meta_params=7 + (39 + 1) * 3 + (3 + 1) * 4,
  ),
  "velo": tensorwise(
    lambda: given(optimizers.velo(3, 2, 1, 4, bank_scale=1.0, num_steps=20), value=1.0),
    num_meta_params=_schedule_size(30, 3) + (3 + 1) * 2 + 2 * ((30 + 1) * 4 + (4 + 1) * 2),
    reads_loss=True,
  ),
}

OPTIMIZEES = {
  "quadratic": OptimizeeCase(optimizees.quadratic, num_coordinates=10, stochastic=False),
  "quadratic_gaussian": OptimizeeCase(
    lambda: optimizees.quadratic(4, "gaussian", gradient_scale=0.5),
    num_coordinates=4,
    stochastic=False,
  ),
  "conditioned_quadratic": OptimizeeCase(
    lambda: optimizees.conditioned_quadratic(3, 10.0), num_coordinates=3, stochastic=False
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
  "mlp_classifier_labels": OptimizeeCase(
    lambda: optimizees.mlp_classifier(images(), (3,), batch_size=8, num_labels=2, labels=(0, 2, 3)),
    num_coordinates=31 * 3 + 4 * 2,
    stochastic=True,
    has_metrics=True,
  ),
  "conv_classifier": OptimizeeCase(
    lambda: optimizees.conv_classifier(images(), (2,), hidden_size=5, batch_size=8),
    # The images shrink from 6 x 5 to 3 x 3.
    num_coordinates=(25 + 1 + 1) * 2 + (18 + 1 + 1) * 5 + 6 * 4,
    stochastic=True,
    has_metrics=True,
  ),
  "mlp_classifier_highway": OptimizeeCase(
    lambda: optimizees.mlp_classifier(
      images(), (3, 3), "relu", initial_scale=None, batch_size=8, skip="highway"
    ),
    num_coordinates=31 * 3 + 2 * 4 * 3 + 4 * 4,
    stochastic=True,
    has_metrics=True,
    always_the_same_start=True,
  ),
  "image_autoencoder": OptimizeeCase(
    lambda: optimizees.image_autoencoder(images(), (2,), initial_scale=0.1, batch_size=8),
    num_coordinates=31 * 2 + 3 * 30,
    stochastic=True,
    has_metrics=True,
  ),
  "recurrent_lm": OptimizeeCase(
    lambda: optimizees.recurrent_lm(text(), "rnn", 1, 3, 2, length=3, batch_size=5),
    num_coordinates=5 * 2 + (2 + 3 + 1) * 3 + 4 * 5,
    stochastic=True,
    has_metrics=True,
    always_the_same_start=True,
  ),
  "transformer_lm": OptimizeeCase(
    lambda: optimizees.transformer_lm(text(), 1, 4, 2, length=6, batch_size=3),
    num_coordinates=5 * 4 + 6 * 4 + 3 * 8 + 4 * 5 * 4 + 5 * 16 + 17 * 4 + 5 * 5,
    stochastic=True,
    has_metrics=True,
    always_the_same_start=True,
  ),
  "logistic_regression": OptimizeeCase(
    lambda: optimizees.logistic_regression(3, 20, batch_size=4), num_coordinates=3, stochastic=True
  ),
  "conditioned_quadratic_noisy": OptimizeeCase(
    lambda: optimizees.conditioned_quadratic(3, 10.0, noise=0.1), num_coordinates=3, stochastic=True
  ),
  "classical_functions": OptimizeeCase(
    lambda: optimizees.classical_functions(noise=0.1), num_coordinates=2, stochastic=False
  ),
  "noisy_sines": OptimizeeCase(
    lambda: optimizees.noisy_sines(1, 3, length=4, batch_size=5),
    num_coordinates=(1 + 3 + 1) * 12 + 4,
    stochastic=True,
  ),
  "neural_style": OptimizeeCase(
    tiny_style, num_coordinates=6 * 6 * 3, stochastic=False, has_metrics=True
  ),
  "random_scaling": OptimizeeCase(
    lambda: optimizees.random_scaling(optimizees.quadratic(4), radius=2.0),
    num_coordinates=4,
    stochastic=False,
  ),
  "augmented": OptimizeeCase(
    lambda: optimizees.noisy_gradients(
      optimizees.random_batch_size(
        optimizees.low_precision(
          optimizees.random_scaling(
            optimizees.mlp_classifier(images(), (3,), batch_size=2), 6.9, per="problem"
          )
        ),
        3,
      )
    ),
    num_coordinates=31 * 3 + 4 * 4,
    stochastic=True,
    has_metrics=True,
  ),
  "convex_helper": OptimizeeCase(
    lambda: optimizees.convex_helper(
      optimizees.mlp_classifier(images(), (3,), batch_size=8), dimension=5
    ),
    num_coordinates=31 * 3 + 4 * 4 + 5,
    stochastic=True,
    has_metrics=True,
    always_the_same_start=True,
  ),
}


def truncated(**fixed):
  return lambda **options: estimators.truncated_backprop(3, **fixed, **options)


def full(**fixed):
  return lambda **options: estimators.full_unroll(**fixed, **options)


# So small that an estimate is the derivative along the noise, and so large that it is exact.
TINY_SIGMA = 1e-7


def particles(factory, **fixed):
  return lambda **options: factory(**{"sigma": TINY_SIGMA, **fixed, **options})


LOCK_STEP = {"unroll_length": 3, "staggered": False}

ESTIMATORS = {
  # First order; the fast path where it is possible.
  "truncated_backprop": EstimatorCase(truncated(), 3, True, "first_order_gradient"),
  "full_unroll": EstimatorCase(full(), None, True, "first_order_gradient"),
  "truncated_backprop_autodiff": EstimatorCase(
    truncated(path="autodiff"), 3, True, "first_order_gradient"
  ),
  "full_unroll_remat": EstimatorCase(
    full(path="autodiff", remat=True), None, True, "first_order_gradient"
  ),
  "truncated_backprop_second_order": EstimatorCase(
    truncated(second_order=True), 3, True, "true_gradient"
  ),
  "full_unroll_second_order": EstimatorCase(full(second_order=True), None, False, "true_gradient"),
  "full_es": EstimatorCase(particles(estimators.full_es), None, False, "true_gradient", "fresh"),
  "truncated_es": EstimatorCase(
    particles(estimators.truncated_es, **LOCK_STEP), 3, True, "true_gradient", "fresh"
  ),
  "pes": EstimatorCase(particles(estimators.pes, **LOCK_STEP), 3, False, "true_gradient", "summed"),
  "es_single": EstimatorCase(
    particles(estimators.es_single, **LOCK_STEP), 3, False, "true_gradient", "kept"
  ),
  "inverse_variance": EstimatorCase(
    particles(estimators.inverse_variance, **LOCK_STEP, es_weight=0.0),
    3,
    True,
    "first_order_gradient",
    "tiny",
  ),
}
