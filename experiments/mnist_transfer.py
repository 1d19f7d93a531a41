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
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import tyro

from learned_opt import ImageDataset, cli, datasets, devices, optimizees
from learned_opt.baselines import BASELINES
from learned_opt.comparisons import Comparison

# The LSTM of figure 5, read off.
PAPER_STEPS = (20, 40, 60, 80, 100)
PAPER = {
  "40-units": (0.386, 0.273, 0.227, 0.208, 0.192),
  "2-layers": (0.951, 0.522, 0.427, 0.353, 0.321),
  "relu": (2.31, 2.29, 2.40, 2.80, 2.585),
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
      _comparison(chosen, f"{activation}-{layers}x{width}", (width,) * layers, activation, seed),
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


@functools.cache
def _dataset(name: str) -> ImageDataset:
  """On the device, once for all comparisons."""
  return jax.tree.map(jnp.asarray, datasets.load(name))


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
    cli.compare(grid(size, seed), named, folder / "grid", resume=resume)


if __name__ == "__main__":
  tyro.cli(main)
