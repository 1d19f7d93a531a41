"""The update rule of VeLO and Celo: a small network on 30 features of each coordinate."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.optimizers import _features
from learned_opt.optimizers._mlp import init_mlp
from learned_opt.optimizers._rules import FeatureRule

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


def make_rule(
  exp_scale: float,
  network: Callable[[Any, Any], Any],
  rate: Callable[[Any, Any], jax.Array],
) -> FeatureRule:
  """The update -rate RMS(tensor) d exp(exp_scale s), for the outputs d and s of the network.

  Args:
    exp_scale: factor of the output in the exponent.
    network: ``(shared, extra) -> weights`` of a tensor; see `FeatureRule`.
    rate: ``(shared, extra) -> scalar``.
  """

  def output(outputs: list[jax.Array], features: dict[str, jax.Array]) -> jax.Array:
    del features
    direction, magnitude = outputs
    return direction * jnp.exp(exp_scale * magnitude)

  def finish(shared: Any, extra: Any, param: jax.Array, direction: jax.Array) -> jax.Array:
    size = jnp.sqrt(jnp.mean(jnp.square(clip_param(param))) + 1e-9)
    return -(rate(shared, extra) * size) * direction

  return FeatureRule(
    groups=_features.VELO_GROUPS,
    decays=lambda shared: fixed_decays(jax.tree.leaves(shared)[0].dtype),
    network=network,
    output=output,
    finish=finish,
    max_gradient=_MAX_GRADIENT,
    diagonal_epsilon=0.0,
  )
