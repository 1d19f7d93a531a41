"""What people see of a run: progress on stderr, tables and paths on stdout."""

import math
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

from learned_opt._run_folder import flatten
from learned_opt._scores import Score, spread_of
from learned_opt.artifacts import Artifact
from learned_opt.benchmarks import Report
from learned_opt.curriculum import Curriculum
from learned_opt.evaluate import Evaluation, Row
from learned_opt.evolution import Evolution
from learned_opt.meta_train import Progress
from learned_opt.runs import Run
from learned_opt.search import Search

# Of tables that are not printed to a terminal: a file has no width.
_FILE_WIDTH = 140

# Of benchmarks, which have more columns.
_WIDE = 240
_WORDS = ("case", "path", "data", "error")

_REPEATED = "learned_optimizer"


class Reporter:
  """Shows how the work goes on, on stderr: a bar on a terminal, else a line at each validation.

  A context manager, and a callback of `meta_train.run`, of one run or of several after another.
  """

  def __init__(self):
    self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    self._bar: rich_progress.Progress | None = None
    self._start: tuple[int, float] = (0, 0.0)
    self._last_step = 0

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    error_type: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    del error_type, error, traceback
    self._stop_bar()

  def say(self, words: str) -> None:
    """Shows a line, below a bar that is left as it is."""
    self._stop_bar()
    self._console.print(words)

  def __call__(self, progress: Progress) -> None:
    """Shows how far the training has come."""
    if progress.outer_step <= self._last_step or self._start[0] == 0:
      # The first dispatch of a run contained the compilation, and says nothing of the rate.
      self._start = progress.outer_step, progress.seconds
    self._last_step = progress.outer_step
    words = f"{_losses(progress)}, {_pace(progress, *self._start)}"
    if self._console.is_terminal:
      self._update_bar(progress, words)
    elif progress.validated:
      self.say(f"outer step {progress.outer_step}/{progress.num_outer_steps}, {words}")

  def _update_bar(self, progress: Progress, words: str) -> None:
    if self._bar is None:
      self._bar = rich_progress.Progress(
        rich_progress.MofNCompleteColumn(),
        rich_progress.BarColumn(bar_width=10),
        rich_progress.TextColumn("{task.description}"),
        console=self._console,
        auto_refresh=False,
      )
      self._bar.add_task(words, total=progress.num_outer_steps)
      self._bar.start()
    task = self._bar.task_ids[0]
    self._bar.update(task, description=words, completed=progress.outer_step, refresh=True)

  def _stop_bar(self) -> None:
    if self._bar is not None:
      self._bar.stop()
      self._bar = None


def _losses(progress: Progress) -> str:
  history = progress.history
  if not history.validation_loss:
    return f"meta-loss {history.meta_loss[-1]:.4g}"
  best, best_step = float(progress.state.best_loss), int(progress.state.best_step)
  return f"loss {history.validation_loss[-1]:.4g}, best {best:.4g} at {best_step}"


def _pace(progress: Progress, start_step: int, start_seconds: float) -> str:
  """Outer steps a second, and the time left."""
  seconds = progress.seconds - start_seconds
  if seconds <= 0:
    return f"compiled and begun in {_duration(progress.seconds)}"
  rate = (progress.outer_step - start_step) / seconds
  left = (progress.num_outer_steps - progress.outer_step) / rate
  return f"{rate:.3g} steps/s, {_duration(left)} left"


def _duration(seconds: float) -> str:
  """Hours, minutes and seconds.

  >>> _duration(3725.4), _duration(65)
  ('1:02:05', '1:05')
  """
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# --- Tables.


def print_evaluation(evaluation: Evaluation) -> None:
  """Prints the optimizers in the order of their last losses, the best first."""
  steps = table_steps(evaluation.num_steps)
  rows = sorted(evaluation.rows(steps), key=lambda row: row.losses[-1])
  any_diverged = any(row.num_diverged for row in rows)
  print_optimizers(
    f"{evaluation.optimizee}: mean loss over {evaluation.num_problems:,} fresh problems",
    [_cells(row, steps, any_diverged) for row in rows],
  )


