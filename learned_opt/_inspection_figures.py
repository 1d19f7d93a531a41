"""The figures of `learned_opt.inspect`; `learned_opt.plots` shows them to the world."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from learned_opt._arrays import Path
from learned_opt._figures import colors_of, finite, new_grid, new_panels, save, use_log_axis
from learned_opt.inspect import Counterfactuals, Proposals

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_COLUMNS = 3
_GRAY = "#777777"

# What nobody applies can grow without bounds, and must not squeeze the leader's line.
_MAX_OVER_LEADER = 4.0


def proposals_figure(proposals: Proposals, path: Path, *, title: str | None = None) -> None:
  """Draws the gradient of each chosen coordinate against the step, and what is proposed for it.

  The layout of Andrychowicz et al. (2016), appendix B, first figure, with the gradient above it.
  The axis of the updates reaches at most four times as far from zero as the leader's.

  Args:
    proposals: what to draw.
    path: the file to write; see `learning_curves_figure`.
    title: of the figure; None means one with the leader's name.

  Raises:
    ImportError: if matplotlib is not installed.
    ValueError: if the suffix is no format of matplotlib.
    OSError: if the file cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> import jax, jax.numpy as jnp, optax
    >>> from learned_opt import Optimizee, inspect
    >>> from learned_opt.evaluate import Candidate
    >>> from learned_opt.plots import proposals_figure
    >>> bowl = Optimizee.from_functions(lambda key: jnp.ones(2), lambda x, key: jnp.sum(x**2))
    >>> proposals = inspect.proposed_updates(
    ...   bowl,
    ...   Candidate("sgd", optax.sgd, 0.25),
    ...   num_steps=3,
    ...   coordinates=[0],
    ...   key=jax.random.key(0),
    ... )
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "proposals.png"
    >>> proposals_figure(proposals, path)
    >>> path.read_bytes()[1:4]
    b'PNG'
  """
  number, leader = len(proposals.coordinates), next(iter(proposals.optimizers))
  figure, panels = new_panels([1, 2] * number, total_height=1.0 + 4.0 * number)
  for column, coordinate in enumerate(proposals.coordinates.values()):
    above, below = panels[2 * column : 2 * column + 2]
    _draw_steps(above, {"gradient": proposals.gradients[:, column]}, {"gradient": _GRAY})
    updates = {name: one.updates[:, column] for name, one in proposals.optimizers.items()}
    _draw_optimizers(below, updates)
    _limit(below, updates[leader])
    above.set_title(coordinate, fontsize=10, loc="left")
    above.set_ylabel("gradient")
    below.set_ylabel("proposed update")
  figure.suptitle(title or f"updates proposed along the trajectory of {leader}", fontsize=12)
  _add_legend(panels[1])
  _finish_steps(panels, len(proposals.gradients))
  save(figure, path)


def trajectory_figure(proposals: Proposals, path: Path, *, title: str | None = None) -> None:
  """Draws loss, effective learning rates, directions and state norms against the step.

  Loss and state are the leader's. The axes of loss, rates and norms are logarithmic where all
  values are positive; else that of the rates reaches at most four times as far as the leader's.

  Args:
    proposals: what to draw.
    path: the file to write; see `learning_curves_figure`.
    title: of the figure; None means one with the leader's name.

  Raises:
    ImportError: if matplotlib is not installed.
    ValueError: if the suffix is no format of matplotlib.
    OSError: if the file cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> import jax, jax.numpy as jnp, optax
    >>> from learned_opt import Optimizee, inspect
    >>> from learned_opt.evaluate import Candidate
    >>> from learned_opt.plots import trajectory_figure
    >>> bowl = Optimizee.from_functions(lambda key: jnp.ones(2), lambda x, key: jnp.sum(x**2))
    >>> proposals = inspect.proposed_updates(
    ...   bowl,
    ...   Candidate("adam", optax.adam, 0.25),
    ...   num_steps=3,
    ...   coordinates=[0],
    ...   key=jax.random.key(0),
    ... )
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "trajectory.png"
    >>> trajectory_figure(proposals, path)
    >>> path.read_bytes()[1:4]
    b'PNG'
  """
  leader, optimizers = next(iter(proposals.optimizers)), proposals.optimizers
  norms = proposals.state_norms
  figure, panels = new_panels([2, 2, 2, 3] if norms else [2, 2, 2], total_height=8.0)
  losses, rates, cosines = panels[:3]
  color = colors_of(optimizers)[leader]
  losses.plot(np.arange(proposals.losses.size), finite(proposals.losses), color=color)
  _draw_optimizers(rates, {name: one.effective_rate for name, one in optimizers.items()})
  _limit(rates, optimizers[leader].effective_rate)
  _draw_optimizers(cosines, {name: one.cosine for name, one in optimizers.items()})
  if norms:
    _draw_steps(panels[3], norms, _shades(norms))
    panels[3].set_ylabel("state norms")
    _add_legend(panels[3])
    use_log_axis(panels[3])
  for axes in (losses, rates):
    use_log_axis(axes)
  losses.set_ylabel("loss")
  rates.set_ylabel("effective\nlearning rate")
  cosines.set_ylabel("cosine to the\nnegative gradient")
  losses.set_title(title or f"along the trajectory of {leader}", fontsize=12)
  _add_legend(rates)
  _finish_steps(panels, len(proposals.gradients))
  save(figure, path)


def counterfactuals_figure(
  counterfactuals: Counterfactuals, path: Path, *, title: str | None = None
) -> None:
  """Draws the update of one coordinate as a function of its gradient, one panel a step.

  The layout of Andrychowicz et al. (2016), appendix B, second figure. Points are what happened.
  The vertical axes reach at most four times as far from zero as the leader's updates.

  Args:
    counterfactuals: what to draw.
    path: the file to write; see `learning_curves_figure`.
    title: of the figure; None means one with the name of the coordinate.

  Raises:
    ImportError: if matplotlib is not installed.
    ValueError: if the suffix is no format of matplotlib.
    OSError: if the file cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> import jax, jax.numpy as jnp, optax
    >>> from learned_opt import Optimizee, inspect
    >>> from learned_opt.evaluate import Candidate
    >>> from learned_opt.plots import counterfactuals_figure
    >>> bowl = Optimizee.from_functions(lambda key: jnp.ones(2), lambda x, key: jnp.sum(x**2))
    >>> answers = inspect.counterfactual_updates(
    ...   bowl,
    ...   Candidate("adam", optax.adam, 0.25),
    ...   coordinate=0,
    ...   steps=[1, 2],
    ...   gradients=jnp.linspace(-2.0, 2.0, 9),
    ...   key=jax.random.key(0),
    ... )
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "counterfactuals.png"
    >>> counterfactuals_figure(answers, path)
    >>> path.read_bytes()[1:4]
    b'PNG'
  """
  num_steps = len(counterfactuals.steps)
  num_columns = min(num_steps, _COLUMNS)
  num_rows = math.ceil(num_steps / num_columns)
  figure, grid = new_grid(num_rows, num_columns, total_height=1.0 + 2.2 * num_rows)
  for axes, (index, step) in zip(grid.flat, enumerate(counterfactuals.steps), strict=False):
    _draw_counterfactuals(axes, counterfactuals, index)
    axes.set_title(f"step {step}", fontsize=10)
  for axes in grid.flat[num_steps:]:
    axes.set_visible(False)
  last_row = grid.flat[num_steps - num_columns : num_steps]
  for axes in last_row:
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("gradient")
  for axes in grid[:, 0]:
    axes.set_ylabel("update")
  figure.suptitle(title or f"updates of {counterfactuals.name}", fontsize=12)
  figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right", frameon=False)
  save(figure, path)


def _draw_counterfactuals(axes: "Axes", counterfactuals: Counterfactuals, index: int) -> None:
  """One step: a line an optimizer, and a point where the true gradient is."""
  colors = colors_of(counterfactuals.updates)
  for name, updates in counterfactuals.updates.items():
    first = name == next(iter(colors))
    width, order = (2.4, 3) if first else (1.2, 2)
    axes.plot(
      counterfactuals.gradients,
      finite(updates[index]),
      color=colors[name],
      linewidth=width,
      zorder=order,
      label=name,
    )
    true = counterfactuals.true_gradients[index], counterfactuals.true_updates[name][index]
    axes.plot(*true, "o", color=colors[name], markersize=5 if first else 4, zorder=order + 2)
  axes.axhline(0.0, color=_GRAY, linewidth=0.6)
  _limit(axes, next(iter(counterfactuals.updates.values()))[index])


def _draw_optimizers(axes: "Axes", series: Mapping[str, np.ndarray]) -> None:
  """One line an optimizer, the leader's on top."""
  _draw_steps(axes, series, colors_of(series))
  leader, *_ = axes.get_lines()
  leader.set(linewidth=2.2, zorder=3)


def _draw_steps(axes: "Axes", series: Mapping[str, np.ndarray], colors: Mapping[str, Any]) -> None:
  for name, values in series.items():
    steps = np.arange(1, values.size + 1)
    axes.plot(steps, finite(values), color=colors[name], linewidth=1.2, label=name)


def _limit(axes: "Axes", leader: np.ndarray) -> None:
  """Cuts off what lies far beyond the leader's values."""
  most = _MAX_OVER_LEADER * np.abs(leader[np.isfinite(leader)]).max(initial=0.0)
  low, high = axes.get_ylim()
  if most > 0:
    axes.set_ylim(max(low, -most), min(high, most))


def _shades(names: Collection[str]) -> dict[str, Any]:
  """Colours that are not those of optimizers, from dark to light."""
  from matplotlib import colormaps

  return dict(zip(names, colormaps["viridis"](np.linspace(0.0, 0.8, len(names))), strict=True))


def _add_legend(axes: "Axes") -> None:
  axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _finish_steps(panels: Iterable["Axes"], num_steps: int) -> None:
  *_, last = panels
  last.set_xlabel("step")
  last.set_xlim(0, num_steps)
  last.figure.align_ylabels()
