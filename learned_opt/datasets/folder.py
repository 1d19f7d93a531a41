"""Images of one's own, from a folder."""

import importlib.util
import os
import pathlib

import numpy as np

_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


def load_images(folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Reads all images in a folder and the folders in it.

  Files are images if their names end in .jpeg, .jpg, .png or .webp, in capitals or not. They are
  converted to RGB; transparency is left out. Needs pillow.

  Args:
    folder: where they are.

  Returns:
    uint8 ``[height, width, 3]`` arrays of any sizes, by their paths in the folder, as
    ``"kodak/kodim01.png"``, in the order of these.

  Raises:
    ImportError: if pillow is missing.
    FileNotFoundError: if there is no such folder, or no image in it.
    ValueError: if an image cannot be read.

  Example:
    >>> import pathlib, tempfile
    >>> from PIL import Image
    >>> from learned_opt import datasets
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (5, 4), "red").save(folder / "red.png")
    >>> images = datasets.load_images(folder)
    >>> images["red.png"].shape, images["red.png"][0, 0].tolist()
    ((4, 5, 3), [255, 0, 0])
  """
  if importlib.util.find_spec("PIL") is None:
    raise ImportError("images need pillow: pip install 'learned_opt[data]'")
  root = pathlib.Path(folder).expanduser()
  if not root.is_dir():
    raise FileNotFoundError(f"{root} is no folder")
  found = {
    path.relative_to(root).as_posix(): path
    for path in root.rglob("*")
    if path.suffix.lower() in _SUFFIXES and path.is_file()
  }
  if not found:
    raise FileNotFoundError(f"{root} holds no images: files {', '.join(_SUFFIXES)}")
  return {name: _read(found[name]) for name in sorted(found)}


def _read(path: pathlib.Path) -> np.ndarray:
  from PIL import Image

  try:
    with Image.open(path) as image:
      return np.array(image.convert("RGB"))
  # Damaged files of the many formats make pillow raise many types.
  except Exception as error:
    raise ValueError(
      f"{path} cannot be read as an image ({type(error).__name__}: {error})"
    ) from error
