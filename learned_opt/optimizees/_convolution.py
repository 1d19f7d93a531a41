"""Convolutions that are fast in loops and under `vmap`, on every platform."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

# Numbers in a patch: those of 5 x 5 pixels with 3 channels, 75, are faster in one product, those
# with 16, 400, in one for each row of the kernel.
_MAX_PATCH = 128


def xla_convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`convolve` by XLA's own convolution, on all platforms."""
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A convolution with stride 1, padded with zeros so that it keeps height and width.

  On CPUs it is a product of patches with the kernel: in a loop, or with several kernels at once
  (groups, which `vmap` makes of it), XLA's own convolution takes several times as long there.
  Other platforms keep XLA's.

  Args:
    x: ``[N, height, width, in]``.
    kernel: ``[rows, columns, in, out]``.

  Returns:
    ``[N, height, width, out]``.
  """
  return jax.lax.platform_dependent(x, kernel, cpu=_product, default=xla_convolve)


def _convolve_fwd(x, kernel):
  return convolve(x, kernel), (x, kernel)


def _convolve_bwd(inputs, cotangent):
  return jax.lax.platform_dependent(
    *inputs, cotangent, cpu=_product_backward, default=_xla_backward
  )


def _xla_backward(x: jax.Array, kernel: jax.Array, cotangent: jax.Array):
  return jax.vjp(xla_convolve, x, kernel)[1](cotangent)


convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _product(x: jax.Array, kernel: jax.Array, transposed: bool = False) -> jax.Array:
  channels = kernel.shape[-1]
  patches = _patches(x, kernel.shape, transposed)
  parts = kernel.reshape(len(patches), -1, channels)
  products = (one @ part for one, part in zip(patches, parts, strict=True))
  return sum(products, start=jnp.zeros((), x.dtype)).reshape(*x.shape[:3], channels)


def _product_backward(x: jax.Array, kernel: jax.Array, cotangent: jax.Array):
  # A convolution with the kernel turned around: faster than the derivative of `_product`, which
  # makes the cotangents of all patches and adds them up.
  x_cotangent = _product(cotangent, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), transposed=True)
  flat = cotangent.reshape(-1, cotangent.shape[-1])
  parts = [one.T @ flat for one in _patches(x, kernel.shape)]
  return x_cotangent, jnp.stack(parts).reshape(kernel.shape)


def _patches(
  x: jax.Array, kernel_shape: tuple[int, ...], transposed: bool = False
) -> list[jax.Array]:
  """``[N height width, numbers]`` for each row of the kernel, or one for all if they are small."""
  rows, columns, channels, _ = kernel_shape
  _, height, width, _ = x.shape
  before = ((rows - 1) // 2, (columns - 1) // 2)
  after = (rows // 2, columns // 2)
  if transposed:
    before, after = after, before
  x = jnp.pad(x, ((0, 0), *zip(before, after, strict=True), (0, 0)))
  shifted = [x[:, :, j : j + width] for j in range(columns)]
  row = jnp.stack(shifted, axis=-2).reshape(*shifted[0].shape[:3], -1)
  patches = [row[:, i : i + height] for i in range(rows)]
  # Large patches of all rows at once do not fit into caches.
  if rows * columns * channels <= _MAX_PATCH:
    patches = [jnp.concatenate(patches, axis=-1)]
  return [one.reshape(-1, one.shape[-1]) for one in patches]


def max_pool(x: jax.Array) -> jax.Array:
  """The maxima of 2 x 2 pixels; an odd last row or column is a window of its own.

  As `flax.linen.max_pool` with ``padding="SAME"``, whose gradient takes XLA four times as long on
  CPUs. That of `jnp.max` would be NaN where XLA computes its argument twice, rounded differently,
  and finds no element equal to the maximum.

  Args:
    x: ``[N, height, width, channels]``.

  Returns:
    ``[N, ceil(height / 2), ceil(width / 2), channels]``.
  """
  _, height, width, _ = x.shape
  pad = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
  x = jnp.pad(x, pad, constant_values=-jnp.inf)
  x = _larger(x[:, ::2], x[:, 1::2])
  return _larger(x[:, :, ::2], x[:, :, 1::2])


def _larger(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.where(x >= y, x, y)


class Conv(nn.Module):
  """`convolve` with a bias; its params are those of `flax.linen.Conv`."""

  channels: int
  kernel_size: tuple[int, int]
  kernel_init: nn.initializers.Initializer
  bias_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[N, height, width, in]`` to ``[N, height, width, channels]``."""
    shape = (*self.kernel_size, x.shape[-1], self.channels)
    kernel = self.param("kernel", self.kernel_init, shape)
    bias = self.param("bias", self.bias_init, (self.channels,))
    x, kernel, bias = promote_dtype(x, kernel, bias)
    return convolve(x, kernel) + jnp.expand_dims(bias, (0, 1, 2))
