"""The figure of `learned_opt.doctor`; `learned_opt.plots` shows it to the world."""

import itertools

import numpy as np

from learned_opt._arrays import Path
from learned_opt._figures import LEARNED_COLORS, finite, new_panels, save, use_log_axis
from learned_opt.doctor import Diagnosis

_PANELS = {
  "variance": "variance of a sample / |g|\u00b2",
  "bias": "bias / |g|",
  "gradient_norm": "norm of one estimate",
}


def doctor_figure(diagnosis: Diagnosis, path: Path, *, title: str | None = None) -> None:
  """Draws variance, bias and gradient norm of each estimator against the unroll length.

  Axes are logarithmic where all values are positive.

  Args:
    diagnosis: what to draw.
    path: the file to write; see `learning_curves_figure`.
    title: of the figure; None means one with the horizon.

  Raises:
    ImportError: if matplotlib is not installed.
    ValueError: if the suffix is no format of matplotlib.
    OSError: if the file cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt.doctor import Diagnosis, Measurement, NonFinite
    >>> from learned_opt.plots import doctor_figure
    >>> one = Measurement("pes", 10, 0.1, 0.2, 3.0, 0.5, 0.01, 0.0, 2.0)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "diagnosis.png"
    >>> found = Diagnosis(10, 8, 16, "full", 1.0, 0.1, (one,), NonFinite(0.0), {}, "pes")
    >>> doctor_figure(found, path)
    >>> path.read_bytes()[1:4]
    b'PNG'
  """
  panels = new_panels([1, 1, 1], total_height=8.0)
  figure, axes_of = panels[0], dict(zip(_PANELS, panels[1], strict=True))
  colors = itertools.cycle([*LEARNED_COLORS, "#CC79A7"])
  for name in dict.fromkeys(one.estimator for one in diagnosis.measurements):
    rows = [one for one in diagnosis.measurements if one.estimator == name]
    lengths, color = [one.unroll_length for one in rows], next(colors)
    for field, axes in axes_of.items():
      values = finite(np.array([getattr(one, field) for one in rows]))
      axes.plot(lengths, values, "o-", color=color, label=name, markersize=4)
  for field, axes in axes_of.items():
    axes.set_xscale("log")
    axes.set_ylabel(_PANELS[field])
    use_log_axis(axes)
  first, *_, last = axes_of.values()
  first.set_title(title or f"meta-gradients over a horizon of {diagnosis.horizon:,} steps")
  first.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
  last.set_xlabel("unroll length")
  save(figure, path)
