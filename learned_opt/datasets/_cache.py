"""The decoded images of a prepared data set, kept beside it: decoding takes ten seconds, this none.

A cache is only ever a shortcut. One that is missing, foreign, damaged or older than the prepared
files is as good as none, and a folder that cannot be written to goes without.
"""

import contextlib
import json
import pathlib
import uuid
import zipfile

import numpy as np

_NAME = "learned_opt_cache.npz"
_FORMAT = 1


def read(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
  """The arrays that `write` kept for what is now in `folder`, or None.

  Args:
    folder: the folder of a prepared data set.

  Returns:
    Images and labels by split.
  """
  # Zip archives carry checksums: a flipped bit raises BadZipFile.
  with (
    contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
    (folder / _NAME).open("rb") as file,  # np.load itself leaves a damaged file open.
    np.load(file, allow_pickle=False) as arrays,
  ):
    if arrays["fingerprint"].item() == _fingerprint(folder):
      return {
        split: (arrays[f"{split}_images"], arrays[f"{split}_labels"])
        for split in arrays["splits"].tolist()
      }
  return None


def write(folder: pathlib.Path, splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
  """Keeps the arrays in `folder`; another process sees all of them or none.

  Args:
    folder: the folder of a prepared data set.
    splits: images and labels by split.
  """
  arrays = {"fingerprint": np.array(_fingerprint(folder)), "splits": np.array(list(splits))}
  for split, (images, labels) in splits.items():
    arrays |= {f"{split}_images": images, f"{split}_labels": labels}
  temporary = folder / f"{_NAME}.{uuid.uuid4().hex}.tmp"
  with contextlib.suppress(OSError):
    try:
      with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
      temporary.replace(folder / _NAME)
    finally:
      temporary.unlink(missing_ok=True)


def _fingerprint(folder: pathlib.Path) -> str:
  """Changes with the names, sizes and times of the prepared files."""
  files = [
    (path.name, path.stat().st_size, path.stat().st_mtime_ns)
    for path in sorted(folder.iterdir())
    if not path.name.startswith(_NAME)
  ]
  return json.dumps([_FORMAT, files])
