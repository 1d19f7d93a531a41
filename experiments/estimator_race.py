"""Which meta-gradient learns the fastest: a race of estimators on one family of problems.

    python experiments/estimator_race.py

meta-trains `adafac_mlp` on MLPs with three hidden layers of 32 units on Fashion-MNIST at 8 x 8
pixels by each estimator in turn, at several outer learning rates, with the same number of inner
steps; takes the best rate of each by validation; and draws the validation loss against the seconds.
At cpu size problems have 200 steps, at gpu size 1,000.

Expected: at 200 steps every estimator ends below 1.2, and ES-Single is the best and below tuned
Adam, at about 0.65 where that has 0.69.
"""

import functools
import pathlib
from typing import Literal, NamedTuple

import jax
import tyro

from learned_opt import (
  ImageDataset,
  MetaGradientEstimator,
  cli,
  datasets,
  devices,
  estimators,
  meta_losses,
  optimizees,
  optimizers,
  plots,
  runs,
  search,
)
from learned_opt.comparisons import Comparison

SizeName = Literal["smoke", "cpu", "gpu"]


class Size(NamedTuple):
  """How much work to do."""

  dataset: str
  hidden_size: int
  horizon: int
  unroll_length: int
  num_particles: int
  inner_steps: int
  outer_learning_rates: tuple[float, ...]
  num_validations: int
  num_validation_problems: int
  num_test_problems: int
  num_tuning_problems: int
  baselines: tuple[str, ...]
  racers: tuple[str, ...]


RACERS = (
  *("truncated_backprop", "full_unroll", "truncated_es", "full_es"),
  *("pes", "es_single", "inverse_variance"),
)
BASELINES = ("sgd", "nag", "rmsprop", "adam")

SIZES = {
  "smoke": Size("digits", 3, 4, 2, 2, 8, (1e-3,), 2, 2, 2, 2, ("adam",), ("pes",)),
  "cpu": Size(
    *("fashion_mnist", 32, 200, 20, 8, 6000, (1e-3, 3e-3, 1e-2), 10, 16, 100, 16),
    *(BASELINES, RACERS),
  ),
  "gpu": Size(
    *("fashion_mnist", 32, 1000, 50, 32, 500_000, (1e-4, 3e-4, 1e-3, 3e-3), 50, 64, 100, 16),
    *(BASELINES, RACERS),
  ),
}


def estimator(name: str, size: Size) -> MetaGradientEstimator:
  """One of the racers; all have the same particles, truncations and meta-loss."""
  make = getattr(estimators, name)
  if name == "full_unroll":
    return make(size.horizon, size.num_particles, meta_losses.mean, remat=True)
  if name == "full_es":
    return make(size.horizon, size.num_particles, meta_losses.mean)
  return make(size.unroll_length, size.horizon, size.num_particles, meta_losses.mean)


def trials(name: str, size: Size, command: str, seed: int) -> tuple[runs.Recipe, ...]:
  """The trainings by one estimator: as many inner steps for each, at the same learning rates."""
  steps_per_estimate = size.horizon if name.startswith("full") else size.unroll_length
  validate_every = max(1, size.inner_steps // steps_per_estimate // size.num_validations)
  recipe = runs.Recipe(
    name=name,
    optimizee=_network(size),
    validation_optimizee=_network(size, "validation"),
    test_optimizee=_network(size, "test"),
    optimizee_name=_name(size),
    learned_optimizer=optimizers.adafac_mlp(),
    estimator=estimator(name, size),
    num_outer_steps=validate_every * size.num_validations,
    validate_every=validate_every,
    num_validation_problems=size.num_validation_problems,
    num_test_problems=size.num_test_problems,
    baselines=(),
    description={
      "command": command,
      "optimizee": f"{_name(size)}, minibatches of 64",
      "estimator": (
        f"{name}, {steps_per_estimate} of {size.horizon} steps, {size.num_particles} problems"
      ),
    },
  )
  return search.grid(recipe, size.outer_learning_rates, seeds=(seed,))


def _network(size: Size, split: Literal["train", "validation", "test"] = "train"):
  return optimizees.mlp_classifier(
    _dataset(size.dataset),
    hidden_sizes=(size.hidden_size,) * 3,
    activation="relu",
    initial_scale=None,
    batch_size=64,
    split=split,
  )


def _name(size: Size) -> str:
  return f"{size.dataset} at 8 x 8, three layers of {size.hidden_size} ReLU units"


@functools.cache
def _dataset(name: str) -> ImageDataset:
  """At 8 x 8 pixels, on the device."""
  return jax.device_put(datasets.resize(datasets.load(name), 8, grey=True))


def main(
  size: SizeName = "cpu",
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
  racers: tuple[str, ...] = (),
  outer_learning_rates: tuple[float, ...] = (),
) -> None:
  """Meta-trains by each estimator and draws the race.

  Args:
    size: how much work to do: smoke takes seconds; cpu an hour on 2 cores.
    out: the folder of the searches; by default runs/estimator_race-SIZE-SEED.
    seed: of everything random.
    resume: continue what is in that folder.
    racers: estimators, such as pes; without any, those of the size.
    outer_learning_rates: among which each of them has the best; without any, those of the size.
  """
  if unknown := set(racers) - set(RACERS):
    raise SystemExit(f"unknown racers {sorted(unknown)}: there are {', '.join(RACERS)}")
  devices.use_cores()
  chosen, command = SIZES[size], f"python experiments/estimator_race.py --size {size} --seed {seed}"
  if racers:
    chosen = chosen._replace(racers=racers)
    command += f" --racers {' '.join(racers)}"
  if outer_learning_rates:
    chosen = chosen._replace(outer_learning_rates=outer_learning_rates)
    command += f" --outer-learning-rates {' '.join(map(str, outer_learning_rates))}"
  folder = out or pathlib.Path("runs") / f"estimator_race-{size}-{seed}"
  histories, saved = {}, {}
  for name in chosen.racers:
    begun = (folder / name).exists()
    found = cli.run_search(
      trials(name, chosen, command, seed),
      folder / name,
      num_problems=chosen.num_test_problems,
      resume=resume and begun,
    )
    if found.winners_folder is None or found.optimizer is None:
      return
    histories[name] = runs.load_history(found.winners_folder)
    saved[name] = found.optimizer
  plots.race_figure(histories, folder / "race.png", title=_name(chosen))
  race = Comparison(
    "race",
    _network(chosen, "test"),
    num_steps=chosen.horizon,
    optimizee_name=_name(chosen),
    num_problems=chosen.num_test_problems,
    tuning_optimizee=_network(chosen),
    num_tuning_problems=chosen.num_tuning_problems,
    baselines=chosen.baselines,
    seed=seed,
  )
  cli.compare([race], saved, folder, resume=resume)


if __name__ == "__main__":
  tyro.cli(main)
