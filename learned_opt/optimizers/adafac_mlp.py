"""The per-parameter MLP on Adafactor's statistics of Metz et al. (2022), also called small_fc."""

import functools

import chex
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from learned_opt.base import LearnedOptimizer
from learned_opt.optimizers import _features
from learned_opt.optimizers._mlp import check_mlp_options, init_mlp
from learned_opt.optimizers._rules import adafac_rule, feature_transformation

_NUM_FEATURES = 28


def adafac_mlp(
  num_layers: int = 2,
  hidden_size: int = 4,
  exp_scale: float = 1e-3,
  output_scale: float = 1e-3,
) -> LearnedOptimizer:
  """The per-parameter MLP on Adafactor's statistics, also called small_fc: 197 meta-params.

  The network sees 28 numbers of each coordinate, each divided by its root mean square over the
  tensor: the gradient, the parameter, three momenta, an average of squares, and what Adam and
  Adafactor make of them; and 11 numbers that tell the time. Of its outputs d and s,

      update = -output_scale d exp(exp_scale s).

  The decays of the averages are learned, too. Gradients are clipped to +-1e6, so that their fourth
  powers are finite; the published form is not.

  Source: Metz et al. (2022), "Practical tradeoffs between memory, compute, and performance in
  learned optimizers"; the constants are those of its released code.

  Args:
    num_layers: hidden layers.
    hidden_size: units of each.
    exp_scale: factor of the output in the exponent.
    output_scale: factor of the update.

  Returns:
    The architecture. Its transformations read the params. They keep four arrays of the size of the
    params, and few smaller ones, in the dtype of the meta-params, and compute in it.

  Raises:
    ValueError: if a size is not positive or a factor is not finite.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.adafac_mlp()
    >>> meta_params = architecture.init(jax.random.key(0))
    >>> sum(leaf.size for leaf in jax.tree.leaves(meta_params))
    197
    >>> tx = architecture.optimizer(meta_params)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    >>> updates["w"].shape, state.tensors["w"].momenta.shape
    ((3, 2), (3, 3, 2))
  """
  check_mlp_options(num_layers, hidden_size, exp_scale=exp_scale, output_scale=output_scale)
  return _adafac_mlp(num_layers, hidden_size, float(exp_scale), float(output_scale))


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _adafac_mlp(
  num_layers: int, hidden_size: int, exp_scale: float, output_scale: float
) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    num_inputs = _NUM_FEATURES + len(_features.TIME_SCALES)
    network = init_mlp(key, num_inputs, num_layers * (hidden_size,), 2)
    return {"decays": _features.init_offsets(), "network": network}

  def output(outputs, features):
    del features
    direction, magnitude = outputs
    return -output_scale * direction * jnp.exp(exp_scale * magnitude)

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    decays = _features.decays_of(meta_params["decays"])
    shared = meta_params["network"], decays
    return feature_transformation(
      "adafac_mlp", rule, decays.momenta.dtype, lambda step: (*shared, step), decays
    )

  rule = adafac_rule(output)
  config = FrozenDict(
    num_layers=num_layers,
    hidden_size=hidden_size,
    exp_scale=exp_scale,
    output_scale=output_scale,
  )
  return LearnedOptimizer(init, optimizer, "adafac_mlp", config)
