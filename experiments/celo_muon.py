"""A general-purpose optimizer: a learned schedule on orthogonalized steps, by PES.

    python experiments/celo_muon.py

trains `celo_adam` with Newton-Schulz steps: Muon (Jordan et al. 2024) for matrices, Adam for all
else, the learning rates of both with a cosine schedule and learned departures from it. The LSTM,
which sees the progress of a training and its losses, is that of `celo-adam-mlps`. Trained is its
output layer alone, 130 numbers for the two learning rates, by persistent evolution strategies,
which see the end of a training from its beginning; on MLPs on images of 8 x 8 pixels as in
`celo_adam.py`, on softmax regression and on quadratics. It then meets problems that it was not
trained on: an MLP of another width on the full images of Fashion-MNIST, and the suite of
`benchmark.py`.

Expected: a mean loss at step 1,000 there below that of Adam tuned with a constant rate, and a
speed-up of at least 1.1 over it on the suite; at cpu size from the start alone, on which PES does
not improve: the best validation is the first.
"""

import functools
import math
import pathlib
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro

import learned_opt
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

# What is trained of the meta-params.
_PART = "scheduler/rate"

# Of the learning rate of matrices to that of all else, at the start: 0.02 to 0.01.
_LOG_RATIO = math.log(2.0)


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


class Size(NamedTuple):
  """How much work to do."""

  networks: tuple[Network, ...]
  test: Network
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
    *(2, (4, 8), 2, 4, 2, 2, 4, 2, 2, ("adam",)),
  ),
  "cpu": Size(_NETWORKS, _TEST, 50, (200, 1000), 16, 400, 100, 48, 1000, 16, 4),
  "gpu": Size(_NETWORKS, _TEST, 50, (200, 2000), 64, 5000, 250, 64, 1000, 100, 32),
}


def recipe(size: SizeName, seed: int) -> runs.Recipe:
  """The experiment at one of its sizes; all choices are ours."""
  chosen = SIZES[size]
  images = jax.device_put(datasets.load(chosen.test.dataset))
  test = functools.partial(_problems, chosen.test, images)
  start = learned_opt.load_artifact("celo-adam-mlps")
  config = start.learned_optimizer.config or {}
  return runs.Recipe(
    name="celo-muon",
    optimizee=_families(chosen.networks, "train"),
    validation_optimizee=_families(chosen.networks, "validation"),
    test_optimizee=test(split="test"),
    tuning_optimizee=test(split="train"),
    optimizee_name=f"full images of {chosen.test}",
    learned_optimizer=optimizers.celo_adam(
      **{**config, "newton_schulz": True, "cosine_decay": True}
    ),
    initial_meta_params=_with_new_outputs(start.meta_params),
    estimator=estimators.of_part(
      estimators.over_families(
        estimators.pes(
          chosen.unroll_length,
          chosen.horizons,
          chosen.num_particles,
          meta_losses.mean_log_above(1e-4, rising_over=500),
          sigma=0.1,
          difference=1.0,
        )
      ),
      [_PART],
    ),
    outer_learning_rate=2e-3,
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
      "command": f"python experiments/celo_muon.py --size {size} --seed {seed}",
      "optimizee": (
        f"MLPs at 8 x 8: {', '.join(map(str, chosen.networks))}; quadratics of 20 dimensions; "
        "one factor of 0.22 to 4.5 a problem"
      ),
      "estimator": (
        f"pes, {chosen.unroll_length} of {chosen.horizons[0]} to {chosen.horizons[1]} steps, "
        f"{chosen.num_particles} particles a family, sigma 0.1, mean log loss above 1e-4, "
        "late steps more"
      ),
      "start": f"celo-adam-mlps; only {_PART} is trained",
    },
  )


def _with_new_outputs(meta_params):
  """The weights of a schedule with two outputs that are constant at first."""
  scheduler = meta_params["scheduler"]
  rate = {
    "kernel": jnp.zeros((scheduler["rate"]["kernel"].shape[0], 2)),
    "bias": jnp.array([0.0, _LOG_RATIO]),
  }
  return {"scheduler": {**scheduler, "rate": rate}}


def _problems(network: Network, images: ImageDataset, split: Split) -> Optimizee:
  return optimizees.mlp_classifier(
    images,
    hidden_sizes=network.hidden_sizes,
    activation=network.activation,
    initial_scale=None,
    batch_size=network.batch_size,
    split=split,
  )


def _families(networks: tuple[Network, ...], split: Split) -> Families:
  def small(network: Network) -> Optimizee:
    images = datasets.resize(datasets.load(network.dataset), 8, grey=True)
    return _problems(network, images, split)

  problems = (*map(small, networks), optimizees.quadratic(20))
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
    out: the folder of the run; by default runs/celo_muon-SIZE-SEED.
    seed: of everything random.
    resume: continue the run in that folder.
  """
  devices.use_cores()
  cli.run_recipe(
    recipe(size, seed), out or pathlib.Path("runs") / f"celo_muon-{size}-{seed}", resume=resume
  )


if __name__ == "__main__":
  tyro.cli(main)
