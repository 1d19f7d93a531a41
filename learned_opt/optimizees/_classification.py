"""What problems on images have in common: splits, minibatches, their loss, metrics."""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt.base import ImageDataset, Optimizee
from learned_opt.optimizees._batches import sum_in_batches

Split = Literal["train", "validation", "test"]


class ByLabel(NamedTuple):
  """Where the images of each label are, for one split.

  Attributes:
    order: int32 ``[N]``, the images' indices sorted by label.
    starts: int32 ``[labels]``, where a label begins in `order`.
    counts: int32 ``[labels]``, how many images it has.
  """

  order: chex.Array
  starts: chex.Array
  counts: chex.Array


class LabelledData(NamedTuple):
  """A data set of whose labels a problem sees some only, with an index split by split."""

  dataset: ImageDataset
  by_label: dict[str, ByLabel]


class ModuleOf(Protocol):
  """``num_classes -> module``, equal for equal calls; the module maps uint8 images to logits."""

  def __call__(self, num_classes: int, /) -> nn.Module: ...


def classifier(
  module_of: ModuleOf,
  dataset: ImageDataset,
  batch_size: int,
  split: Split,
  outer_split: Split | None,
  num_labels: int | None,
  labels: Sequence[int] | None,
) -> Optimizee:
  """The cross-entropy of a network on minibatches; see `mlp_classifier` for the arguments."""
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1, got {batch_size}")
  check_splits(split, outer_split)
  for name in ImageDataset._fields:
    check_split(name, *getattr(dataset, name))
  pool = _check_labels(dataset, num_labels, labels)
  if num_labels is None:
    num_labels = None if labels is None else len(pool)
  functions = _functions(
    module_of(num_labels or dataset.num_classes),
    tuple(dataset.train[0].shape[1:]),
    batch_size,
    split,
    outer_split,
    num_labels,
    pool,
  )
  arrays = jax.device_put(dataset)
  if num_labels is None:
    return Optimizee(data=arrays, **functions)
  index = {
    name: _by_label(getattr(dataset, name)[1], dataset.num_classes) for name in ImageDataset._fields
  }
  return Optimizee(data=LabelledData(arrays, index), **functions)


def check_splits(split: Split, outer_split: Split | None) -> None:
  """Raises `ValueError` for a split that there is not."""
  for argument, name in (("split", split), ("outer_split", outer_split or split)):
    if name not in ImageDataset._fields:
      raise ValueError(f"{argument} must be one of {ImageDataset._fields}, got {name!r}")


def check_split(name: str, images: chex.Array, labels: chex.Array) -> None:
  """Raises `ValueError` unless a split is uint8 images and as many integer labels."""
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


def _check_labels(
  dataset: ImageDataset, num_labels: int | None, labels: Sequence[int] | None
) -> tuple[int, ...]:
  """The labels that problems may draw theirs from."""
  pool = tuple(range(dataset.num_classes)) if labels is None else tuple(map(int, labels))
  if len(set(pool)) != len(pool) or not set(pool) <= set(range(dataset.num_classes)) or not pool:
    raise ValueError(
      f"labels must be different ones of 0, ..., {dataset.num_classes - 1}, got {labels}"
    )
  if num_labels is not None and not 1 <= num_labels <= len(pool):
    raise ValueError(f"num_labels must be between 1 and {len(pool)}, got {num_labels}")
  if num_labels is None and labels is None:
    return pool
  for name in ImageDataset._fields:
    missing = set(pool) - set(np.unique(getattr(dataset, name)[1]).tolist())
    if missing:
      raise ValueError(f"dataset.{name} has no image of label {min(missing)}")
  return pool


def _by_label(labels: chex.Array, num_classes: int) -> ByLabel:
  labels = np.asarray(labels)
  counts = np.bincount(labels, minlength=num_classes)
  arrays = (np.argsort(labels, kind="stable"), np.cumsum(counts) - counts, counts)
  return ByLabel(*(jnp.asarray(array, jnp.int32) for array in arrays))


# Cached so that equal arguments give the same functions, and hence no second compilation.
@functools.cache
def _functions(
  module: nn.Module,
  image_shape: tuple[int, ...],
  batch_size: int,
  split: Split,
  outer_split: Split | None,
  num_labels: int | None,
  pool: tuple[int, ...],
):
  """The functions of an `Optimizee`; `constants` are a problem's labels, if it has its own."""

  def init(key, data):
    del data
    if num_labels is None:
      constants, params_key = (), key
    else:
      labels_key, params_key = jax.random.split(key)
      constants = jax.random.permutation(labels_key, jnp.asarray(pool, jnp.int32))[:num_labels]
    params = module.init(params_key, jnp.zeros((1, *image_shape), jnp.uint8))["params"]
    return params, constants

  def logits_of(params, images) -> jax.Array:
    return jnp.asarray(module.apply({"params": params}, images))

  def draw(split: Split, constants, data, key):
    """A minibatch, uniformly with replacement; labels are those of the logits."""
    if num_labels is None:
      images, labels = getattr(data, split)
      index = jax.random.randint(key, (batch_size,), 0, images.shape[0])
      return images[index], labels[index]
    images, _ = getattr(data.dataset, split)
    by_label = data.by_label[split]
    counts = by_label.counts[constants]
    ends = jnp.cumsum(counts)
    position = jax.random.randint(key, (batch_size,), 0, ends[-1])
    labels = jnp.searchsorted(ends, position, side="right").astype(jnp.int32)
    index = by_label.starts[constants][labels] + position - (ends - counts)[labels]
    return images[by_label.order[index]], labels

  def loss_on(split: Split):
    def loss(params, constants, data, key):
      images, labels = draw(split, constants, data, key)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits_of(params, images), labels)
      return jnp.mean(losses)

    return loss

  def metrics(params, constants, data):
    """Over the whole test split, in batches; a problem with labels of its own sees only those."""
    images, labels = data.test if num_labels is None else data.dataset.test
    if num_labels is None:
      seen = jnp.ones(labels.shape, bool)
    else:
      matches = labels[:, None] == constants[None]
      seen, labels = matches.any(axis=1), jnp.argmax(matches, axis=1)

    def sums(batch):
      images, labels, seen = batch
      logits = logits_of(params, images)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      correct = jnp.argmax(logits, axis=-1) == labels
      return jnp.sum(losses, where=seen), jnp.sum(correct, where=seen), jnp.sum(seen)

    totals = sum_in_batches(sums, (images, labels, seen))
    loss, correct, number = totals
    return {"test_loss": loss / number, "test_accuracy": correct / number}

  return {
    "init": init,
    "loss": loss_on(split),
    "outer_loss": None if outer_split is None else loss_on(outer_split),
    "metrics": metrics,
  }
