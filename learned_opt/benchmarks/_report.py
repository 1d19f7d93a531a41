"""The outcome of a benchmark, and how its rows are shown."""

import datetime
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from learned_opt.benchmarks._processes import Measured
from learned_opt.benchmarks._statistics import divide, summarise

# What every row has; None where it is not known or makes no sense.
KEYS = (
  *("case", "path", "milliseconds", "low", "high", "rounds", "ratio"),
  *("coordinates", "coordinate_steps_per_second", "gflops", "matmul_gflops", "share"),
  *("compile_seconds", "peak_bytes", "state_bytes", "planned_bytes"),
  *("devices", "data", "error"),
)

# Of a table, and the keys with factors to the units in the headings.
_COLUMNS: dict[str, tuple[str, float | None]] = {
  "case": ("case", None),
  "path": ("path", None),
  "devices": ("devices", None),
  "milliseconds": ("ms", 1.0),
  "low": ("min", 1.0),
  "high": ("max", 1.0),
  "ratio": ("times as fast", 1.0),
  "times_adam": ("times Adam", 1.0),
  "milliseconds_per_million": ("ms per million", 1.0),
  "outer_steps_per_second": ("outer steps/s", 1.0),
  "coordinate_steps_per_second": ("M steps/s", 1e-6),
  "gflops": ("GFLOP/s", 1.0),
  "matmul_gflops": ("products", 1.0),
  "share": ("share %", 100.0),
  "gigabytes_per_second": ("GB/s", 1.0),
  "compile_seconds": ("compile s", 1.0),
  "peak_bytes": ("peak MB", 1e-6),
  "state_bytes": ("state MB", 1e-6),
  "planned_bytes": ("planned MB", 1e-6),
  "temporary_share": ("temporary %", 100.0),
  "rounds": ("rounds", None),
  "data": ("data", None),
  "error": ("error", None),
}


class Report(NamedTuple):
  """A table of measurements.

  Attributes:
    device: on which, and with which JAX.
    date: when they were begun, UTC, ISO 8601.
    rows: each has the keys of `KEYS`, and more by benchmark.
  """

  device: str
  date: str
  rows: list[dict[str, Any]]

  def to_json(self) -> dict[str, Any]:
    """As JSON values.

    Example:
      >>> from learned_opt import benchmarks
      >>> benchmarks.Report("2 x CPU", "2026-01-01", []).to_json()
      {'device': '2 x CPU', 'date': '2026-01-01', 'rows': []}
    """
    return self._asdict()

  def cells(self) -> tuple[list[str], list[list[str]]]:
    """Headings, and the cells of each row; columns in which all is unknown are left out.

    Example:
      >>> from learned_opt import benchmarks
      >>> row = {"case": "mnist", "milliseconds": 12.345, "peak_bytes": 2e6, "error": None}
      >>> benchmarks.Report("2 x CPU", "2026-01-01", [row]).cells()
      (['case', 'ms', 'peak MB'], [['mnist', '12.3', '2']])
    """
    keys = [key for key in _COLUMNS if any(row.get(key) is not None for row in self.rows)]
    return [_COLUMNS[key][0] for key in keys], [
      [_cell(row.get(key), _COLUMNS[key][1]) for key in keys] for row in self.rows
    ]

  def to_markdown(self) -> str:
    """The device, the date and a table.

    Example:
      >>> from learned_opt import benchmarks
      >>> row = {"case": "mnist", "path": "autodiff", "milliseconds": 1234.5}
      >>> print(benchmarks.Report("2 x CPU", "2026-01-01", [row]).to_markdown())
      2 x CPU; 2026-01-01
      <BLANKLINE>
      | case | path | ms |
      |---|---|---:|
      | mnist | autodiff | 1,234 |
    """
    headings, rows = self.cells()
    left = {name for name, factor in _COLUMNS.values() if factor is None}
    rule = "".join("|---" if heading in left else "|---:" for heading in headings)
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return "\n".join([f"{self.device}; {self.date}", "", lines[0], f"{rule}|", *lines[1:]])


def now() -> str:
  """The date and time, UTC, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def describe_device(facts: Iterable[Mapping[str, Any]]) -> str:
  """The device in words, of the first facts that name one."""
  known = next((one for one in facts if "device" in one), None)
  if known is None:
    return "unknown"
  if known["platform"] != "cpu":
    return f"{known['device']}, JAX {known['jax']}"
  return f"{describe_cpu()}, JAX {known['jax']}"


def describe_cpu() -> str:
  """The processor's name, and how many cores this process may use."""
  info = pathlib.Path("/proc/cpuinfo")
  match = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.exists() else "", re.M)
  usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
  return f"{len(usable(0))} x {match[1].strip() if match else 'CPU'}"


def new_row(case: str, path: str | None, measured: Measured, **values: Any) -> dict[str, Any]:
  """A row with what all benchmarks tell; what is not given is None."""
  facts, repetitions = measured.facts, measured.repetitions
  known = {name: facts.get(name) for name in KEYS if name in facts}
  if repetitions and measured.error is None:
    seconds = [one["seconds"] for one in repetitions]
    milliseconds = summarise(seconds, 1e3 / facts.get("units", 1))
    known |= dict(zip(("milliseconds", "low", "high"), milliseconds, strict=True))
    known["rounds"] = len(repetitions)
  row = {**dict.fromkeys(KEYS), **known, **values}
  return row | {"case": case, "path": path, "error": measured.error}


def add_rates(
  row: dict[str, Any], steps: int | None, flops_per_step: int | None, matmul: float | None
) -> None:
  """Sets the rates of a row of so many coordinate-steps, and their share of the products' rate."""
  seconds = None if row["milliseconds"] is None else row["milliseconds"] / 1e3
  rate = divide(steps, seconds)
  row["coordinate_steps_per_second"] = rate
  row["matmul_gflops"] = matmul
  if rate is not None and flops_per_step is not None:
    row["gflops"] = rate * flops_per_step / 1e9
  row["share"] = divide(row["gflops"], matmul)


def matmul_gflops(products: Measured) -> float | None:
  """The median rate of the matrix products, None if they could not be measured."""
  if products.error is not None or not products.repetitions:
    return None
  flops = products.facts["flops"] * products.facts["units"]
  return summarise([flops / one["seconds"] / 1e9 for one in products.repetitions]).median


def peak_bytes(repetitions: Sequence[Mapping[str, Any]]) -> int | None:
  """The most that any repetition, or one before it, took."""
  return max((one["peak_bytes"] for one in repetitions), default=None)


def _cell(value: Any, factor: float | None) -> str:
  """A value in the unit of its column.

  >>> _cell(2.5e6, 1e-6), _cell(12345, 1.0), _cell(None, 1.0), _cell("replay", None)
  ('2.5', '12,345', '-', 'replay')
  """
  if value is None:
    return "-"
  if factor is None:
    return str(value)
  scaled = value * factor
  return f"{scaled:,.0f}" if 1000 <= abs(scaled) < math.inf else f"{scaled:.3g}"
