"""What tensorflow-datasets (TFDS) has prepared: where it lies, and how it is read in bulk."""

import io
import os
import pathlib
import re

import numpy as np

from learned_opt.datasets import _cache, _prepare

SOURCES = _prepare.SOURCES

# The first ten training labels, as published. The records are stored in another order, which TFDS
# derives from its hash function; these tell whether that was undone correctly.
_FIRST_LABELS = {
  "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
  "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
}


def load(
  name: str,
  data_dir: str | os.PathLike[str] | None,
  manual_dir: str | os.PathLike[str] | None,
  max_examples: int | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads a data set, which is prepared first if need be.

  Args:
    name: one of `SOURCES`.
    data_dir: as of `learned_opt.datasets.load`.
    manual_dir: as of `learned_opt.datasets.load`.
    max_examples: how many examples of each split to prepare; None means all.

  Returns:
    Images uint8 ``[N, height, width, channels]`` and labels int32 ``[N]`` of ``train`` and
    ``test``, in the published order.
  """
  root = _default_data_dir() if data_dir is None else pathlib.Path(data_dir).expanduser()
  folder = find_prepared(name, root)
  if folder is None:
    folder = _prepare.prepare(name, root, manual_dir, max_examples)
  splits = _cache.read(folder)
  if splits is None:
    splits = read_prepared(name, folder)
    _cache.write(folder, splits)
  return splits


def _default_data_dir() -> pathlib.Path:
  # The same rule as TFDS's, which would have to be imported (a second or more) to be asked.
  return pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find_prepared(name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
  """The folder of the newest version that is completely prepared, or None.

  TFDS prepares in a folder ``incomplete.<random>_<version>`` and renames it when all is written.
  """
  versions = [
    path.parent
    for path in (data_dir / name).glob("*/dataset_info.json")
    if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
  ]
  return max(versions, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


def read_prepared(name: str, folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads and decodes the prepared train and test split, in their published order.

  Args:
    name: one of `SOURCES`.
    folder: what `find_prepared` has found.

  Returns:
    As of `load`.

  Raises:
    RuntimeError: if they cannot be read, or their order cannot be told.
  """
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder)
    splits = {split: _read_split(builder, split) for split in ("train", "test")}
  # Whatever a damaged file leads to: TFDS, array_record, protobuf and PIL raise many types.
  except Exception as error:
    raise RuntimeError(
      f"the prepared {name!r} in {folder} cannot be read. Delete that folder to have it prepared "
      f"anew, or pass another data_dir. {type(error).__name__}: {error}"
    ) from error
  first = tuple(splits["train"][1][:10].tolist())
  expected = _FIRST_LABELS.get(name, first)[: len(first)]
  if first != expected:
    raise RuntimeError(
      f"the prepared {name!r} in {folder} is not the published data set in an order that this "
      f"version of tensorflow-datasets ({tfds.__version__}) knows: the first training labels are "
      f"{first}, not {expected}"
    )
  return splits


def _read_split(builder, split: str) -> tuple[np.ndarray, np.ndarray]:
  from tensorflow_datasets import decode
  from tensorflow_datasets.proto import tf_example_pb2

  # TFDS's own decoding, one record at a time, takes several times as long.
  source = builder.as_data_source(split, deserialize_method=decode.DeserializeMethod.RAW_BYTES)
  records = source.__getitems__(range(len(source)))
  parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
  features = [parse(record).features.feature for record in records]
  shape = builder.info.features["image"].shape
  pixels = b"".join(_decode(feature["image"].bytes_list.value[0]) for feature in features)
  stored_images = np.frombuffer(pixels, np.uint8).reshape(len(features), *shape)
  stored_labels = [feature["label"].int64_list.value[0] for feature in features]

  positions = _published_positions(split, features)
  images, labels = np.empty_like(stored_images), np.empty(len(features), np.int32)
  images[positions], labels[positions] = stored_images, stored_labels
  return images, labels


def _decode(png: bytes) -> bytes:
  from PIL import Image

  return Image.open(io.BytesIO(png), formats=("PNG",)).tobytes()


def _published_positions(split: str, features) -> np.ndarray:
  """Where each stored record stands in the published order: ``[N]``.

  CIFAR-10's records carry their number. The others do not, but TFDS sorts the records by a hash of
  it, salted with the split's name, so that the numbers 0, ..., N - 1 sorted likewise are theirs.
  """
  if "id" in features[0]:
    return np.array(
      [int(feature["id"].bytes_list.value[0].split(b"_")[-1]) for feature in features]
    )
  from tensorflow_datasets.core import hashing

  return np.array(sorted(range(len(features)), key=hashing.Hasher(split).hash_key))
