"""The card of an artifact: what a learned optimizer is and how it was made, as checked JSON.

A card is data. Its architecture is looked up by name among those of the library, and its sha256
covers all that it says, so that no changed digit goes unseen.
"""

import dataclasses
import datetime
import difflib
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import jax
import numpy as np

from learned_opt import optimizers
from learned_opt.base import LearnedOptimizer

FORMAT_VERSION = 1
ARRAY_FILE = re.compile(r"meta_params-[0-9a-f]{8}\.npz")

_FORMAT = "learned_opt artifact"
_FIELD_TYPES = {
  "architecture": dict,
  "meta_params": dict,
  "recipe": (dict, type(None)),
  "evaluation": (dict, list, type(None)),
  "limitations": list,
  "created": str,
  "git_commit": (str, type(None)),
  "versions": dict,
}


class ArtifactError(ValueError):
  """What is wrong with the files of a learned optimizer: they are damaged, foreign or too new."""


def make_card(
  learned_optimizer: LearnedOptimizer,
  sha256: str,
  num_meta_params: int,
  recipe: Mapping[str, Any] | None,
  evaluation: Mapping[str, Any] | list[Any] | None,
) -> dict[str, Any]:
  """The card of a learned optimizer whose weights lie in a file of the given sha256.

  Raises:
    ValueError: if the architecture is not part of the library.
    TypeError: if `recipe` or `evaluation` holds what cannot be made into JSON.
  """
  card = {
    "format": _FORMAT,
    "format_version": FORMAT_VERSION,
    "architecture": describe(learned_optimizer),
    "meta_params": {
      "file": f"meta_params-{sha256[:8]}.npz",
      "sha256": sha256,
      "number": num_meta_params,
    },
    "recipe": to_json(recipe, "recipe"),
    "evaluation": to_json(evaluation, "evaluation"),
    "limitations": [],
    "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "git_commit": _git_commit(),
    "versions": _versions(),
  }
  return _signed(card)


def annotated(
  card: Mapping[str, Any],
  limitations: Iterable[str] | None,
  evaluation: Mapping[str, Any] | list[Any] | None,
) -> dict[str, Any]:
  """The card with other words on where the optimizer fails, another evaluation, or both.

  Raises:
    TypeError: if the limitations are not strings, or the evaluation cannot be made into JSON.
    ValueError: if a limitation is empty, or there is neither.
  """
  if limitations is None and evaluation is None:
    raise ValueError("give limitations, an evaluation, or both")
  changes: dict[str, Any] = {}
  if limitations is not None:
    changes["limitations"] = _check_limitations(limitations)
  if evaluation is not None:
    changes["evaluation"] = to_json(evaluation, "evaluation")
  return _signed({**card, **changes})


def _check_limitations(limitations: Iterable[str]) -> list[str]:
  if isinstance(limitations, str):
    raise TypeError(f"limitations must be a list of sentences, got the string {limitations!r}")
  limitations = list(limitations)
  for one in limitations:
    if not isinstance(one, str):
      raise TypeError(f"limitations must be strings, got {one!r}")
    if not one.strip():
      raise ValueError("limitations must say something, got an empty one")
  return limitations


def read_card(path: pathlib.Path) -> dict[str, Any]:
  """Reads a card and checks that it says what it said when it was made.

  Raises:
    ArtifactError: if it does not, or is no card, or is one of a newer version.
  """
  try:
    card = json.loads(path.read_bytes())
  # Broken UTF-8 and numbers of thousands of digits are ValueErrors, and so is what is not JSON.
  except (ValueError, RecursionError) as error:
    raise ArtifactError(f"{path} is not JSON: it is damaged or truncated ({error})") from error
  if not isinstance(card, dict) or card.get("format") != _FORMAT:
    raise ArtifactError(f"{path} is not the card of a learned optimizer")
  version = card.get("format_version")
  if type(version) is not int or version != FORMAT_VERSION:
    raise ArtifactError(
      f"{path} has format version {version!r}, but this learned_opt reads version "
      f"{FORMAT_VERSION}: a newer learned_opt may read it"
    )
  if card.get("card_sha256") != _digest(card):
    raise ArtifactError(f"{path} is damaged, or was changed after it was saved: save it again")
  # Cards of earlier versions do not have it.
  card.setdefault("limitations", [])
  _check_fields(card, path)
  return card


def architecture_of(card: Mapping[str, Any]) -> LearnedOptimizer:
  """The architecture that a card describes.

  Raises:
    ArtifactError: if the library has no such architecture, or it has no such configuration.
  """
  name, config = card["architecture"].get("name"), card["architecture"].get("config")
  if not isinstance(name, str) or not isinstance(config, dict):
    raise ArtifactError("the architecture has no name and configuration")
  return make_architecture(name, _decode_fields(config))


def make_architecture(name: str, config: Mapping[str, Any]) -> LearnedOptimizer:
  """The architecture of that name, made with a configuration.

  Raises:
    ArtifactError: if the library has no such architecture, or it has no such configuration.
  """
  return _call(_find(name, _architectures(), "architecture"), config, name)


def with_num_steps(learned_optimizer: LearnedOptimizer, num_steps: int) -> LearnedOptimizer:
  """The same architecture, told for how many steps to plan, if it is one that plans.

  Raises:
    ArtifactError: if there cannot be so many steps.
  """
  name, config = learned_optimizer.name, learned_optimizer.config
  if name is None or config is None or "num_steps" not in config:
    return learned_optimizer
  return make_architecture(name, {**config, "num_steps": num_steps})


