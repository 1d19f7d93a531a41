"""LSTMs that predict noisy sine waves: a test problem of Lv et al. (2017)."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from learned_opt import _draws
from learned_opt.base import Optimizee

# The largest amplitude and angular frequency of a wave.
_AMPLITUDE = 10.0
_FREQUENCY = math.pi / 2


class Predictor(nn.Module):
  """Stacked LSTM layers over a sequence, then a linear layer on the last output."""

  num_layers: int
  hidden_size: int
  initial_scale: float

  @nn.compact
  def __call__(self, sequences: jax.Array) -> jax.Array:
    """Maps sequences ``[N, length]`` to predictions ``[N]``."""
    init = _draws.normal_init(self.initial_scale)
    x = sequences[..., None]
    for index in range(self.num_layers):
      cell = nn.OptimizedLSTMCell(
        self.hidden_size,
        kernel_init=init,
        recurrent_kernel_init=init,
        bias_init=init,
        name=f"layer_{index}",
      )
      x = jnp.asarray(nn.RNN(cell)(x))
    return nn.Dense(1, kernel_init=init, bias_init=init, name="output")(x[:, -1])[:, 0]


def noisy_sines(
  num_layers: int = 1,
  hidden_size: int = 20,
  length: int = 10,
  noise: float = 0.1,
  initial_scale: float = 0.1,
  batch_size: int = 128,
) -> Optimizee:
  """The mean squared error of an LSTM that predicts how a noisy sine wave goes on.

  An input is A sin(omega k + phi) plus Gaussian noise at k = 0, ..., length - 1, the target the
  wave without noise at k = length, with A uniform on [0, 10], omega on [0, pi / 2] and phi on
  [0, 2 pi]. Each loss is that of a fresh minibatch.

  Source: Lv, Jiang and Li (2017); the constants are those of its released code.

  Args:
    num_layers: LSTM layers.
    hidden_size: units of each layer.
    length: numbers that the network sees of a wave.
    noise: its standard deviation.
    initial_scale: standard deviation of theta_0, weights and biases alike.
    batch_size: waves of one minibatch.

  Returns:
    The optimizee.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> import jax
    >>> from learned_opt import optimizees
    >>> optimizee = optimizees.noisy_sines()
    >>> params, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    1781
  """
  sizes = {"num_layers": num_layers, "hidden_size": hidden_size, "length": length}
  for name, size in {**sizes, "batch_size": batch_size}.items():
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")
  for name, scale in (("noise", noise), ("initial_scale", initial_scale)):
    if not (math.isfinite(scale) and scale >= 0):
      raise ValueError(f"{name} must be finite and not negative, got {scale}")
  module: Any = Predictor(num_layers, hidden_size, float(initial_scale))
  return _noisy_sines(module, length, float(noise), batch_size)


# Equal arguments give the same functions, however they are passed: no second compilation for them.
@functools.cache
def _noisy_sines(module: Predictor, length: int, noise: float, batch_size: int) -> Optimizee:
  def init(key, data):
    del data
    return module.init(key, jnp.zeros((1, length)))["params"], ()

  def loss(params, constants, data, key):
    del constants, data
    waves = draw_waves(key, batch_size, length, noise)
    predictions = jnp.asarray(module.apply({"params": params}, waves[:, :-1]))
    return jnp.mean((predictions - waves[:, -1]) ** 2)

  return Optimizee(init, loss)


def draw_waves(key: jax.Array, number: int, length: int, noise: float) -> jax.Array:
  """Sine waves ``[number, length + 1]``; all but the last column are noisy.

  Example:
    >>> import jax
    >>> from learned_opt.optimizees.sines import draw_waves
    >>> draw_waves(jax.random.key(0), number=3, length=10, noise=0.1).shape
    (3, 11)
  """
  wave_key, noise_key = jax.random.split(key)
  highest = jnp.array([_AMPLITUDE, _FREQUENCY, 2 * math.pi])
  amplitude, frequency, phase = _draws.uniform(wave_key, (3, number, 1)) * highest[:, None, None]
  clean = amplitude * jnp.sin(frequency * jnp.arange(length + 1.0)[None] + phase)
  errors = noise * _draws.normal(noise_key, (number, length))
  return clean + jnp.pad(errors, ((0, 0), (0, 1)))
