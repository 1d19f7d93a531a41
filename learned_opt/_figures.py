"""What all figures have in common: panels, colours, axes, and that a file is written whole."""

import itertools
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from learned_opt._arrays import Path, atomic_write
from learned_opt.baselines import BASELINES, MORE_BASELINES

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Okabe and Ito's colours, which remain distinct to colour-blind readers. Learned optimizers take
# the strongest; the eighth, yellow, is too faint on white.
LEARNED_COLORS = ("#D55E00", "#000000", "#0072B2", "#009E73")
_BASELINE_COLORS = ("#56B4E9", "#009E73", "#CC79A7", "#999999", "#E69F00", "#000000", "#0072B2")
# Tol's muted colours, for what is rarely drawn.
_MORE_BASELINE_COLORS = ("#DDCC77", "#CC6677", "#44AA99", "#AA4499", "#117733", "#332288")

# Up to this range of the losses there is room for numbers at 1, 2 and 5 of each decade.
_FEW_DECADES = 1e4


def new_panels(
  heights: Sequence[float], total_height: float = 5.0
) -> tuple["Figure", list["Axes"]]:
  """Axes of the given relative heights, one above the other, over the same horizontal axis."""
  figure, grid = new_grid(len(heights), 1, total_height, heights)
  return figure, list(grid[:, 0])


def new_grid(
  num_rows: int,
  num_columns: int,
  total_height: float = 5.0,
  heights: Sequence[float] | None = None,
  share_losses: bool = False,
) -> tuple["Figure", np.ndarray]:
  """Axes in rows and columns, all over the same horizontal axis; the heights are in inches.

  With `share_losses` they have the same vertical axis, too.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError(
      "figures need matplotlib: pip install 'learned_opt[plots]', or pip install matplotlib"
    ) from error
  # No pyplot: it would choose a window system and keep the figure alive.
  figure = Figure(figsize=(8, total_height), dpi=130, layout="constrained")
  grid = figure.subplots(
    num_rows,
    num_columns,
    sharex=True,
    sharey=share_losses,
    squeeze=False,
    height_ratios=heights,
  )
  for axes in grid.flat:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
  return figure, grid


def use_log_axis(axes: "Axes", top: float = math.inf) -> None:
  """Makes the vertical axis logarithmic if all that is drawn is positive; it ends at `top`.

  What is drawn on axes that share it counts, too.
  """
  from matplotlib.ticker import LogLocator, StrMethodFormatter

  sharing = axes.get_shared_y_axes().get_siblings(axes)
  lines = [line for one in sharing for line in one.get_lines()]
  losses = np.concatenate([np.asarray(line.get_ydata()) for line in lines])
  losses = losses[np.isfinite(losses)]
  if not losses.size or losses.min() <= 0:
    return
  low, high = losses.min(), losses.max()
  axes.set_yscale("log")
  axes.set_ylim(low / 1.2, min(1.2 * high, top))
  if high / low < _FEW_DECADES:
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter("")


def colors_of(names: Iterable[str]) -> dict[str, str]:
  """One colour an optimizer; a baseline has the same one in all figures, a learned one another."""
  names = list(names)
  baselines = dict(zip(BASELINES, _BASELINE_COLORS, strict=True))
  baselines |= dict(zip(MORE_BASELINES, _MORE_BASELINE_COLORS, strict=True))
  taken = {baselines[name] for name in names if name in baselines}
  # The darker of them first.
  colors = (*LEARNED_COLORS, *reversed(_MORE_BASELINE_COLORS))
  learned = itertools.cycle([color for color in colors if color not in taken] or colors)
  return {name: baselines.get(name) or next(learned) for name in names}


def finite(curve: np.ndarray) -> np.ndarray:
  """The curve with NaN, which is not drawn, where it is infinite."""
  return np.where(np.isfinite(curve), curve, np.nan)


def save(figure: "Figure", path: Path) -> None:
  """Writes the figure in the format of the file's suffix, the whole file or nothing."""
  suffix = pathlib.Path(path).suffix.removeprefix(".") or "png"
  with atomic_write(path) as file:
    figure.savefig(file, format=suffix)
