"""STAR (Harrison et al. 2022): a per-parameter MLP beside a nominal term that keeps it stable."""

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


def star(
  num_layers: int = 2,
  hidden_size: int = 4,
  exp_scale: float = 1e-3,
  output_scale: float = 1e-3,
  nominal_scale: float = 1e-3,
  weight_decay: float = 0.0,
  precondition: bool = True,
  learned_nominal: bool = False,
  learned_decay: bool = False,
) -> LearnedOptimizer:
  """The features of `adafac_mlp` with a nominal term and weight decay: by default 197 meta-params.

  With the momenta m_k and the average of squares r of the features, and outputs d, s, s_n, s_r of
  the network,

      update = -output_scale d exp(exp_scale s) / sqrt(r + 1e-6)
               -nominal_scale exp(exp_scale s_n) mean_k(m_k / sqrt(r + 1e-6))
               -weight_decay exp(exp_scale s_r) params.

  The nominal term, an aggregate of Adam's directions, is a descent direction from the start: near
  a minimum it holds where the network alone would not be stable. Gradients are clipped to +-1e6, as
  those of `adafac_mlp`.

  Source: Harrison, Metz and Sohl-Dickstein (2022), "A closer look at learned optimization:
  stability, robustness, and inductive biases"; the released code's defaults, but for
  `nominal_scale` and `precondition`, which are those that its trained optimizers are named after.

  Args:
    num_layers: hidden layers.
    hidden_size: units of each.
    exp_scale: factor of the outputs in exponents.
    output_scale: factor of the network's term.
    nominal_scale: factor of the nominal term.
    weight_decay: factor of the params.
    precondition: whether the network's term is divided by the root of r.
    learned_nominal: whether the network has the output s_n; it is one otherwise.
    learned_decay: whether the network has the output s_r; it is zero otherwise.

  Returns:
    The architecture. Its transformations read the params. They keep four arrays of the size of the
    params, and few smaller ones, in the dtype of the meta-params, and compute in it.

  Raises:
    ValueError: if a size is not positive or a factor is not finite.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.star(output_scale=0.0)
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = jnp.array([1.0, -2.0])
    >>> updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    >>> jnp.sign(updates).tolist()
    [-1.0, 1.0]
  """
  check_mlp_options(
    num_layers,
    hidden_size,
    exp_scale=exp_scale,
    output_scale=output_scale,
    nominal_scale=nominal_scale,
    weight_decay=weight_decay,
  )
  return _star(
    num_layers,
    hidden_size,
    float(exp_scale),
    float(output_scale),
    float(nominal_scale),
    float(weight_decay),
    bool(precondition),
    bool(learned_nominal),
    bool(learned_decay),
  )


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _star(
  num_layers: int,
  hidden_size: int,
  exp_scale: float,
  output_scale: float,
  nominal_scale: float,
  weight_decay: float,
  precondition: bool,
  learned_nominal: bool,
  learned_decay: bool,
) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    num_inputs = _NUM_FEATURES + len(_features.TIME_SCALES)
    num_outputs = 2 + learned_nominal + learned_decay
    network = init_mlp(key, num_inputs, num_layers * (hidden_size,), num_outputs)
    return {"decays": _features.init_offsets(), "network": network}

  def output(outputs, features):
    direction, magnitude, *others = outputs
    nominal = others.pop(0) if learned_nominal else 1.0
    decay = others.pop(0) if learned_decay else 0.0
    step = output_scale * direction * jnp.exp(exp_scale * magnitude)
    if precondition:
      step = step * features["rsqrt_squares"][0]
    momenta = jnp.mean(features["scaled_momenta"], 0)
    step = step + nominal_scale * jnp.exp(exp_scale * nominal) * momenta
    return -(step + weight_decay * jnp.exp(exp_scale * decay) * features["param"][0])

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    decays = _features.decays_of(meta_params["decays"])
    shared = meta_params["network"], decays
    return feature_transformation(
      "star", rule, decays.momenta.dtype, lambda step: (*shared, step), decays
    )

  rule = adafac_rule(output)
  config = FrozenDict(
    num_layers=num_layers,
    hidden_size=hidden_size,
    exp_scale=exp_scale,
    output_scale=output_scale,
    nominal_scale=nominal_scale,
    weight_decay=weight_decay,
    precondition=precondition,
    learned_nominal=learned_nominal,
    learned_decay=learned_decay,
  )
  return LearnedOptimizer(init, optimizer, "star", config)
