"""Trees of arrays on disk: .npz files that are never pickles, never half written, and checked.

A leaf is a member of the archive, named by its path in the tree. What the .npy format does not
know is marked at the end of the name: ``w|bfloat16`` holds the bits of a bfloat16 array, and
``key|threefry2x32`` the words of typed PRNG keys.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import secrets
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

Path = str | os.PathLike[str]


class _Header(NamedTuple):
  """What is known of an array before its data are read."""

  shape: tuple[int, ...]
  dtype: np.dtype

  def __str__(self) -> str:
    return f"{self.dtype.name}{list(self.shape)}"


def save_arrays(path: Path, tree: chex.ArrayTree) -> str:
  """Writes a tree of arrays to an .npz file, all of it or nothing.

  The data go to a temporary file in the same folder, which takes the place of `path` when they
  are on the disk. Equal trees give equal bytes.

  Args:
    path: the file; one that exists is replaced.
    tree: any pytree of arrays of any dtypes, typed PRNG keys included.

  Returns:
    The sha256 of the file, in hexadecimal.

  Raises:
    TypeError: if a leaf is not an array.
    ValueError: if two leaves have the same name, as in ``{"a/b": x, "a": {"b": y}}``.
    OSError: if the file cannot be written; `path` is then as it was.

  Example:
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from learned_opt._arrays import load_arrays, save_arrays
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "arrays.npz"
    >>> digest = save_arrays(path, {"layer": {"w": np.ones((2, 3), np.float32)}})
    >>> np.load(path).files
    ['layer/w']
    >>> load_arrays(path, {"layer": {"w": np.zeros((2, 3), np.float32)}}, sha256=digest)
    {'layer': {'w': array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)}}
  """
  with atomic_write(path) as file:
    write_arrays(file, tree)
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def load_arrays(path: Path, like: chex.ArrayTree, *, sha256: str | None = None) -> chex.ArrayTree:
  """Reads a tree that `save_arrays` wrote, and checks that it is the one expected.

  Args:
    path: the file.
    like: a tree of arrays, or of `jax.ShapeDtypeStruct`, with the structure, shapes and dtypes
      that the file must have.
    sha256: what the digest of the file must be, in hexadecimal; None if it is not known. Without
      it, a changed file may go unseen.

  Returns:
    The tree, of numpy arrays: no device is chosen. Typed PRNG keys are jax arrays.

  Raises:
    ValueError: if the file is damaged, is no .npz file of plain arrays, or has other arrays than
      `like`. All differences are named.
    FileNotFoundError: if there is no such file.
  """
  leaves, treedef = jax.tree.flatten(like)
  expected = _named_leaves(like)
  with open(path, "rb") as file:
    if sha256 is not None:
      _check_digest(file, path, sha256)
    with _unreadable_as_value_error(path):
      archive = zipfile.ZipFile(file)
    with archive:
      with _unreadable_as_value_error(path):
        found = {name: _read_header(archive, name) for name in _array_names(archive)}
      differences = _differences(
        {name: _stored_header(leaf) for name, leaf in expected.items()}, found
      )
      if differences:
        raise ValueError(f"{os.fspath(path)} does not fit: {'; '.join(differences)}")
      with _unreadable_as_value_error(path):
        arrays = [_read_array(archive, name) for name in expected]
  return treedef.unflatten(
    _restore(array, leaf) for array, leaf in zip(arrays, leaves, strict=True)
  )


def differences(tree: chex.ArrayTree, like: chex.ArrayTree) -> list[str]:
  """How the names, shapes and dtypes of a tree differ from those of another, in words.

  Example:
    >>> import numpy as np
    >>> from learned_opt._arrays import differences
    >>> differences({"w": np.zeros(2)}, {"w": np.zeros(3), "b": np.zeros(1)})
    ['b is missing', 'w is float64[2] instead of float64[3]']
  """
  expected, found = _named_leaves(like), _named_leaves(tree)
  return _differences(
    {name: _stored_header(leaf) for name, leaf in expected.items()},
    {name: _stored_header(leaf) for name, leaf in found.items()},
  )


def write_arrays(file: IO[bytes], tree: chex.ArrayTree) -> None:
  """Writes a tree of arrays in the form of `save_arrays` to an open binary file."""
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
    for name, leaf in _named_leaves(tree).items():
      # A ZipInfo made by hand has a fixed date; the archive would otherwise hold the time.
      with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, _stored(leaf), allow_pickle=False)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[io.BufferedRandom]:
  """A binary file that takes the place of `path` when the block ends without an error.

  Until then, and after an error, `path` is as it was. The temporary file beside it, whose name
  begins with a dot and ends in ``.tmp``, is left behind only if the process is killed.

  Args:
    path: the file; its folder must exist.

  Yields:
    The file, open for writing and reading.

  Raises:
    OSError: if it cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt._arrays import atomic_write
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic_write(path) as file:
    ...   _ = file.write(b"done")
    >>> path.read_bytes()
    b'done'
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
  try:
    with open(temporary, "xb+") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise
  _sync_folder(path.parent)


