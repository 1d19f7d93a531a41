"""The tasks of the suite, and how much of each a size takes."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from learned_opt import datasets, optimizees
from learned_opt.base import ImageDataset, Optimizee, TextDataset

# What a data set that is not at hand raises.
NOT_AT_HAND = (ImportError, OSError, RuntimeError, ValueError)

_SHAKESPEARE = "tinyshakespeare.txt"


@dataclasses.dataclass(frozen=True)
class Data:
  """Where data sets lie that are not part of the package.

  Attributes:
    data_dir: of `datasets.load`.
    manual_dir: of `datasets.load`.
    text: the file of tiny shakespeare; None means ``tinyshakespeare.txt`` in the folder that the
      environment variable ``LEARNED_OPT_DATA`` names, or in ``text`` there.

  Example:
    >>> from learned_opt.benchmark_suite import Data
    >>> Data().images("digits").num_classes
    10
  """

  data_dir: pathlib.Path | None = None
  manual_dir: pathlib.Path | None = None
  text: pathlib.Path | None = None

  def images(self, name: str) -> ImageDataset:
    """A data set of `datasets.load`."""
    return _images(name, self.data_dir, self.manual_dir)

  def shakespeare(self) -> TextDataset:
    """The text of tiny shakespeare.

    Raises:
      FileNotFoundError: if it is not at hand.
    """
    root = pathlib.Path(os.environ.get("LEARNED_OPT_DATA", ".")).expanduser()
    places = [self.text] if self.text else [root / _SHAKESPEARE, root / "text" / _SHAKESPEARE]
    for place in places:
      if place.is_file():
        return datasets.load_text(place)
    raise FileNotFoundError(
      f"tiny shakespeare is not at {' or '.join(map(str, places))}: give its file (--text)"
    )


@functools.lru_cache(maxsize=2)
def _images(name: str, data_dir: Any, manual_dir: Any) -> ImageDataset:
  return datasets.load(name, data_dir=data_dir, manual_dir=manual_dir)


@functools.cache
def _made_up_language() -> TextDataset:
  return datasets.markov_text(100_000)


@dataclasses.dataclass(frozen=True)
class Task:
  """A distribution of problems on which optimizers are compared.

  Attributes:
    name: of the task.
    make: ``(data, **options) -> Optimizee`` of the train split.
    options: of `make`; JSON values, which are on record with the baselines.
    differs: what sets it apart from the problems that optimizers are trained on.
    horizon: in multiples of the suite's steps.
    needs: the data set that has to be at hand; None if it comes with the package.
  """

  name: str
  make: Callable[..., Optimizee]
  options: Mapping[str, Any]
  differs: str
  horizon: int = 1
  needs: str | None = None

  def optimizee(self, data: Data) -> Optimizee:
    """The problems; raises one of `NOT_AT_HAND` if the data set is not there."""
    made = self.make(data, **self.options)
    return dataclasses.replace(made, metrics=None)

  def definition(self, num_steps: int) -> dict[str, Any]:
    """What decides the problems, for the record."""
    return {
      "name": self.name,
      "make": self.make.__name__,
      "options": dict(self.options),
      "num_steps": num_steps,
    }


class Size(NamedTuple):
  """How much work to do.

  Attributes:
    num_steps: inner steps of a task with a horizon of 1.
    num_seeds: problems on which optimizers are compared.
    num_tuning_seeds: other problems, on which baselines are tuned.
    num_windows: into which the steps are divided; losses are means over a window.
    max_horizon: tasks with a longer one are left out.
    tasks: their names; None means all.
    baselines: those that are tuned; None means all.
  """

  num_steps: int
  num_seeds: int
  num_tuning_seeds: int
  num_windows: int
  max_horizon: int
  tasks: tuple[str, ...] | None = None
  baselines: tuple[str, ...] | None = None

  def steps_of(self, task: Task) -> int:
    """The inner steps of a task."""
    return self.num_steps * task.horizon

  def chosen(self, names: Iterable[str] | None = None) -> tuple[Task, ...]:
    """The tasks of this size, or those of them that are named.

    Raises:
      ValueError: if there is no task of a name.
    """
    names = self.tasks if names is None else tuple(names)
    unknown = set(names or ()) - set(TASKS)
    if unknown:
      raise ValueError(f"unknown tasks {sorted(unknown)}: there are {', '.join(TASKS)}")
    return tuple(
      task
      for name, task in TASKS.items()
      if (names is None or name in names) and task.horizon <= self.max_horizon
    )


SIZES: dict[str, Size] = {
  "smoke": Size(
    *(8, 2, 2, 4, 5),
    tasks=("softmax-regression", "shakespeare-lstm"),
    baselines=("adam",),
  ),
  "cpu": Size(1000, 8, 4, 50, 25),
}


def fingerprint(optimizee: Optimizee) -> str:
  """Changes with the data that an optimizee holds.

  >>> fingerprint(optimizees.quadratic()) == fingerprint(optimizees.quadratic())
  True
  """
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(optimizee.data):
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:16]


def _mlp(data: Data, dataset: str, size: int | None, **options: Any) -> Optimizee:
  return optimizees.mlp_classifier(_small(data, dataset, size), initial_scale=None, **options)


def _conv(data: Data, dataset: str, size: int | None, **options: Any) -> Optimizee:
  return optimizees.conv_classifier(_small(data, dataset, size), initial_scale=None, **options)


def _autoencoder(data: Data, dataset: str, size: int | None, **options: Any) -> Optimizee:
  return optimizees.image_autoencoder(_small(data, dataset, size), **options)


def _small(data: Data, dataset: str, size: int | None) -> ImageDataset:
  images = data.images(dataset)
  return images if size is None else datasets.resize(images, size)


def _recurrent(data: Data, text: str, **options: Any) -> Optimizee:
  return optimizees.recurrent_lm(_text(data, text), **options)


def _transformer(data: Data, text: str, **options: Any) -> Optimizee:
  return optimizees.transformer_lm(_text(data, text), **options)


def _text(data: Data, text: str) -> TextDataset:
  return data.shakespeare() if text == "shakespeare" else _made_up_language()


def _sines(data: Data, **options: Any) -> Optimizee:
  del data
  return optimizees.noisy_sines(**options)


def _logistic(data: Data, **options: Any) -> Optimizee:
  del data
  return optimizees.logistic_regression(**options)


def _quadratic(data: Data, **options: Any) -> Optimizee:
  del data
  return optimizees.conditioned_quadratic(**options)


def _digits(**options: Any) -> dict[str, Any]:
  return {"dataset": "digits", "size": None, **options}


def _by_name(*tasks: Task) -> dict[str, Task]:
  return {task.name: task for task in tasks}


_LOGISTIC = {"dimension": 30, "num_points": 300, "condition_number": 1000.0, "batch_size": 16}
_SMALL = {"hidden_sizes": [16], "activation": "sigmoid", "batch_size": 32}
_LM = {"length": 16, "batch_size": 8}

# General-purpose optimizers are trained on MLPs of one hidden layer of 32 ReLU units with
# minibatches of 64 on images of 8 x 8 pixels, for up to 2,000 steps (Moudgil et al. 2025).
TASKS: dict[str, Task] = _by_name(
  Task(
    "mlp-wide",
    _mlp,
    _digits(hidden_sizes=[256], activation="relu", batch_size=128),
    "width",
  ),
  Task(
    "mlp-deep",
    _mlp,
    _digits(hidden_sizes=[32] * 6, activation="tanh", batch_size=64),
    "depth, activation",
  ),
  Task(
    "mlp-residual",
    _mlp,
    _digits(hidden_sizes=[48] * 8, activation="elu", batch_size=64, skip="residual"),
    "depth, residual connections",
  ),
  Task(
    "mlp-batch-of-4",
    _mlp,
    _digits(hidden_sizes=[32], activation="relu", batch_size=4),
    "batch size",
  ),
  Task(
    "softmax-regression",
    _mlp,
    _digits(hidden_sizes=[], activation="relu", batch_size=64),
    "no hidden layer",
  ),
  Task(
    "conv", _conv, _digits(channels=[8, 16], hidden_size=32, batch_size=16), "convolution, norm"
  ),
  Task(
    "autoencoder",
    _autoencoder,
    _digits(
      hidden_sizes=[64, 12, 64], activation="tanh", reconstruction="cross_entropy", batch_size=64
    ),
    "auto-encoder",
  ),
  Task("lstm-sines", _sines, {"hidden_size": 20, "batch_size": 32}, "RNN, squared error"),
  Task(
    "gru-language",
    _recurrent,
    {"text": "made-up", "cell": "gru", "hidden_size": 48, "embedding_size": 16, **_LM},
    "RNN, text",
  ),
  Task(
    "transformer-language",
    _transformer,
    {"text": "made-up", "num_layers": 2, "width": 32, "num_heads": 4, **_LM},
    "transformer, text",
  ),
  Task(
    "noisy-quadratic",
    _quadratic,
    {"dimension": 50, "condition_number": 1e4, "initial_scale": 0.01, "noise": 0.03},
    "no network",
  ),
  Task("logistic", _logistic, _LOGISTIC, "no network"),
  Task("logistic-x5", _logistic, _LOGISTIC, "no network, horizon", horizon=5),
  Task("mlp-x5", _mlp, _digits(**_SMALL), "activation, horizon", horizon=5),
  Task("mlp-x25", _mlp, _digits(**_SMALL), "activation, horizon", horizon=25),
  Task(
    "mnist-mlp",
    _mlp,
    {
      "dataset": "mnist",
      "size": None,
      "hidden_sizes": [64, 64],
      "activation": "tanh",
      "batch_size": 64,
    },
    "data set, width, depth",
    needs="mnist",
  ),
  Task(
    "fashion-highway",
    _mlp,
    {
      "dataset": "fashion_mnist",
      "size": 14,
      "hidden_sizes": [40] * 5,
      "activation": "relu",
      "batch_size": 64,
      "skip": "highway",
    },
    "data set, depth, gates",
    needs="fashion_mnist",
  ),
  Task(
    "cifar-conv",
    _conv,
    {
      "dataset": "cifar10",
      "size": 8,
      "channels": [8, 16],
      "hidden_size": 32,
      "batch_size": 32,
    },
    "data set, convolution, norm",
    needs="cifar10",
  ),
  Task(
    "shakespeare-lstm",
    _recurrent,
    {"text": "shakespeare", "cell": "lstm", "hidden_size": 48, "embedding_size": 16, **_LM},
    "RNN, text",
    needs="tiny shakespeare",
  ),
)
