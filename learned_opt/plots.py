"""Figures. Matplotlib is needed by these functions alone, and imported by them alone."""

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from learned_opt._arrays import Path
from learned_opt._doctor_figures import doctor_figure as doctor_figure
from learned_opt._figures import (
  LEARNED_COLORS,
  colors_of,
  finite,
  new_grid,
  new_panels,
  save,
  use_log_axis,
)
from learned_opt._inspection_figures import counterfactuals_figure as counterfactuals_figure
from learned_opt._inspection_figures import proposals_figure as proposals_figure
from learned_opt._inspection_figures import trajectory_figure as trajectory_figure
from learned_opt.evaluate import Evaluation, Result
from learned_opt.meta_train import History

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.lines import Line2D

# Curves of others by name: their steps and the losses there.
Published = Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]

# Points of a curve up to which each step is drawn.
_MAX_POINTS = 400

# A diverging baseline must not squeeze the others into the last tenth of the axis.
_MAX_OVER_START = 10.0


def learning_curves_figure(
  evaluation: Evaluation,
  path: Path,
  *,
  published: Published | None = None,
  title: str | None = None,
) -> None:
  """Draws the mean loss of each optimizer against the step, with its 95 % interval.

  Learned optimizers are thick, baselines thin with their learning rates, published curves dashed.
  The legend is in the order in which the curves end. The losses' axis is logarithmic if all mean
  losses are positive, and ends at ten times the highest initial loss; a curve ends where the mean
  is no longer finite. Of more than 400 steps, means over windows are drawn, at their last steps.

  Args:
    evaluation: what to draw.
    path: the file to write, usually .png; its suffix decides the format. It is replaced as a
      whole, or left as it was.
    published: by name, pairs ``(steps, losses)`` of equally long vectors, drawn for comparison.
    title: of the figure; None means the optimizee's name and the number of problems.

  Raises:
    ImportError: if matplotlib is not installed.
    ValueError: if the suffix is no format of matplotlib, or published vectors differ in length.
    OSError: if the file cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import Optimizee
    >>> from learned_opt.evaluate import evaluate
    >>> from learned_opt.plots import learning_curves_figure
    >>> bowl = Optimizee.from_functions(lambda key: jnp.ones(2), lambda x, key: jnp.sum(x**2))
    >>> evaluation = evaluate(
    ...   bowl, [], num_steps=3, num_problems=2, key=jax.random.key(0), baselines=["rprop"]
    ... )
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "curves.png"
    >>> learning_curves_figure(evaluation, path)
    >>> path.read_bytes()[1:4]
    b'PNG'
  """
  figure, (axes,) = new_panels([1])
  colors = colors_of(evaluation.results)
  window = -(-evaluation.num_steps // _MAX_POINTS)
  for name, result in evaluation.results.items():
    _draw_result(axes, name, result, colors[name], window)
  unknown = itertools.cycle(LEARNED_COLORS)
  for name, (steps, losses) in (published or {}).items():
    color = colors.get(name.lower()) or next(unknown)
    _draw_published(axes, name, np.asarray(steps), np.asarray(losses), color)
  start = max(float(result.mean[0]) for result in evaluation.results.values())
  _set_limits(axes, evaluation.num_steps, _MAX_OVER_START * start)
  default_title = f"{evaluation.optimizee}, {evaluation.num_problems:,} fresh problems"
  axes.set_title(default_title if title is None else title, fontsize=12)
  axes.set_xlabel("step")
  axes.set_ylabel("mean loss" if window == 1 else f"mean loss over {window} steps")
  _add_legend(axes)
  save(figure, path)


def final_losses_figure(
  evaluations: Mapping[str, Mapping[Any, Evaluation]],
  path: Path,
  *,
  x_label: str,
  published: Mapping[str, Published] | None = None,
  title: str | None = None,
) -> None:
  """Draws mean last losses against a property of the problems, a panel for each optimizer.

  A line, with 95 % intervals, for each kind of problems. This is the layout of figure 6 of
  Andrychowicz et al. (2016), in which the property is the number of hidden units and the kinds are
  numbers of layers.

  Args:
    evaluations: by the names of the lines, and then by the property; all of the same optimizers.
    path: the file to write; see `learning_curves_figure`.
    x_label: what the property is.
    published: by the name of a panel, and then by that of a line, pairs ``(property, losses)``,
      which are drawn dashed; names that are not there are left out.
    title: of the figure.

  Raises:
    ImportError: if matplotlib is not installed.
    ValueError: if there is no evaluation, they are not of the same optimizers, or the suffix is no
      format of matplotlib.
    OSError: if the file cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> import jax
    >>> from learned_opt import optimizees
    >>> from learned_opt.evaluate import evaluate
    >>> from learned_opt.plots import final_losses_figure
    >>> def solved(size):
    ...   problems = optimizees.quadratic(size)
    ...   key = jax.random.key(0)
    ...   return evaluate(problems, [], num_steps=2, num_problems=2, key=key, baselines=["sgd"])
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "sizes.png"
    >>> lines = {"quadratics": {size: solved(size) for size in (2, 3)}}
    >>> final_losses_figure(lines, path, x_label="coordinates")
    >>> path.read_bytes()[1:4]
    b'PNG'
  """
  every = [one for line in evaluations.values() for one in line.values()]
  if not every:
    raise ValueError("evaluations must hold at least one: there is nothing to draw")
  names = list(every[0].results)
  for one in every:
    if set(one.results) != set(names):
      raise ValueError(
        f"evaluations must be of the same optimizers, got {', '.join(one.results)} "
        f"beside {', '.join(names)}"
      )
  figure, grid = new_grid(1, len(names), total_height=3.2, share_losses=True)
  colors = dict(zip(evaluations, itertools.cycle(LEARNED_COLORS), strict=False))
  for name, axes in zip(names, grid[0], strict=True):
    for line, by_property in evaluations.items():
      xs = sorted(by_property)
      results = [by_property[x].results[name] for x in xs]
      last, low, high = (
        finite(np.array([getattr(result, bound)[-1] for result in results]))
        for bound in ("mean", "low", "high")
      )
      around = np.maximum(np.stack([last - low, high - last]), 0)
      axes.errorbar(xs, last, around, marker="o", markersize=3, color=colors[line], label=line)
    for line, points in (published or {}).get(name, {}).items():
      if line in colors:
        axes.plot(*points, "--", color=colors[line], linewidth=1.2, label=f"{line}, published")
    axes.set_title(name, fontsize=10)
    axes.set_xlabel(x_label)
  use_log_axis(grid[0, 0])
  grid[0, 0].set_ylabel(f"mean loss at step {every[0].num_steps}")
  figure.suptitle(title or every[0].optimizee, fontsize=12)
  handles, labels = grid[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside right center", frameon=False)
  save(figure, path)


def meta_training_figure(history: History, path: Path, *, title: str | None = None) -> None:
  """Draws the validation loss and the meta-loss against the outer step, one above the other.

  The validation loss has its best value marked. The meta-loss is that of each outer step, faint,
  and its moving average over a fiftieth of the run. A third panel shows how many problems
  diverged, if any did. Axes are logarithmic where all values are positive.

  Args:
    history: of a meta-training.
    path: the file to write; see `learning_curves_figure`.
    title: of the figure.

  Raises:
    ImportError: if matplotlib is not installed.
    ValueError: if the history is empty, or the suffix is no format of matplotlib.
    OSError: if the file cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt.meta_train import History
    >>> from learned_opt.plots import meta_training_figure
    >>> history = History([3.0, 2.0], [1.0, 1.0], [0, 0], [2], [0.5], [1.0])
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "meta_training.png"
    >>> meta_training_figure(history, path)
    >>> path.read_bytes()[1:4]
    b'PNG'
  """
  if not history.meta_loss:
    raise ValueError("the history is empty: there is nothing to draw")
  diverged = np.asarray(history.num_diverged)
  figure, panels = new_panels([2, 2, 1] if diverged.any() else [2, 2])
  validation, meta_loss = panels[:2]
  _draw_validation(validation, history)
  _draw_meta_loss(meta_loss, np.asarray(history.meta_loss))
  if diverged.any():
    _draw_diverged(panels[2], diverged)
  panels[0].set_title(title or "meta-training", fontsize=12)
  panels[-1].set_xlabel("outer step")
  panels[-1].set_xlim(0, len(history.meta_loss))
  figure.align_ylabels()
  save(figure, path)


def race_figure(histories: Mapping[str, History], path: Path, *, title: str | None = None) -> None:
  """Draws the validation losses of several meta-trainings against their seconds.

  Args:
    histories: by the names of the legend.
    path: the file to write; see `learning_curves_figure`.
    title: of the figure.

  Raises:
    ImportError: if matplotlib is not installed.
    ValueError: if there is no history with a validation, or the suffix is no format of matplotlib.
    OSError: if the file cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt.meta_train import History
    >>> from learned_opt.plots import race_figure
    >>> slow = History(validation_step=[1, 2], validation_loss=[2.0, 1.0], seconds=[5.0, 9.0])
    >>> fast = History(validation_step=[1, 2], validation_loss=[1.5, 0.5], seconds=[3.0, 4.0])
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "race.png"
    >>> race_figure({"slow": slow, "fast": fast}, path)
    >>> path.read_bytes()[1:4]
    b'PNG'
  """
  if not any(history.seconds for history in histories.values()):
    raise ValueError("histories must have at least one validation: there is nothing to draw")
  figure, (axes,) = new_panels([1])
  # More than there are colours of learned optimizers.
  styles = itertools.cycle(itertools.product(("-", "--"), LEARNED_COLORS))
  for (name, history), (line, color) in zip(histories.items(), styles, strict=False):
    losses = finite(np.asarray(history.validation_loss))
    axes.plot(history.seconds, losses, line, color=color, linewidth=1.8, label=name)
  axes.set_xlabel("seconds of training, compilation included")
  axes.set_ylabel("final validation loss")
  axes.set_xlim(left=0)
  axes.set_title(title or "meta-training", fontsize=12)
  use_log_axis(axes)
  axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
  save(figure, path)


def _draw_validation(axes: "Axes", history: History) -> None:
  steps, losses = np.asarray(history.validation_step), finite(np.asarray(history.validation_loss))
  axes.set_ylabel("final validation loss")
  if np.isnan(losses).all():
    return
  axes.plot(steps, losses, "o-", color=LEARNED_COLORS[2], linewidth=1.5, markersize=3)
  best = np.nanargmin(losses)
  axes.plot(
    steps[best],
    losses[best],
    "*",
    color=LEARNED_COLORS[0],
    markersize=12,
    clip_on=False,
    label=f"best: {losses[best]:.3g} at outer step {steps[best]:,}",
  )
  axes.legend(frameon=False)
  use_log_axis(axes)


def _draw_meta_loss(axes: "Axes", meta_loss: np.ndarray) -> None:
  steps, meta_loss = _outer_steps(meta_loss), finite(meta_loss)
  axes.plot(steps, meta_loss, color=LEARNED_COLORS[2], alpha=0.25, linewidth=0.8)
  window = max(1, meta_loss.size // 50)
  smooth = _moving_average(meta_loss, window)
  label = f"mean of {window} outer steps" if window > 1 else None
  axes.plot(steps, smooth, color=LEARNED_COLORS[2], linewidth=2.0, label=label)
  axes.set_ylabel("meta-loss")
  if label:
    axes.legend(frameon=False)
  use_log_axis(axes)


def _draw_diverged(axes: "Axes", diverged: np.ndarray) -> None:
  from matplotlib.ticker import MaxNLocator

  # At least as wide as can be seen.
  width = max(1.0, diverged.size / 500)
  axes.bar(_outer_steps(diverged), diverged, width=width, color=LEARNED_COLORS[0])
  axes.set_ylabel("diverged")
  axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))


def _outer_steps(values: np.ndarray) -> np.ndarray:
  return np.arange(1, values.size + 1)


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
  """The mean of the last `window` values that are not NaN; NaN where there is none.

  >>> _moving_average(np.array([1.0, 3.0, np.nan, 5.0]), 2).tolist()
  [1.0, 2.0, 3.0, 5.0]
  """
  known = np.isfinite(values)
  sums, counts = (
    np.convolve(series, np.ones(window))[: values.size]
    for series in (np.where(known, values, 0.0), known.astype(float))
  )
  return np.where(counts > 0, sums / np.maximum(counts, 1.0), np.nan)


def _window_means(curve: np.ndarray, window: int) -> np.ndarray:
  """Its first value, and the means of as many windows as there are in the others.

  >>> _window_means(np.array([9.0, 1.0, 3.0, 5.0, 7.0, 0.0]), 2).tolist()
  [9.0, 2.0, 6.0]
  """
  whole = (curve.size - 1) // window * window
  return np.append(curve[:1], curve[1 : whole + 1].reshape(-1, window).mean(axis=1))


def _set_limits(axes: "Axes", num_steps: int, top: float) -> None:
  axes.set_xlim(0, num_steps)
  use_log_axis(axes, top)


def _draw_result(axes: "Axes", name: str, result: Result, color: str, window: int) -> None:
  learned = result.learning_rate is None
  label = name if learned else f"{name} ({result.learning_rate:.2g})"
  steps = np.append(0, np.arange(window, result.mean.size, window))
  curves = (result.mean, result.low, result.high)
  mean, low, high = (_window_means(finite(curve), window) for curve in curves)
  axes.plot(
    steps,
    mean,
    color=color,
    linewidth=2.8 if learned else 1.2,
    zorder=3 if learned else 2,
    label=label,
  )
  axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def _draw_published(
  axes: "Axes", name: str, steps: np.ndarray, losses: np.ndarray, color: str
) -> None:
  if steps.shape != losses.shape or steps.ndim != 1:
    raise ValueError(
      f"published[{name!r}] must be two vectors of one length, got {steps.shape} and {losses.shape}"
    )
  axes.plot(steps, finite(losses), "--", color=color, linewidth=1.0, label=f"{name} (published)")


def _add_legend(axes: "Axes") -> None:
  """The highest end first; curves that have none on top."""

  def end(line: "Line2D") -> float:
    value = float(np.asarray(line.get_ydata())[-1])
    return math.inf if math.isnan(value) else value

  lines = sorted(axes.get_lines(), key=end, reverse=True)
  axes.legend(
    handles=lines,
    title="optimizer (learning rate)",
    loc="center left",
    bbox_to_anchor=(1.0, 0.5),
    frameon=False,
    alignment="left",
  )
