"""The figure of the learning curves: what is drawn, and what happens to the file."""

import importlib
import struct
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex

from learned_opt import plots
from learned_opt._curves import Curves
from learned_opt._results import summarize
from learned_opt.baselines import Tuned
from learned_opt.evaluate import Cost, Evaluation
from learned_opt.plots import learning_curves_figure

STEPS = np.arange(11)


def result(losses, learning_rate=None):
  tuned = None
  if learning_rate is not None:
    tuned = Tuned(learning_rate, np.array([learning_rate]), np.array([0.0]), True)
  return summarize(Curves(np.asarray(losses), {}), Cost(1e-3, 1.0, 0), tuned)


def decay(rate, spread=1.5):
  """Three problems around 4 exp(-rate t)."""
  return 4.0 * np.exp(-rate * STEPS) * np.array([[1 / spread], [1.0], [spread]])


def evaluation(**results):
  results = results or {
    "lstm": result(decay(0.5)),
    "adam": result(decay(0.2), 0.25),
    "sgd": result(decay(0.3), 0.0221),
  }
  return Evaluation("quadratic", 10, 3, results)


@pytest.fixture
def figures(monkeypatch):
  """The figures that were saved."""
  figures = []
  save = plots.save
  monkeypatch.setattr(
    plots, "save", lambda figure, path: (figures.append(figure), save(figure, path))
  )
  return figures


@pytest.fixture
def draw(figures, tmp_path):
  """Draws a figure and gives its axes."""

  def run(evaluation, **options):
    learning_curves_figure(evaluation, tmp_path / "figure.png", **options)
    return figures[-1].axes[0]

  return run


def lines_of(axes):
  return {line.get_label(): line for line in axes.get_lines()}


def test_the_file_is_a_png_of_readable_size(tmp_path):
  path = tmp_path / "curves.png"
  learning_curves_figure(evaluation(), path)
  data = path.read_bytes()
  assert data[:8] == b"\x89PNG\r\n\x1a\n"
  assert struct.unpack(">II", data[16:24]) == (1040, 650)
  assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_curves_are_the_means_learned_ones_thick(draw):
  judged = evaluation()
  lines = lines_of(draw(judged))
  assert set(lines) == {"lstm", "adam (0.25)", "sgd (0.022)"}
  for label, line in lines.items():
    np.testing.assert_array_equal(line.get_xdata(), STEPS)
    np.testing.assert_array_equal(line.get_ydata(), judged.results[label.split()[0]].mean)
  assert lines["lstm"].get_linewidth() >= 2 * lines["sgd (0.022)"].get_linewidth()
  assert lines["lstm"].get_zorder() > lines["sgd (0.022)"].get_zorder()
  assert len({to_hex(line.get_color()) for line in lines.values()}) == 3


def test_long_curves_are_means_over_windows(draw):
  losses = np.array([[1.0], [2.0], [3.0]]) * np.linspace(9.0, 1.0, 1001)
  judged = Evaluation("quadratic", 1000, 3, {"lstm": result(losses)})
  axes = draw(judged)
  drawn, mean = lines_of(axes)["lstm"], judged.results["lstm"].mean
  np.testing.assert_array_equal(drawn.get_xdata()[:3], [0, 3, 6])
  np.testing.assert_allclose(drawn.get_ydata()[:2], [mean[0], mean[1:4].mean()])
  assert drawn.get_xdata().size == 334
  assert axes.get_ylabel() == "mean loss over 3 steps"
  assert draw(evaluation()).get_ylabel() == "mean loss"


