"""A general-purpose optimizer of six numbers: Muon, whose hyperparameters are learned.

    python experiments/learned_muon.py

meta-trains `learned_muon`, Muon (Jordan et al. 2024) for matrices and Adam for scalars and vectors
with a schedule for both, on nine families: MLPs on images of 8 x 8 pixels, softmax regression,
quadratics, and a small transformer and a recurrent network on made-up languages. ES-Single, whose
noise has six dimensions only, sees whole trainings of 200 to 1,000 steps. The result then meets
problems that it was not trained on: an MLP of another width on the full images of Fashion-MNIST,
and the suite of `benchmark.py`.

Expected: a mean loss at step 1,000 there below that of Adam tuned with a constant rate, and on the
suite a speed-up of at least 1.2 over it and of 1.0 over AdamW tuned with a cosine schedule.
"""

import functools
import pathlib
from typing import Literal, NamedTuple

import jax
import tyro

from learned_opt import (
  Optimizee,
  cli,
  datasets,
  devices,
  estimators,
  meta_losses,
  optimizees,
  optimizers,
  runs,
)
from learned_opt.base import ImageDataset
from learned_opt.families import Families, families

SizeName = Literal["smoke", "cpu", "gpu"]
Split = Literal["train", "validation", "test"]


class Network(NamedTuple):
  """The networks of a family, and the minibatches on which they are trained."""

  dataset: str
  hidden_sizes: tuple[int, ...]
  activation: Literal["relu", "tanh", "elu"]
  batch_size: int

  def __str__(self) -> str:
    sizes = "-".join(map(str, self.hidden_sizes)) or "no hidden units"
    return f"{self.dataset} {sizes} {self.activation} in batches of {self.batch_size}"


_NETWORKS = (
  Network("mnist", (32,), "relu", 64),
  Network("fashion_mnist", (32, 32, 32), "tanh", 32),
  Network("cifar10", (32,), "relu", 16),
  Network("digits", (24, 24), "elu", 8),
  Network("mnist", (20,) * 5, "relu", 64),
  Network("fashion_mnist", (), "relu", 32),
)


# The languages of the training, which are not that of the suite.
_LANGUAGES = 1, 2


class Size(NamedTuple):
  """How much work to do."""

  networks: tuple[Network, ...]
  test: Network
  num_characters: int
  unroll_length: int
  horizons: tuple[int, int]
  num_particles: int
  num_outer_steps: int
  validate_every: int
  num_validation_problems: int
  num_steps: int
  num_test_problems: int
  num_tuning_problems: int
  baselines: tuple[str, ...] = ("adam", "adamw_cosine")


_TEST = Network("fashion_mnist", (64,), "relu", 128)

SIZES = {
  "smoke": Size(
    (Network("digits", (4,), "relu", 8),),
    Network("digits", (5,), "relu", 8),
    *(2_000, 2, (4, 8), 2, 4, 2, 2, 4, 2, 2, ("adam",)),
  ),
  "cpu": Size(_NETWORKS, _TEST, 50_000, 50, (200, 1000), 16, 200, 50, 16, 1000, 16, 4),
  "gpu": Size(_NETWORKS, _TEST, 200_000, 50, (200, 2000), 64, 2000, 100, 64, 1000, 100, 32),
}


def recipe(size: SizeName, seed: int) -> runs.Recipe:
  """The experiment at one of its sizes; all choices are ours."""
  chosen = SIZES[size]
  images = jax.device_put(datasets.load(chosen.test.dataset))
  test = functools.partial(_problems, chosen.test, images)
  return runs.Recipe(
    name="learned-muon",
    optimizee=_families(chosen, "train"),
    validation_optimizee=_families(chosen, "validation"),
    test_optimizee=test(split="test"),
    tuning_optimizee=test(split="train"),
    optimizee_name=f"full images of {chosen.test}",
    learned_optimizer=optimizers.learned_muon(),
    estimator=estimators.over_families(
      estimators.es_single(
        chosen.unroll_length,
        chosen.horizons,
        chosen.num_particles,
        meta_losses.mean_log_above(1e-4, rising_over=chosen.horizons[1] // 2),
        sigma=0.2,
        difference=1.0,
      )
    ),
    outer_learning_rate=0.03,
    schedule="cosine",
    num_outer_steps=chosen.num_outer_steps,
    validate_every=chosen.validate_every,
    num_validation_problems=chosen.num_validation_problems,
    evaluation_steps=chosen.num_steps,
    num_test_problems=chosen.num_test_problems,
    num_tuning_problems=chosen.num_tuning_problems,
    baselines=chosen.baselines,
    seed=seed,
    description={
      "command": f"python experiments/learned_muon.py --size {size} --seed {seed}",
      "optimizee": (
        f"MLPs at 8 x 8: {', '.join(map(str, chosen.networks))}; quadratics of 20 dimensions; a "
        "transformer and a recurrent network on made-up languages; one factor of 0.22 to 4.5 a "
        "problem"
      ),
      "estimator": (
        f"es_single, {chosen.unroll_length} of {chosen.horizons[0]} to {chosen.horizons[1]} steps, "
        f"{chosen.num_particles} particles a family, sigma 0.2, mean log loss above 1e-4, late "
        "steps more"
      ),
    },
  )


def _problems(network: Network, images: ImageDataset, split: Split) -> Optimizee:
  return optimizees.mlp_classifier(
    images,
    hidden_sizes=network.hidden_sizes,
    activation=network.activation,
    initial_scale=None,
    batch_size=network.batch_size,
    split=split,
  )


def _families(size: Size, split: Split) -> Families:
  def small(network: Network) -> Optimizee:
    images = datasets.resize(datasets.load(network.dataset), 8, grey=True)
    return _problems(network, images, split)

  first, second = (datasets.markov_text(size.num_characters, seed=seed) for seed in _LANGUAGES)
  problems = (
    *map(small, size.networks),
    optimizees.quadratic(20),
    optimizees.transformer_lm(
      first, num_layers=1, width=16, num_heads=2, length=16, batch_size=8, split=split
    ),
    optimizees.recurrent_lm(
      second, "rnn", hidden_size=24, embedding_size=8, length=16, batch_size=8, split=split
    ),
  )
  return families(*(optimizees.random_scaling(one, radius=1.5, per="problem") for one in problems))


def main(
  size: SizeName = "cpu",
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
) -> None:
  """Meta-trains a general-purpose optimizer and compares it with tuned baselines.

  Args:
    size: how much work to do: smoke takes seconds; cpu about a quarter of an hour on 2 cores.
    out: the folder of the run; by default runs/learned_muon-SIZE-SEED.
    seed: of everything random.
    resume: continue the run in that folder.
  """
  devices.use_cores()
  cli.run_recipe(
    recipe(size, seed), out or pathlib.Path("runs") / f"learned_muon-{size}-{seed}", resume=resume
  )


if __name__ == "__main__":
  tyro.cli(main)
