"""Files of `flax.serialization`, in which others publish weights, read as arrays and nothing else.

Such a file is msgpack: maps with strings as keys, whose leaves are arrays in an extension type,
``[shape, name of the dtype, bytes]``. Whatever else a msgpack file may hold is refused. No size
that a file claims is believed before it is compared with the bytes that are there. The package
msgpack comes with Flax, which writes with it.
"""

import math
import os
import pathlib
from typing import Any

import jax
import msgpack
import numpy as np

_MAX_BYTES = 2**30
_MAX_DEPTH = 16
# The codes of Flax's extension types: arrays, and numpy's scalars in the same form.
_ARRAY, _SCALAR = 1, 3
_DTYPES = ("float16", "float32", "float64", "int32", "int64")


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads the tree of arrays in a file of `flax.serialization.to_bytes`.

  Args:
    path: the file.

  Returns:
    Nested dicts of numpy arrays; numbers and texts that stand beside them are left as they are.

  Raises:
    ValueError: if the file is damaged, too large, or holds what is no array.
    FileNotFoundError: if there is no such file.

  Example:
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from flax import serialization
    >>> from learned_opt._flax_state import read_state
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "theta.state"
    >>> _ = path.write_bytes(serialization.to_bytes({"nn": {"b0": np.ones(2, np.float32)}}))
    >>> read_state(path)
    {'nn': {'b0': array([1., 1.], dtype=float32)}}
  """
  size = os.stat(path).st_size
  if size > _MAX_BYTES:
    raise ValueError(f"{os.fspath(path)} has {size:,} bytes, more than weights have")
  try:
    tree = msgpack.unpackb(pathlib.Path(path).read_bytes(), ext_hook=_array, strict_map_key=True)
    _check_tree(tree)
  # msgpack has no common type for what a damaged file makes it raise.
  except (ValueError, TypeError, msgpack.UnpackException) as error:
    raise ValueError(
      f"{os.fspath(path)} is not a file of weights in Flax's msgpack: it is damaged, truncated or "
      f"of another kind ({type(error).__name__}: {error})"
    ) from error
  return tree


def read_npz(path: str | os.PathLike[str], prefix: str = "theta/") -> dict[str, Any]:
  """Reads a tree of arrays from an .npz file whose names are ``<prefix>a|b``; nothing is unpickled.

  Args:
    path: the file.
    prefix: of the names that belong to the tree; others are left out.

  Returns:
    Nested dicts of numpy arrays.

  Raises:
    ValueError: if the file is damaged or has no such arrays.
    FileNotFoundError: if there is no such file.

  Example:
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from learned_opt._flax_state import read_npz
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "theta.npz"
    >>> np.savez(path, **{"theta/nn|~|b0": np.ones(2), "loss": 3.0})
    >>> read_npz(path)
    {'nn': {'~': {'b0': array([1., 1.])}}}
  """
  with open(path, "rb") as file:
    try:
      with np.load(file, allow_pickle=False) as archive:
        flat = {name: archive[name] for name in archive.files if name.startswith(prefix)}
    # zipfile and numpy have no common type for what a damaged file makes them raise.
    except Exception as error:
      raise ValueError(
        f"{os.fspath(path)} is not a readable .npz file of plain arrays ({error})"
      ) from error
  if not flat:
    raise ValueError(f"{os.fspath(path)} has no arrays whose names begin with {prefix!r}")
  tree: dict[str, Any] = {}
  for name, array in flat.items():
    *path_to, last = name.removeprefix(prefix).split("|")
    node = tree
    for part in path_to:
      node = node.setdefault(part, {})
    node[last] = array
  return tree


def _array(code: int, data: bytes) -> np.ndarray:
  if code not in (_ARRAY, _SCALAR):
    raise ValueError(f"it holds an extension type of code {code}, which is no array")
  header = msgpack.unpackb(data, ext_hook=_no_extension)
  if not (isinstance(header, list) and len(header) == 3):
    raise ValueError("an array does not consist of a shape, a dtype and bytes")
  shape, dtype, content = header
  if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
    raise ValueError(f"an array has the shape {shape!r}")
  if dtype not in _DTYPES:
    raise ValueError(f"an array has the dtype {dtype!r}; there may be {', '.join(_DTYPES)}")
  if not isinstance(content, bytes):
    raise ValueError(f"the content of an array is a {type(content).__name__}")
  itemsize = np.dtype(dtype).itemsize
  if math.prod(shape) * itemsize != len(content):
    raise ValueError(f"an array of {dtype}{shape} has {len(content)} bytes")
  # Flax writes the bytes as they lie in memory, which is little-endian wherever JAX runs.
  return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)


def _no_extension(code: int, data: bytes) -> None:
  del data
  raise ValueError(f"an array holds an extension type of code {code}")


def _check_tree(tree: Any) -> None:
  if not isinstance(tree, dict):
    raise ValueError(f"it holds a {type(tree).__name__} and no tree of arrays")
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  if not leaves:
    raise ValueError("it holds no array")
  for path, leaf in leaves:
    where = jax.tree_util.keystr(path, simple=True, separator="/")
    if len(path) > _MAX_DEPTH:
      raise ValueError(f"it has more than {_MAX_DEPTH} levels")
    if not isinstance(leaf, np.ndarray | str | int):
      raise ValueError(f"{where} is a {type(leaf).__name__} and no array")
