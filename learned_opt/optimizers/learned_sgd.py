"""Gradient descent with a learned learning rate: one number, for which much can be worked out."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from learned_opt import _coordinates
from learned_opt.base import CoordinatewiseRule, LearnedOptimizer, check_params


def learned_sgd(learning_rate: float = 0.01) -> LearnedOptimizer:
  """Gradient descent whose learning rate is the one meta-param: update = -exp(phi) grad.

  The unit of tests of meta-training: its meta-gradients can be written down.

  Args:
    learning_rate: exp(phi) where meta-training starts, the same for all keys.

  Returns:
    The architecture. Its meta-params are ``{"log_learning_rate": phi}``; its transformations have
    no state, compute in the dtype of phi, and give updates of the params' dtypes.

  Raises:
    ValueError: if the learning rate is not positive and finite.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.learned_sgd(0.5)
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = jnp.array([1.0, -2.0])
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> updates.tolist()
    [-0.5, 1.0]
  """
  if not (math.isfinite(learning_rate) and learning_rate > 0):
    raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
  return _learned_sgd(float(learning_rate))


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _learned_sgd(learning_rate: float) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    del key
    return {"log_learning_rate": jnp.asarray(math.log(learning_rate), jnp.float32)}

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    phi = meta_params["log_learning_rate"]

    def init_fn(params):
      check_params(params)
      return optax.EmptyState()

    def update_fn(updates, state, params=None, **extra_args):
      del extra_args
      _coordinates.check_gradients(updates, params)

      def one(grad, like):
        return (-jnp.exp(phi) * jnp.asarray(grad, phi.dtype)).astype(jnp.result_type(like))

      return jax.tree.map(one, updates, updates if params is None else params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  def rule_update(meta_params, grads, state):
    return -jnp.exp(meta_params["log_learning_rate"]) * grads, state

  rule = CoordinatewiseRule(lambda meta_params, num_coordinates: (), rule_update)
  config = FrozenDict(learning_rate=learning_rate)
  return LearnedOptimizer(init, optimizer, "learned_sgd", config, rule)
