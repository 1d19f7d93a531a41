"""The folder of one run: what lies in it, and that it is written whole or not at all."""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import chex

from learned_opt import _arrays
from learned_opt._results import evaluation_from_json
from learned_opt.evaluate import Evaluation
from learned_opt.meta_train import History, MetaTrainState
from learned_opt.plots import Published, learning_curves_figure

CONFIG = "config.json"
HISTORY = "history.json"
CHECKPOINT = "checkpoint.npz"
OPTIMIZER = "optimizer"
EVALUATION = "evaluation.json"
LEARNING_CURVES = "learning_curves.png"
META_TRAINING = "meta_training.png"
CURRICULUM = "curriculum.json"
SEARCH = "search.json"
INSPECTION = "inspection.json"
PROPOSALS = "proposals.png"
COUNTERFACTUALS = "counterfactuals.png"
TRAJECTORY = "trajectory.png"
DIAGNOSIS = "diagnosis.json"
DIAGNOSIS_FIGURE = "diagnosis.png"

_CONTENTS = (
  *(CONFIG, HISTORY, CHECKPOINT, CURRICULUM, SEARCH),
  *(OPTIMIZER, META_TRAINING, EVALUATION, LEARNING_CURVES),
  *(INSPECTION, PROPOSALS, COUNTERFACTUALS, TRAJECTORY),
  *(DIAGNOSIS, DIAGNOSIS_FIGURE),
)


def contents(out: pathlib.Path) -> tuple[pathlib.Path, ...]:
  """What there is of all that may be in the folder, in the order in which it is written."""
  return tuple(out / name for name in _CONTENTS if (out / name).exists())


def begin(out: pathlib.Path, config: Mapping[str, Any], *, resume: bool) -> None:
  """Makes the folder of a run that can be continued, or checks that it holds that run.

  Raises:
    FileExistsError, FileNotFoundError, ValueError, OSError: as of `make` and `reopen`.
  """
  if resume:
    reopen(out, config)
  else:
    make(out, config, ", or continue the run that it holds (resume=True, --resume)")


def is_begun(out: pathlib.Path) -> bool:
  """Whether a run was begun in this folder, which can be continued then."""
  return (out / CONFIG).exists()


def make(out: pathlib.Path, config: Mapping[str, Any], advice: str = "") -> None:
  """Makes the folder of a new run.

  Writing the configuration also tells, before any work is done, that files can be written there.

  Args:
    out: the folder.
    config: what the run is to do; JSON values.
    advice: what else to do if there is something already.

  Raises:
    FileExistsError: if there is something already.
    OSError: if nothing can be written there.
  """
  if _is_taken(out):
    raise FileExistsError(
      f"{out} exists and is not empty: choose another folder (out=..., --out ...){advice}"
    )
  _write_config(out, config)


def reopen(
  out: pathlib.Path, config: Mapping[str, Any], *, may_have_more: str | None = None
) -> None:
  """Checks that the folder holds the run that is to be continued, and can be written.

  Under the name `may_have_more`, the configuration may have values that are not there yet.

  Raises:
    FileNotFoundError: if there is no run to resume.
    ValueError: if the run there has another configuration; the differences are named.
    OSError: if nothing can be written there.
  """
  found = read_json(out / CONFIG, "there is no run to resume")
  if may_have_more is not None:
    found = {
      **found,
      may_have_more: {**config[may_have_more], **found.get(may_have_more, {})},
    }
  _check_same(found, config, out)
  _write_config(out, config)


def _write_config(out: pathlib.Path, config: Mapping[str, Any]) -> None:
  try:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / CONFIG, config, indent=2)
  except OSError as error:
    raise OSError(
      error.errno,
      f"cannot write to {out}: {error.strerror or error}. Choose a folder that can be written "
      "(out=..., --out ...)",
    ) from error


def save_progress(out: pathlib.Path, state: MetaTrainState, history: History) -> None:
  """Writes a state from which the run can continue, and what happened up to it.

  The history goes first: should the process end in between, it is too long, which
  `load_progress` mends.
  """
  write_json(out / HISTORY, history.to_json())
  _arrays.save_arrays(out / CHECKPOINT, cast(chex.ArrayTree, state))


def load_progress(
  out: pathlib.Path, like: MetaTrainState
) -> tuple[MetaTrainState, History] | tuple[None, None]:
  """Reads the last state and the history up to it; None if the run had not come so far.

  Args:
    out: the folder.
    like: a state, or its shapes and dtypes, of the same configuration.

  Raises:
    ValueError: if the files are damaged, or are those of another configuration.
  """
  if not (out / CHECKPOINT).exists():
    return None, None
  found = _arrays.load_arrays(out / CHECKPOINT, cast(chex.ArrayTree, like))
  state = cast(MetaTrainState, found)
  history = read_json(out / HISTORY, "the checkpoint beside it needs it")
  return state, _history_until(history, int(state.outer_step), out / HISTORY)


