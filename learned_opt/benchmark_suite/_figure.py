"""The figure of the suite: learning curves, a panel a task."""

import math

import numpy as np

from learned_opt._arrays import Path
from learned_opt._figures import LEARNED_COLORS, colors_of, finite, save, use_log_axis
from learned_opt.benchmark_suite._report import Report

_COLUMNS = 3
_HEIGHT = 2.2


def suite_figure(report: Report, path: Path) -> None:
  """Draws each task's mean losses: the optimizer's, those of Adam and the best baseline's.

  Args:
    report: with one task at least.
    path: of the file; its suffix decides the format.

  Raises:
    ImportError: if matplotlib is missing.

  Example:
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from learned_opt.benchmark_suite import Report, TaskResult, suite_figure
    >>> from learned_opt.evaluate import Cost
    >>> curves, cost = np.array([[2.0, 1.0]]), Cost(1e-6, None, 0)
    >>> adam, rates = {"adam": curves}, {"adam": 0.1}
    >>> one = TaskResult("conv", "", np.array([0, 10]), curves, adam, rates, cost, cost)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "suite.png"
    >>> suite_figure(Report("mine", "cpu", (one,), {}), path)
    >>> path.exists()
    True
  """
  from matplotlib.figure import Figure

  number = len(report.results)
  rows = math.ceil(number / _COLUMNS)
  figure = Figure(figsize=(3.4 * _COLUMNS, _HEIGHT * rows + 0.6), dpi=130, layout="constrained")
  panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
  colors = colors_of(["adam", "adamw_cosine"])
  for axes, one in zip(panels, report.results, strict=False):
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    best = one.best_baseline()
    curves = {
      report.name: (one.curves, LEARNED_COLORS[0], 1.8),
      **({"adam": (one.baselines["adam"], colors["adam"], 1.0)} if "adam" in one.baselines else {}),
      f"best: {best}": (one.baselines[best], colors["adamw_cosine"], 1.0),
    }
    for label, (losses, color, width) in curves.items():
      mean = finite(np.asarray(losses, np.float64).mean(axis=0))
      axes.plot(one.steps, mean, label=label, color=color, linewidth=width)
    use_log_axis(axes)
    axes.set_title(one.name, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6, frameon=False)
  for axes in panels[number:]:
    axes.set_visible(False)
  speed_up = report.speed_up()
  figure.suptitle(
    f"{report.name}: mean loss against steps; speed-up over each task's best baseline "
    f"{speed_up.value:.2f} [{speed_up.low:.2f}, {speed_up.high:.2f}]",
    fontsize=10,
  )
  save(figure, path)
