"""Celo 2 (Moudgil et al. 2026): directions from a per-parameter MLP, lengths from the user."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from learned_opt.base import LearnedOptimizer
from learned_opt.optimizers import _features, _orthogonal
from learned_opt.optimizers._features import Decays
from learned_opt.optimizers._mlp import check_mlp_options, init_mlp
from learned_opt.optimizers._rules import FeatureRule
from learned_opt.optimizers._tensors import tensorwise_transformation

_DECAYS = Decays((0.9, 0.99, 0.999), (0.95,), (0.9, 0.99, 0.999))
# What tensors of rank less than two have of them: they have neither rows nor columns.
_VECTOR_GROUPS = _features.VELO_GROUPS[:9]
_NUM_FEATURES = 30
_MAX_GRADIENT = 1000.0
_SQUARES_EPSILON = 1e-8
_NORM_EPSILON = 1e-9

_ADAM_DECAYS = (0.9, 0.95)
_ADAM_EPSILON = 1e-8
_ADAM_LEARNING_RATE = 20.0

# Keeps roots and their derivatives finite.
_TINY = 1e-30


class AdamMoments(NamedTuple):
  """Of a tensor that Adam updates: running means of the gradients and of their squares."""

  mean: jax.Array
  square: jax.Array


def celo2(
  learning_rate: float = 1e-3,
  weight_decay: float = 0.0,
  newton_schulz: bool = True,
  adamw_for_vectors: bool | None = None,
  num_layers: int = 2,
  hidden_size: int = 8,
) -> LearnedOptimizer:
  """Celo 2: the direction of each matrix's step is learned, its length is the user's: 329 numbers.

  The network sees 30 numbers of each coordinate, as VeLO's does, and gives one number d. Of a
  matrix D of them, with weight decay w,

      update = -learning_rate (orthogonal(D) / rms + w params),

  where ``orthogonal`` are five Newton-Schulz steps (Jordan et al. 2024, "Muon") and ``rms`` is the
  root mean square of the result. Tensors of higher rank are stacks of matrices over their last two
  axes. Scalars and vectors are updated by AdamW with decays .9 and .95 and 20 times the learning
  rate.

  ``celo2(newton_schulz=False)`` is Celo 2 base: no orthogonalization, and the network for vectors,
  too. For a learning rate schedule, give 1 here and chain `optax.scale_by_schedule` after it.

  Source: Moudgil, Knyazev and Belilovsky (2026), "Celo2: Towards learned optimization free lunch",
  and its released code. Its network has two more outputs, which nothing reads: they are left out.

  Args:
    learning_rate: of matrices; the root mean square of their steps.
    weight_decay: decoupled, times the learning rate that a tensor has.
    newton_schulz: whether to orthogonalize the steps of matrices.
    adamw_for_vectors: whether AdamW updates scalars and vectors; None means where `newton_schulz`.
    num_layers: hidden layers.
    hidden_size: units of each.

  Returns:
    The architecture. Its transformations read the params. They keep four arrays of the size of the
    matrices, and few smaller ones, in the dtype of the meta-params, and compute in it.

  Raises:
    ValueError: if a size is not positive or a factor is not finite.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.celo2(learning_rate=0.01, newton_schulz=False)
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = jnp.ones((3, 2))
    >>> updates, _ = jax.jit(tx.update)(-params, tx.init(params), params)
    >>> f"{jnp.sqrt(jnp.mean(updates**2)):.3g}"
    '0.01'
  """
  check_mlp_options(num_layers, hidden_size, learning_rate=learning_rate, weight_decay=weight_decay)
  adamw = bool(newton_schulz if adamw_for_vectors is None else adamw_for_vectors)
  return _celo2(
    float(learning_rate), float(weight_decay), bool(newton_schulz), adamw, num_layers, hidden_size
  )


def _adam_direction(
  grad: jax.Array, moments: AdamMoments, step: jax.Array
) -> tuple[jax.Array, AdamMoments]:
  """Adam's, with both means corrected for their bias."""
  moments = AdamMoments(
    *(
      beta * old + (1 - beta) * new
      for beta, old, new in zip(_ADAM_DECAYS, moments, (grad, jnp.square(grad)), strict=True)
    )
  )
  mean, square = (
    old / (1 - beta ** (step + 1).astype(grad.dtype))
    for beta, old in zip(_ADAM_DECAYS, moments, strict=True)
  )
  return mean / (jnp.sqrt(jnp.maximum(square, _TINY)) + _ADAM_EPSILON), moments


def _is_vector(shape: tuple[int, ...]) -> bool:
  return len(shape) < 2


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _celo2(
  learning_rate: float,
  weight_decay: float,
  newton_schulz: bool,
  adamw_for_vectors: bool,
  num_layers: int,
  hidden_size: int,
) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    return init_mlp(key, _NUM_FEATURES, num_layers * (hidden_size,), 1)

  def init_tensor(dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    if adamw_for_vectors and _is_vector(shape):
      return AdamMoments(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    return _features.init_accumulators(shape, _DECAYS, dtype)

  def finish(shared, extra, param, direction):
    del shared, extra
    if newton_schulz and not _is_vector(param.shape):
      direction = _orthogonal.orthogonalize(direction)
    return -learning_rate * (_orthogonal.rms_normalized(direction) + weight_decay * param)

  rule = FeatureRule(
    groups=_features.VELO_GROUPS,
    decays=lambda shared: shared[1],
    network=lambda shared, extra: shared[0],
    output=lambda outputs, features: outputs[0],
    finish=finish,
    max_gradient=_MAX_GRADIENT,
    vector_groups=_VECTOR_GROUPS,
    squares_epsilon=_SQUARES_EPSILON,
    norm_epsilon=_NORM_EPSILON,
    last_axes=2,
  )

  def update_tensor(shared, inputs, state):
    if not isinstance(state, AdamMoments):
      return rule.update(shared, inputs, state)
    (grad, param), step = inputs, shared[2]
    direction, state = _adam_direction(rule.clip(grad), state, step)
    rate = _ADAM_LEARNING_RATE * learning_rate
    return -rate * (direction + weight_decay * param), state

  def shape_of_state(state) -> tuple[int, ...]:
    return state.mean.shape if isinstance(state, AdamMoments) else state.momenta.shape[1:]

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    dtype: np.dtype = meta_params["output"]["bias"].dtype
    decays = Decays(*(jnp.asarray(betas, dtype) for betas in _DECAYS))
    return tensorwise_transformation(
      dtype,
      "celo2",
      init=functools.partial(init_tensor, dtype),
      update=update_tensor,
      shared=lambda step: (meta_params, decays, step),
      shape_of_state=shape_of_state,
      group_function=functools.partial(rule.update_group, dtype=dtype),
    )

  config = FrozenDict(
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    newton_schulz=newton_schulz,
    adamw_for_vectors=adamw_for_vectors,
    num_layers=num_layers,
    hidden_size=hidden_size,
  )
  return LearnedOptimizer(init, optimizer, "celo2", config)
