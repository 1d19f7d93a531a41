"""The baselines of the suite: tuned, and kept so that nobody has to tune them again."""

import dataclasses
import datetime
import importlib.metadata
import importlib.resources
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import learned_opt
from learned_opt import baselines
from learned_opt._arrays import atomic_write
from learned_opt._compilation import make_room
from learned_opt.base import Optimizee
from learned_opt.benchmark_suite._running import (
  at_least_solved,
  curves_of,
  curves_of_rates,
  draw,
)
from learned_opt.benchmark_suite._tasks import NOT_AT_HAND, SIZES, Data, Size, Task, fingerprint

_FORMAT = 1

# Half powers of two between the learning rates of the first grid, which spans a wide range, and
# then between the best and those that are tried beside it.
_COARSE, _FINER = 4, (2, 1)

# How much the mean over the windows counts beside the last.
_TIE = 1e-3

# Half powers of two beyond which no learning rate is tried, 2^-30 to 2^20.
_LIMITS = (-60, 40)

# What the keys of the suite are split from; of no run.
_SEED = 20_240_601
_TEST, _TUNING = range(2)


@dataclasses.dataclass(frozen=True)
class _Make:
  """``learning_rate -> tx``; equal for equal ones, so that it does not retrace."""

  make: Callable[[Any], optax.GradientTransformation]
  num_steps: int | None

  def __call__(self, learning_rate: jax.Array) -> optax.GradientTransformation:
    tx = self.make(learning_rate)
    if self.num_steps is None:
      return tx
    # All of them are linear in their learning rate, but for Rprop, whose updates are scaled.
    return optax.chain(
      tx, optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, self.num_steps))
    )


def _adamw(learning_rate: jax.Array) -> optax.GradientTransformation:
  return optax.adamw(learning_rate)


# All of `learned_opt.baselines.BASELINES`, and AdamW with optax's weight decay: by name, how to
# make one, and the half powers of two between which its grid begins.
_MAKES: dict[str, tuple[Callable[..., Any], tuple[int, int]]] = {
  name: (one.make, one.exponents or (0, 0)) for name, one in baselines.BASELINES.items()
}
_MAKES["adamw"] = (_adamw, _MAKES["adam"][1])

# By name as reports show them: with a constant rate, and with one that falls to zero.
BASELINES: tuple[str, ...] = tuple(
  f"{name}{schedule}" for name in _MAKES for schedule in ("", "-cosine")
)


class Tuned(NamedTuple):
  """A baseline on a task.

  Attributes:
    learning_rate: the best.
    interior: whether it lies between two others that were tried.
    rates: all that were tried, in ascending order.
    values: the objective of each, its mean final loss; infinite where a problem diverged.
    curves: ``[P, W + 1]`` on the test problems; see `curves_of`.
  """

  learning_rate: float
  interior: bool
  rates: np.ndarray
  values: np.ndarray
  curves: np.ndarray


def test_keys(num_seeds: int) -> jax.Array:
  """``[P]``, the keys of the problems on which all optimizers are compared."""
  return _keys(_TEST, num_seeds)


def _keys(purpose: int, number: int) -> jax.Array:
  return jax.random.split(jax.random.fold_in(jax.random.key(_SEED), purpose), number)


def build(
  size: str = "cpu",
  *,
  folder: pathlib.Path | None = None,
  tasks: Iterable[str] | None = None,
  data: Data = Data(),
  command: str = "learned_opt.benchmark_suite.build",
  on_progress: Callable[[str], None] | None = None,
) -> list[str]:
  """Tunes the baselines of each task and keeps what comes of it, task by task.

  Tasks that are there already, of the same definition, are not done again: what was interrupted
  goes on. The learning rates are half powers of two: first every fourth, as many of them as it
  takes to have the best between two others, then those two beside the best, and at last the two
  that are next to it. They run side by side.
  The best has the lowest mean loss in the last window, over problems that are not those of the
  comparison; of those that all but solve the task, it is the fastest; one with which any problem
  diverged is out of the question.

  Args:
    size: one of `SIZES`.
    folder: where to keep them; None means the package itself.
    tasks: names of `TASKS`; None means those of the size.
    data: where data sets lie.
    command: which command does this, for the record.
    on_progress: called with a few words before each part of the work.

  Returns:
    The names of the tasks that were skipped, with the reason.

  Raises:
    ValueError: if there is no such size or task.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt import benchmark_suite
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> benchmark_suite.build("smoke", folder=folder, tasks=[])
    []
  """
  report = on_progress or (lambda words: None)
  chosen, skipped = size_of(size), []
  folder = package_folder(size) if folder is None else folder
  for task in chosen.chosen(tasks):
    try:
      optimizee = task.optimizee(data)
    except NOT_AT_HAND as error:
      skipped.append(f"{task.name}: {error}")
      continue
    if read(folder, task, chosen) is None:
      report(f"{task.name}, {chosen.steps_of(task):,} steps")
      _build_one(folder, task, optimizee, chosen, command, report)
  return skipped


def size_of(name: str) -> Size:
  """Looks up a size; raises `ValueError` if there is none of this name."""
  if name not in SIZES:
    raise ValueError(f"size must be one of {', '.join(SIZES)}, got {name!r}")
  return SIZES[name]


