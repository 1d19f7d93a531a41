"""Multi-layer perceptrons that classify images: the paper's second experiment (section 3.2)."""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from learned_opt.base import ImageDataset, Optimizee

Split = Literal["train", "validation", "test"]

_ACTIVATIONS = {"sigmoid": nn.sigmoid, "tanh": nn.tanh, "relu": nn.relu, "elu": nn.elu}


class MLP(nn.Module):
  """Hidden layers of the given sizes, then a linear layer; weights and biases are Gaussian."""

  hidden_sizes: tuple[int, ...]
  num_classes: int
  activation: str
  initial_scale: float

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps uint8 images ``[..., height, width, channels]`` to logits ``[..., num_classes]``."""
    init = nn.initializers.normal(self.initial_scale)
    x = images.reshape(*images.shape[:-3], -1).astype(jnp.float32) / 255.0
    for size in self.hidden_sizes:
      x = _ACTIVATIONS[self.activation](nn.Dense(size, kernel_init=init, bias_init=init)(x))
    return nn.Dense(self.num_classes, kernel_init=init, bias_init=init)(x)


def mlp_classifier(
  dataset: ImageDataset,
  hidden_sizes: Sequence[int] = (20,),
  activation: Literal["sigmoid", "tanh", "relu", "elu"] = "sigmoid",
  initial_scale: float = 0.01,
  batch_size: int = 128,
  split: Split = "train",
  outer_split: Split | None = None,
) -> Optimizee:
  """The cross-entropy of an MLP on minibatches of images.

  Each loss is that of a minibatch drawn uniformly, with replacement, by the step's key. Problems
  differ in theta_0 and in their minibatches; the data set is shared by all of them.

  Source: Andrychowicz et al. (2016), section 3.2: MNIST, one hidden layer of 20 sigmoid units,
  minibatches of 128; the scale of theta_0 is the released code's.

  Args:
    dataset: uint8 images and integer labels, split by split.
    hidden_sizes: units of each hidden layer.
    activation: of the hidden layers.
    initial_scale: standard deviation of theta_0, weights and biases alike.
    batch_size: images of one minibatch.
    split: what the inner steps see.
    outer_split: what the meta-loss is made of, on minibatches of its own; None means the
      minibatches of the inner steps, as in the paper.

  Returns:
    The optimizee; its metrics are ``test_loss`` and ``test_accuracy`` on the whole test split.

  Raises:
    ValueError: if an argument is out of its range or a split is empty or malformed.

  Example:
    >>> import jax
    >>> from learned_opt import datasets, optimizees
    >>> optimizee = optimizees.mlp_classifier(datasets.load("digits"))
    >>> params, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    1510
    >>> loss = optimizee.loss(params, constants, optimizee.data, jax.random.key(1))
    >>> round(float(loss), 1)  # log(10): theta_0 is small
    2.3
  """
  hidden_sizes = tuple(hidden_sizes)
  for size in (*hidden_sizes, batch_size):
    if size < 1:
      raise ValueError(f"hidden_sizes and batch_size must be at least 1, got {size}")
  if activation not in _ACTIVATIONS:
    raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
  if not (math.isfinite(initial_scale) and initial_scale >= 0):
    raise ValueError(f"initial_scale must be finite and not negative, got {initial_scale}")
  for argument, name in (("split", split), ("outer_split", outer_split or split)):
    if name not in ImageDataset._fields:
      raise ValueError(f"{argument} must be one of {ImageDataset._fields}, got {name!r}")
  for name in ImageDataset._fields:
    _check_split(name, *getattr(dataset, name))
  image_shape = tuple(dataset.train[0].shape[1:])
  functions = _mlp_functions(
    image_shape,
    dataset.num_classes,
    hidden_sizes,
    activation,
    float(initial_scale),
    batch_size,
    split,
    outer_split,
  )
  data = jax.tree.map(jnp.asarray, dataset)
  return Optimizee(data=data, **functions)


def _check_split(name: str, images: jax.Array, labels: jax.Array) -> None:
  if images.ndim != 4 or images.dtype != jnp.uint8 or images.shape[0] == 0:
    raise ValueError(
      f"dataset.{name}: images must be uint8 [N, height, width, channels] with N > 0, "
      f"got {images.dtype} {images.shape}"
    )
  if labels.shape != images.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"dataset.{name}: labels must be integers [{images.shape[0]}], "
      f"got {labels.dtype} {labels.shape}"
    )


# Cached so that equal arguments give the same functions, and hence no second compilation.
@functools.cache
def _mlp_functions(
  image_shape: tuple[int, ...],
  num_classes: int,
  hidden_sizes: tuple[int, ...],
  activation: str,
  initial_scale: float,
  batch_size: int,
  split: Split,
  outer_split: Split | None,
):
  module = MLP(hidden_sizes, num_classes, activation, initial_scale)

  def init(key, data):
    del data
    return module.init(key, jnp.zeros((1, *image_shape), jnp.uint8))["params"], ()

  def cross_entropy(params, images, labels):
    logits = jnp.asarray(module.apply({"params": params}, images))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)), logits

  def loss_on(split: Split):
    def loss(params, constants, data, key):
      del constants
      images, labels = getattr(data, split)
      index = jax.random.randint(key, (batch_size,), 0, images.shape[0])
      return cross_entropy(params, images[index], labels[index])[0]

    return loss

  def metrics(params, constants, data):
    del constants
    images, labels = data.test
    loss, logits = cross_entropy(params, images, labels)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
    return {"test_loss": loss, "test_accuracy": accuracy}

  return {
    "init": init,
    "loss": loss_on(split),
    "outer_loss": None if outer_split is None else loss_on(outer_split),
    "metrics": metrics,
  }
