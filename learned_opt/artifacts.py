"""Learned optimizers on disk: a folder with their weights, and a card that says what they are.

The folder holds ``card.json`` and ``meta_params-<8 digits>.npz``. The card names the file of the
weights and holds its sha256, so that replacing the card is the one moment at which an artifact
changes: whatever is interrupted, the old one or the new one is whole.

Nothing of an artifact is ever run: the card names an architecture of this library, its
configuration is plain data, and the weights are plain arrays.
"""

import contextlib
import hashlib
import importlib.resources
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import optax

from learned_opt import _arrays, _card, _published
from learned_opt._card import ArtifactError as ArtifactError
from learned_opt.base import LearnedOptimizer

_CARD = "card.json"
_TEMPORARY = re.compile(r"\.(card\.json|meta_params-[0-9a-f]{8}\.npz)\.[0-9a-f]+\.tmp")


class Artifact(NamedTuple):
  """A learned optimizer as it was saved.

  Attributes:
    learned_optimizer: the architecture.
    meta_params: its weights, numpy arrays.
    card: what the card says: ``architecture``, ``meta_params`` (their file, sha256 and number),
      ``recipe``, ``evaluation``, ``created``, ``git_commit``, ``versions``.
  """

  learned_optimizer: LearnedOptimizer
  meta_params: chex.ArrayTree
  card: dict[str, Any]


