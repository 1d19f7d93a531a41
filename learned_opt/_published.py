"""Files of weights that others published, as learned optimizers of this library."""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex

from learned_opt import _arrays, _card, _flax_state
from learned_opt.base import LearnedOptimizer
from learned_opt.optimizers import _published

# By sha256, what is known of files that many have.
_KNOWN = {
  "35683c6123069c101d62ec1f8b2e6d70d50a43e67ebe09953b27620a7dcb836b": {
    "name": "celo",
    "source": "https://github.com/amoudgl/celo",
    "paper": "Moudgil et al. (2025), Celo, arXiv:2501.12670",
    "license": "MIT",
  },
  "99c65fa0218a739c32eac4e8a99523b6fed92e2926d0c5d64e83835637b75d38": {
    "name": "celo_adam",
    "source": "https://github.com/amoudgl/celo",
    "paper": "Moudgil et al. (2025), Celo, arXiv:2501.12670",
    "license": "MIT",
  },
}


class Published(NamedTuple):
  """What a published file is here.

  Attributes:
    learned_optimizer: the architecture.
    meta_params: its weights, float32 numpy arrays.
    recipe: for the card: where they come from.
    sha256: of the file.
  """

  learned_optimizer: LearnedOptimizer
  meta_params: chex.ArrayTree
  recipe: dict[str, Any]
  sha256: str


def read(path: str | os.PathLike[str], config: Mapping[str, Any] | None = None) -> Published:
  """Reads a file of published weights; the architecture is recognised from its arrays.

  Args:
    path: a file of `flax.serialization`, or an .npz file with the arrays ``theta/a|b``.
    config: arguments of the architecture's factory that the arrays do not tell, such as
      ``output_scale``, where they differ from its defaults.

  Returns:
    The learned optimizer.

  Raises:
    ArtifactError: if the file is damaged, or of no known architecture with such a configuration.
    FileNotFoundError: if there is no such file.
  """
  content = pathlib.Path(path).read_bytes()
  is_npz = content.startswith(b"PK")
  try:
    tree = _flax_state.read_npz(path) if is_npz else _unwrap(_flax_state.read_state(path))
    name, sizes, meta_params = _published.from_published(tree)
  except ValueError as error:
    where = "" if os.fspath(path) in str(error) else f"{os.fspath(path)}: "
    raise _card.ArtifactError(f"{where}{error}") from error
  learned_optimizer = _card.make_architecture(name, {**sizes, **(config or {})})
  differences = _arrays.differences(meta_params, _card.template_of(learned_optimizer))
  if differences:
    raise _card.ArtifactError(f"{os.fspath(path)} does not fit: {'; '.join(differences)}")
  sha256 = hashlib.sha256(content).hexdigest()
  known = _KNOWN.get(sha256, {"name": name})
  converted = {
    "file": pathlib.Path(path).name,
    "format": "npz" if is_npz else "flax msgpack",
    "sha256": sha256,
  }
  return Published(learned_optimizer, meta_params, {**known, "converted_from": converted}, sha256)


def _unwrap(tree: Mapping[str, Any]) -> Mapping[str, Any]:
  """The weights alone: checkpoints of meta-training have a generation and a step beside them."""
  for name in ("params", "0"):
    if isinstance(tree.get(name), Mapping):
      return tree[name]
  return tree
