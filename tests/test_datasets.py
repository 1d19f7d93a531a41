"""Data sets: the splits, the way from published files to arrays, and what goes wrong on it."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from typing import NamedTuple

import numpy as np
import pytest

from learned_opt import datasets
from learned_opt.datasets import _cache, _prepare, _tfds, images

REPO_ROOT = pathlib.Path(__file__).resolve().parent.parent
NUM_EXAMPLES = 200
NO_NETWORK = {
  **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
  **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1"),
}
FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9], "fashion_mnist": [9, 0, 0, 3, 0]}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  """Sends every request but those to this machine to a proxy that is not there."""
  for variable, value in NO_NETWORK.items():
    monkeypatch.setenv(variable, value)
  for variable in ("LEARNED_OPT_DATA", "TFDS_DATA_DIR"):
    monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def prepared(shared, tmp_path_factory) -> pathlib.Path:
  """A folder in which the first examples of MNIST and Fashion-MNIST are prepared."""
  data_dir = tmp_path_factory.mktemp("prepared")
  for name in FIRST_LABELS:
    _prepare.prepare(name, data_dir, shared / "data", NUM_EXAMPLES)
  return data_dir


@pytest.fixture
def prepared_copy(prepared, tmp_path) -> pathlib.Path:
  """A copy to spoil."""
  without_cache = shutil.ignore_patterns(_cache._NAME)
  return shutil.copytree(prepared, tmp_path / "copy", ignore=without_cache)


def published(folder: pathlib.Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
  """The published images and labels, by a reader of the test's own."""
  pixels = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]
  labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:]
  return np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28, 1), np.frombuffer(labels, np.uint8)


def content(folder: pathlib.Path) -> list[str]:
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class FreshProcess(NamedTuple):
  """What a new Python process reports, and where it has worked."""

  modules: dict[str, list[str]]
  labels: list[int]
  extra_output: str
  data_dir: pathlib.Path
  killed_dir: pathlib.Path


