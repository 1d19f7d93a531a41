"""Convolutions that are fast in loops and under `vmap`, on every platform."""

import flax.linen as nn
import jax
import jax.numpy as jnp


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
    *inputs, cotangent, cpu=_backward(_product), default=_backward(xla_convolve)
  )


def _backward(convolution):
  def backward(x, kernel, cotangent):
    return jax.vjp(convolution, x, kernel)[1](cotangent)

  return backward


convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  rows, columns, _, channels = kernel.shape
  number, height, width, _ = x.shape
  before = ((rows - 1) // 2, (columns - 1) // 2)
  after = (rows // 2, columns // 2)
  x = jnp.pad(x, ((0, 0), *zip(before, after, strict=True), (0, 0)))
  # Patches of one row of the kernel: those of all rows at once do not fit into caches.
  shifted = [x[:, :, j : j + width] for j in range(columns)]
  patches = jnp.stack(shifted, axis=-2).reshape(*shifted[0].shape[:3], -1)
  size = patches.shape[-1]
  products = (
    patches[:, i : i + height].reshape(-1, size) @ kernel[i].reshape(size, channels)
    for i in range(rows)
  )
  return sum(products, start=jnp.zeros((), x.dtype)).reshape(number, height, width, channels)


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
    return convolve(x, kernel) + jnp.expand_dims(bias, (0, 1, 2))
