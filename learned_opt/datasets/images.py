"""Loads an image data set by its name."""

import difflib
import importlib.util
import os

import numpy as np

from learned_opt.base import ImageDataset
from learned_opt.datasets import _digits, _tfds

# What has to be importable, and the names under which pip knows it.
_TFDS_PACKAGES = {
  "tensorflow_datasets": "tensorflow-datasets",
  "array_record": "array-record",
  "importlib_resources": "importlib-resources",
  "PIL": "pillow",
}
_REQUIREMENTS = {
  **dict.fromkeys(_tfds.SOURCES, _TFDS_PACKAGES),
  "digits": {"sklearn": "scikit-learn"},
}

# As many as TensorFlow's old MNIST reader set aside, which the paper's released code uses. That one
# took the first 5,000.
_NUM_VALIDATION = 5_000


def names() -> tuple[str, ...]:
  """The names of the data sets that `load` knows.

  Returns:
    The names.

  Example:
    >>> from learned_opt import datasets
    >>> datasets.names()
    ('mnist', 'fashion_mnist', 'cifar10', 'digits')
  """
  return tuple(_REQUIREMENTS)


def load(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  manual_dir: str | os.PathLike[str] | None = None,
) -> ImageDataset:
  """Loads a data set: uint8 images and int32 labels of three splits, in their published order.

  | name | train | validation | test | image |
  |---|---|---|---|---|
  | ``mnist``, ``fashion_mnist`` | 55,000 | 5,000 | 10,000 | 28 x 28 x 1 |
  | ``cifar10`` | 45,000 | 5,000 | 10,000 | 32 x 32 x 3 |
  | ``digits`` | 1,266 | 178 | 353 | 8 x 8 x 1 |

  The first three are published as a train and a test split. Their validation split is the last
  5,000 images of the published train split, in the published order. Of a copy that was prepared
  with fewer than 50,000 of the train images, it is the last tenth.

  They come through tensorflow-datasets, without TensorFlow: it downloads the published files into
  `data_dir`, compares their sha256 with those that it registers, and keeps the images as
  array_record files, which any later call, and `tfds.data_source`, reads. Whatever is prepared
  there already is read without a network. Files of your own spare the download: see `manual_dir`.
  The decoded arrays are kept beside the prepared files, as ``learned_opt_cache.npz`` (55 MB for
  MNIST, 184 MB for CIFAR-10), which makes the next call quick and may be deleted at any time.

  ``digits`` are the 1,797 images of scikit-learn's `load_digits`, which need no download. Their
  values v of 0, ..., 16 become (255 v + 8) // 16, that is 255 v / 16 rounded to the nearest. Every
  class is dealt out in the published order: of each ten of its images, the first seven are
  training images, the eighth is a validation image and the last two are test images.

  Args:
    name: one of `names`.
    data_dir: the folder in which tensorflow-datasets keeps its data sets. None means its own
      default, the environment variable ``TFDS_DATA_DIR`` or else ``~/tensorflow_datasets``.
      ``digits`` ignore it.
    manual_dir: a folder with published files that are at hand, under their published names, or
      with subfolders ``mnist``, ``fashion_mnist`` and ``cifar10`` that hold them; their sha256 is
      checked like that of a download. Files that are not there are downloaded. Looked at only if
      the data set has not been prepared yet. None means the environment variable
      ``LEARNED_OPT_DATA`` or else ``downloads/manual/<name>`` in `data_dir`. ``digits`` ignore it.

  Returns:
    The data set; its arrays are numpy arrays of its own.

  Raises:
    ValueError: if the name is unknown, or a file is not the published one.
    ImportError: if a package is missing that the data set needs.
    FileNotFoundError: if the data set is not prepared, files of it are not at hand and its server
      cannot be reached; or if there is no `manual_dir`.
    ConnectionError: if the download fails half-way.
    RuntimeError: if the prepared files cannot be read.

  Example:
    >>> from learned_opt import datasets
    >>> digits = datasets.load("digits")
    >>> images, labels = digits.train
    >>> images.shape, images.dtype, labels.dtype
    ((1266, 8, 8, 1), dtype('uint8'), dtype('int32'))
    >>> labels[:5].tolist()
    [0, 1, 2, 3, 4]
  """
  _check_name(name)
  _check_installed(name)
  if name == "digits":
    return _digits.load()
  return _split(name, _tfds.load(name, data_dir, manual_dir))


def _check_name(name: str) -> None:
  if name in _REQUIREMENTS:
    return
  close = difflib.get_close_matches(str(name).lower(), _REQUIREMENTS, n=1)
  hint = f"did you mean {close[0]!r}? " if close else ""
  raise ValueError(f"unknown data set {name!r}; {hint}there are {', '.join(names())}")


def _check_installed(name: str) -> None:
  packages = _REQUIREMENTS[name]
  missing = [package for module, package in packages.items() if not _is_installed(module)]
  if missing:
    raise ImportError(
      f"the data set {name!r} needs {', '.join(missing)}: pip install 'learned_opt[data]'"
    )


def _is_installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None


def _split(name: str, published: dict[str, tuple[np.ndarray, np.ndarray]]) -> ImageDataset:
  images, labels = published["train"]
  num_validation = min(_NUM_VALIDATION, len(images) // 10)
  if num_validation == 0:
    raise ValueError(
      f"the prepared {name!r} holds {len(images)} training images, too few for a validation split "
      "of a tenth: at least 10 are needed"
    )
  num_train = len(images) - num_validation
  return ImageDataset(
    train=(images[:num_train], labels[:num_train]),
    validation=(images[num_train:], labels[num_train:]),
    test=published["test"],
  )
