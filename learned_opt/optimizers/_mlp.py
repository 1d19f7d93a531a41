"""The small network that the per-parameter optimizers apply to each coordinate."""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import _draws

Layer = dict[str, jax.Array]
Weights = dict[str, Layer]

# Networks of so many weights at most, on tensors of so many coordinates at least, are computed
# number by number.
_MAX_UNROLLED_WEIGHTS = 512
_MIN_UNROLLED_SIZE = 1024


def check_mlp_options(num_layers: int, hidden_size: int, **factors: float) -> None:
  """Raises `ValueError` for sizes that are not positive and factors that are not finite."""
  for name, size in (("num_layers", num_layers), ("hidden_size", hidden_size)):
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")
  for name, factor in factors.items():
    if not math.isfinite(factor):
      raise ValueError(f"{name} must be finite, got {factor}")


def init_mlp(
  key: chex.PRNGKey, num_inputs: int, hidden_sizes: Sequence[int], num_outputs: int
) -> Weights:
  """Weights from a truncated normal of standard deviation 1 / sqrt(inputs), biases zero.

  Returns:
    ``{"layer_0": {"kernel": [inputs, hidden], "bias": [hidden]}, ..., "output": {...}}``, float32.
  """
  sizes = [num_inputs, *hidden_sizes, num_outputs]
  names = [*(f"layer_{index}" for index in range(len(hidden_sizes))), "output"]
  keys = jax.random.split(key, len(names))
  return {
    name: {
      "kernel": _draws.truncated_normal(k, (ins, outs), jnp.float32) / math.sqrt(ins),
      "bias": jnp.zeros(outs, jnp.float32),
    }
    for name, k, ins, outs in zip(names, keys, sizes[:-1], sizes[1:], strict=True)
  }


def apply_mlp(
  weights: Weights,
  groups: Sequence[jax.Array],
  scales: Sequence[jax.Array],
  shared: jax.Array | None = None,
) -> list[jax.Array]:
  """A network with ReLU on the features of each coordinate of one tensor.

  Args:
    weights: of `init_mlp`, with a row of the first kernel for each feature, then for each of
      `shared`.
    groups: features ``[features, *shape]``, of size one where they are the same along an axis.
    scales: what they are multiplied by first, see `_features.normalizers`.
    shared: ``[inputs]``, further inputs, the same for all coordinates.

  Returns:
    The outputs, each of the tensor's shape.
  """
  sizes = [group.shape[0] for group in groups]
  kernels, layers = split_kernel(weights, sizes, shared)
  shape = jnp.broadcast_shapes(*(group.shape[1:] for group in groups))
  if is_small(weights) and math.prod(shape) >= _MIN_UNROLLED_SIZE:
    full = [i for i, group in enumerate(groups) if group.shape[1:] == shape]
    others = [i for i in range(len(groups)) if i not in full]
    kernels_of_full, full_groups, full_scales = (
      [x[i] for i in full] for x in (kernels, groups, scales)
    )
    kernels, groups, scales = ([x[i] for i in others] for x in (kernels, groups, scales))
    parts = jax.lax.optimization_barrier(contributions(kernels, groups, scales))
    return apply_by_number(layers, kernels_of_full, full_groups, full_scales, parts)
  return _apply_by_products(layers, kernels, groups, scales, shape)


def join(weights: Weights, groups: Sequence[jax.Array]) -> list[jax.Array]:
  """All features as one group where the network is to be computed by matrix products."""
  shape = jnp.broadcast_shapes(*(group.shape[1:] for group in groups))
  if is_small(weights) and math.prod(shape) >= _MIN_UNROLLED_SIZE:
    return list(groups)
  return [jnp.concatenate([jnp.broadcast_to(x, (x.shape[0], *shape)) for x in groups])]


def is_small(weights: Weights) -> bool:
  """Whether large tensors are better computed number by number than by matrix products."""
  return sum(layer["kernel"].size for layer in weights.values()) <= _MAX_UNROLLED_WEIGHTS


def first_inputs(weights: Weights, number: int) -> Weights:
  """The network without those of its inputs that come later."""
  name, layer = next(iter(weights.items()))
  return {**weights, name: {**layer, "kernel": layer["kernel"][:number]}}


def split_kernel(
  weights: Weights, sizes: Sequence[int], shared: jax.Array | None
) -> tuple[list[jax.Array], list[Layer]]:
  """The first kernel's rows of each group, and all layers, the first with only its bias.

  Args:
    weights: of `init_mlp`.
    sizes: of the groups.
    shared: further inputs, which go into that bias.
  """
  first, *others = weights.values()
  kernel, bias, number = first["kernel"], first["bias"], sum(sizes)
  if shared is not None:
    bias = bias + shared @ kernel[number:]
    kernel = kernel[:number]
  if kernel.shape[0] != number:
    raise ValueError(f"the network has {kernel.shape[0]} inputs, but got {number} features")
  return jnp.split(kernel, np.cumsum(sizes)[:-1]), [{"bias": bias}, *others]


def contributions(
  kernels: Sequence[jax.Array], groups: Sequence[jax.Array], scales: Sequence[jax.Array]
) -> list[jax.Array]:
  """What groups of equal shapes contribute to the first layer, ``[units, *shape]`` for each."""
  parts: dict[tuple[int, ...], jax.Array] = {}
  for kernel, group, scale in zip(kernels, groups, scales, strict=True):
    part, shape = jnp.tensordot(kernel, group * scale, ((0,), (0,))), group.shape[1:]
    parts[shape] = parts[shape] + part if shape in parts else part
  return list(parts.values())


def apply_by_number(
  layers: Sequence[Layer],
  kernels: Sequence[jax.Array],
  groups: Sequence[jax.Array],
  scales: Sequence[jax.Array],
  parts: Sequence[jax.Array] = (),
) -> list[jax.Array]:
  """The network number by number: XLA makes one loop of it and writes nothing but the outputs.

  Args:
    layers: see `split_kernel`.
    kernels: see `split_kernel`.
    groups: features of the tensor's shape.
    scales: see `apply_mlp`.
    parts: of `contributions`, to be added to the first layer.

  Returns:
    The outputs.
  """
  first, *others = layers
  pairs = [
    (weights[k].reshape(-1, *(1,) * feature.ndim) * scale[k][None], feature)
    for weights, group, scale in zip(kernels, groups, scales, strict=True)
    for k, feature in enumerate(group)
  ]
  hidden = []
  for unit, x in enumerate(first["bias"]):
    for part in parts:
      x = x + part[unit]
    hidden.append(x + sum(weight[unit] * feature for weight, feature in pairs))
  for layer in others:
    inputs = [jax.nn.relu(x) for x in hidden]
    hidden = [
      bias + sum(weight * x for weight, x in zip(column, inputs, strict=True))
      for column, bias in zip(layer["kernel"].T, layer["bias"], strict=True)
    ]
  return hidden


def _apply_by_products(layers, kernels, groups, scales, shape: tuple[int, ...]) -> list[jax.Array]:
  def column(bias: jax.Array) -> jax.Array:
    return bias.reshape(-1, *(1,) * len(shape))

  first, *others = layers
  inputs = [
    jnp.broadcast_to(group * scale, (group.shape[0], *shape))
    for group, scale in zip(groups, scales, strict=True)
  ]
  product = jnp.tensordot(jnp.concatenate(kernels), jnp.concatenate(inputs), ((0,), (0,)))
  x = product + column(first["bias"])
  for layer in others:
    x = jnp.tensordot(layer["kernel"], jax.nn.relu(x), ((0,), (0,))) + column(layer["bias"])
  return list(x)
