"""The 8 x 8 digits that scikit-learn carries."""

import numpy as np

from learned_opt.base import ImageDataset

# Of each ten images of a class, in the published order.
_DEALT_TO = np.array(["train"] * 7 + ["validation"] + ["test"] * 2)


def load() -> ImageDataset:
  """Loads and splits the digits; `learned_opt.datasets.load` documents how."""
  from sklearn.datasets import load_digits

  values, labels = load_digits(return_X_y=True)
  images = ((255 * values.astype(np.int64) + 8) // 16).astype(np.uint8).reshape(-1, 8, 8, 1)
  split = _DEALT_TO[_rank_in_class(labels) % len(_DEALT_TO)]
  return ImageDataset(
    **{
      name: (images[split == name], labels[split == name].astype(np.int32))
      for name in ImageDataset._fields
    }
  )


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
  """How many images of the same class stand before each image: ``[N]``."""
  rank = np.zeros(len(labels), np.int64)
  for label in np.unique(labels):
    rank[labels == label] = np.arange(np.sum(labels == label))
  return rank
