"""The cost of outer steps of persistent evolution strategies, in one program or fed by the host."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from learned_opt.benchmarks import _names, _processes, _report, _statistics
from learned_opt.benchmarks._host_fed import Settings

REFERENCE = "host-fed"
PES_PATHS = (REFERENCE, "one-program", "one-program-cores")

_ARCHITECTURE = "adafac_mlp"
_SETTINGS = Settings(
  num_problems=8, unroll_length=50, steps_per_dispatch=10, horizon=2000, batch_size=64
)


def pes(
  *,
  paths: Sequence[str] | None = None,
  rounds: int = 5,
  device: str | None = None,
  max_bytes: int | None = None,
  on_progress: Callable[[str], None] | None = None,
) -> _report.Report:
  """Measures outer steps of `estimators.pes` with `optimizers.adafac_mlp`.

  The problems are MLPs of 64 inputs, 32 hidden units and 10 outputs on minibatches of 64 images of
  8 x 8 pixels; 8 of them, with both signs each, take truncations of 50 steps. The paths are
  ``"host-fed"``, the reference: minibatches from numpy, a dispatch every 10 inner steps, the two
  signs in turn; ``"one-program"``, what `meta_train.run` does; and ``"one-program-cores"``, the
  same with the problems shared among one virtual device a core. A row's ``milliseconds`` are those
  of one outer step.

  Args:
    paths: some of the above; None means all.
    rounds: repetitions of each, in turn.
    device: see `meta_gradient`.
    max_bytes: see `meta_gradient`.
    on_progress: is told how the work goes on.

  Returns:
    One row for each path; ``outer_steps_per_second`` beside the rest.

  Raises:
    ValueError: if a path is unknown, or there are no rounds.

  Example:
    >>> from learned_opt import benchmarks
    >>> report = benchmarks.pes(rounds=3)  # doctest: +SKIP
    >>> benchmarks.pes(rounds=0)
    Traceback (most recent call last):
      ...
    ValueError: rounds must be at least 1, got 0
  """
  paths = PES_PATHS if paths is None else tuple(paths)
  _names.check_names("path", paths, PES_PATHS)
  _names.check_rounds(rounds)
  date = _report.now()
  specifications: dict[str, Mapping[str, Any]] = {
    path: {
      "task": "pes",
      "cores": path.endswith("-cores"),
      "device": device,
      "host_fed": path == REFERENCE,
      "architecture": _ARCHITECTURE,
      "settings": list(_SETTINGS),
      "max_bytes": max_bytes,
    }
    for path in paths
  }
  measured = _processes.take_turns(specifications, rounds, on_progress or (lambda words: None))
  rows = [_row(path, one) for path, one in measured.items()]
  _statistics.add_ratios(rows, REFERENCE)
  facts = [one.facts for one in measured.values()]
  return _report.Report(_report.describe_device(facts), date, rows)


def _row(path: str, measured: _processes.Measured) -> dict[str, Any]:
  row = _report.new_row(f"pes-{_ARCHITECTURE}", path, measured)
  if row["milliseconds"] is not None:
    row["peak_bytes"] = _report.peak_bytes(measured.repetitions)
  return row | {"outer_steps_per_second": _statistics.divide(1e3, row["milliseconds"])}