@pytest.fixture(scope="module")
def fresh_process(shared, tmp_path_factory) -> FreshProcess:
  """Starts Python once for all that needs it: it takes seconds.

  The process imports the package, fails to download, prepares and loads a data set, and dies in
  the middle of preparing another.
  """
  root = tmp_path_factory.mktemp("fresh")
  code = f"""
import json, os, pathlib, sys
modules = {{}}
def note(when):
  names = ("tensorflow_datasets", "tensorflow", "sklearn", "PIL", "array_record")
  modules[when] = [name for name in names if name in sys.modules]

from learned_opt import datasets
from learned_opt.datasets import _prepare, _tfds
note("imported")
try:
  datasets.load("cifar10")
except FileNotFoundError:
  note("refused")
labels = _tfds.load("mnist", None, None, max_examples=20)["train"][1].tolist()
note("loaded")
print("REPORT", json.dumps([modules, labels]), flush=True)

encode, calls = _prepare._encode, []
def die_in_the_test_split(image):
  calls.append(image)
  return encode(image) if len(calls) < 25 else os._exit(9)
_prepare._encode = die_in_the_test_split
_tfds.load("mnist", {str(root / "killed")!r}, None, max_examples=20)
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=REPO_ROOT,
    env=os.environ
    | NO_NETWORK
    | {
      "PYTHONPATH": str(REPO_ROOT),
      "TFDS_DATA_DIR": str(root / "data_dir"),
      "LEARNED_OPT_DATA": str(shared / "data"),
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 9, done.stderr
  before, _, report = done.stdout.partition("REPORT ")
  report, _, after = report.partition("\n")
  modules, labels = json.loads(report)
  return FreshProcess(modules, labels, before + after, root / "data_dir", root / "killed")


def fail_at(monkeypatch, call: int, action) -> None:
  """Has the encoding of one image run `action` first."""
  encode, calls = _prepare._encode, []

  def encode_or_fail(image):
    calls.append(image)
    if len(calls) == call:
      action()
    return encode(image)

  monkeypatch.setattr(_prepare, "_encode", encode_or_fail)


def raise_(error: BaseException):
  raise error


# Names, extras, imports.


def test_names_are_what_load_knows():
  assert datasets.names() == ("mnist", "fashion_mnist", "cifar10", "digits")
  assert set(datasets.names()) == {*_prepare.SOURCES, "digits"}


@pytest.mark.parametrize(
  ("name", "nearest"),
  [("mnits", "mnist"), ("fashion-mnist", "fashion_mnist"), ("CIFAR10", "cifar10")],
)
def test_unknown_name_gets_the_nearest(name, nearest):
  with pytest.raises(ValueError, match=f"unknown data set '{name}'; did you mean '{nearest}'"):
    datasets.load(name)


def test_unknown_name_without_a_near_one_gets_the_list():
  with pytest.raises(ValueError, match="'xyz'; there are mnist, fashion_mnist, cifar10, digits"):
    datasets.load("xyz")


@pytest.mark.parametrize(
  ("name", "module", "package"),
  [
    ("mnist", "tensorflow_datasets", "tensorflow-datasets"),
    ("cifar10", "PIL", "pillow"),
    ("digits", "sklearn", "scikit-learn"),
  ],
)
def test_missing_package_names_the_extra(monkeypatch, name, module, package):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=rf"{package}: pip install 'learned_opt\[data\]'"):
    datasets.load(name)


def test_import_brings_no_data_package(fresh_process):
  assert fresh_process.modules["imported"] == []


# Digits.


def test_digits_are_the_published_ones_scaled():
  from sklearn.datasets import load_digits

  digits = datasets.load("digits")
  expected = load_digits()
  # In the published order within a split: so are the images of one class of all splits, dealt.
  for label in range(10):
    dealt = [split[0][split[1] == label] for split in digits]
    values = expected.images[expected.target == label]
    position = np.arange(len(values)) % 10
    for ours, theirs in zip(
      dealt, (values[position < 7], values[position == 7], values[position > 7]), strict=True
    ):
      np.testing.assert_array_equal(ours[..., 0], np.floor(theirs * (255 / 16) + 0.5))
  assert [len(labels) for _, labels in digits] == [1266, 178, 353]
  assert [int(digits.train[0].min()), int(digits.train[0].max())] == [0, 255]


def test_digits_have_the_contract_types_and_all_classes():
  digits = datasets.load("digits")
  for split_images, labels in digits:
    assert (split_images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert split_images.shape == (len(labels), 8, 8, 1)
    counts = np.bincount(labels, minlength=10)
    assert counts.min() >= 0.9 * counts.max()
  assert digits.num_classes == 10


# Splits of the published data sets.


@pytest.mark.parametrize(
  ("num_published", "num_validation"), [(60_000, 5_000), (50_000, 5_000), (2_000, 200), (10, 1)]
)
def test_validation_is_the_end_of_train(num_published, num_validation):
  labels = np.arange(num_published, dtype=np.int32)
  test = (np.zeros((3, 1, 1, 1), np.uint8), np.zeros(3, np.int32))
  dataset = images._split(
    "mnist", {"train": (np.zeros((num_published, 1, 1, 1), np.uint8), labels), "test": test}
  )
  np.testing.assert_array_equal(dataset.train[1], labels[:-num_validation])
  np.testing.assert_array_equal(dataset.validation[1], labels[-num_validation:])
  assert len(dataset.validation[0]) == num_validation
  assert dataset.test is test


def test_too_few_examples_for_a_validation_split():
  few = (np.zeros((9, 1, 1, 1), np.uint8), np.zeros(9, np.int32))
  with pytest.raises(ValueError, match="9 training images, too few"):
    images._split("mnist", {"train": few, "test": few})


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_images_come_in_the_published_order(prepared, shared, name):
  dataset = datasets.load(name, data_dir=prepared)
  train_images, train_labels = published(shared / "data" / name, "train")
  test_images, test_labels = published(shared / "data" / name, "t10k")
  cut = NUM_EXAMPLES - NUM_EXAMPLES // 10
  expected = {
    "train": (train_images[:cut], train_labels[:cut]),
    "validation": (train_images[cut:NUM_EXAMPLES], train_labels[cut:NUM_EXAMPLES]),
    "test": (test_images[:NUM_EXAMPLES], test_labels[:NUM_EXAMPLES]),
  }
  for split, (split_images, labels) in expected.items():
    got_images, got_labels = getattr(dataset, split)
    np.testing.assert_array_equal(got_images, split_images)
    np.testing.assert_array_equal(got_labels, labels)
    assert (got_images.dtype, got_labels.dtype) == (np.uint8, np.int32)
  assert dataset.train[1][:5].tolist() == FIRST_LABELS[name]


def test_data_sets_with_the_same_file_names_are_not_mixed_up(prepared):
  mnist, fashion = (datasets.load(name, data_dir=prepared) for name in FIRST_LABELS)
  assert mnist.train[0].shape == fashion.train[0].shape
  assert np.mean(mnist.train[0] != fashion.train[0]) > 0.3


def test_stock_reader_reads_what_is_prepared_here(prepared, shared):
  import tensorflow_datasets as tfds

  source = tfds.data_source("mnist", split="test", data_dir=prepared)
  by_pixels = {example["image"].tobytes(): example["label"] for example in source}
  test_images, test_labels = published(shared / "data" / "mnist", "t10k")
  assert by_pixels == {
    image.tobytes(): label
    for image, label in zip(test_images[:NUM_EXAMPLES], test_labels[:NUM_EXAMPLES], strict=True)
  }


def test_what_others_have_prepared_is_read(prepared, shared, tmp_path):
  command = [sys.executable, shared / "data" / "prepare_tfds.py", "--src", shared / "data"]
  options = ["--data_dir", tmp_path, "--datasets", "mnist", "--max_examples", str(NUM_EXAMPLES)]
  subprocess.run([*command, *options], check=True, capture_output=True)
  theirs = datasets.load("mnist", data_dir=tmp_path)
  ours = datasets.load("mnist", data_dir=prepared)
  for (their_images, their_labels), (our_images, our_labels) in zip(theirs, ours, strict=True):
    np.testing.assert_array_equal(their_images, our_images)
    np.testing.assert_array_equal(their_labels, our_labels)


def test_preparing_and_reading_need_no_tensorflow(fresh_process):
  assert fresh_process.modules["loaded"] == ["tensorflow_datasets", "PIL", "array_record"]
  assert fresh_process.labels[:5] == FIRST_LABELS["mnist"]


def test_environment_names_the_folders(fresh_process):
  assert _tfds.find_prepared("mnist", fresh_process.data_dir) is not None


def test_stdout_is_left_to_the_caller(fresh_process):
  assert fresh_process.extra_output == ""


def test_newest_prepared_version_is_found(tmp_path):
  for version in ("3.0.1", "3.0.10", "incomplete.ABC_4.0.0", "5.0.0"):
    (tmp_path / "mnist" / version).mkdir(parents=True)
  for version in ("3.0.1", "3.0.10", "incomplete.ABC_4.0.0"):
    (tmp_path / "mnist" / version / "dataset_info.json").touch()
  assert _tfds.find_prepared("mnist", tmp_path) == tmp_path / "mnist" / "3.0.10"


# Where the files may be.


def test_files_lie_where_they_are_looked_for(monkeypatch, tmp_path):
  data_dir, own = tmp_path / "data_dir", tmp_path / "own"
  (own / "mnist").mkdir(parents=True)
  assert _prepare._manual_dir("mnist", data_dir, None) == data_dir / "downloads/manual/mnist"
  assert _prepare._manual_dir("mnist", data_dir, own) == own / "mnist"
  assert _prepare._manual_dir("mnist", data_dir, own / "mnist") == own / "mnist"
  assert _prepare._manual_dir("cifar10", data_dir, own) == own
  monkeypatch.setenv("LEARNED_OPT_DATA", str(own))
  assert _prepare._manual_dir("mnist", data_dir, None) == own / "mnist"
  assert _prepare._manual_dir("mnist", data_dir, tmp_path) == tmp_path


def test_manual_dir_that_is_no_folder(monkeypatch, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"manual_dir names .*nowhere, which is no folder"):
    datasets.load("mnist", data_dir=tmp_path, manual_dir=tmp_path / "nowhere")
  monkeypatch.setenv("LEARNED_OPT_DATA", str(tmp_path / "nowhere"))
  with pytest.raises(FileNotFoundError, match="variable LEARNED_OPT_DATA names"):
    datasets.load("mnist", data_dir=tmp_path)


def test_default_data_dir_is_that_of_tfds(monkeypatch, tmp_path):
  from tensorflow_datasets.core import constants

  assert str(_tfds._default_data_dir()) == constants.get_default_data_dir()
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  assert str(_tfds._default_data_dir()) == constants.get_default_data_dir() == str(tmp_path)


def test_files_and_servers_are_those_that_tfds_registers():
  for name, source in _prepare.SOURCES.items():
    registered = _prepare._registered(name)
    assert set(registered) == set(source.files)
    assert all(url.startswith(f"{source.server}/") for url, _ in registered.values())


def test_files_that_are_not_the_published_ones_are_refused(shared, tmp_path):
  with pytest.raises(ValueError, match="'fashion_mnist' is not the published one"):
    datasets.load("fashion_mnist", data_dir=tmp_path, manual_dir=shared / "data" / "mnist")
  assert content(tmp_path) == []


# No network.


@pytest.mark.parametrize("name", sorted(_prepare.SOURCES))
def test_without_network_the_error_has_the_remedies(name, tmp_path):
  with pytest.raises(FileNotFoundError) as caught:
    datasets.load(name, data_dir=tmp_path)
  message = str(caught.value)
  for remedy in (
    *_prepare.SOURCES[name].files,
    str(tmp_path / "downloads" / "manual" / name),
    "network",
    "manual_dir",
    "LEARNED_OPT_DATA",
    "TFDS_DATA_DIR",
  ):
    assert remedy in message
  assert content(tmp_path) == []


def test_without_network_nothing_slow_is_tried(fresh_process):
  assert fresh_process.modules["refused"] == []


def test_files_of_the_same_folder_that_are_missing_are_named(shared, tmp_path):
  manual = tmp_path / "manual"
  manual.mkdir()
  for file in _prepare.SOURCES["mnist"].files[:3]:
    shutil.copy(shared / "data" / "mnist" / file, manual)
  with pytest.raises(FileNotFoundError, match=r"put t10k-labels-idx1-ubyte\.gz into"):
    datasets.load("mnist", data_dir=tmp_path / "data_dir", manual_dir=manual)


def test_server_that_does_not_answer_is_given_up(monkeypatch):
  monkeypatch.setattr(_prepare, "_PROBE_SECONDS", 0.1)
  with socket.create_server(("127.0.0.1", 0)) as silent:
    assert not _prepare._is_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}")


class _Answers(http.server.SimpleHTTPRequestHandler):
  """Serves files; a path ``/status/CODE`` gets that status."""

  def do_HEAD(self):
    _, _, status = self.path.partition("/status/")
    self.send_response(int(status or 200))
    self.end_headers()

  def log_message(self, format, *args):
    del format, args


@contextlib.contextmanager
def serve(folder: pathlib.Path):
  """Serves a folder on this machine, and gives its address."""
  handler = functools.partial(_Answers, directory=str(folder))
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.mark.parametrize(
  ("status", "reachable"), [(200, True), (404, True), (407, False), (502, False)]
)
def test_any_page_shows_that_there_is_a_network(tmp_path, status, reachable):
  with serve(tmp_path) as address:
    assert _prepare._is_reachable(f"{address}/status/{status}") is reachable


def test_server_with_an_unknown_certificate_is_reachable(tmp_path):
  with serve(tmp_path) as address:
    assert _prepare._is_reachable(address.replace("http:", "https:"))


def test_server_that_talks_nonsense_is_not_reachable():
  with socket.create_server(("127.0.0.1", 0)) as server:

    def answer():
      connection, _ = server.accept()
      with connection:
        connection.recv(1000)
        connection.sendall(b"nonsense\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    assert not _prepare._is_reachable(f"http://127.0.0.1:{server.getsockname()[1]}")
    thread.join()


# CIFAR-10, on an archive of the right layout. Its checksum takes the place of the published one in
# TFDS's registry, so that everything else, and the check itself, is the real path.


@pytest.fixture
def cifar(tmp_path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Random images and labels in a ``cifar-10-binary.tar.gz`` in ``tmp_path / 'files'``."""
  random = np.random.default_rng(0)
  arrays = {
    split: (
      random.integers(0, 256, (count, 32, 32, 3), np.uint8),
      random.integers(0, 10, count, np.uint8),
    )
    for split, count in (("train", 40), ("test", 7))
  }
  batches = {"test_batch.bin": _cifar_bytes(*arrays["test"])}
  for number in range(5):
    part = slice(8 * number, 8 * number + 8)
    batches[f"data_batch_{number + 1}.bin"] = _cifar_bytes(*(a[part] for a in arrays["train"]))
  batches["batches.meta.txt"] = b"\n".join(b"class%d" % label for label in range(10)) + b"\n\n"
  (tmp_path / "files").mkdir()
  with tarfile.open(tmp_path / "files" / "cifar-10-binary.tar.gz", "w:gz") as archive:
    for name, data in batches.items():
      member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return arrays


