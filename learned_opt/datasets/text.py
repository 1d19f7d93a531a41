"""Text, as the numbers of its characters."""

import os
import pathlib

import numpy as np

from learned_opt.base import TextDataset

# Of the whole text: what comes before the validation split, and before the test split.
_TRAIN, _VALIDATION = 0.9, 0.95


def load_text(path: str | os.PathLike[str]) -> TextDataset:
  """Reads a text file and splits it: the first 90 % train, the next 5 % validation, the rest test.

  Characters are bytes, numbered in ascending order of those that occur; a letter outside of ASCII
  is as many characters as UTF-8 has bytes for it. The usual file is "tiny shakespeare" (Karpathy,
  2015), 1.1 MB with 65 different characters, from
  https://github.com/karpathy/char-rnn/blob/master/data/tinyshakespeare/input.txt.

  Args:
    path: of the file, any text.

  Returns:
    The data set; its arrays are numpy arrays.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: as of `text_of_bytes`.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt import datasets
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "fox.txt"
    >>> _ = path.write_text("the quick brown fox jumps over the lazy dog. " * 10)
    >>> text = datasets.load_text(path)
    >>> text.num_characters, len(text.train), bytes(text.vocabulary[text.train[:9]])
    (28, 405, b'the quick')
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise FileNotFoundError(
      f"there is no text file {path}: any will do, such as tiny shakespeare from "
      "https://github.com/karpathy/char-rnn"
    )
  return text_of_bytes(path.read_bytes())


def text_of_bytes(text: bytes) -> TextDataset:
  """As `load_text`, for a text at hand.

  Args:
    text: its bytes.

  Returns:
    The data set.

  Raises:
    ValueError: if it has fewer than 40 bytes, of which two would be left to test on.

  Example:
    >>> from learned_opt import datasets
    >>> datasets.text_of_bytes(b"abracadabra " * 4).vocabulary.tobytes()
    b' abcdr'
  """
  if len(text) < 40:
    raise ValueError(f"the text must have at least 40 bytes, got {len(text)}")
  vocabulary, numbers = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
  numbers = numbers.astype(np.uint8)
  ends = int(_TRAIN * len(text)), int(_VALIDATION * len(text))
  return TextDataset(*np.split(numbers, ends), vocabulary=vocabulary)


def markov_text(
  num_bytes: int = 200_000, num_characters: int = 32, order: int = 2, seed: int = 0
) -> TextDataset:
  """A text of a made-up language, which needs no download: a Markov chain over characters.

  Each context of `order` characters is followed by one of four, with probabilities drawn from a
  flat Dirichlet distribution for it; the entropy is then 13/12 nats a character on average, the
  least loss that there is.

  Args:
    num_bytes: the length of the text.
    num_characters: how many different ones there are, at least 4.
    order: of the chain; contexts, ``num_characters ** order``, are at most a million.
    seed: decides the language and the text.

  Returns:
    The data set, split as by `load_text`.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> from learned_opt import datasets
    >>> text = datasets.markov_text(1000, num_characters=8)
    >>> len(text.train), text.num_characters
    (900, 8)
  """
  if num_bytes < 40:
    raise ValueError(f"num_bytes must be at least 40, got {num_bytes}")
  if not 4 <= num_characters <= 256:
    raise ValueError(f"num_characters must be between 4 and 256, got {num_characters}")
  if order < 1 or num_characters**order > 10**6:
    raise ValueError(
      f"order must be at least 1 with at most a million contexts, got {order} for "
      f"{num_characters} characters"
    )
  rng = np.random.default_rng(seed)
  num_contexts = num_characters**order
  successors = np.argsort(rng.random((num_contexts, num_characters)), axis=1)[:, :4]
  edges = np.cumsum(rng.dirichlet(np.ones(4), num_contexts), axis=1)
  draws, context, numbers = rng.random(num_bytes), 0, np.zeros(num_bytes, np.uint8)
  for position, draw in enumerate(draws):
    choice = min(int(np.searchsorted(edges[context], draw)), 3)
    numbers[position] = successors[context, choice]
    context = (context * num_characters + int(numbers[position])) % num_contexts
  ends = int(_TRAIN * num_bytes), int(_VALIDATION * num_bytes)
  return TextDataset(*np.split(numbers, ends), vocabulary=np.arange(num_characters, dtype=np.uint8))
