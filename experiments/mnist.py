"""A small MNIST network: the paper's second experiment (Andrychowicz et al. 2016, section 3.2).

    python experiments/mnist.py

meta-trains the coordinatewise LSTM on an MLP of one hidden layer of 20 sigmoid units on MNIST, with
minibatches of 128, and compares it with tuned baselines on fresh problems over the test split, at
100 steps and at the 200 steps it was trained for; and for 1,000 and 10,000 steps, to show where it
breaks. Only that, with what is shipped:

    python experiments/mnist.py --optimizers lstm-mnist rnnprop-mnist

Expected: a mean loss of at most 0.29 at step 100, a sum over 100 steps of at most 50 (the paper's
LSTM has 0.245 and 43.7), and below every tuned baseline at steps 20, 40, 100 and 200.
"""

import pathlib
from typing import Literal, NamedTuple

import tyro

from learned_opt import (
  cli,
  datasets,
  devices,
  estimators,
  meta_losses,
  optimizees,
  runs,
  search,
)
from learned_opt import optimizers as architectures
from learned_opt.baselines import BASELINES
from learned_opt.comparisons import Comparison

# The LSTM of figure 4, read off.
PAPER = (
  (1, 5, 10, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200),
  (2.301, 1.330, 0.747, 0.455, 0.334, 0.306, 0.263, 0.245, 0.235, 0.238, 0.224, 0.216, 0.215),
)


SizeName = Literal["smoke", "full", "paper"]


class Longer(NamedTuple):
  """A comparison for more steps than the optimizer was trained on."""

  num_steps: int
  num_problems: int
  num_tuning_problems: int
  baselines: tuple[str, ...]


class Size(NamedTuple):
  """How much work to do."""

  dataset: str
  num_outer_steps: int
  validate_every: int
  num_validation_problems: int
  num_test_problems: int
  num_tuning_problems: int
  longer: tuple[Longer, ...]
  num_steps: int = 100
  horizon: int = 200
  baselines: tuple[str, ...] = tuple(BASELINES)
  outer_learning_rates: tuple[float, ...] = (3e-3,)
  num_seeds: int = 1


SIZES = {
  "smoke": Size("digits", 4, 2, 2, 2, 2, (Longer(60, 2, 2, ("adam",)),), 20, 40, ("adam",)),
  "full": Size(
    *("mnist", 10_000, 500, 8, 100, 16),
    (Longer(1000, 100, 8, tuple(BASELINES)), Longer(10_000, 8, 4, ("nag", "adam"))),
  ),
  "paper": Size(
    *("mnist", 10_000, 500, 64, 100, 32),
    tuple(Longer(steps, 100, 32, tuple(BASELINES)) for steps in (200, 1000, 10_000)),
    outer_learning_rates=(1e-3, 3e-3),
    num_seeds=3,
  ),
}


def trials(size: SizeName, seed: int) -> tuple[runs.Recipe, ...]:
  """The training at one of its sizes; at paper size one for each outer learning rate and seed.

  The optimizer and the problem are the paper's: preprocessing with p = 10, output scale 0.1, one
  problem an outer step, unrolls of 20 steps; theta_0 has the released code's scale of 0.01. Ours
  are the horizon of 200, the mean of the log loss as the meta-loss, which counts what is gained
  late as much as what is gained at once, the outer learning rate with its schedule, and that each
  outer step goes back through a sample of 2,048 coordinates of a tensor, which takes half as long.
  """
  chosen = SIZES[size]
  dataset = datasets.load(chosen.dataset)
  recipe = runs.Recipe(
    name="lstm",
    optimizee=optimizees.mlp_classifier(dataset),
    validation_optimizee=optimizees.mlp_classifier(dataset, split="validation"),
    test_optimizee=optimizees.mlp_classifier(dataset, split="test"),
    optimizee_name=f"{chosen.dataset}, 20 sigmoid units",
    learned_optimizer=architectures.lstm(),
    estimator=estimators.truncated_backprop(
      unroll_length=20,
      horizon=chosen.horizon,
      meta_loss=meta_losses.mean_log,
      replayed_coordinates=2048,
    ),
    schedule="cosine",
    num_outer_steps=chosen.num_outer_steps,
    validate_every=chosen.validate_every,
    num_validation_problems=chosen.num_validation_problems,
    num_test_problems=chosen.num_test_problems,
    num_tuning_problems=chosen.num_tuning_problems,
    baselines=chosen.baselines,
    evaluation_steps=chosen.num_steps,
    description={
      "command": f"python experiments/mnist.py --size {size} --seed {seed}",
      "optimizee": f"{chosen.dataset}, MLP with 20 sigmoid units, minibatches of 128",
      "estimator": (
        f"truncated_backprop, 20 of {chosen.horizon} steps, mean log loss, one problem, "
        "2048 coordinates a tensor"
      ),
    },
    published={"lstm": PAPER} if size != "smoke" else {},
  )
  seeds = range(seed, seed + chosen.num_seeds)
  return search.grid(recipe, chosen.outer_learning_rates, seeds)


def comparisons(size: SizeName, seed: int) -> list[Comparison]:
  """Those for more steps, on the same network."""
  chosen = SIZES[size]
  dataset = datasets.load(chosen.dataset)
  return [
    Comparison(
      f"{one.num_steps}-steps",
      optimizees.mlp_classifier(dataset, split="test"),
      num_steps=one.num_steps,
      optimizee_name=f"{chosen.dataset}, 20 sigmoid units",
      tuning_optimizee=optimizees.mlp_classifier(dataset),
      num_problems=one.num_problems,
      num_tuning_problems=one.num_tuning_problems,
      baselines=one.baselines,
      seed=seed,
    )
    for one in chosen.longer
  ]


def main(
  size: SizeName = "full",
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
  optimizers: tuple[str, ...] = (),
) -> None:
  """Meta-trains an LSTM on a small MNIST network and compares it with tuned baselines.

  Args:
    size: how much work to do: smoke takes seconds, full an hour to train and one to compare on 2
      cores; paper, a search, is for an accelerator.
    out: the folder of the run; by default runs/mnist-SIZE-SEED.
    seed: of everything random; the search has the next two as well.
    resume: continue the run or search in that folder, and take from it what is finished.
    optimizers: names or folders of saved optimizers to compare for more steps; nothing is trained
      then.
  """
  devices.use_cores()
  folder = out or pathlib.Path("runs") / f"mnist-{size}-{seed}"
  saved = {name: name for name in optimizers}
  if not saved:
    planned = trials(size, seed)
    if len(planned) == 1:
      trained = cli.run_recipe(planned[0], folder, resume=resume).out / "optimizer"
      cli.evaluate_recipe(planned[0], folder, num_steps=SIZES[size].horizon)
    else:
      trained = cli.run_search(planned, folder, resume=resume).optimizer
    if trained is None:
      return
    saved = {"lstm": str(trained)}
  cli.compare(comparisons(size, seed), saved, folder, resume=resume)


if __name__ == "__main__":
  tyro.cli(main)