def _cifar_bytes(cifar_images: np.ndarray, labels: np.ndarray) -> bytes:
  """One byte of label and then the red, green and blue plane of each image."""
  return b"".join(
    bytes([label]) + b"".join(image[:, :, channel].tobytes() for channel in range(3))
    for image, label in zip(cifar_images, labels, strict=True)
  )


def register(monkeypatch, archive: pathlib.Path, address: str | None = None) -> None:
  """Registers the archive's own checksum, and another address if one is given."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import checksums

  registry = tfds.builder_cls("cifar10").url_infos
  ((url, _),) = registry.items()
  data = archive.read_bytes()
  info = checksums.UrlInfo(
    size=tfds.core.utils.Size(len(data)),
    checksum=hashlib.sha256(data).hexdigest(),
    filename=archive.name,
  )
  monkeypatch.delitem(registry, url)
  monkeypatch.setitem(registry, f"{address}/{archive.name}" if address else url, info)
  if address:
    source = _prepare.SOURCES["cifar10"]._replace(server=address)
    monkeypatch.setitem(_prepare.SOURCES, "cifar10", source)


def assert_is_cifar(dataset, arrays) -> None:
  """Checks the three splits against the archive's content: 40 images, 4 of them validation."""
  train_images, train_labels = arrays["train"]
  for got, expected in (
    (dataset.train, (train_images[:36], train_labels[:36])),
    (dataset.validation, (train_images[36:], train_labels[36:])),
    (dataset.test, arrays["test"]),
  ):
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])
    assert (got[0].dtype, got[1].dtype) == (np.uint8, np.int32)


