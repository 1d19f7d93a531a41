"""The small network that the per-parameter optimizers apply to each coordinate."""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp


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
  outputs: Sequence[int] | None = None,
) -> list[jax.Array]:
  """A network with ReLU on the features of each coordinate of one tensor.

  Args:
    weights: of `init_mlp`, with a row of the first kernel for each feature, then for each of
      `shared`.
    groups: features ``[features, *shape]``, of size one where they are the same along an axis.
    scales: what they are multiplied by first, see `_features.normalizers`.
    shared: ``[inputs]``, further inputs, the same for all coordinates.
    outputs: which of the outputs to compute, None means all.

  Returns:
    The outputs, each of the tensor's shape.
  """
  first, *others = weights.values()
  kernel, bias = first["kernel"], first["bias"]
  if shared is not None:
    split = kernel.shape[0] - shared.shape[0]
    bias = bias + shared @ kernel[split:]
    kernel = kernel[:split]
  rank = groups[0].ndim - 1
  ends = [0]
  terms: dict[tuple[int, ...], list] = {}
  for group, scale in zip(groups, scales, strict=True):
    ends.append(ends[-1] + group.shape[0])
    rows = kernel[ends[-2] : ends[-1]].reshape(group.shape[0], -1, *(1,) * rank)
    terms.setdefault(group.shape[1:], []).append((group, rows * scale[:, None]))
  if ends[-1] != kernel.shape[0]:
    raise ValueError(f"the network has {kernel.shape[0]} inputs, but got {ends[-1]} features")
  hidden = []
  for unit in range(kernel.shape[1]):
    parts = [
      sum(weight[k, unit] * group[k] for group, weight in pairs for k in range(group.shape[0]))
      for pairs in terms.values()
    ]
    # Vectors of rows and of columns first: what varies with them only is computed once.
    hidden.append(sum(sorted(parts, key=lambda part: part.size)) + bias[unit])
  for layer in others:
    inputs = [jax.nn.relu(h) for h in hidden]
    units = range(layer["bias"].shape[0])
    if layer is others[-1] and outputs is not None:
      units = outputs
    hidden = [
      sum(layer["kernel"][i, j] * x for i, x in enumerate(inputs)) + layer["bias"][j] for j in units
    ]
  return hidden