def package_folder(size: str) -> pathlib.Path:
  """Where the baselines of a size are shipped."""
  return pathlib.Path(str(importlib.resources.files("learned_opt"))) / "benchmark_suite" / size


def read(folder: pathlib.Path, task: Task, size: Size) -> dict[str, Tuned] | None:
  """What `build` has kept for a task as it is defined now; None if there is nothing."""
  record = read_record(folder, task)
  if record is None or record["definition"] != _definition(task, size):
    return None
  with np.load(folder / f"{task.name}.npz", allow_pickle=False) as arrays:
    return {
      name: Tuned(
        one["learning_rate"],
        one["interior"],
        *(arrays[f"{name}/{part}"] for part in ("rates", "values", "curves")),
      )
      for name, one in record["baselines"].items()
    }


def read_record(folder: pathlib.Path, task: Task) -> dict[str, Any] | None:
  """The card of a task's baselines: definition, command, versions, device, seconds."""
  path = folder / f"{task.name}.json"
  return json.loads(path.read_text()) if path.is_file() else None


def _definition(task: Task, size: Size) -> dict[str, Any]:
  """All that decides a task's baselines, as JSON gives it back."""
  values = {
    "format": _FORMAT,
    **task.definition(size.steps_of(task)),
    **{name: getattr(size, name) for name in ("num_seeds", "num_tuning_seeds", "num_windows")},
    "baselines": names_of(size),
    "seed": _SEED,
  }
  return json.loads(json.dumps(values))


def names_of(size: Size) -> list[str]:
  """The baselines of a size."""
  return [
    name
    for name in BASELINES
    if size.baselines is None or name.removesuffix("-cosine") in size.baselines
  ]


def _build_one(
  folder: pathlib.Path,
  task: Task,
  optimizee: Optimizee,
  size: Size,
  command: str,
  report: Callable[[str], None],
) -> None:
  start, found = time.perf_counter(), {}
  for name in names_of(size):
    report(f"{task.name}: tuning {name}")
    found[name] = _tune(optimizee, name, size.steps_of(task), size)
    make_room()
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {
    f"{name}/{part}": np.asarray(getattr(one, part), np.float32)
    for name, one in found.items()
    for part in ("rates", "values", "curves")
  }
  with atomic_write(folder / f"{task.name}.npz") as file:
    np.savez_compressed(file, allow_pickle=False, **arrays)
  record = {
    "definition": _definition(task, size),
    "baselines": {
      name: {"learning_rate": one.learning_rate, "interior": one.interior}
      for name, one in found.items()
    },
    "data": fingerprint(optimizee),
    "command": command,
    "versions": {
      "learned_opt": learned_opt.__version__,
      **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
    },
    "device": jax.devices()[0].device_kind,
    "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "seconds": round(time.perf_counter() - start, 1),
  }
  # Last, as it says that the arrays are there.
  with atomic_write(folder / f"{task.name}.json") as file:
    file.write(json.dumps(record, indent=1).encode() + b"\n")


def _tune(optimizee: Optimizee, name: str, num_steps: int, size: Size) -> Tuned:
  base, _, schedule = name.partition("-")
  make, exponents = _MAKES[base]
  made = _Make(make, num_steps if schedule else None)
  problems = draw(optimizee, _keys(_TUNING, size.num_tuning_seeds))

  def values_at(exponents: Iterable[int]) -> dict[int, float]:
    exponents = list(exponents)
    rates = 2.0 ** (np.array(exponents) / 2)
    curves = curves_of_rates(optimizee, made, rates, problems, num_steps, size.num_windows)
    return dict(zip(exponents, _objective(curves).tolist(), strict=True))

  values = _search(values_at, exponents)
  tried = sorted(values)
  best = min(tried, key=values.__getitem__)
  rate = 2.0 ** (best / 2)
  curves = curves_of(
    optimizee,
    made,
    np.float32(rate),
    draw(optimizee, test_keys(size.num_seeds)),
    num_steps,
    size.num_windows,
  )
  return Tuned(
    rate,
    tried[0] < best < tried[-1],
    2.0 ** (np.array(tried) / 2),
    np.array([values[k] for k in tried]),
    curves,
  )


def _objective(curves: np.ndarray) -> np.ndarray:
  """``[K]``, the mean final loss of ``[K, P, W + 1]`` curves; infinite if a problem diverged.

  Among those that solve the task, by a little of the mean over the windows, the fastest.
  """
  curves = at_least_solved(curves)
  return np.mean(curves[..., -1] + _TIE * curves.mean(axis=-1), axis=-1)


def _search(
  values_at: Callable[[Iterable[int]], Mapping[int, float]], start: tuple[int, int]
) -> dict[int, float]:
  """Values by exponent, on a grid that is widened, and then refined around its best value."""
  values = dict(values_at(range(start[0] - _COARSE, start[1] + _COARSE + 1, _COARSE)))
  while True:
    best, low, high = min(sorted(values), key=values.__getitem__), min(values), max(values)
    beyond = {low: (low - 2 * _COARSE, low - _COARSE), high: (high + _COARSE, high + 2 * _COARSE)}
    new = [k for k in beyond.get(best, ()) if _LIMITS[0] <= k <= _LIMITS[1]]
    if not new:
      break
    values |= values_at(new)
  for step in _FINER:
    values |= values_at((best - step, best + step))
    best = min(sorted(values), key=values.__getitem__)
  return values