def save(
  path: str | os.PathLike[str],
  learned_optimizer: LearnedOptimizer,
  meta_params: chex.ArrayTree,
  *,
  recipe: Mapping[str, Any] | None = None,
  evaluation: Mapping[str, Any] | list[Any] | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Writes a learned optimizer to a folder, from which `load` makes an optax transformation.

  The card records, besides what is given here, the architecture and its configuration, the date,
  the versions of the libraries, and the git commit where learned_opt runs from a checkout.

  Args:
    path: the folder. It is made if need be, parents included.
    learned_optimizer: an architecture of `learned_opt.optimizers`.
    meta_params: its weights.
    recipe: how they were made: command, seed, horizon, problems trained on. JSON values;
      dataclasses, arrays and paths are made into such. Numbers that are not finite, for which
      JSON has no word, become null.
    evaluation: how good they are, a table of the same kind of values.
    overwrite: whether to replace an artifact that is there already. Files of other kinds are
      never touched.

  Returns:
    The folder.

  Raises:
    FileExistsError: if there is an artifact and not `overwrite`, or something else.
    ValueError: if the meta-params do not fit the architecture or are not finite, or if the
      architecture is not part of the library.
    TypeError: if `recipe` or `evaluation` holds what cannot be made into JSON.
    OSError: if the folder cannot be written; an artifact that was there is still whole.

  Example:
    >>> import pathlib, tempfile
    >>> import jax
    >>> import learned_opt
    >>> lstm = learned_opt.optimizers.lstm()
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "my-optimizer"
    >>> _ = learned_opt.save(path, lstm, lstm.init(jax.random.key(0)), recipe={"seed": 0})
    >>> learned_opt.load_artifact(path).card["recipe"]
    {'seed': 0}
  """
  folder = pathlib.Path(path)
  meta_params = jax.device_get(meta_params)
  _check_meta_params(learned_optimizer, meta_params)
  buffer = io.BytesIO()
  _arrays.write_arrays(buffer, meta_params)
  arrays = buffer.getvalue()
  card = _card.make_card(
    learned_optimizer,
    sha256=hashlib.sha256(arrays).hexdigest(),
    num_meta_params=sum(leaf.size for leaf in jax.tree.leaves(meta_params)),
    recipe=recipe,
    evaluation=evaluation,
  )
  try:
    _check_destination(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    _commit(folder, card, arrays)
  except FileExistsError:
    raise
  except OSError as error:
    raise OSError(
      error.errno,
      f"cannot save the learned optimizer to {folder}: {error.strerror or error}. Choose a folder "
      "that can be written",
    ) from error
  return folder


def annotate(
  path: str | os.PathLike[str],
  limitations: Iterable[str] | None = None,
  *,
  evaluation: Mapping[str, Any] | list[Any] | None = None,
) -> pathlib.Path:
  """Says in the card of a saved learned optimizer how good it is, or where it fails.

  What is given replaces what the card said of it before; the rest stays as it is.

  Args:
    path: the folder that `save` wrote, or its ``card.json``.
    limitations: where it fails, a sentence each, with the command that shows it.
    evaluation: how good it is, a table of JSON values; the `summary` of an `Evaluation` is one.

  Returns:
    The folder.

  Raises:
    FileNotFoundError: if there is no such folder.
    ArtifactError: a `ValueError` that says what is wrong with the files.
    ValueError: if a limitation is empty, or neither is given.
    TypeError: if the limitations are not strings, or the evaluation cannot be made into JSON.
    OSError: if the card cannot be written; the one that was there is still whole.

  Example:
    >>> import pathlib, tempfile
    >>> import jax
    >>> import learned_opt
    >>> lstm = learned_opt.optimizers.lstm()
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "my-optimizer"
    >>> _ = learned_opt.save(path, lstm, lstm.init(jax.random.key(0)))
    >>> _ = learned_opt.annotate(path, ["It was not trained: it solves nothing."])
    >>> learned_opt.load_artifact(path).card["limitations"]
    ['It was not trained: it solves nothing.']
  """
  path = pathlib.Path(path)
  folder = path.parent if path.name == _CARD else path
  if not (folder / _CARD).is_file():
    raise FileNotFoundError(f"there is no {_CARD} in {folder}: give the folder that save wrote")
  card = _card.annotated(_read(folder).card, limitations, evaluation)
  _write_card(folder, card)
  return folder


def load(
  name_or_path: str | os.PathLike[str], *, num_steps: int | None = None
) -> optax.GradientTransformationExtraArgs:
  """A learned optimizer, shipped, of your own or published, as an optax transformation.

  The weights are constants of the transformation, and no part of its state. Loading touches no
  device.

  Args:
    name_or_path: one of `pretrained_names`, the folder that `save` wrote, or its ``card.json``.
      A folder of that name goes before a shipped optimizer. Or a file of published weights, see
      `load_artifact`.
    num_steps: for how many steps an optimizer that plans its training is to plan, such as `velo`
      or `celo`; others have no use for it.

  Returns:
    The transformation. Like any other of optax's, it is used in `optax.chain`, under `jit`, ...

  Raises:
    FileNotFoundError: if there is no such name or folder.
    ArtifactError: a `ValueError` that says what is wrong with the files, or with `num_steps`.

  Example:
    >>> import pathlib, tempfile
    >>> import jax, jax.numpy as jnp
    >>> import learned_opt
    >>> lstm = learned_opt.optimizers.lstm()
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "my-optimizer"
    >>> _ = learned_opt.save(path, lstm, lstm.init(jax.random.key(0)))
    >>> tx = learned_opt.load(path)
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> updates["w"].shape
    (2, 3)
  """
  learned_optimizer, meta_params, _ = load_artifact(name_or_path)
  if num_steps is not None:
    learned_optimizer = _card.with_num_steps(learned_optimizer, num_steps)
  return learned_optimizer.optimizer(meta_params)


def load_artifact(name_or_path: str | os.PathLike[str]) -> Artifact:
  """A learned optimizer's architecture, weights and card: to judge it, or to train it further.

  Others publish weights as files of `flax.serialization`, such as Celo's ``theta.state``. Their
  architecture is recognised from the arrays; nothing but arrays is read.

  Args:
    name_or_path: as for `load`.

  Returns:
    The artifact.

  Raises:
    FileNotFoundError: if there is no such name or folder.
    ArtifactError: a `ValueError` that says what is wrong with the files.

  Example:
    >>> import pathlib, tempfile
    >>> import jax
    >>> import learned_opt
    >>> lstm = learned_opt.optimizers.lstm(hidden_size=5)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "my-optimizer"
    >>> _ = learned_opt.save(path, lstm, lstm.init(jax.random.key(0)))
    >>> artifact = learned_opt.load_artifact(path)
    >>> artifact.learned_optimizer.config == lstm.config, artifact.card["meta_params"]["number"]
    (True, 386)
  """
  if _is_published_file(name_or_path):
    return _read_published(name_or_path)
  folder = _local_folder(name_or_path)
  if folder is not None:
    return _read(folder)
  name = os.fspath(name_or_path)
  if name not in pretrained_names():
    raise FileNotFoundError(_not_found(name))
  with importlib.resources.as_file(_shipped() / name) as folder:
    return _read(folder)


def convert(
  source: str | os.PathLike[str],
  path: str | os.PathLike[str],
  *,
  config: Mapping[str, Any] | None = None,
  overwrite: bool = False,
) -> pathlib.Path:
  """Saves published weights as an artifact of this library, whose card says where they are from.

  Args:
    source: a file of `flax.serialization`; or an .npz file, whose arrays are named ``theta/`` and
      their path in the published tree, joined by ``|``.
    path: the folder, as for `save`.
    config: arguments of the architecture's factory that the arrays do not tell, where they differ
      from its defaults: ``{"output_scale": 1e-2}``.
    overwrite: as for `save`.

  Returns:
    The folder.

  Raises:
    FileNotFoundError: if there is no such file.
    ArtifactError: a `ValueError` that says what is wrong with the file or the configuration.
    FileExistsError: as of `save`.

  Example:
    >>> import learned_opt
    >>> learned_opt.convert("theta.state", "celo")  # doctest: +SKIP
    >>> tx = learned_opt.load("celo", num_steps=1000)  # doctest: +SKIP
  """
  if pathlib.Path(source).is_dir():
    raise ArtifactError(f"{os.fspath(source)} is a folder: give a file of published weights")
  published = _published.read(source, config)
  return save(
    path,
    published.learned_optimizer,
    published.meta_params,
    recipe=published.recipe,
    overwrite=overwrite,
  )


def pretrained_names() -> tuple[str, ...]:
  """The learned optimizers that are shipped with the library, for `load`.

  Example:
    >>> import learned_opt
    >>> for name in learned_opt.pretrained_names():
    ...   tx = learned_opt.load(name)
  """
  if not _shipped().is_dir():
    return ()
  return tuple(sorted(entry.name for entry in _shipped().iterdir() if (entry / _CARD).is_file()))


def _shipped() -> Traversable:
  return importlib.resources.files("learned_opt") / "pretrained"


def _read(folder: pathlib.Path) -> Artifact:
  card = _card.read_card(folder / _CARD)
  try:
    learned_optimizer = _card.architecture_of(card)
    template = _card.template_of(learned_optimizer)
  except (TypeError, ValueError) as error:
    raise ArtifactError(f"{folder / _CARD}: {error}") from error
  path = folder / card["meta_params"]["file"]
  try:
    meta_params = _arrays.load_arrays(path, template, sha256=card["meta_params"]["sha256"])
  except FileNotFoundError:
    raise ArtifactError(f"{path} is missing, and {_CARD} names it") from None
  except ValueError as error:
    raise ArtifactError(str(error)) from error
  return Artifact(learned_optimizer, meta_params, card)


def _is_published_file(name_or_path: str | os.PathLike[str]) -> bool:
  path = pathlib.Path(name_or_path)
  is_name = isinstance(name_or_path, str) and name_or_path in pretrained_names()
  return path.is_file() and path.name != _CARD and not is_name


def _read_published(path: str | os.PathLike[str]) -> Artifact:
  published = _published.read(path)
  card = _card.make_card(
    published.learned_optimizer,
    sha256=published.sha256,
    num_meta_params=sum(leaf.size for leaf in jax.tree.leaves(published.meta_params)),
    recipe=published.recipe,
    evaluation=None,
  )
  card["meta_params"]["file"] = pathlib.Path(path).name
  return Artifact(published.learned_optimizer, published.meta_params, card)


def _local_folder(name_or_path: str | os.PathLike[str]) -> pathlib.Path | None:
  """The folder that is meant, or None for a name."""
  path = pathlib.Path(name_or_path)
  if path.name == _CARD and path.is_file():
    return path.parent
  if (path / _CARD).is_file():
    return path
  is_name = isinstance(name_or_path, str) and not _has_separator(name_or_path)
  if is_name and (name_or_path in pretrained_names() or not path.exists()):
    return None
  if not path.exists():
    raise FileNotFoundError(_not_found(os.fspath(name_or_path)))
  if path.is_dir():
    raise ArtifactError(
      f"{path} has no {_CARD}: it is not the folder of a learned optimizer. {_hint_below(path)}"
    )
  raise ArtifactError(f"{path} is neither a folder nor a file")


def _has_separator(name: str) -> bool:
  return any(separator in name for separator in (os.sep, os.altsep) if separator)


def _hint_below(path: pathlib.Path) -> str:
  below = sorted(card.parent for card in path.glob(f"*/{_CARD}"))
  return f"Do you mean {below[0]}?" if below else "learned_opt.save writes one."


def _not_found(name: str) -> str:
  names = pretrained_names()
  shipped = f"shipped are: {', '.join(names)}" if names else "none are shipped"
  return (
    f"there is no learned optimizer {name!r}.{_card.nearest(name, names)} Give the folder that "
    f"learned_opt.save wrote, or a name; {shipped}"
  )


def _check_meta_params(learned_optimizer: LearnedOptimizer, meta_params: chex.ArrayTree) -> None:
  differences = _arrays.differences(meta_params, _card.template_of(learned_optimizer))
  if differences:
    raise ValueError(f"meta_params do not fit the architecture: {'; '.join(differences)}")
  for path, leaf in jax.tree_util.tree_leaves_with_path(meta_params):
    if not np.all(np.isfinite(leaf)):
      raise ValueError(f"meta_params{jax.tree_util.keystr(path)} is not finite")


def _check_destination(folder: pathlib.Path, overwrite: bool) -> None:
  if not folder.exists():
    return
  if not folder.is_dir():
    raise FileExistsError(f"{folder} is a file: a learned optimizer is saved as a folder")
  names = sorted(entry.name for entry in folder.iterdir())
  if _CARD in names:
    _check_replaceable(folder, overwrite)
    return
  others = [name for name in names if not _is_left_over(name)]
  if others:
    shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    raise FileExistsError(
      f"{folder} is not empty and holds no learned optimizer, but {shown}: choose another folder, "
      f"for example {folder / 'optimizer'}"
    )


def _check_replaceable(folder: pathlib.Path, overwrite: bool) -> None:
  if not overwrite:
    raise FileExistsError(
      f"{folder} holds a learned optimizer already: choose another folder, or overwrite=True"
    )
  try:
    _card.read_card(folder / _CARD)
  except ArtifactError as error:
    raise FileExistsError(f"{error}. It is not overwritten: delete it first") from error


def _is_left_over(name: str) -> bool:
  """Whether this may be of an interrupted `save`."""
  return bool(_card.ARRAY_FILE.fullmatch(name) or _TEMPORARY.fullmatch(name))


def _commit(folder: pathlib.Path, card: Mapping[str, Any], arrays: bytes) -> None:
  array_file = card["meta_params"]["file"]
  with _arrays.atomic_write(folder / array_file) as file:
    file.write(arrays)
  _write_card(folder, card)
  for entry in folder.iterdir():
    if _is_left_over(entry.name) and entry.name != array_file:
      # What cannot be deleted now, because it is being read, the next save deletes.
      with contextlib.suppress(OSError):
        entry.unlink()


def _write_card(folder: pathlib.Path, card: Mapping[str, Any]) -> None:
  with _arrays.atomic_write(folder / _CARD) as file:
    file.write((json.dumps(card, indent=2) + "\n").encode())