def test_cifar10_from_an_archive_at_hand(monkeypatch, cifar, tmp_path):
  import tensorflow_datasets as tfds

  register(monkeypatch, tmp_path / "files" / "cifar-10-binary.tar.gz")
  data_dir = tmp_path / "data_dir"
  assert_is_cifar(datasets.load("cifar10", data_dir=data_dir, manual_dir=tmp_path / "files"), cifar)
  builder = tfds.builder("cifar10", data_dir=data_dir)
  assert builder.info.features["label"].names == [f"class{label}" for label in range(10)]
  example = next(e for e in builder.as_data_source("train") if e["id"] == b"train_00011")
  np.testing.assert_array_equal(example["image"], cifar["train"][0][11])


def test_cifar10_refuses_an_archive_that_is_not_the_published_one(cifar, tmp_path):
  del cifar
  data_dir = tmp_path / "data_dir"
  with pytest.raises(ValueError, match="'cifar10' is not the published one"):
    datasets.load("cifar10", data_dir=data_dir, manual_dir=tmp_path / "files")
  assert not data_dir.exists()


def test_cifar10_by_a_download(monkeypatch, cifar, tmp_path):
  with serve(tmp_path / "files") as address:
    register(monkeypatch, tmp_path / "files" / "cifar-10-binary.tar.gz", address)
    assert_is_cifar(datasets.load("cifar10", data_dir=tmp_path / "data_dir"), cifar)


