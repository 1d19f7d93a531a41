"""Multi-layer perceptrons that classify images: the paper's second experiment (section 3.2)."""

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from learned_opt.base import ImageDataset, Optimizee
from learned_opt.optimizees._classification import Split, check_initial_scale, classifier

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
  num_labels: int | None = None,
  labels: Sequence[int] | None = None,
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
    num_labels: each problem tells apart so many labels, drawn for it, and sees no others; None
      means all.
    labels: those that problems draw theirs from; None means all.

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
  for size in hidden_sizes:
    if size < 1:
      raise ValueError(f"hidden_sizes must be at least 1, got {size}")
  if activation not in _ACTIVATIONS:
    raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
  check_initial_scale(initial_scale)
  module_of = functools.partial(_mlp, hidden_sizes, activation, float(initial_scale))
  return classifier(module_of, dataset, batch_size, split, outer_split, num_labels, labels)


def _mlp(hidden_sizes, activation, initial_scale, num_classes: int) -> MLP:
  return MLP(hidden_sizes, num_classes, activation, initial_scale)
