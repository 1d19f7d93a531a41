"""What networks have in common: activations, and how their weights start."""

import math
from typing import TypedDict

import flax.linen as nn
from jax.nn.initializers import Initializer

from learned_opt import _draws

ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": nn.tanh, "relu": nn.relu, "elu": nn.elu}


class Initializers(TypedDict):
  """Those of a layer, by the names of its arguments."""

  kernel_init: Initializer
  bias_init: Initializer


def initializers(initial_scale: float | None) -> Initializers:
  """How kernels and biases start, by the standard deviation of both.

  None means LeCun's: kernels are truncated Gaussians of the variance 1 / fan-in, biases are zero.
  """
  if initial_scale is None:
    return {"kernel_init": _draws.lecun_normal_init(), "bias_init": nn.initializers.zeros}
  init = _draws.normal_init(initial_scale)
  return {"kernel_init": init, "bias_init": init}


def check_initial_scale(initial_scale: float | None) -> None:
  """Raises `ValueError` for what is neither a standard deviation nor None."""
  if initial_scale is not None and not (math.isfinite(initial_scale) and initial_scale >= 0):
    raise ValueError(f"initial_scale must be finite and not negative, got {initial_scale}")


def check_activation(activation: str) -> None:
  """Raises `ValueError` for an activation that there is not."""
  if activation not in ACTIVATIONS:
    raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def check_sizes(**sizes: int) -> None:
  """Raises `ValueError`, naming the argument, unless all are at least 1."""
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")


def as_float(initial_scale: float | None) -> float | None:
  """One form for numbers that are equal, so that equal calls give equal modules."""
  return None if initial_scale is None else float(initial_scale)
