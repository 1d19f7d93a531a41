"""The per-parameter MLP of Metz et al. (2019), on momenta alone."""

import functools

import chex
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from learned_opt.base import LearnedOptimizer
from learned_opt.optimizers import _features
from learned_opt.optimizers._mlp import apply_mlp, check_mlp_options, init_mlp
from learned_opt.optimizers._tensors import tensorwise_transformation

_DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
_MAX_GRADIENT = 1e6


def mlp(
  num_layers: int = 2,
  hidden_size: int = 32,
  exp_scale: float = 1e-3,
  output_scale: float = 1e-3,
) -> LearnedOptimizer:
  """The per-parameter MLP on the gradient, the parameter and six momenta: 1,762 meta-params.

  Each of these eight numbers is divided by its root mean square over the tensor; eleven further
  inputs tell the time. Of the network's outputs d and s,

      update = -output_scale d exp(exp_scale s).

  Gradients are clipped to +-1e6, as squares must be finite; the published form does not clip.

  Source: Metz et al. (2019), "Understanding and correcting pathologies in the training of learned
  optimizers"; the constants are those of its released code.

  Args:
    num_layers: hidden layers.
    hidden_size: units of each.
    exp_scale: factor of the output in the exponent.
    output_scale: factor of the update.

  Returns:
    The architecture. Its transformations read the params. They keep six arrays of the size of the
    params, in the dtype of the meta-params, and compute in it.

  Raises:
    ValueError: if a size is not positive or a factor is not finite.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.mlp()
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    >>> updates["w"].shape, state.tensors["w"].shape
    ((3, 2), (6, 3, 2))
  """
  check_mlp_options(num_layers, hidden_size, exp_scale=exp_scale, output_scale=output_scale)
  return _mlp(num_layers, hidden_size, float(exp_scale), float(output_scale))


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _mlp(
  num_layers: int, hidden_size: int, exp_scale: float, output_scale: float
) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    num_inputs = 2 + len(_DECAYS) + len(_features.TIME_SCALES)
    return init_mlp(key, num_inputs, num_layers * (hidden_size,), 2)

  def update_tensor(shared, inputs, momenta):
    (network, time), (grad, param) = shared, inputs
    grad = jnp.clip(grad, -_MAX_GRADIENT, _MAX_GRADIENT)
    momenta = _features.mix(jnp.asarray(_DECAYS, grad.dtype), momenta, grad)
    groups = [grad[None], param[None], momenta]
    direction, magnitude = apply_mlp(network, groups, _features.normalizers(groups), time)
    return -output_scale * direction * jnp.exp(exp_scale * magnitude), momenta

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    dtype: np.dtype = meta_params["output"]["bias"].dtype
    return tensorwise_transformation(
      dtype,
      "mlp",
      init=lambda shape: jnp.zeros((len(_DECAYS), *shape), dtype),
      update=update_tensor,
      shared=lambda step: (meta_params, _features.time_features(step, dtype)),
      shape_of_state=lambda momenta: momenta.shape[1:],
    )

  config = FrozenDict(
    num_layers=num_layers,
    hidden_size=hidden_size,
    exp_scale=exp_scale,
    output_scale=output_scale,
  )
  return LearnedOptimizer(init, optimizer, "mlp", config)