def load_history(out: pathlib.Path) -> History:
  """Reads what happened in a run up to its last validation.

  Raises:
    FileNotFoundError: if there is no run, or it had not come so far.
    ValueError: if the file is damaged.
  """
  found = read_json(out / HISTORY, "a run writes it at each validation")
  steps = found.get("validation_step") or [0]
  return _history_until(found, steps[-1], out / HISTORY)


def write_evaluation(
  evaluation: Evaluation,
  out: pathlib.Path,
  *,
  suffix: str = "",
  plots: bool = True,
  published: Published | None = None,
) -> None:
  """Writes an evaluation and its figure, with a suffix to their names."""
  json_path, figure_path = (
    (out / name).with_stem((out / name).stem + suffix) for name in (EVALUATION, LEARNING_CURVES)
  )
  write_json(json_path, evaluation.to_json())
  if plots:
    learning_curves_figure(evaluation, figure_path, published=published)


def read_evaluation(out: pathlib.Path) -> Evaluation | None:
  """Reads what `write_evaluation` has written, without a suffix; None if there is none.

  Raises:
    ValueError: if the file is damaged.
  """
  path = out / EVALUATION
  if not path.exists():
    return None
  try:
    return evaluation_from_json(read_json(path, "it has just been there"))
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{path} is damaged: it is not an evaluation ({error!r})") from error


def write_json(path: pathlib.Path, value: Any, indent: int | None = None) -> None:
  """Writes JSON values, the whole file or nothing."""
  with _arrays.atomic_write(path) as file:
    file.write((json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


def read_json(path: pathlib.Path, needed_because: str) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    FileNotFoundError: if there is none; it says why it is needed.
    ValueError: if the file is damaged.
  """
  try:
    value = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise FileNotFoundError(f"{path} does not exist: {needed_because}") from None
  except ValueError as error:
    raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path} is damaged: it does not hold a JSON object")
  return value


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
  """The leaves of nested JSON objects, by their dotted names; lists are leaves.

  Example:
    >>> from learned_opt._run_folder import flatten
    >>> dict(flatten({"a": {"b": 1, "c": [2, 3]}, "d": None}))
    {'a.b': 1, 'a.c': [2, 3], 'd': None}
  """
  if not isinstance(value, dict):
    yield name, value
    return
  for key, item in value.items():
    yield from flatten(item, f"{name}.{key}" if name else key)


def _is_taken(out: pathlib.Path) -> bool:
  if not out.is_dir():
    return out.exists() or os.path.islink(out)
  try:
    return any(out.iterdir())
  except PermissionError:
    return False  # Writing will say so.


def _check_same(found: Mapping[str, Any], config: Mapping[str, Any], out: pathlib.Path) -> None:
  old, new = dict(flatten(found)), dict(flatten(json.loads(json.dumps(config))))
  # What is not there counts as null: an older version did not know of it, and did without.
  differences = [
    f"{name} was {_show(old, name)} and is {_show(new, name)}"
    for name in {**old, **new}
    if old.get(name) != new.get(name)
  ]
  if differences:
    raise ValueError(
      f"{out} holds a run of another configuration, which cannot be resumed as this one: "
      f"{'; '.join(differences)}"
    )


def _show(values: Mapping[str, Any], name: str) -> str:
  return json.dumps(values[name]) if name in values else "not there"


def _history_until(found: Mapping[str, Any], outer_step: int, path: pathlib.Path) -> History:
  try:
    num_validations = sum(step <= outer_step for step in found["validation_step"])
    lengths = {
      **dict.fromkeys(("meta_loss", "meta_grad_norm", "num_diverged"), outer_step),
      **dict.fromkeys(("validation_step", "validation_loss", "seconds"), num_validations),
    }
    values = {name: found[name][:length] for name, length in lengths.items()}
  except (KeyError, TypeError) as error:
    raise ValueError(f"{path} is damaged: it is not the history of a run ({error!r})") from error
  for name, length in lengths.items():
    if len(values[name]) != length:
      raise ValueError(
        f"{path} is damaged: {name} has {len(values[name])} values, where the checkpoint beside it "
        f"has come to {length}"
      )
  return History(**{name: list(map(_number, numbers)) for name, numbers in values.items()})


def _number(value: float | None) -> Any:
  """JSON has no word for NaN, nor for the infinite, which come back as NaN."""
  return math.nan if value is None else value
