"""A general-purpose optimizer in the way of Celo 2 (Moudgil et al. 2026).

    python experiments/celo2_base.py

meta-trains `celo2` without orthogonalization by PES on four families of small MLPs at once: images
of 8 x 8 grey pixels of MNIST, Fashion-MNIST, CIFAR-10 and scikit-learn's digits (where the
published recipe has SVHN), each problem reparametrised by a factor of its own between 1e-3 and
1e3. It then meets problems that it was not trained on: an MLP with another width on the full
images of Fashion-MNIST.

Expected: a mean loss at step 1,000 there of at most 1.1 times that of Adam tuned with a constant
rate, with the learning rate 0.001 that it was trained with.
"""

import functools
import math
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
from learned_opt.baselines import BASELINES
from learned_opt.families import Families, families

SizeName = Literal["smoke", "cpu", "gpu"]


class Size(NamedTuple):
  """How much work to do."""

  equal: tuple[str, ...]
  others: tuple[str, ...]
  hidden_size: int
  test: str
  test_hidden_size: int
  unroll_length: int
  horizons: tuple[int, int]
  num_particles: int
  num_outer_steps: int
  validate_every: int
  num_validation_problems: int
  num_steps: int
  num_test_problems: int
  num_tuning_problems: int
  baselines: tuple[str, ...] = tuple(BASELINES)


_IMAGES = ("mnist", "fashion_mnist", "cifar10")

SIZES = {
  "smoke": Size(("digits",), (), 4, "digits", 5, 2, (4, 8), 2, 4, 2, 2, 4, 2, 2, ("adam",)),
  "cpu": Size(
    *(_IMAGES, ("digits",), 32, "fashion_mnist", 64, 50, (100, 1000)),
    *(8, 4000, 250, 8, 1000, 32, 8),
  ),
  "gpu": Size(
    *(_IMAGES, ("digits",), 32, "fashion_mnist", 64, 50, (100, 2000)),
    *(8, 100_000, 1000, 32, 1000, 100, 32),
  ),
}


def recipe(size: SizeName, seed: int) -> runs.Recipe:
  """The experiment at one of its sizes.

  PES with truncations of 50 steps and log-uniform horizons, four families of 8 problems, one factor
  a problem, are the published recipe; at cpu size the longest horizon is 1,000 instead of 2,000, as
  are the data of CIFAR-10 where only a JPEG copy is at hand. Ours is the meta-loss, the mean of the
  log loss, which gives each family the same weight.
  """
  chosen = SIZES[size]
  test = functools.partial(
    optimizees.mlp_classifier,
    jax.device_put(datasets.load(chosen.test)),
    hidden_sizes=(chosen.test_hidden_size,),
    activation="relu",
    initial_scale=None,
    batch_size=128,
  )
  return runs.Recipe(
    name="celo2-base",
    optimizee=_training_families(chosen, "train"),
    validation_optimizee=_training_families(chosen, "validation"),
    test_optimizee=test(split="test"),
    tuning_optimizee=test(),
    optimizee_name=f"{chosen.test}, {chosen.test_hidden_size} ReLU units",
    learned_optimizer=optimizers.celo2(newton_schulz=False),
    estimator=estimators.over_families(
      estimators.pes(
        chosen.unroll_length,
        chosen.horizons,
        chosen.num_particles,
        meta_losses.mean_log,
        difference=1.0,
      )
    ),
    outer_learning_rate=1e-3,
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
      "command": f"python experiments/celo2_base.py --size {size} --seed {seed}",
      "optimizee": (
        f"MLPs with {chosen.hidden_size} ReLU units on "
        f"{', '.join((*chosen.equal, *chosen.others))} at 8 x 8, "
        "minibatches of 64, one factor of 1e-3 to 1e3 a problem"
      ),
      "estimator": (
        f"pes, {chosen.unroll_length} of {chosen.horizons[0]} to {chosen.horizons[1]} steps, "
        f"{chosen.num_particles} particles a family, sigma 0.01, mean log loss"
      ),
    },
  )


def _training_families(size: Size, split: Literal["train", "validation"]) -> Families:
  def small(name: str):
    return datasets.resize(datasets.load(name), 8, grey=True)

  def problems(dataset) -> Optimizee:
    network = optimizees.mlp_classifier(
      dataset,
      hidden_sizes=(size.hidden_size,),
      activation="relu",
      initial_scale=None,
      batch_size=64,
      split=split,
    )
    return optimizees.random_scaling(network, radius=math.log(1e3), per="problem")

  equal = datasets.cut_to_equal_sizes(*map(small, size.equal))
  return families(*map(problems, (*equal, *map(small, size.others))))


def main(
  size: SizeName = "cpu",
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
) -> None:
  """Meta-trains a general-purpose optimizer and compares it with tuned baselines.

  Args:
    size: how much work to do: smoke takes seconds; cpu takes an hour or two on 2 cores.
    out: the folder of the run; by default runs/celo2_base-SIZE-SEED.
    seed: of everything random.
    resume: continue the run in that folder.
  """
  devices.use_cores()
  cli.run_recipe(
    recipe(size, seed), out or pathlib.Path("runs") / f"celo2_base-{size}-{seed}", resume=resume
  )


if __name__ == "__main__":
  tyro.cli(main)