def template_of(learned_optimizer: LearnedOptimizer) -> chex.ArrayTree:
  """The structure, shapes and dtypes of the meta-params; computes nothing, on no device."""
  return jax.eval_shape(lambda: learned_optimizer.init(jax.random.key(0)))


def nearest(name: str, names: Iterable[str]) -> str:
  """A question that leads on from a misspelt name, or nothing.

  Example:
    >>> from learned_opt._card import nearest
    >>> nearest("lsmt", ["lstm", "adam"])
    " Do you mean 'lstm'?"
  """
  matches = difflib.get_close_matches(name, list(names), n=1)
  return f" Do you mean {matches[0]!r}?" if matches else ""


# --- Making a card.


def describe(learned_optimizer: LearnedOptimizer) -> dict[str, Any]:
  """The architecture as JSON values; `ValueError` if it could not be made again from them."""
  name, config = learned_optimizer.name, learned_optimizer.config
  if name not in _architectures() or config is None:
    raise ValueError(
      f"the architecture {name!r} is not part of learned_opt.optimizers, so that no saved file "
      "could find it again. Save the meta-params by other means, or add it to ARCHITECTURES"
    )
  described = {"name": name, "config": to_json(config, "config")}
  # What is written must be what is read: tuples are lists in JSON, and NaN is null.
  again = architecture_of({"architecture": json.loads(json.dumps(described))})
  if again.config != config:
    raise ValueError(
      f"the configuration of {name!r} would not come back as it was saved: {dict(config)} would "
      f"become {again.config}"
    )
  return described


def to_json(value: Any, where: str) -> Any:
  """JSON values; `TypeError`, naming where, for what has no such form."""
  if isinstance(value, np.generic | np.ndarray | jax.Array):
    value = np.asarray(value).tolist()
  if value is None or isinstance(value, bool | int | str):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    # `dataclasses.asdict` would forget the type.
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {"type": type(value).__name__, **to_json(fields, where)}
  if isinstance(value, Mapping):
    for key in value:
      if not isinstance(key, str):
        raise TypeError(f"{where} has the key {key!r}: the keys of JSON are strings")
    return {key: to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [to_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
  raise TypeError(
    f"{where} is a {type(value).__name__}: give JSON values, arrays or dataclasses of them"
  )


def _signed(card: Mapping[str, Any]) -> dict[str, Any]:
  return {**card, "card_sha256": _digest(card)}


def _digest(card: Mapping[str, Any]) -> str:
  """The sha256 of what the card says, however it is laid out."""
  content = {key: value for key, value in card.items() if key != "card_sha256"}
  text = json.dumps(content, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def _versions() -> dict[str, str]:
  # Here, because the package imports this module before it knows its own version.
  from learned_opt import __version__

  libraries = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "numpy")}
  return {"learned_opt": __version__, **libraries, "python": platform.python_version()}


def _git_commit() -> str | None:
  """The commit that this very file was checked out from, marked if files have changed since."""
  here = pathlib.Path(__file__).resolve()

  def git(*arguments: str) -> str:
    return subprocess.run(
      ["git", "-C", str(here.parent), *arguments],
      capture_output=True,
      check=True,
      text=True,
      timeout=10,
      env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    ).stdout.strip()

  try:
    # An installed package may lie inside of a repository, without being part of it.
    git("ls-files", "--error-unmatch", here.name)
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
  except (OSError, subprocess.SubprocessError):
    return None


# --- Reading a card.


def _check_fields(card: Mapping[str, Any], path: pathlib.Path) -> None:
  for field, types in _FIELD_TYPES.items():
    if not isinstance(card.get(field, ...), types):
      raise ArtifactError(f"{path} has no usable field {field!r}")
  file, sha256 = (card["meta_params"].get(field) for field in ("file", "sha256"))
  if not isinstance(file, str) or not ARRAY_FILE.fullmatch(file):
    raise ArtifactError(
      f"{path} names {file!r} as the file of the weights, which cannot be: they lie beside the "
      "card, in meta_params-<8 digits>.npz"
    )
  if not isinstance(sha256, str):
    raise ArtifactError(f"{path} has no sha256 of the weights")


def _architectures() -> dict[str, Callable[..., LearnedOptimizer]]:
  return {factory.__name__: factory for factory in optimizers.ARCHITECTURES}


def _config_types() -> dict[str, Callable[..., Any]]:
  """The dataclasses that a configuration may hold: those that users see beside the factories."""
  return {
    name: member
    for name, member in vars(optimizers).items()
    if isinstance(member, type) and dataclasses.is_dataclass(member)
  }


def _find(name: str, table: Mapping[str, Callable[..., Any]], kind: str) -> Callable[..., Any]:
  if name not in table:
    raise ArtifactError(
      f"the {kind} {name!r} is unknown.{nearest(name, table)} Known are: {', '.join(table)}"
    )
  return table[name]


def _call(function: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> Any:
  known = inspect.signature(function).parameters
  for key in arguments:
    if key not in known:
      raise ArtifactError(
        f"{name!r} has no argument {key!r}.{nearest(key, known)} Its arguments are: "
        f"{', '.join(known) or 'none'}"
      )
  try:
    return function(**arguments)
  except (TypeError, ValueError) as error:
    raise ArtifactError(f"{name!r} cannot be made with {dict(arguments)}: {error}") from error


def _decode(value: Any) -> Any:
  if isinstance(value, list):
    return tuple(map(_decode, value))
  if not isinstance(value, dict):
    return value
  if "type" not in value:
    return _decode_fields(value)
  name = str(value["type"])
  fields = _decode_fields({key: item for key, item in value.items() if key != "type"})
  return _call(_find(name, _config_types(), "configuration type"), fields, name)


def _decode_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
  return {key: _decode(value) for key, value in fields.items()}