def test_failed_download_leaves_nothing(monkeypatch, cifar, tmp_path):
  del cifar
  archive = tmp_path / "files" / "cifar-10-binary.tar.gz"
  with serve(tmp_path / "files") as address:
    register(monkeypatch, archive, address)
    archive.rename(tmp_path / "elsewhere")
    with pytest.raises(ConnectionError, match=r"download of 'cifar10' has failed .*404.* Get a"):
      datasets.load("cifar10", data_dir=tmp_path / "data_dir")
  assert not (tmp_path / "data_dir").exists()


def test_damaged_download_is_refused_and_removed(monkeypatch, cifar, tmp_path):
  del cifar
  archive = tmp_path / "files" / "cifar-10-binary.tar.gz"
  with serve(tmp_path / "files") as address:
    register(monkeypatch, archive, address)
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(ValueError, match="'cifar10' is not the published one"):
      datasets.load("cifar10", data_dir=tmp_path / "data_dir")
  assert not (tmp_path / "data_dir").exists()


def test_finished_download_is_used_again_without_network(monkeypatch, cifar, tmp_path):
  data_dir = tmp_path / "data_dir"
  with serve(tmp_path / "files") as address, monkeypatch.context() as failing:
    register(monkeypatch, tmp_path / "files" / "cifar-10-binary.tar.gz", address)
    fail_at(failing, 5, lambda: raise_(RuntimeError("power cut")))
    with pytest.raises(RuntimeError, match="power cut"):
      datasets.load("cifar10", data_dir=data_dir)
  assert not (data_dir / "cifar10").exists()
  assert any((data_dir / "downloads" / "cifar10").glob("*.tar.gz"))
  assert_is_cifar(datasets.load("cifar10", data_dir=data_dir), cifar)


