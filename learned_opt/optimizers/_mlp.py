"""The small network that the per-parameter optimizers apply to each coordinate."""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

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
) -> dict[str, dict[str, jax.Array]]:
  """Weights from a truncated normal of standard deviation 1 / sqrt(inputs), biases zero.

  Returns:
    ``{"layer_0": {"kernel": [inputs, hidden], "bias": [hidden]}, ..., "output": {...}}``, float32.
  """
  sizes = [num_inputs, *hidden_sizes, num_outputs]
  names = [*(f"layer_{index}" for index in range(len(hidden_sizes))), "output"]
  keys = jax.random.split(key, len(names))
  return {
    name: {
      "kernel": jax.random.truncated_normal(k, -2, 2, (ins, outs), jnp.float32) / math.sqrt(ins),
      "bias": jnp.zeros(outs, jnp.float32),
    }
    for name, k, ins, outs in zip(names, keys, sizes[:-1], sizes[1:], strict=True)
  }


def apply_mlp(
  weights: dict[str, dict[str, jax.Array]],
  groups: Sequence[jax.Array],
  scales: Sequence[jax.Array],
  shared: jax.Array | None = None,
) -> list[jax.Array]:
  """A network with ReLU on the features of each coordinate of one tensor.

  Small networks on large tensors are computed number by number, so that XLA makes one loop of
  features and network and writes nothing but the outputs; others by matrix products, which compile
  more quickly.

  Args:
    weights: of `init_mlp`, with a row of the first kernel for each feature, then for each of
      `shared`.
    groups: features ``[features, *shape]``, of size one where they are the same along an axis.
    scales: what they are multiplied by first, see `_features.normalizers`.
    shared: ``[inputs]``, further inputs, the same for all coordinates.

  Returns:
    The outputs, each of the tensor's shape.
  """
  first, *others = weights.values()
  kernel, bias = first["kernel"], first["bias"]
  num_features = sum(group.shape[0] for group in groups)
  if shared is not None:
    bias = bias + shared @ kernel[num_features:]
    kernel = kernel[:num_features]
  if kernel.shape[0] != num_features:
    raise ValueError(f"the network has {kernel.shape[0]} inputs, but got {num_features} features")
  layers = [{"kernel": kernel, "bias": bias}, *others]
  shape = jnp.broadcast_shapes(*(group.shape[1:] for group in groups))
  small = sum(layer["kernel"].size for layer in layers) <= _MAX_UNROLLED_WEIGHTS
  if small and math.prod(shape) >= _MIN_UNROLLED_SIZE:
    return _by_number(layers, groups, scales)
  return _by_products(layers, groups, scales, shape)


def _by_products(layers, groups, scales, shape: tuple[int, ...]) -> list[jax.Array]:
  def add(layer, x):
    bias = layer["bias"].reshape(-1, *(1,) * len(shape))
    return jnp.tensordot(layer["kernel"], x, ((0,), (0,))) + bias

  x = jnp.concatenate(
    [
      jnp.broadcast_to(group * scale, (group.shape[0], *shape))
      for group, scale in zip(groups, scales, strict=True)
    ]
  )
  x = add(layers[0], x)
  for layer in layers[1:]:
    x = add(layer, jax.nn.relu(x))
  return list(x)


def _by_number(layers, groups, scales) -> list[jax.Array]:
  first, *others = layers
  parts: dict[tuple[int, ...], list[tuple[jax.Array, jax.Array]]] = {}
  index = 0
  for group, scale in zip(groups, scales, strict=True):
    for feature, factor in zip(group, scale, strict=True):
      weight = first["kernel"][index].reshape(-1, *(1,) * feature.ndim) * factor
      parts.setdefault(feature.shape, []).append((weight, feature))
      index += 1
  # Vectors of rows and of columns first: what varies with them only is computed once.
  ordered = sorted(parts.items(), key=lambda item: math.prod(item[0]))
  hidden = []
  for unit, bias in enumerate(first["bias"]):
    for _, pairs in ordered:
      bias = sum((weight[unit] * feature for weight, feature in pairs), start=bias)
    hidden.append(bias)
  for layer in others:
    inputs = [jax.nn.relu(x) for x in hidden]
    hidden = [
      sum((weight * x for weight, x in zip(column, inputs, strict=True)), start=bias)
      for column, bias in zip(layer["kernel"].T, layer["bias"], strict=True)
    ]
  return hidden
