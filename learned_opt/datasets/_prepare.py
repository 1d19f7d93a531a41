"""Has tensorflow-datasets (TFDS) download and prepare a data set, without TensorFlow.

TFDS does the downloading, the checksums, the storage and the bookkeeping. Its stock builders read
the downloaded files and encode the images with TensorFlow; only these steps are replaced here. Keys
and records, and therefore their order, stay those of the stock builders.
"""

import contextlib
import gzip
import http.client
import io
import os
import pathlib
import shutil
import ssl
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

_PROBE_SECONDS = 1.5
_STALE_SECONDS = 3600.0


class Published(NamedTuple):
  """The content of the published files.

  Attributes:
    splits: images ``[N, height, width, channels]`` and labels ``[N]``, both uint8, by split.
    label_names: the names of the classes, if the files tell them.
  """

  splits: dict[str, tuple[np.ndarray, np.ndarray]]
  label_names: list[str] | None = None


class Source(NamedTuple):
  """Where a data set comes from.

  Attributes:
    server: whom to ask whether there is a network; the files' addresses are TFDS's matter.
    files: the names of the published files.
    read: maps the files' names to their content, given their paths.
  """

  server: str
  files: tuple[str, ...]
  read: Callable[[Mapping[str, os.PathLike[str]]], Published]


def _read_idx(path: os.PathLike[str]) -> np.ndarray:
  """Reads a gzipped idx file of unsigned bytes: dimensions in the fourth byte, then their sizes."""
  data = gzip.decompress(pathlib.Path(path).read_bytes())
  num_dimensions = data[3]
  shape = np.frombuffer(data, ">i4", num_dimensions, offset=4)
  return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)


def _read_mnist(paths: Mapping[str, os.PathLike[str]]) -> Published:
  return Published(
    {
      split: (
        _read_idx(paths[f"{prefix}-images-idx3-ubyte.gz"])[..., None],
        _read_idx(paths[f"{prefix}-labels-idx1-ubyte.gz"]),
      )
      for split, prefix in (("train", "train"), ("test", "t10k"))
    }
  )


def _read_cifar10(paths: Mapping[str, os.PathLike[str]]) -> Published:
  contents = {}
  # One pass, in the archive's order: going back means to decompress it again.
  with tarfile.open(paths["cifar-10-binary.tar.gz"]) as archive:
    for member in archive:
      file = archive.extractfile(member)
      if file is not None:
        contents[pathlib.PurePosixPath(member.name).name] = file.read()
  train = b"".join(contents[f"data_batch_{number}.bin"] for number in range(1, 6))
  return Published(
    {"train": _cifar_batch(train), "test": _cifar_batch(contents["test_batch.bin"])},
    contents["batches.meta.txt"].decode().split(),
  )


