"""The update rule of VeLO and Celo: a small network on 30 features of each coordinate."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.optimizers import _features
from learned_opt.optimizers._mlp import apply_mlp, init_mlp

NUM_FEATURES = 30
# The released code has a third output, which nothing reads.
_NUM_OUTPUTS = 2
_MAX_GRADIENT = 1000.0
# Beyond it, squares are not finite.
_MAX_PARAM = 1e15


def init_network(key: chex.PRNGKey, num_layers: int, hidden_size: int) -> dict[str, Any]:
  """The weights of one network."""
  return init_mlp(key, NUM_FEATURES, num_layers * (hidden_size,), _NUM_OUTPUTS)


def fixed_decays(dtype: np.dtype) -> _features.Decays:
  """The decays, which are not learned."""
  initial = _features.INITIAL_DECAYS
  return _features.Decays(**{name: jnp.asarray(initial[name], dtype) for name in initial})


def clip_param(param: jax.Array) -> jax.Array:
  """The parameters as far as their squares are finite."""
  return jnp.clip(param, -_MAX_PARAM, _MAX_PARAM)


def update_tensor(
  network: Any,
  rate: jax.Array,
  grad: jax.Array,
  param: jax.Array,
  accumulators: _features.Accumulators,
  exp_scale: float,
) -> tuple[jax.Array, _features.Accumulators]:
  """One update of one tensor: -rate RMS(param) d exp(exp_scale s), for the outputs d and s.

  Args:
    network: the weights.
    rate: scalar.
    grad: of rank one at least; clipped to +-1000.
    param: of the same shape.
    accumulators: of `_features.init_accumulators`.
    exp_scale: factor of the output in the exponent.

  Returns:
    What is added, and the next running averages.
  """
  grad, param = jnp.clip(grad, -_MAX_GRADIENT, _MAX_GRADIENT), clip_param(param)
  accumulators = _features.update_accumulators(fixed_decays(grad.dtype), grad, accumulators)
  groups = _features.feature_groups(
    _features.VELO_GROUPS, grad, param, accumulators, diagonal_epsilon=0.0
  )
  direction, magnitude = apply_mlp(network, groups, _features.normalizers(groups))
  scale = rate * jnp.sqrt(jnp.mean(jnp.square(param)) + 1e-9)
  return -scale * direction * jnp.exp(exp_scale * magnitude), accumulators
