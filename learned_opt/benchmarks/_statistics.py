"""Numbers of several rounds, and what follows from two of them."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Summary(NamedTuple):
  """The median of some rounds, and their range."""

  median: float
  low: float
  high: float


def summarise(values: Sequence[float], factor: float = 1.0) -> Summary:
  """The median and range of at least one value, each times a factor.

  >>> summarise([3.0, 1.0, 2.0, 10.0], factor=1e3)
  Summary(median=2500.0, low=1000.0, high=10000.0)
  """
  scaled = [factor * value for value in values]
  return Summary(statistics.median(scaled), min(scaled), max(scaled))


def divide(numerator: float | None, denominator: float | None) -> float | None:
  """The quotient, None if a number is not known or the denominator is 0.

  >>> divide(1.0, 4.0), divide(None, 4.0), divide(1.0, 0.0)
  (0.25, None, None)
  """
  return numerator / denominator if numerator is not None and denominator else None


def add_ratios(
  rows: Sequence[dict[str, Any]], reference: str, key: str = "ratio", *, inverse: bool = False
) -> None:
  """Sets in each row how many times as fast it is as the reference path of the same case.

  >>> rows = [{"case": "a", "path": path, "milliseconds": ms} for path, ms in (("x", 6), ("y", 2))]
  >>> add_ratios(rows, reference="x")
  >>> [row["ratio"] for row in rows]
  [1.0, 3.0]

  Args:
    rows: with ``case``, ``path`` and ``milliseconds``; changed in place.
    reference: the path to which the others are compared.
    key: of the ratio.
    inverse: whether it tells how many times as slow it is.
  """
  known = {row["case"]: row["milliseconds"] for row in rows if row["path"] == reference}
  for row in rows:
    pair = known.get(row["case"]), row["milliseconds"]
    row[key] = divide(*(reversed(pair) if inverse else pair))
