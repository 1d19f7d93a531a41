"""Random quadratics: the paper's first experiment (Andrychowicz et al. 2016, section 3.1).

    python experiments/quadratic.py

meta-trains the coordinatewise LSTM on f(theta) = |W theta - y|^2 in ten dimensions, with W and y
uniform on [0, 1) as in the paper's curves, and compares it with tuned baselines on fresh problems.

Expected: a mean loss of at most 0.045 at step 100 (the paper's LSTM has 0.039).

    python experiments/quadratic.py --size search

trains six times, with two outer learning rates and three seeds each, and keeps what does best on
common validation problems.

Expected: at most 0.038.
"""

import pathlib
from typing import Literal, NamedTuple

import tyro

from learned_opt import cli, devices, estimators, optimizees, optimizers, runs, search
from learned_opt.baselines import BASELINES

SizeName = Literal["smoke", "demo", "full", "search", "paper"]

# The LSTM of figure 4, read off.
PAPER = (
  (1, 2, 3, 5, 10, 20, 40, 60, 80, 100),
  (0.973, 0.801, 0.684, 0.484, 0.266, 0.153, 0.080, 0.057, 0.045, 0.039),
)


class Size(NamedTuple):
  """How much work to do."""

  outer_learning_rates: tuple[float, ...]
  num_seeds: int
  num_outer_steps: int
  validate_every: int
  meta_batch_size: int
  num_validation_problems: int
  num_test_problems: int
  num_tuning_problems: int
  baselines: tuple[str, ...] = tuple(BASELINES)


SIZES = {
  "smoke": Size((3e-3,), 1, 4, 2, 2, 2, 4, 2, ("adam",)),
  "demo": Size((6e-3,), 1, 1400, 100, 128, 256, 2000, 128),
  "full": Size((3e-3,), 1, 5000, 250, 128, 512, 2000, 512),
  "search": Size((4e-3, 6e-3), 3, 3000, 100, 128, 512, 2000, 512),
  "paper": Size((1e-3, 2e-3, 4e-3, 6e-3), 3, 10_000, 250, 128, 1024, 2000, 512),
}


def trials(size: SizeName, seed: int) -> tuple[runs.Recipe, ...]:
  """The experiment at one of its sizes.

  The paper uses neither preprocessing nor an output scale here, and 100 steps in unrolls of 20. The
  outer learning rates are ours: the paper's, found by random search, is not stated. The higher ones
  are faster and less stable, and the best of the validations is kept.
  """
  chosen = SIZES[size]
  recipe = runs.Recipe(
    name="lstm",
    optimizee=optimizees.quadratic(),
    optimizee_name="quadratic",
    learned_optimizer=optimizers.lstm(preprocessing=optimizers.Identity(), output_scale=1.0),
    estimator=estimators.truncated_backprop(
      unroll_length=20, horizon=100, meta_batch_size=chosen.meta_batch_size
    ),
    schedule="cosine",
    num_outer_steps=chosen.num_outer_steps,
    validate_every=chosen.validate_every,
    num_validation_problems=chosen.num_validation_problems,
    num_test_problems=chosen.num_test_problems,
    num_tuning_problems=chosen.num_tuning_problems,
    baselines=chosen.baselines,
    description={
      "command": f"python experiments/quadratic.py --size {size} --seed {seed}",
      "optimizee": "quadratic, uniform, 10 dimensions",
      "estimator": "truncated_backprop, 20 of 100 steps",
      "meta_batch_size": chosen.meta_batch_size,
    },
    published={"lstm": PAPER},
  )
  seeds = range(seed, seed + chosen.num_seeds)
  return search.grid(recipe, chosen.outer_learning_rates, seeds)


def main(
  size: SizeName = "full",
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
) -> None:
  """Meta-trains an LSTM on random quadratics and compares it with tuned baselines.

  Args:
    size: how much work to do: smoke takes seconds, demo 2 to 3 minutes, full 10 minutes and search
      half an hour on 2 cores; paper is for an accelerator.
    out: the folder of the run or search; by default runs/quadratic-SIZE-SEED.
    seed: of everything random; the search has the next two as well.
    resume: continue what is in that folder.
  """
  devices.use_cores()
  folder = out or pathlib.Path("runs") / f"quadratic-{size}-{seed}"
  planned = trials(size, seed)
  if len(planned) == 1:
    cli.run_recipe(planned[0], folder, resume=resume)
  else:
    cli.run_search(planned, folder, num_problems=1024, resume=resume)


if __name__ == "__main__":
  tyro.cli(main)
