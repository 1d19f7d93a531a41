"""The tables of the benchmark suite."""

from learned_opt.benchmark_suite import Report, TaskResult
from learned_opt.benchmark_suite._report import Aggregate
from learned_opt.cli._report import _cell, _new_table, _stdout


def print_suite(report: Report) -> None:
  """Prints a line for each task, then the comparison with each baseline over all tasks."""
  console = _stdout()
  if report.results:
    table = _new_table(f"{report.name} on the suite, size {report.size}: mean final losses")
    for heading in (
      *("task", "steps", "loss", "adam", "best", "baseline", "speed-up: adam", "best"),
      *("failed", "µs/step", "x adam"),
    ):
      table.add_column(heading, justify="left" if heading in ("task", "baseline") else "right")
    for result in report.results:
      table.add_row(*_cells(result))
    console.print(table, width=None if console.is_terminal else _WIDE)
    table = _new_table("\nover all tasks: interquartile mean [95 %]")
    for heading in ("against", "speed-up", "loss ratio"):
      table.add_column(heading)
    for name in (*report.baselines(), None):
      shown = name or "best of each task"
      table.add_row(shown, _interval(report.speed_up(name)), _interval(report.loss_ratio(name)))
    console.print(table)
    console.print(f"\nfailures: {report.num_failed} problems")
  for name, reason in report.skipped.items():
    console.print(f"skipped {name}: {reason}")
  for result in report.results:
    if result.note:
      console.print(f"{result.name}: {result.note}")


# Of a table in a file.
_WIDE = 150


def _cells(one: TaskResult) -> list[str]:
  best = one.best_baseline()
  with_adam = "adam" in one.baselines
  values = (
    one.name,
    int(one.steps[-1]),
    one.final_loss,
    one.baseline_loss("adam") if with_adam else None,
    one.baseline_loss(best),
    best,
    float(one.speed_ups("adam").mean()) if with_adam else None,
    float(one.speed_ups(best).mean()),
    one.num_failed,
    one.cost.seconds_per_step * 1e6,
    one.cost.seconds_per_step / one.adam_cost.seconds_per_step,
  )
  return [_cell(value) for value in values]


def _interval(one: Aggregate) -> str:
  return f"{_cell(one.value)} [{_cell(one.low)}, {_cell(one.high)}]"
