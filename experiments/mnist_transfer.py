"""Other MNIST networks: the paper's test of generalization (Andrychowicz et al. 2016, section 3.2).

    python experiments/mnist_transfer.py

takes optimizers that were trained on one network, of 20 sigmoid units, to others: with 40 units,
with two layers, with ReLU (figure 5), and to the grid of widths, depths and activations (figure 6,
which has sigmoid alone). Nothing is trained here.

Expected: for `lstm-mnist` a mean loss of at most 0.20 at step 100 with 40 units and 0.34 with two
layers (the paper's LSTM has 0.192 and 0.321), below every tuned baseline; with ReLU the paper's
LSTM fails, at 2.585.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, get_args

import jax
import tyro

from learned_opt import ImageDataset, cli, datasets, devices, optimizees, plots
from learned_opt.baselines import BASELINES
from learned_opt.comparisons import Comparison
from learned_opt.evaluate import Evaluation

# The LSTM of figure 5, read off.
PAPER_STEPS = (20, 40, 60, 80, 100)
PAPER = {
  "40-units": (0.386, 0.273, 0.227, 0.208, 0.192),
  "2-layers": (0.951, 0.522, 0.427, 0.353, 0.321),
  "relu": (2.31, 2.29, 2.40, 2.80, 2.585),
}

# Figure 6, read off: losses at step 100 by hidden units, with sigmoid. Its NAG is not that of the
# figures 4 and 5: 0.252 with one layer of 20 units, which in figure 4 is its loss at step 200.
PAPER_WIDTHS = tuple(range(5, 51, 5))
PAPER_GRID = {
  "lstm": {
    1: (0.595, 0.349, 0.282, 0.245, 0.231, 0.212, 0.207, 0.192, 0.178, 0.194),
    2: (1.022, 0.550, 0.399, 0.321, 0.296, 0.264, 0.245, 0.238, 0.226, 0.203),
  },
  "adam": {
    1: (0.829, 0.489, 0.422, 0.369, 0.352, 0.321, 0.315, 0.311, 0.293, 0.294),
    2: (1.552, 1.022, 0.837, 0.696, 0.640, 0.611, 0.603, 0.572, 0.560, 0.554),
  },
  "nag": {
    1: (0.580, 0.354, 0.282, 0.252, 0.242, 0.239, 0.234, 0.225, 0.238, 0.226),
    2: (0.933, 0.589, 0.484, 0.452, 0.437, 0.445, 0.458, 0.443, 0.452, 0.448),
  },
}

Activation = Literal["sigmoid", "tanh", "relu", "elu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


class Size(NamedTuple):
  """How much work to do."""

  dataset: str
  num_steps: int
  baselines: tuple[str, ...]
  networks: tuple[str, ...]
  num_test_problems: int
  num_tuning_problems: int
  activations: tuple[Activation, ...]
  depths: tuple[int, ...]
  widths: tuple[int, ...]
  num_grid_problems: int
  num_grid_tuning_problems: int


SIZES = {
  "smoke": Size("digits", 2, ("adam",), ("2-layers",), 2, 2, ("elu",), (1,), (5,), 2, 2),
  "cpu": Size(
    *("mnist", 100, tuple(BASELINES), tuple(PAPER), 100, 16),
    *(ACTIVATIONS, (1, 2), (5, 20, 50), 16, 4),
  ),
  "paper": Size(
    *("mnist", 100, tuple(BASELINES), tuple(PAPER), 100, 16),
    *(ACTIVATIONS, (1, 2), tuple(range(5, 51, 5)), 100, 16),
  ),
}


def transfers(size: Literal["smoke", "cpu", "paper"], seed: int) -> list[Comparison]:
  """The three networks of figure 5."""
  chosen = SIZES[size]
  networks: dict[str, tuple[tuple[int, ...], Activation]] = {
    "40-units": ((40,), "sigmoid"),
    "2-layers": ((20, 20), "sigmoid"),
    "relu": ((20,), "relu"),
  }
  return [
    dataclasses.replace(
      _comparison(chosen, name, hidden_sizes, activation, seed),
      num_problems=chosen.num_test_problems,
      num_tuning_problems=chosen.num_tuning_problems,
      baselines=chosen.baselines,
      published={"lstm": (PAPER_STEPS, PAPER[name])},
    )
    for name, (hidden_sizes, activation) in networks.items()
    if name in chosen.networks
  ]


def grid(size: Literal["smoke", "cpu", "paper"], seed: int) -> list[Comparison]:
  """The grid of figure 6, with all activations."""
  chosen = SIZES[size]
  return [
    dataclasses.replace(
      _comparison(chosen, _name(activation, layers, width), (width,) * layers, activation, seed),
      num_problems=chosen.num_grid_problems,
      num_tuning_problems=chosen.num_grid_tuning_problems,
      baselines=("nag", "adam"),
    )
    for activation, layers, width in itertools.product(
      chosen.activations, chosen.depths, chosen.widths
    )
  ]


def _comparison(
  size: Size, name: str, hidden_sizes: tuple[int, ...], activation: Activation, seed: int
) -> Comparison:
  network = functools.partial(
    optimizees.mlp_classifier, _dataset(size.dataset), hidden_sizes, activation
  )
  units = " and ".join(map(str, hidden_sizes))
  return Comparison(
    name,
    network(split="test"),
    num_steps=size.num_steps,
    optimizee_name=f"{size.dataset}, {units} {activation} units",
    tuning_optimizee=network(split="train"),
    seed=seed,
  )


def _name(activation: Activation, layers: int, width: int) -> str:
  return f"{activation}-{layers}x{width}"


def draw_grid(
  size: Size, evaluations: Mapping[str, Evaluation], optimizers: Iterable[str], folder: pathlib.Path
) -> None:
  """Figure 6, once for each activation.

  Args:
    size: of the grid.
    evaluations: by their names in the grid.
    optimizers: the names of the learned ones, beside which the paper's LSTM is drawn.
    folder: gets a file for each activation.
  """
  for activation in size.activations:
    lines = {
      _layers(layers): {
        width: evaluations[_name(activation, layers, width)] for width in size.widths
      }
      for layers in size.depths
    }
    published = {}
    if activation == "sigmoid":
      published = {
        panel: {
          _layers(layers): (PAPER_WIDTHS, losses)
          for layers, losses in PAPER_GRID.get(panel, PAPER_GRID["lstm"]).items()
        }
        for panel in (*optimizers, "adam", "nag")
      }
    plots.final_losses_figure(
      lines,
      folder / f"{activation}.png",
      x_label="hidden units",
      published=published,
      title=f"{size.dataset}, {activation}, {size.num_grid_problems} fresh problems a network",
    )


def _layers(number: int) -> str:
  return "1 layer" if number == 1 else f"{number} layers"


@functools.cache
def _dataset(name: str) -> ImageDataset:
  """On the device, once for all comparisons."""
  return jax.device_put(datasets.load(name))


def main(
  size: Literal["smoke", "cpu", "paper"] = "cpu",
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
  optimizers: tuple[str, ...] = ("lstm-mnist",),
  with_grid: bool = True,
) -> None:
  """Compares trained optimizers with tuned baselines on networks they were not trained on.

  Args:
    size: how much work to do: smoke takes seconds; cpu has three widths of the grid and few
      problems there; paper has all of them.
    out: the folder; by default runs/mnist-transfer-SIZE-SEED.
    seed: decides the problems.
    resume: take from that folder what is finished.
    optimizers: names or folders of saved optimizers.
    with_grid: whether to go through the grid as well.
  """
  devices.use_cores()
  folder = out or pathlib.Path("runs") / f"mnist-transfer-{size}-{seed}"
  named = {pathlib.Path(path).name: path for path in optimizers}
  cli.compare(transfers(size, seed), named, folder, resume=resume)
  if with_grid:
    networks = grid(size, seed)
    evaluations = cli.compare(networks, named, folder / "grid", resume=resume)
    by_name = {one.name: found for one, found in zip(networks, evaluations, strict=True)}
    draw_grid(SIZES[size], by_name, named, folder / "grid")


if __name__ == "__main__":
  tyro.cli(main)
