"""Transformers that predict the next character of a text."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from learned_opt import _draws
from learned_opt.base import Optimizee, TextDataset
from learned_opt.optimizees._language import Split, language_model
from learned_opt.optimizees._networks import check_sizes

# Of the hidden layer of a block's MLP, in widths of the model.
_EXPANSION = 4
_EMBEDDING_SCALE = 0.02


class Block(nn.Module):
  """Causal attention and an MLP, each behind a layer norm and around a residual connection."""

  num_heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps ``[N, length, width]`` to the same shape."""
    width = x.shape[-1]
    mask = nn.make_causal_mask(x[..., 0])
    attention = nn.MultiHeadDotProductAttention(self.num_heads, name="attention")
    x = x + attention(nn.LayerNorm(name="attention_norm")(x), mask=mask)
    hidden = nn.gelu(nn.Dense(_EXPANSION * width, name="in")(nn.LayerNorm(name="mlp_norm")(x)))
    return x + nn.Dense(width, name="out")(hidden)


class TransformerLM(nn.Module):
  """Embeddings of characters and positions, blocks, a layer norm, and logits."""

  num_characters: int
  num_layers: int
  width: int
  num_heads: int

  @nn.compact
  def __call__(self, characters: jax.Array) -> jax.Array:
    """Maps characters ``[N, length]`` to logits ``[N, length, V]`` of the next ones."""
    init = _draws.normal_init(_EMBEDDING_SCALE)
    embed = functools.partial(nn.Embed, features=self.width, embedding_init=init)
    length = characters.shape[1]
    x = embed(self.num_characters, name="characters")(characters)
    x = x + embed(length, name="positions")(jnp.arange(length))[None]
    for index in range(self.num_layers):
      x = Block(self.num_heads, name=f"block_{index}")(x)
    return nn.Dense(self.num_characters, name="output")(nn.LayerNorm(name="output_norm")(x))


def transformer_lm(
  text: TextDataset,
  num_layers: int = 2,
  width: int = 64,
  num_heads: int = 4,
  length: int = 64,
  batch_size: int = 32,
  split: Split = "train",
  outer_split: Split | None = None,
) -> Optimizee:
  """The cross-entropy of a small transformer over characters, in nats a character.

  Blocks are pre-norm (Xiong et al. 2020) with causal attention and an MLP of four times the width
  with GELU; positions are learned. Embeddings start at the scale 0.02, all other weights as flax
  has them (LeCun), biases at zero, the scales of the norms at one. Minibatches are those of
  `recurrent_lm`.

  Args:
    text: what `datasets.load_text` reads from a file.
    num_layers: blocks.
    width: numbers that stand for a character between the blocks.
    num_heads: of the attention; they share the width equally.
    length: characters of a window that are predicted.
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
    >>> optimizee = optimizees.transformer_lm(text, num_layers=1, width=8, num_heads=2)
    >>> params, _ = jax.eval_shape(optimizee.init, jax.random.key(0), optimizee.data)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    1536
  """
  check_sizes(
    num_layers=num_layers, width=width, num_heads=num_heads, length=length, batch_size=batch_size
  )
  if width % num_heads:
    raise ValueError(
      f"width must be a multiple of num_heads, got width={width} and num_heads={num_heads}; "
      f"width={-(-width // num_heads) * num_heads} would work"
    )
  module = TransformerLM(text.num_characters, num_layers, width, num_heads)
  return language_model(module, text, length, batch_size, split, outer_split)