# Interrupted preparation.


@pytest.mark.parametrize("error", [RuntimeError("disk gone"), KeyboardInterrupt()])
def test_interrupted_preparation_leaves_nothing(monkeypatch, shared, tmp_path, error):
  with monkeypatch.context() as failing:
    fail_at(failing, 15, lambda: raise_(error))
    with pytest.raises(type(error)):
      _tfds.load("mnist", tmp_path, shared / "data", max_examples=20)
  assert content(tmp_path) == []
  splits = _tfds.load("mnist", tmp_path, shared / "data", max_examples=20)
  assert splits["train"][1][:5].tolist() == FIRST_LABELS["mnist"]


def test_killed_preparation_is_not_mistaken_for_a_finished_one(fresh_process, shared):
  data_dir = fresh_process.killed_dir
  (incomplete,) = (data_dir / "mnist").iterdir()
  assert any(incomplete.iterdir())
  assert _tfds.find_prepared("mnist", data_dir) is None

  os.utime(incomplete, (0, 0))
  splits = _tfds.load("mnist", data_dir, shared / "data", max_examples=20)
  assert [len(labels) for _, labels in splits.values()] == [20, 20]
  assert not incomplete.exists()


def test_preparation_that_goes_on_elsewhere_is_left_alone(shared, tmp_path):
  running = tmp_path / "mnist" / "incomplete.ABCDEF_3.0.1"
  running.mkdir(parents=True)
  _tfds.load("mnist", tmp_path, shared / "data", max_examples=10)
  assert running.exists()


def test_another_process_may_be_quicker(monkeypatch, prepared, shared, tmp_path):
  theirs = prepared / "mnist" / "3.0.1"
  fail_at(monkeypatch, 3, lambda: shutil.copytree(theirs, tmp_path / "mnist" / "3.0.1"))
  splits = _tfds.load("mnist", tmp_path, shared / "data", max_examples=10)
  assert len(splits["train"][1]) == NUM_EXAMPLES
  assert [path.name for path in (tmp_path / "mnist").iterdir()] == ["3.0.1"]


def test_data_dir_that_cannot_be_written(shared, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="file"):
    datasets.load("mnist", data_dir=tmp_path / "file", manual_dir=shared / "data")


