"""Recurrent networks that predict the next character of a text."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from learned_opt import _draws
from learned_opt.base import Optimizee, TextDataset
from learned_opt.optimizees._language import Split, language_model
from learned_opt.optimizees._networks import (
  as_float,
  check_initial_scale,
  check_sizes,
  initializers,
)

_CELLS: dict[str, Any] = {
  "rnn": nn.SimpleCell,
  "gru": nn.GRUCell,
  "lstm": nn.OptimizedLSTMCell,
}


class RecurrentLM(nn.Module):
  """An embedding, recurrent layers, and logits."""

  num_characters: int
  cell: str
  num_layers: int
  hidden_size: int
  embedding_size: int
  initial_scale: float | None

  @nn.compact
  def __call__(self, characters: jax.Array) -> jax.Array:
    """Maps characters ``[N, length]`` to logits ``[N, length, V]`` of the next ones."""
    inits = initializers(self.initial_scale)
    scale = 1.0 if self.initial_scale is None else self.initial_scale
    embedding_init = _draws.normal_init(scale)
    x = nn.Embed(self.num_characters, self.embedding_size, embedding_init=embedding_init)(
      characters
    )
    for index in range(self.num_layers):
      # Not flax's orthogonal matrices, which take several times as long to compile.
      cell = _CELLS[self.cell](
        self.hidden_size,
        recurrent_kernel_init=inits["kernel_init"],
        **inits,
        name=f"layer_{index}",
      )
      x = jnp.asarray(nn.RNN(cell)(x))
    return nn.Dense(self.num_characters, **inits, name="output")(x)


def recurrent_lm(
  text: TextDataset,
  cell: Literal["rnn", "gru", "lstm"] = "lstm",
  num_layers: int = 1,
  hidden_size: int = 64,
  embedding_size: int = 32,
  length: int = 64,
  initial_scale: float | None = None,
  batch_size: int = 32,
  split: Split = "train",
  outer_split: Split | None = None,
) -> Optimizee:
  """The cross-entropy of a recurrent language model of characters, in nats a character.

  A minibatch is windows of ``length + 1`` characters that begin anywhere in the split, drawn
  uniformly with replacement; each character but the first is predicted by those before it, from a
  state of zero. A family of the training problems of Metz et al. (2020, 2022).

  Args:
    text: what `datasets.load_text` reads from a file.
    cell: ``"rnn"`` (Elman's, with tanh), ``"gru"`` or ``"lstm"``.
    num_layers: recurrent layers.
    hidden_size: units of each layer.
    embedding_size: numbers that stand for a character.
    length: characters of a window that are predicted, and through which gradients go back.
    initial_scale: standard deviation of theta_0, weights, biases and embeddings alike; None means
      weights of the variance 1 / fan-in, biases of zero (LeCun) and embeddings of the variance 1.
    batch_size: windows of one minibatch.
    split: what the inner steps see.
    outer_split: what the meta-loss is made of, on minibatches of its own; None means the
      minibatches of the inner steps.

  Returns:
    The optimizee; its metric is ``test_loss`` on the test split, cut into windows.

  Raises:
    ValueError: if an argument is out of its range or a split is shorter than a window.

  Example:
    >>> import jax
    >>> from learned_opt import datasets, optimizees
    >>> text = datasets.markov_text(2000, num_characters=8)
    >>> optimizee = optimizees.recurrent_lm(text, "gru", hidden_size=5, embedding_size=4)
    >>> params, _ = jax.eval_shape(optimizee.init, jax.random.key(0), optimizee.data)
    >>> sorted(params)
    ['Embed_0', 'layer_0', 'output']
  """
  if cell not in _CELLS:
    raise ValueError(f"cell must be one of {', '.join(_CELLS)}, got {cell!r}")
  check_sizes(
    num_layers=num_layers,
    hidden_size=hidden_size,
    embedding_size=embedding_size,
    length=length,
    batch_size=batch_size,
  )
  check_initial_scale(initial_scale)
  module = RecurrentLM(
    text.num_characters, cell, num_layers, hidden_size, embedding_size, as_float(initial_scale)
  )
  return language_model(module, text, length, batch_size, split, outer_split)
