"""The rate of matrix products by the dtype of their operands."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from learned_opt.benchmarks import _names, _processes, _report, _statistics

REFERENCE = "float32"
PRODUCT_PATHS = (REFERENCE, "bfloat16")

# Rows, inner size and columns: the product that others are compared with, and that of a layer of
# the LSTM for a block of coordinates.
_SIZES = ((1024, 1024, 1024), (80, 20, 256))


def products(
  *,
  paths: Sequence[str] | None = None,
  rounds: int = 5,
  device: str | None = None,
  on_progress: Callable[[str], None] | None = None,
) -> _report.Report:
  """Measures whether products of narrow operands pay: on one device, that is on a CPU one core.

  The cases are products of 1,024 x 1,024 matrices, and those of one layer of the LSTM, 80 x 20 by
  20 x 256, one after the other. The paths are ``"float32"``, the reference, and ``"bfloat16"``:
  operands of that dtype, sums in float32.

  Args:
    paths: some of the above; None means all.
    rounds: repetitions of each, in turn.
    device: see `meta_gradient`.
    on_progress: is told how the work goes on.

  Returns:
    One row for each case and path; its ``gflops`` are what counts.

  Raises:
    ValueError: if a path is unknown, or there are no rounds.

  Example:
    >>> from learned_opt import benchmarks
    >>> report = benchmarks.products(rounds=3)  # doctest: +SKIP
    >>> benchmarks.products(rounds=0)
    Traceback (most recent call last):
      ...
    ValueError: rounds must be at least 1, got 0
  """
  paths = PRODUCT_PATHS if paths is None else tuple(paths)
  _names.check_names("path", paths, PRODUCT_PATHS)
  _names.check_rounds(rounds)
  date = _report.now()
  names = [("x".join(map(str, sizes)), path) for sizes in _SIZES for path in paths]
  specifications: dict[str, Mapping[str, Any]] = {
    f"{case}, {path}": {
      "task": "products",
      "cores": True,
      "device": device,
      "sizes": [int(size) for size in case.split("x")],
      "dtype": path,
    }
    for case, path in names
  }
  measured = _processes.take_turns(specifications, rounds, on_progress or (lambda words: None))
  rows = [_row(*name, one) for name, one in zip(names, measured.values(), strict=True)]
  _statistics.add_ratios(rows, REFERENCE)
  facts = [one.facts for one in measured.values()]
  return _report.Report(_report.describe_device(facts), date, rows)


def _row(case: str, path: str, measured: _processes.Measured) -> dict[str, Any]:
  row = _report.new_row(case, path, measured, devices=1)
  milliseconds, flops = row["milliseconds"], measured.facts.get("flops")
  return row | {"gflops": _statistics.divide(flops, milliseconds and milliseconds * 1e6)}