def print_optimizers(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
  """Prints values by their headings, the first of which is the optimizer's name.

  Rows without a learning rate are bold: the learned optimizers.
  """
  table = _new_table(title)
  for heading in rows[0]:
    table.add_column(heading, justify="left" if heading == "optimizer" else "right")
  for row in rows:
    learned = row["learning rate"] is None
    table.add_row(*map(_cell, row.values()), style="bold" if learned else None)
  _stdout().print(table)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
  """Prints values by their headings, the first of which is a name."""
  table = _new_table(title)
  for index, heading in enumerate(rows[0]):
    table.add_column(heading, justify="right" if index else "left")
  for row in rows:
    table.add_row(*map(_cell, row.values()))
  _stdout().print(table)


def table_steps(num_steps: int) -> tuple[int, ...]:
  """The steps at which a table shows the loss: a fifth, two fifths, and the last.

  Example:
    >>> from learned_opt.cli._report import table_steps
    >>> table_steps(100), table_steps(2)
    ((20, 40, 100), (1, 2))
  """
  return tuple(sorted({max(1, num_steps // 5), max(1, 2 * num_steps // 5), num_steps}))


def print_scores(scores: Sequence[Score]) -> None:
  """Prints the trials of a search, the best first, and those of each outer learning rate."""
  table = _new_table(f"{len(scores)} trials, validation loss, the best first")
  for heading in ("trial", "loss", "95 %", "best step"):
    table.add_column(heading, justify="left" if heading == "trial" else "right")
  for score in sorted(scores, key=lambda score: score.loss):
    interval = "failed" if score.error else f"{_cell(score.low)} to {_cell(score.high)}"
    table.add_row(score.name, _cell(score.loss), interval, _cell(score.best_step))
  console = _stdout()
  console.print(table)
  table = _new_table("\nby outer learning rate")
  for heading in ("rate", "trials", "failed", "best", "median", "worst"):
    table.add_column(heading, justify="right")
  for spread in spread_of(scores):
    table.add_row(*map(_cell, spread))
  console.print(table)
  console.print()


def print_run(run: Run | Curriculum | Search) -> None:
  """Prints what a run has written, and the Python that loads the optimizer."""
  if run.evaluation is not None:
    print_evaluation(run.evaluation)
  print_files(run.files)
  if run.optimizer is not None:
    print("\nto use it:\n", *loading_lines(run.optimizer), sep="\n  ")


def print_evolution(name: str, done: Evolution) -> None:
  """Prints how fast an evolved optimizer is, what was written and how to load it."""
  first, best = (math.exp(-loss) for loss in (done.first_loss, done.best_loss))
  print(
    f"{name}: on the problems of validation {best:.3f} times as fast as tuned Adam, {first:.3f} at "
    f"the start; the best of {len(done.history)} generations is number {done.best_generation}"
  )
  print_files(done.files)
  print("\nto use it:\n", *loading_lines(done.optimizer), sep="\n  ")


def print_files(paths: Iterable[pathlib.Path]) -> None:
  """Prints where things were written. No rich here: it would break long paths."""
  for path in paths:
    print(f"wrote {path}{os.sep if path.is_dir() else ''}")


def loading_lines(folder: pathlib.Path) -> tuple[str, ...]:
  """The Python that loads an optimizer.

  Example:
    >>> import pathlib
    >>> from learned_opt.cli._report import loading_lines
    >>> loading_lines(pathlib.Path("runs/mine/optimizer"))[1]
    "tx = learned_opt.load('runs/mine/optimizer')"
  """
  return (
    "import learned_opt",
    f"tx = learned_opt.load({os.fspath(folder)!r})",
    "state = tx.init(params)  # an optax.GradientTransformationExtraArgs",
  )


def print_list(artifacts: Mapping[str, Artifact]) -> None:
  """Prints a line for each artifact."""
  table = _new_table(None)
  for heading in ("name", "architecture", "meta-params", "trained on", "horizon", "made"):
    table.add_column(heading)
  for name, artifact in artifacts.items():
    table.add_row(name, *map(_cell, summary_of(artifact.card).values()))
  _stdout().print(table)


def summary_of(card: Mapping[str, Any]) -> dict[str, Any]:
  """What a list shows of a card."""
  recipe = card["recipe"] or {}
  return {
    "architecture": card["architecture"]["name"],
    "num_meta_params": card["meta_params"]["number"],
    "optimizee": recipe.get("optimizee_name"),
    "horizon": recipe.get("horizon"),
    "created": card["created"][:10],
  }


def print_card(name: str, card: Mapping[str, Any]) -> None:
  """Prints all that a card says."""
  console = _stdout()
  console.print(name, style="bold")
  # The architecture, which a run's recipe repeats, has its own paragraph.
  recipe = {key: value for key, value in (card["recipe"] or {}).items() if key != _REPEATED}
  for heading, values in (
    ("architecture", card["architecture"]),
    ("recipe", recipe),
    ("versions", card["versions"]),
  ):
    console.print(f"\n{heading}", style="bold")
    _print_values(console, dict(flatten(values)))
  console.print("\nfile", style="bold")
  _print_values(
    console,
    {
      "meta-params": card["meta_params"]["number"],
      "sha256": card["meta_params"]["sha256"],
      "created": card["created"],
      "git commit": card["git_commit"],
    },
  )
  _print_summary(console, card["evaluation"])
  if card["limitations"]:
    console.print("\nwhere it fails", style="bold")
    for sentence in card["limitations"]:
      console.print(f"- {sentence}", highlight=False)


def _print_summary(console: Console, evaluation: Any) -> None:
  """Prints the evaluation as `learned_opt.runs` records it, and any other as it stands."""
  console.print("\nevaluation", style="bold")
  rows = evaluation.get("rows") if isinstance(evaluation, dict) else None
  if not rows:
    _print_values(console, dict(flatten(evaluation if evaluation else {"evaluation": None})))
    return
  _print_values(console, {key: value for key, value in evaluation.items() if key != "rows"})
  flat = [dict(flatten(row)) for row in rows]
  table = _new_table(None)
  for heading in flat[0]:
    table.add_column(heading.replace("_", " ").replace("metrics.", ""))
  for row in flat:
    table.add_row(*map(_cell, row.values()))
  console.print(table)


def print_benchmark(report: Report) -> None:
  """Prints a line for each measurement."""
  headings, rows = report.cells()
  table = _new_table(f"{report.device}; {report.date}")
  for heading in headings:
    table.add_column(heading, justify="left" if heading in _WORDS else "right")
  for cells in rows:
    table.add_row(*cells)
  # Without a terminal as wide as it needs be: a table that is folded cannot be read.
  console = _stdout()
  console.print(table, width=None if console.is_terminal else _WIDE)


def _print_values(console: Console, values: Mapping[str, Any]) -> None:
  grid = Table.grid(padding=(0, 2))
  for name, value in values.items():
    grid.add_row(f"  {name}", _cell(value))
  console.print(grid)


def _stdout() -> Console:
  width = None if sys.stdout.isatty() else _FILE_WIDTH
  return Console(highlight=False, markup=False, width=width)


def _new_table(title: str | None) -> Table:
  return Table(
    title=title, title_justify="left", box=None, pad_edge=False, header_style="underline"
  )


def _cells(row: Row, steps: Sequence[int], any_diverged: bool) -> dict[str, Any]:
  """The cells of a row by their columns."""
  flops = row.flops_per_step
  return {
    "optimizer": row.name,
    "learning rate": row.learning_rate,
    **{f"step {step}": loss for step, loss in zip(steps, row.losses, strict=True)},
    f"95 % at {steps[-1]}": f"{_cell(row.low)} to {_cell(row.high)}",
    "sum": row.sum,
    **{name.replace("_", " "): value for name, value in row.metrics.items()},
    "µs/step": row.seconds_per_step * 1e6,
    "kFLOP/step": None if flops is None else flops / 1e3,
    "state bytes": row.state_bytes,
    **({"diverged": row.num_diverged} if any_diverged else {}),
  }


def _cell(value: Any) -> str:
  """A value in a table; what is not known is a dash.

  >>> _cell(0.0123456), _cell(12345), _cell(None), _cell([1, 2]), _cell(math.inf)
  ('0.0123', '12,345', '-', '1, 2', 'inf')
  """
  if value is None:
    return "-"
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.3g}"
  if isinstance(value, list | tuple):
    return ", ".join(map(_cell, value))
  return str(value)
