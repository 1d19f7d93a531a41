"""Names that a user typed, checked."""

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, names: Iterable[str]) -> str:
  """What is said of a name that there is not.

  >>> unknown("case", "mnits", ("mnist", "quadratic"))
  "unknown case 'mnits': did you mean 'mnist'? There are mnist, quadratic."
  """
  names = tuple(names)
  near = difflib.get_close_matches(name.lower(), names, n=1)
  hint = f"did you mean {near[0]!r}? " if near else ""
  return f"unknown {what} {name!r}: {hint}There are {', '.join(names)}."


def check_names(what: str, chosen: Iterable[str], names: Iterable[str]) -> None:
  """Raises `ValueError` if one is not among the names, or none is chosen."""
  chosen, names = tuple(chosen), tuple(names)
  if not chosen:
    raise ValueError(f"choose at least one {what} of {', '.join(names)}")
  for name in chosen:
    if name not in names:
      raise ValueError(unknown(what, name, names))


def check_rounds(rounds: int) -> None:
  """Raises `ValueError` if there is not even one."""
  if rounds < 1:
    raise ValueError(f"rounds must be at least 1, got {rounds}")
