"""Convolutional networks that classify images: the paper's third experiment (section 3.3)."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from learned_opt import devices
from learned_opt.base import ImageDataset, Optimizee
from learned_opt.optimizees._classification import Split, classifier
from learned_opt.optimizees._convolution import Conv, max_pool
from learned_opt.optimizees._networks import as_float, check_initial_scale, initializers

# That of Sonnet 1, in which the paper's networks are written.
_EPSILON = 1e-3


class BatchNorm(nn.Module):
  """Batch normalisation with an offset, without a scale; always by the batch's own statistics."""

  initial_scale: float | None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[..., channels]`` to the same shape."""
    init = initializers(self.initial_scale)["bias_init"]
    offset = self.param("offset", init, (x.shape[-1],))
    axes = tuple(range(x.ndim - 1))
    return jax.nn.standardize(x, axis=axes, epsilon=_EPSILON) + jnp.expand_dims(offset, axes)


class ConvNet(nn.Module):
  """Convolutions, each with batch norm, ReLU and max-pooling; one hidden layer; linear."""

  channels: tuple[int, ...]
  hidden_size: int
  num_classes: int
  initial_scale: float | None

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps uint8 images ``[N, height, width, channels]`` to logits ``[N, num_classes]``."""
    inits = initializers(self.initial_scale)
    x = devices.share_minibatch(images).astype(jnp.float32) / 255.0
    for index, channels in enumerate(self.channels):
      conv = Conv(channels, (5, 5), **inits, name=f"conv_{index}")
      norm = BatchNorm(self.initial_scale, name=f"conv_norm_{index}")
      x = nn.relu(max_pool(norm(conv(x))))
    hidden = nn.Dense(self.hidden_size, **inits, name="hidden")
    x = hidden(x.reshape(x.shape[0], -1))
    x = nn.relu(BatchNorm(self.initial_scale, name="hidden_norm")(x))
    return nn.Dense(self.num_classes, **inits, name="output")(x)


def conv_classifier(
  dataset: ImageDataset,
  channels: Sequence[int] = (16, 16, 16),
  hidden_size: int = 32,
  initial_scale: float | None = 0.01,
  batch_size: int = 128,
  split: Split = "train",
  outer_split: Split | None = None,
  num_labels: int | None = None,
  labels: Sequence[int] | None = None,
) -> Optimizee:
  """The cross-entropy of a convolutional network on minibatches of images.

  Each of the 5x5 convolutions is followed by batch normalisation (always by the statistics of the
  minibatch, with an offset and no scale), ReLU and 2x2 max-pooling; then come a hidden layer with
  the same normalisation and ReLU, and the logits.

  Source: Andrychowicz et al. (2016), section 3.3; sizes and the order of operations are the
  released code's. On CIFAR-10 it has 22,682 params.

  Args:
    dataset: uint8 images and integer labels, split by split.
    channels: of each convolution.
    hidden_size: units of the hidden layer.
    initial_scale: standard deviation of theta_0, all weights, biases and offsets alike; None means
      weights of the variance 1 / fan-in, and biases and offsets of zero (LeCun).
    batch_size: images of one minibatch.
    split: what the inner steps see.
    outer_split: what the meta-loss is made of, on minibatches of its own; None means the
      minibatches of the inner steps, as in the paper.
    num_labels: each problem tells apart so many labels, drawn for it, and sees no others; None
      means all. The paper's CIFAR-5 has 5 and its CIFAR-2 has 2.
    labels: those that problems draw theirs from; None means all.

  Returns:
    The optimizee; its metrics are ``test_loss`` and ``test_accuracy`` on the whole test split, in
    batches of 500 that are normalised each by its own statistics.

  Raises:
    ValueError: if an argument is out of its range or a split is empty or malformed.

  Example:
    >>> import jax
    >>> from learned_opt import datasets, optimizees
    >>> optimizee = optimizees.conv_classifier(datasets.load("digits"), num_labels=2)
    >>> params, labels = optimizee.init(jax.random.key(0), optimizee.data)
    >>> params["conv_0"]["kernel"].shape, params["output"]["kernel"].shape, labels.shape
    ((5, 5, 1, 16), (32, 2), (2,))
  """
  channels = tuple(channels)
  for size in (*channels, hidden_size):
    if size < 1:
      raise ValueError(f"channels and hidden_size must be at least 1, got {size}")
  check_initial_scale(initial_scale)
  module_of = functools.partial(_conv_net, channels, hidden_size, as_float(initial_scale))
  return classifier(module_of, dataset, batch_size, split, outer_split, num_labels, labels)


def _conv_net(channels, hidden_size, initial_scale, num_classes: int) -> ConvNet:
  return ConvNet(channels, hidden_size, num_classes, initial_scale)
