"""Auto-encoders of images."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from learned_opt.base import ImageDataset, Optimizee
from learned_opt.optimizees._batches import mean_in_batches
from learned_opt.optimizees._classification import Split, check_split, check_splits
from learned_opt.optimizees._networks import (
  ACTIVATIONS,
  as_float,
  check_activation,
  check_initial_scale,
  check_sizes,
  initializers,
)

Reconstruction = Literal["squared_error", "cross_entropy"]


class AutoEncoder(nn.Module):
  """Hidden layers of the given sizes, then one logit a pixel."""

  hidden_sizes: tuple[int, ...]
  activation: str
  initial_scale: float | None

  @nn.compact
  def __call__(self, pixels: jax.Array) -> jax.Array:
    """Maps pixels ``[N, pixels]`` between zero and one to logits of the same shape."""
    dense = functools.partial(nn.Dense, **initializers(self.initial_scale))
    x = pixels
    for size in self.hidden_sizes:
      x = ACTIVATIONS[self.activation](dense(size)(x))
    return dense(pixels.shape[-1])(x)


def image_autoencoder(
  dataset: ImageDataset,
  hidden_sizes: Sequence[int] = (32, 8, 32),
  activation: Literal["sigmoid", "tanh", "relu", "elu"] = "relu",
  reconstruction: Reconstruction = "squared_error",
  initial_scale: float | None = None,
  batch_size: int = 128,
  split: Split = "train",
  outer_split: Split | None = None,
) -> Optimizee:
  """How well an MLP gives images back that went through a narrow layer.

  The output is the sigmoid of the last layer, the target each pixel over 255; the loss is a mean
  over minibatch and pixels. Minibatches are drawn as those of `mlp_classifier`. A family of the
  training problems of Metz et al. (2020, 2022).

  Args:
    dataset: uint8 images, split by split; the labels play no part.
    hidden_sizes: units of each hidden layer, the code among them.
    activation: of the hidden layers.
    reconstruction: the loss, ``"squared_error"`` or ``"cross_entropy"`` of each pixel.
    initial_scale: standard deviation of theta_0, weights and biases alike; None means weights of
      the variance 1 / fan-in and biases of zero (LeCun).
    batch_size: images of one minibatch.
    split: what the inner steps see.
    outer_split: what the meta-loss is made of, on minibatches of its own; None means the
      minibatches of the inner steps.

  Returns:
    The optimizee; its metric is ``test_loss`` on the whole test split.

  Raises:
    ValueError: if an argument is out of its range or a split is empty or malformed.

  Example:
    >>> import jax
    >>> from learned_opt import datasets, optimizees
    >>> optimizee = optimizees.image_autoencoder(datasets.load("digits"), (4,))
    >>> params, _ = jax.eval_shape(optimizee.init, jax.random.key(0), optimizee.data)
    >>> params["Dense_0"]["kernel"].shape, params["Dense_1"]["kernel"].shape
    ((64, 4), (4, 64))
  """
  hidden_sizes = tuple(hidden_sizes)
  for size in hidden_sizes:
    check_sizes(hidden_sizes=size)
  check_sizes(batch_size=batch_size)
  check_activation(activation)
  check_initial_scale(initial_scale)
  if reconstruction not in get_args(Reconstruction):
    names = " or ".join(map(repr, get_args(Reconstruction)))
    raise ValueError(f"reconstruction must be {names}, got {reconstruction!r}")
  check_splits(split, outer_split)
  for name in ImageDataset._fields:
    check_split(name, *getattr(dataset, name))
  module: Any = AutoEncoder(hidden_sizes, activation, as_float(initial_scale))
  functions = _functions(module, reconstruction, batch_size, split, outer_split)
  return Optimizee(data=jax.device_put(dataset), **functions)


# Cached so that equal arguments give the same functions, and hence no second compilation.
@functools.cache
def _functions(
  module: AutoEncoder,
  reconstruction: Reconstruction,
  batch_size: int,
  split: Split,
  outer_split: Split | None,
):
  def init(key, data):
    shape = data.train[0].shape[1:]
    return module.init(key, jnp.zeros((1, shape[0] * shape[1] * shape[2])))["params"], ()

  def losses_of(params, images) -> jax.Array:
    """``[N]``."""
    pixels = images.reshape(images.shape[0], -1).astype(jnp.float32) / 255.0
    logits = jnp.asarray(module.apply({"params": params}, pixels))
    if reconstruction == "squared_error":
      return jnp.mean((nn.sigmoid(logits) - pixels) ** 2, axis=1)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, pixels), axis=1)

  def loss_on(split: Split):
    def loss(params, constants, data, key):
      del constants
      images, _ = getattr(data, split)
      index = jax.random.randint(key, (batch_size,), 0, images.shape[0])
      return jnp.mean(losses_of(params, images[index]))

    return loss

  def metrics(params, constants, data):
    del constants
    return {"test_loss": mean_in_batches(functools.partial(losses_of, params), data.test[0])}

  return {
    "init": init,
    "loss": loss_on(split),
    "outer_loss": None if outer_split is None else loss_on(outer_split),
    "metrics": metrics,
  }