def test_intervals_are_bands(draw):
  judged = evaluation()
  bands = draw(judged).collections
  assert len(bands) == 3
  for band, one in zip(bands, judged.results.values(), strict=True):
    heights = band.get_paths()[0].vertices
    at_end = heights[heights[:, 0] == 10, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx((one.low[-1], one.high[-1]))


def test_axes_and_legend(draw):
  axes = draw(evaluation())
  assert axes.get_yscale() == "log"
  assert axes.get_xlim() == (0, 10)
  assert axes.get_title() == "quadratic, 3 fresh problems"
  order = [text.get_text() for text in axes.get_legend().get_texts()]
  assert order == ["adam (0.25)", "sgd (0.022)", "lstm"]
  assert draw(evaluation(), title="").get_title() == ""


def test_published_curves_are_dashed_in_the_colour_of_their_optimizer(draw):
  published = {"ADAM": ([1, 5, 10], [3.0, 2.0, 1.0]), "LSTM": (STEPS, 5.0 * 0.5**STEPS)}
  lines = lines_of(draw(evaluation(), published=published))
  adam, lstm = lines["ADAM (published)"], lines["LSTM (published)"]
  assert adam.get_linestyle() == lstm.get_linestyle() == "--"
  assert adam.get_color() == lines["adam (0.25)"].get_color()
  assert lstm.get_color() == lines["lstm"].get_color()
  np.testing.assert_array_equal(adam.get_ydata(), [3.0, 2.0, 1.0])
  assert draw(evaluation(), published=published).get_ylim()[0] < 5.0 * 0.5**10


def test_a_diverging_curve_ends_and_does_not_squeeze_the_others(draw):
  wild = np.tile(4.0 * 1000.0**STEPS, (3, 1))
  wild[0, 6:] = np.nan
  axes = draw(evaluation(lstm=result(decay(0.5)), sgd=result(wild, 1.0)))
  drawn = lines_of(axes)["sgd (1)"].get_ydata()
  np.testing.assert_array_equal(np.isnan(drawn), STEPS >= 6)
  assert axes.get_ylim()[1] == pytest.approx(10 * lines_of(axes)["lstm"].get_ydata()[0])
  assert axes.get_legend().get_texts()[0].get_text() == "sgd (1)"


@pytest.mark.parametrize(
  "losses", [np.zeros((3, 11)), -decay(0.1), np.full((3, 11), np.nan)], ids=["0", "<0", "nan"]
)
def test_losses_without_a_logarithm_have_a_linear_axis(draw, losses):
  axes = draw(evaluation(lstm=result(losses)))
  assert axes.get_yscale() == "linear"
  assert len(axes.get_lines()) == 1


def test_many_decades_are_labelled_by_powers(draw):
  axes = draw(evaluation(lstm=result(decay(3.0))))
  numbers = [text.get_text() for text in axes.get_yticklabels()]
  assert all("10^" in number for number in numbers)
  few = [text.get_text() for text in draw(evaluation()).get_yticklabels()]
  assert {"0.5", "1", "2"} <= set(few)


def test_published_vectors_of_different_lengths_are_refused(draw):
  with pytest.raises(ValueError, match=r"published\['SGD'\] must be two vectors of one length"):
    draw(evaluation(), published={"SGD": ([1, 2], [1.0])})


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tmp_path):
  path = tmp_path / "curves.unknown"
  path.write_text("old")
  with pytest.raises(ValueError, match="Format 'unknown' is not supported"):
    learning_curves_figure(evaluation(), path)
  assert path.read_text() == "old"
  assert len(list(tmp_path.iterdir())) == 1
  with pytest.raises(FileNotFoundError, match="missing"):
    learning_curves_figure(evaluation(), tmp_path / "missing" / "curves.png")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  with pytest.raises(ImportError, match=r"pip install 'learned_opt\[plots\]'"):
    learning_curves_figure(evaluation(), tmp_path / "curves.png")


def test_the_module_is_imported_without_matplotlib(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  monkeypatch.delitem(sys.modules, "learned_opt.plots")
  module = importlib.import_module("learned_opt.plots")
  assert module is not plots
  assert module.learning_curves_figure.__doc__ == learning_curves_figure.__doc__


# --- Last losses against a property of the problems.


def last_losses(**rates):
  return Evaluation("quadratic", 10, 3, {name: result(decay(rate)) for name, rate in rates.items()})


def test_last_losses_have_a_panel_an_optimizer_and_a_line_a_kind(figures, tmp_path):
  lines = {
    "1 layer": {20: last_losses(lstm=0.5, adam=0.2), 5: last_losses(lstm=0.4, adam=0.1)},
    "2 layers": {5: last_losses(lstm=0.3, adam=0.2)},
  }
  published = {"lstm": {"1 layer": ([5, 10], [0.2, 0.1]), "3 layers": ([5], [0.1])}}
  path = tmp_path / "last.png"
  plots.final_losses_figure(lines, path, x_label="units", published=published, title="MNIST")
  assert path.read_bytes()[:4] == b"\x89PNG"
  (figure,) = figures
  assert figure.get_suptitle() == "MNIST"
  learned, adam = figure.axes
  assert (learned.get_title(), adam.get_title()) == ("lstm", "adam")
  drawn = {container.get_label(): container for container in learned.containers}
  assert set(drawn) == {"1 layer", "2 layers"}
  line, _, (intervals,) = drawn["1 layer"]
  expected = [lines["1 layer"][units].results["lstm"] for units in (5, 20)]
  np.testing.assert_array_equal(line.get_xdata(), [5, 20])
  np.testing.assert_allclose(line.get_ydata(), [one.mean[-1] for one in expected])
  ends = [[segment[0][1], segment[1][1]] for segment in intervals.get_segments()]
  np.testing.assert_allclose(ends, [[one.low[-1], one.high[-1]] for one in expected])
  dashed = {one.get_label(): one for one in learned.get_lines() if one.get_linestyle() == "--"}
  assert set(dashed) == {"1 layer, published"}
  np.testing.assert_array_equal(dashed["1 layer, published"].get_ydata(), [0.2, 0.1])
  assert to_hex(dashed["1 layer, published"].get_color()) == to_hex(line.get_color())
  assert not [one for one in adam.get_lines() if one.get_linestyle() == "--"]
  assert learned.get_yscale() == adam.get_yscale() == "log"
  assert learned.get_ylim() == adam.get_ylim()
  assert (learned.get_ylabel(), learned.get_xlabel()) == ("mean loss at step 10", "units")


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ({}, "there is nothing to draw"),
    ({"1 layer": {}}, "there is nothing to draw"),
    (
      {"1 layer": {5: last_losses(lstm=0.5), 10: last_losses(adam=0.5)}},
      "of the same optimizers, got adam beside lstm",
    ),
  ],
)
def test_last_losses_are_of_the_same_optimizers(lines, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    plots.final_losses_figure(lines, tmp_path / "last.png", x_label="units")
  assert not list(tmp_path.iterdir())