def _cifar_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
  """Splits records of one byte of label and 3 x 32 x 32 bytes of image, channels first."""
  records = np.frombuffer(data, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
  return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


_MNIST_FILES = (
  "train-images-idx3-ubyte.gz",
  "train-labels-idx1-ubyte.gz",
  "t10k-images-idx3-ubyte.gz",
  "t10k-labels-idx1-ubyte.gz",
)

SOURCES = {
  "mnist": Source("https://storage.googleapis.com", _MNIST_FILES, _read_mnist),
  "fashion_mnist": Source(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com", _MNIST_FILES, _read_mnist
  ),
  "cifar10": Source("https://www.cs.toronto.edu", ("cifar-10-binary.tar.gz",), _read_cifar10),
}


def prepare(
  name: str,
  data_dir: pathlib.Path,
  manual_dir: str | os.PathLike[str] | None = None,
  max_examples: int | None = None,
) -> pathlib.Path:
  """Downloads what is not at hand, and prepares the data set in `data_dir`.

  Args:
    name: one of `SOURCES`.
    data_dir: TFDS's folder.
    manual_dir: as of `learned_opt.datasets.load`.
    max_examples: how many examples of each split to write; None means all.

  Returns:
    The folder of the prepared data set, ``<data_dir>/<name>/<version>``.

  Raises:
    ValueError: if a file is not the published one.
    FileNotFoundError: if files are not at hand and their server cannot be reached.
    ConnectionError: if the download fails half-way.
  """
  manual = _manual_dir(name, data_dir, manual_dir)
  downloads = data_dir / "downloads"
  missing = _missing_files(name, manual, downloads)
  if missing and not _is_reachable(SOURCES[name].server):
    raise FileNotFoundError(
      f"{SOURCES[name].server} cannot be reached. {_remedies(name, data_dir, missing)}"
    )
  _remove_stale(data_dir / name)

  import requests
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import download_manager

  config = tfds.download.DownloadConfig(
    manual_dir=manual,
    # Not the default, which is shared: MNIST's and Fashion-MNIST's files have the same names.
    extract_dir=downloads / name,
    max_examples_per_split=max_examples,
    force_checksums_validation=True,
    try_download_gcs=False,
  )
  builder = _builder_class(name)(data_dir=data_dir)
  try:
    # TFDS announces what it does on stdout, which belongs to the caller.
    with _remove_leftovers(name, data_dir), contextlib.redirect_stdout(sys.stderr):
      builder.download_and_prepare(
        download_dir=downloads, download_config=config, file_format="array_record"
      )
  except download_manager.NonMatchingChecksumError as error:
    raise ValueError(
      f"a file of {name!r} is not the published one. Replace or remove it, or pass the manual_dir "
      f"of this data set. {error}"
    ) from error
  except (requests.RequestException, tfds.download.DownloadError) as error:
    raise ConnectionError(
      f"the download of {name!r} has failed ({error}). {_remedies(name, data_dir, missing)}"
    ) from error
  except OSError:
    # Another process may have prepared the same data set meanwhile, so that renaming failed.
    if not pathlib.Path(builder.data_dir).is_dir():
      raise
  return pathlib.Path(builder.data_dir)


def _remedies(name: str, data_dir: pathlib.Path, missing: list[str]) -> str:
  return (
    f"The data set {name!r} is not prepared in {data_dir}. Get a network and try again; or put "
    f"{', '.join(missing)} into {data_dir / 'downloads' / 'manual' / name}, or into a folder of "
    "your own that manual_dir or the environment variable LEARNED_OPT_DATA names; or let data_dir "
    "or TFDS_DATA_DIR name a folder in which tensorflow-datasets has prepared it."
  )


def _manual_dir(
  name: str, data_dir: pathlib.Path, manual_dir: str | os.PathLike[str] | None
) -> pathlib.Path:
  given = manual_dir or os.environ.get("LEARNED_OPT_DATA")
  if not given:
    return data_dir / "downloads" / "manual" / name
  folder = pathlib.Path(given).expanduser()
  if not folder.is_dir():
    argument = "manual_dir" if manual_dir else "the environment variable LEARNED_OPT_DATA"
    raise FileNotFoundError(f"{argument} names {folder}, which is no folder")
  return folder / name if (folder / name).is_dir() else folder


def _missing_files(name: str, manual: pathlib.Path, downloads: pathlib.Path) -> list[str]:
  """The published files that neither lie in `manual` nor were downloaded before."""
  missing = [file for file in SOURCES[name].files if not (manual / file).is_file()]
  # Asking TFDS what it has downloaded means to import it, which is slow: only if there is anything.
  if not missing or not (downloads / name).is_dir():
    return missing
  from etils import epath
  from tensorflow_datasets.core.download import resource

  def is_downloaded(url: str, checksum: str) -> bool:
    path = downloads / name / resource.get_dl_fname(url, checksum)
    return resource.is_locally_cached(epath.Path(path))

  urls = _registered(name)
  return [file for file in missing if not is_downloaded(*urls[file])]


def _registered(name: str) -> dict[str, tuple[str, str]]:
  """The address and the sha256 of each published file, as TFDS registers them."""
  import tensorflow_datasets as tfds

  infos = tfds.builder_cls(name).url_infos or {}
  return {info.filename: (url, info.checksum) for url, info in infos.items()}


def _is_reachable(server: str) -> bool:
  """Whether the server, or a proxy on its behalf, answers; takes at most `_PROBE_SECONDS`.

  TFDS's own attempts take minutes before they fail.
  """
  answers: list[bool] = []
  # In a thread, for looking up a name has no timeout.
  thread = threading.Thread(target=lambda: answers.append(_ask(server)), daemon=True)
  thread.start()
  thread.join(_PROBE_SECONDS)
  return answers == [True]


def _ask(server: str) -> bool:
  request = urllib.request.Request(server, method="HEAD")
  try:
    urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()
  except urllib.error.HTTPError as error:
    # Any page will do, but not that of a proxy which finds no way or wants a password.
    return error.code < 500 and error.code != 407
  except urllib.error.URLError as error:
    # A certificate that Python does not know: TFDS brings certificates of its own.
    return isinstance(error.reason, ssl.SSLError)
  except (OSError, http.client.HTTPException):
    return False
  return True


def _builder_class(name: str):
  """TFDS's builder, except that it reads files and encodes images without TensorFlow."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import registered

  stock = tfds.builder_cls(name)
  read = SOURCES[name].read

  def split_generators(self, dl_manager):
    paths = dl_manager.download({file: url for file, (url, _) in _registered(name).items()})
    splits, label_names = read(paths)
    if label_names:
      self.info.features["label"].names = label_names
    return {split: self._generate_examples(split, *arrays) for split, arrays in splits.items()}

  def generate_examples(self, split, images, labels):
    has_id = "id" in self.info.features
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
      example = {"image": _encode(image), "label": int(label)}
      yield index, example | ({"id": f"{split}_{index:05d}"} if has_id else {})

  with registered.skip_registration():
    builder_class = type(
      stock.__name__,
      (stock,),
      {
        "name": name,
        "url_infos": stock.url_infos,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
      },
    )
  # Afterwards, for TFDS remembers new classes by module. It goes into the metadata.
  builder_class.__module__ = stock.__module__
  return builder_class


def _encode(image: np.ndarray) -> bytes:
  """Encodes uint8 ``[height, width, 1 or 3]`` as PNG."""
  from PIL import Image

  file = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
  return file.getvalue()


def _remove_stale(folder: pathlib.Path) -> None:
  """Removes what killed processes have left in the folder of a data set."""
  for path in folder.glob("incomplete.*"):
    if time.time() - path.stat().st_mtime > _STALE_SECONDS:
      shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _remove_leftovers(name: str, data_dir: pathlib.Path) -> Iterator[None]:
  """If the body fails, removes the folders that it made and did not fill.

  TFDS removes the folder that it prepares in, but not half-downloaded files and empty folders.
  Finished downloads are kept for the next attempt.
  """
  downloads = data_dir / "downloads"
  folders = (downloads / name, downloads, data_dir / name, data_dir)
  before = {path for folder in folders for path in (folder, *folder.glob("*")) if path.exists()}
  try:
    yield
  except BaseException:
    for path in downloads.glob(f"{name}/*.tmp.*"):
      if path not in before:
        shutil.rmtree(path, ignore_errors=True)
    for folder in folders:
      if folder not in before:
        with contextlib.suppress(OSError):  # Not empty: it holds finished downloads.
          folder.rmdir()
    raise
