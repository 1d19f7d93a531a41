"""Smaller images and smaller data sets, for quick problems."""

import numpy as np

from learned_opt.base import ImageDataset

# Weights of red, green and blue in the luma of ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# Images that are converted at once, which bounds the memory.
_BLOCK = 4096


def resize(
  dataset: ImageDataset, size: int | tuple[int, int], *, grey: bool = False
) -> ImageDataset:
  """The same data set with smaller images: each new pixel is the mean over its area of the old.

  An old pixel that lies on the border of two new ones counts for each in proportion (area
  resampling, which leaves no aliases and keeps the mean of an image to rounding). Images of 8 x 8
  grey pixels are those of the training problems of Metz et al. (2022) and Moudgil et al. (2025),
  whose own resampling differs slightly.

  Args:
    dataset: uint8 images ``[N, height, width, channels]``, split by split.
    size: of the new images, one number or height and width; at most that of the old ones.
    grey: whether three channels become one, 0.299 R + 0.587 G + 0.114 B. Images of one channel
      stay as they are.

  Returns:
    The `ImageDataset` of numpy arrays; labels are as they were.

  Raises:
    ValueError: if the size is out of range, or images that are to be grey have neither one nor
      three channels.

  Example:
    >>> from learned_opt import datasets
    >>> small = datasets.resize(datasets.load("digits"), 4)
    >>> small.train[0].shape
    (1266, 4, 4, 1)
  """
  _, height, width, channels = np.shape(dataset.train[0])
  old = (height, width)
  new = (size, size) if isinstance(size, int) else tuple(size)
  if len(new) != 2 or not all(1 <= a <= b for a, b in zip(new, old, strict=True)):
    raise ValueError(f"size must be between 1 and that of the images, {old}, got {size}")
  if grey and channels not in (1, 3):
    raise ValueError(f"grey needs images of one or three channels, got {channels}")
  rows, columns = (_area_weights(a, b) for a, b in zip(old, new, strict=True))

  def convert(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images, np.float32)
    if grey and channels == 3:
      images = images @ _LUMA[:, None]
    small = np.einsum("ih,nhwc,jw->nijc", rows, images, columns, optimize=True)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)

  def convert_split(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    blocks = [images[k : k + _BLOCK] for k in range(0, len(images), _BLOCK)]
    return np.concatenate([convert(block) for block in blocks]), labels

  return ImageDataset(*(convert_split(*getattr(dataset, name)) for name in ImageDataset._fields))


def cut_to_equal_sizes(*datasets: ImageDataset) -> tuple[ImageDataset, ...]:
  """The first images of each data set, as many of each split as the smallest one has.

  Problems on them are then of equal structure, and families of them run side by side; see
  `learned_opt.families`.

  Args:
    datasets: two or more, of images of equal shape.

  Returns:
    The data sets in the same order.

  Raises:
    ValueError: if the images' shapes differ.

  Example:
    >>> from learned_opt import datasets
    >>> digits = datasets.load("digits")
    >>> fewer = digits._replace(train=(digits.train[0][:100], digits.train[1][:100]))
    >>> [len(one.train[1]) for one in datasets.cut_to_equal_sizes(digits, fewer)]
    [100, 100]
  """
  shapes = {one.train[0].shape[1:] for one in datasets}
  if len(shapes) > 1:
    raise ValueError(
      f"the data sets must have images of one shape, got {sorted(shapes)}; datasets.resize changes "
      "it"
    )

  def cut(split: str, one: ImageDataset):
    number = min(len(getattr(other, split)[1]) for other in datasets)
    images, labels = getattr(one, split)
    return images[:number], labels[:number]

  return tuple(
    ImageDataset(*(cut(split, one) for split in ImageDataset._fields)) for one in datasets
  )


def _area_weights(old: int, new: int) -> np.ndarray:
  """``[new, old]``: which part of each new pixel an old one covers; rows sum to one."""
  edges = np.arange(new + 1) * (old / new)
  pixels = np.arange(old)
  overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
  return (np.maximum(overlap, 0) * (new / old)).astype(np.float32)
