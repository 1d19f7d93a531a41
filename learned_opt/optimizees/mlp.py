"""Multi-layer perceptrons that classify images: the paper's second experiment (section 3.2)."""

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from learned_opt.base import ImageDataset, Optimizee
from learned_opt.optimizees._classification import Split, classifier
from learned_opt.optimizees._networks import (
  ACTIVATIONS,
  as_float,
  check_activation,
  check_initial_scale,
  check_sizes,
  initializers,
)

Skip = Literal["none", "residual", "highway"]

# With which a highway's gates start half closed: sigmoid(-1) = .27 (Srivastava et al. 2015).
_GATE_BIAS = -1.0


class MLP(nn.Module):
  """Hidden layers of the given sizes, then a linear layer."""

  hidden_sizes: tuple[int, ...]
  num_classes: int
  activation: str
  initial_scale: float | None
  skip: Skip = "none"

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps uint8 images ``[..., height, width, channels]`` to logits ``[..., num_classes]``."""
    dense = functools.partial(nn.Dense, **initializers(self.initial_scale))
    x = images.reshape(*images.shape[:-3], -1).astype(jnp.float32) / 255.0
    for index, size in enumerate(self.hidden_sizes):
      hidden = ACTIVATIONS[self.activation](dense(size)(x))
      # The first layer changes the size: there is nothing to add it to.
      if index == 0 or self.skip == "none":
        x = hidden
      elif self.skip == "residual":
        x = x + hidden
      else:
        gate = nn.sigmoid(dense(size, name=f"gate_{index}")(x) + _GATE_BIAS)
        x = gate * hidden + (1.0 - gate) * x
    return dense(self.num_classes)(x)


def mlp_classifier(
  dataset: ImageDataset,
  hidden_sizes: Sequence[int] = (20,),
  activation: Literal["sigmoid", "tanh", "relu", "elu"] = "sigmoid",
  initial_scale: float | None = 0.01,
  batch_size: int = 128,
  split: Split = "train",
  outer_split: Split | None = None,
  num_labels: int | None = None,
  labels: Sequence[int] | None = None,
  skip: Skip = "none",
) -> Optimizee:
  """The cross-entropy of an MLP on minibatches of images.

  Each loss is that of a minibatch drawn uniformly, with replacement, by the step's key. Problems
  differ in theta_0 and in their minibatches; the data set is shared by all of them.

  Source: Andrychowicz et al. (2016), section 3.2: MNIST, one hidden layer of 20 sigmoid units,
  minibatches of 128; the scale of theta_0 is the released code's.

  Args:
    dataset: uint8 images and integer labels, split by split.
    hidden_sizes: units of each hidden layer; empty for soft-max regression.
    activation: of the hidden layers.
    initial_scale: standard deviation of theta_0, weights and biases alike; None means weights of
      the variance 1 / fan-in and biases of zero (LeCun).
    batch_size: images of one minibatch.
    split: what the inner steps see.
    outer_split: what the meta-loss is made of, on minibatches of its own; None means the
      minibatches of the inner steps, as in the paper.
    num_labels: each problem tells apart so many labels, drawn for it, and sees no others; None
      means all.
    labels: those that problems draw theirs from; None means all.
    skip: what goes around each hidden layer h but the first: ``"none"``; ``"residual"``, which
      gives x + h(x); or ``"highway"``, t(x) h(x) + (1 - t(x)) x with a gate t of its own weights
      (Srivastava et al. 2015). For the latter two all hidden sizes must be equal.

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
    check_sizes(hidden_sizes=size)
  check_activation(activation)
  check_initial_scale(initial_scale)
  if skip not in get_args(Skip):
    raise ValueError(f"skip must be one of {', '.join(get_args(Skip))}, got {skip!r}")
  if skip != "none" and len(set(hidden_sizes)) > 1:
    raise ValueError(f"skip={skip!r} needs equal hidden_sizes, got {hidden_sizes}")
  module_of = functools.partial(_mlp, hidden_sizes, activation, as_float(initial_scale), skip)
  return classifier(module_of, dataset, batch_size, split, outer_split, num_labels, labels)


def _mlp(hidden_sizes, activation, initial_scale, skip: Skip, num_classes: int) -> MLP:
  return MLP(hidden_sizes, num_classes, activation, initial_scale, skip)