# Damaged and foreign prepared files.


def _spoil_truncated(folder):
  (record,) = folder.glob("mnist-train*")
  record.write_bytes(record.read_bytes()[:-1000])


def _spoil_removed(folder):
  (record,) = folder.glob("mnist-test*")
  record.unlink()


def _spoil_flipped(folder):
  (record,) = folder.glob("mnist-train*")
  data = bytearray(record.read_bytes())
  data[len(data) // 4] ^= 0xFF
  record.write_bytes(bytes(data))


def _spoil_info(folder):
  (folder / "dataset_info.json").write_text("{")


def _spoil_format(folder):
  info = json.loads((folder / "dataset_info.json").read_text())
  (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))


@pytest.mark.parametrize(
  "spoil", [_spoil_truncated, _spoil_removed, _spoil_flipped, _spoil_info, _spoil_format]
)
def test_prepared_files_that_cannot_be_read(prepared_copy, spoil):
  folder = prepared_copy / "mnist" / "3.0.1"
  spoil(folder)
  with pytest.raises(RuntimeError, match=rf"'mnist' in {folder} cannot be read\. Delete that"):
    datasets.load("mnist", data_dir=prepared_copy)


def test_records_in_an_unknown_order_are_refused(monkeypatch, prepared_copy):
  from tensorflow_datasets.core import hashing

  monkeypatch.setattr(hashing.Hasher, "hash_key", lambda self, key: -key)
  with pytest.raises(RuntimeError, match=r"first training labels are .*, not \(5, 0, 4, 1, 9"):
    datasets.load("mnist", data_dir=prepared_copy)


# The cache of decoded images.


def _count_reads(monkeypatch) -> list[str]:
  read, calls = _tfds.read_prepared, []

  def counted(name, folder):
    calls.append(name)
    return read(name, folder)

  monkeypatch.setattr(_tfds, "read_prepared", counted)
  return calls


def test_second_load_takes_the_cache(monkeypatch, prepared_copy):
  calls = _count_reads(monkeypatch)
  first, second = (datasets.load("mnist", data_dir=prepared_copy) for _ in range(2))
  assert calls == ["mnist"]
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])
    assert (b[0].dtype, b[1].dtype) == (np.uint8, np.int32)


def _touch(folder):
  os.utime(folder / "dataset_info.json", (0, 0))


def _flip_cache(folder):
  data = bytearray((folder / _cache._NAME).read_bytes())
  data[len(data) // 2] ^= 0xFF
  (folder / _cache._NAME).write_bytes(bytes(data))


def _truncate_cache(folder):
  (folder / _cache._NAME).write_bytes((folder / _cache._NAME).read_bytes()[:1000])


def _foreign_cache(folder):
  np.savez(folder / _cache._NAME, something=np.zeros(3))


@pytest.mark.parametrize("change", [_touch, _flip_cache, _truncate_cache, _foreign_cache])
def test_stale_or_damaged_cache_is_not_used(monkeypatch, prepared_copy, change):
  calls = _count_reads(monkeypatch)
  first = datasets.load("mnist", data_dir=prepared_copy)
  change(prepared_copy / "mnist" / "3.0.1")
  second = datasets.load("mnist", data_dir=prepared_copy)
  assert calls == ["mnist", "mnist"]
  np.testing.assert_array_equal(first.train[0], second.train[0])
  datasets.load("mnist", data_dir=prepared_copy)
  assert calls == ["mnist", "mnist"]


def test_folder_that_cannot_be_written_goes_without_a_cache(monkeypatch, prepared_copy):
  folder = prepared_copy / "mnist" / "3.0.1"
  before = content(folder)
  monkeypatch.setattr(np, "savez", lambda *args, **arrays: raise_(OSError("read-only")))
  (folder / _cache._NAME).unlink(missing_ok=True)
  dataset = datasets.load("mnist", data_dir=prepared_copy)
  assert dataset.train[1][:5].tolist() == FIRST_LABELS["mnist"]
  assert content(folder) == [name for name in before if name != _cache._NAME]
