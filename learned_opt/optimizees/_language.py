"""What all language models have in common: windows of a text, their loss, metrics."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt.base import Optimizee, TextDataset
from learned_opt.optimizees._batches import mean_in_batches

Split = Literal["train", "validation", "test"]
_SPLITS = ("train", "validation", "test")


def language_model(
  module: nn.Module,
  text: TextDataset,
  length: int,
  batch_size: int,
  split: Split,
  outer_split: Split | None,
) -> Optimizee:
  """The cross-entropy of the next character on minibatches of windows; see `recurrent_lm`.

  `module` maps int32 ``[N, length]`` to logits ``[N, length, V]``.
  """
  for argument, name in (("split", split), ("outer_split", outer_split or split)):
    if name not in _SPLITS:
      raise ValueError(f"{argument} must be one of {_SPLITS}, got {name!r}")
  for name in _SPLITS:
    _check_split(name, getattr(text, name), length, text.num_characters)
  data = TextDataset(*(jnp.asarray(array, jnp.uint8) for array in text))
  return Optimizee(data=data, **_functions(module, length, batch_size, split, outer_split))


def _check_split(name: str, characters: np.ndarray, length: int, num_characters: int) -> None:
  if characters.ndim != 1 or characters.dtype != np.uint8:
    raise ValueError(
      f"text.{name} must be uint8 [N], got {characters.dtype} {characters.shape}; "
      "datasets.load_text reads a file"
    )
  if len(characters) < length + 1:
    raise ValueError(
      f"text.{name} must have at least length + 1 = {length + 1} characters, got {len(characters)}"
    )
  if np.max(np.asarray(characters)) >= num_characters:
    raise ValueError(f"text.{name} has characters beyond the vocabulary of {num_characters}")


# Cached so that equal arguments give the same functions, and hence no second compilation.
@functools.cache
def _functions(
  module: nn.Module, length: int, batch_size: int, split: Split, outer_split: Split | None
):
  def init(key, data):
    del data
    return module.init(key, jnp.zeros((1, length), jnp.int32))["params"], ()

  def losses_of(params, windows) -> jax.Array:
    """``[N]``, the mean over each window ``[N, length + 1]``."""
    windows = windows.astype(jnp.int32)
    logits = jnp.asarray(module.apply({"params": params}, windows[:, :-1]))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
    return jnp.mean(losses, axis=1)

  def loss_on(split: Split):
    def loss(params, constants, data, key):
      del constants
      characters = getattr(data, split)
      starts = jax.random.randint(key, (batch_size, 1), 0, characters.shape[0] - length)
      windows = characters[starts + jnp.arange(length + 1)[None]]
      return jnp.mean(losses_of(params, windows))

    return loss

  def metrics(params, constants, data):
    del constants
    number = (data.test.shape[0] - 1) // length
    starts = length * jnp.arange(number)[:, None]
    windows = data.test[starts + jnp.arange(length + 1)[None]]
    return {"test_loss": mean_in_batches(functools.partial(losses_of, params), windows)}

  return {
    "init": init,
    "loss": loss_on(split),
    "outer_loss": None if outer_split is None else loss_on(outer_split),
    "metrics": metrics,
  }