def sha256_of(path: Path) -> str:
  """The sha256 of a file, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: pathlib.Path) -> None:
  """Makes a rename last through a power cut, where the system can."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _named_leaves(tree: chex.ArrayTree) -> dict[str, jax.Array]:
  named = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    where = jax.tree_util.keystr(path)
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
      raise TypeError(f"the leaf {where} is a {type(leaf).__name__}, not an array")
    name = jax.tree_util.keystr(path, simple=True, separator="/") or "array"
    mark = _mark(leaf)
    name = f"{name}|{mark}" if mark else name
    if name in named:
      raise ValueError(f"two leaves of the tree have the name {name!r}: rename one of them")
    named[name] = leaf
  return named


def _is_key(leaf: chex.Array) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_foreign(dtype: np.dtype) -> bool:
  """Whether numpy knows the dtype only through an extension, as it does bfloat16."""
  # Of plain arrays that were read from a file it is 0 or 1.
  return dtype.isbuiltin == 2


def _mark(leaf: chex.Array) -> str:
  if _is_key(leaf):
    return str(_key_impl(leaf))
  return leaf.dtype.name if _is_foreign(np.dtype(leaf.dtype)) else ""


def _key_impl(leaf: chex.Array):
  # Under `eval_shape` abstract keys have an implementation, too.
  found = []
  jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), leaf)
  return found[0]


def _bits(dtype: np.dtype) -> np.dtype:
  return np.dtype(f"u{dtype.itemsize}")


def _stored(leaf: chex.Array) -> np.ndarray:
  """The plain numpy array that stands for a leaf in the file."""
  if _is_key(leaf):
    return np.asarray(jax.random.key_data(leaf))
  array = np.asarray(leaf)
  return array.view(_bits(array.dtype)) if _is_foreign(array.dtype) else array


def _restore(array: np.ndarray, like: chex.Array) -> chex.Array:
  if _is_key(like):
    return jax.random.wrap_key_data(jnp.asarray(array), impl=_key_impl(like))
  return array.view(like.dtype) if _is_foreign(np.dtype(like.dtype)) else array


def _stored_header(leaf: chex.Array) -> _Header:
  if _is_key(leaf):
    words = jax.eval_shape(jax.random.key_data, leaf)
    return _Header(words.shape, np.dtype(words.dtype))
  dtype = np.dtype(leaf.dtype)
  return _Header(tuple(leaf.shape), _bits(dtype) if _is_foreign(dtype) else dtype)


def _differences(expected: dict[str, _Header], found: dict[str, _Header]) -> list[str]:
  lines = []
  for name, header in expected.items():
    if name not in found:
      lines.append(f"{name} is missing")
    elif found[name].dtype.hasobject:
      lines.append(f"{name} holds Python objects, which could run code")
    elif str(found[name]) != str(header):
      lines.append(f"{name} is {found[name]} instead of {header}")
  lines.extend(
    f"{name} ({header}) is not expected" for name, header in found.items() if name not in expected
  )
  return lines


def _check_digest(file: io.BufferedReader, path: Path, sha256: str) -> None:
  digest = hashlib.file_digest(file, "sha256").hexdigest()
  if digest != sha256:
    raise ValueError(
      f"{os.fspath(path)} is damaged, or is another file than the one that was saved: its sha256 "
      f"is {digest}, not {sha256}"
    )
  file.seek(0)


@contextlib.contextmanager
def _unreadable_as_value_error(path: Path) -> Iterator[None]:
  try:
    yield
  # zipfile and numpy have no common type for what a damaged file makes them raise.
  except Exception as error:
    raise ValueError(
      f"{os.fspath(path)} is not a readable .npz file of plain arrays: it is damaged, truncated "
      f"or of another kind ({type(error).__name__}: {error})"
    ) from error


def _array_names(archive: zipfile.ZipFile) -> list[str]:
  members = archive.namelist()
  if len(set(members)) != len(members):
    raise ValueError("it has two members of the same name")
  for member in members:
    if not member.endswith(".npy"):
      raise ValueError(f"its member {member!r} is not an array")
  return [member.removesuffix(".npy") for member in members]


def _read_header(archive: zipfile.ZipFile, name: str) -> _Header:
  """Reads the header alone: what a file claims is checked before memory is taken for it."""
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  with archive.open(f"{name}.npy") as member:
    version = np.lib.format.read_magic(member)
    if version not in readers:
      raise ValueError(f"{name} has version {version} of the .npy format")
    shape, _, dtype = readers[version](member)
  return _Header(shape, dtype)


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
  with archive.open(f"{name}.npy") as member:
    array = np.lib.format.read_array(member, allow_pickle=False)
    # Reading past the end is also what makes zipfile compare the checksum.
    if member.read(1):
      raise ValueError(f"{name} has more data than its shape says")
  return np.asarray(array, array.dtype.newbyteorder("="))
