"""A general-purpose optimizer in minutes: Celo-Adam by backpropagation (Moudgil et al. 2025).

    python experiments/celo_adam.py

meta-trains `celo_adam`, Adam whose learning rate an LSTM sets from the progress of the training
and its losses, on five families of small MLPs at once: 8 x 8 grey pixels of MNIST, Fashion-MNIST,
CIFAR-10 and scikit-learn's digits, one to five hidden layers, three activations, minibatches of 8
to 64, each problem reparametrised by a factor of its own. The published weights took 100,000
outer steps of PES; here the meta-gradient is that of backpropagation through 100 steps, the
optimizee's gradients included: how the learning rate changes the gradients to come is what limits
it. It then meets problems that it was not trained on: an MLP of another width on the full images of
Fashion-MNIST, and the suite of `benchmark.py`.

Expected: a mean loss at step 1,000 there of at most 1.1 times that of Adam tuned with a constant
rate, and a speed-up of at least 0.9 over it on the suite.
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
    sizes = "-".join(map(str, self.hidden_sizes))
    return f"{self.dataset} {sizes} {self.activation} in batches of {self.batch_size}"


_NETWORKS = (
  Network("mnist", (32,), "relu", 64),
  Network("fashion_mnist", (32, 32, 32), "tanh", 32),
  Network("cifar10", (32,), "relu", 16),
  Network("digits", (24, 24), "elu", 8),
  Network("mnist", (20,) * 5, "relu", 64),
)


class Size(NamedTuple):
  """How much work to do."""

  networks: tuple[Network, ...]
  test: Network
  unroll_length: int
  horizon: int
  num_problems: int
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
    *(2, 4, 2, 4, 2, 2, 4, 2, 2, ("adam",)),
  ),
  "cpu": Size(_NETWORKS, _TEST, 100, 500, 4, 600, 100, 32, 1000, 16, 4),
  "gpu": Size(_NETWORKS, _TEST, 100, 500, 32, 2000, 100, 64, 1000, 100, 32),
}


def recipe(size: SizeName, seed: int) -> runs.Recipe:
  """The experiment at one of its sizes.

  All choices but the architecture and its inputs are ours, from short runs: second derivatives,
  which see that a higher learning rate makes the gradients to come another; the log loss with a
  floor, without which the families that can be solved to the last digit count for most; a rate that
  starts at 0.01 instead of 1e-4, and factors of the problems between 0.22 and 4.5 instead of 1e-3
  and 1e3, as so few outer steps are too few for what is farther away.
  """
  chosen = SIZES[size]
  images = jax.device_put(datasets.load(chosen.test.dataset))
  test = functools.partial(_problems, chosen.test, images)
  return runs.Recipe(
    name="celo-adam",
    optimizee=_families(chosen.networks, "train"),
    validation_optimizee=_families(chosen.networks, "validation"),
    test_optimizee=test(split="test"),
    tuning_optimizee=test(split="train"),
    optimizee_name=f"full images of {chosen.test}",
    learned_optimizer=optimizers.celo_adam(output_scale=0.1),
    estimator=estimators.over_families(
      estimators.truncated_backprop(
        chosen.unroll_length,
        chosen.horizon,
        chosen.num_problems,
        meta_losses.mean_log_above(0.01),
        second_order=True,
      )
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
      "command": f"python experiments/celo_adam.py --size {size} --seed {seed}",
      "optimizee": (
        f"MLPs at 8 x 8: {', '.join(map(str, chosen.networks))}; "
        "one factor of 0.22 to 4.5 a problem"
      ),
      "estimator": (
        f"truncated_backprop, {chosen.unroll_length} of {chosen.horizon} steps, second order, "
        f"{chosen.num_problems} problems a family, mean log loss above 0.01"
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


def _families(networks: tuple[Network, ...], split: Split) -> Families:
  def scaled(network: Network) -> Optimizee:
    images = datasets.resize(datasets.load(network.dataset), 8, grey=True)
    return optimizees.random_scaling(_problems(network, images, split), radius=1.5, per="problem")

  return families(*map(scaled, networks))


def main(
  size: SizeName = "cpu",
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
) -> None:
  """Meta-trains a general-purpose optimizer and compares it with tuned baselines.

  Args:
    size: how much work to do: smoke takes seconds; cpu about ten minutes on 2 cores.
    out: the folder of the run; by default runs/celo_adam-SIZE-SEED.
    seed: of everything random.
    resume: continue the run in that folder.
  """
  devices.use_cores()
  cli.run_recipe(
    recipe(size, seed), out or pathlib.Path("runs") / f"celo_adam-{size}-{seed}", resume=resume
  )


if __name__ == "__main__":
  tyro.cli(main)
