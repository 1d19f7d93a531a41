"""General-purpose optimizers of few numbers: Muon, whose hyperparameters are learned.

    python experiments/learned_muon.py

meta-trains `learned_muon`, Muon (Jordan et al. 2024) for matrices and Adam for scalars and vectors
with a schedule for both, on nine families: MLPs on images of 8 x 8 pixels, softmax regression,
quadratics, and a small transformer and a recurrent network on made-up languages. ES-Single, whose
noise has six dimensions only, sees whole trainings of 200 to 1,000 steps. The result then meets
problems that it was not trained on: an MLP of another width on the full images of Fashion-MNIST,
and the suite of `benchmark.py`.

Expected: a mean loss at step 1,000 there below that of Adam tuned with a constant rate, and on the
suite a speed-up of at least 1.2 over it and of 1.0 over AdamW tuned with a cosine schedule.

    python experiments/learned_muon.py --variant adaptive

takes the one with eleven numbers, whose rates follow the gradients and whose params are averaged,
and evolves it on the same families for what the suite measures: how many times as fast as tuned
Adam it is.

Expected: likewise, and on the suite a speed-up of at least 1.3 over tuned Adam and of 1.1 over
AdamW tuned with a cosine schedule.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import tyro

import learned_opt
from learned_opt import (
  Optimizee,
  cli,
  datasets,
  devices,
  estimators,
  evolution,
  meta_losses,
  optimizees,
  optimizers,
  runs,
)
from learned_opt.base import ImageDataset
from learned_opt.comparisons import Comparison
from learned_opt.families import Families, families

SizeName = Literal["smoke", "cpu", "gpu"]
Split = Literal["train", "validation", "test"]
Variant = Literal["plain", "adaptive"]


class Network(NamedTuple):
  """The networks of a family, and the minibatches on which they are trained."""

  dataset: str
  hidden_sizes: tuple[int, ...]
  activation: Literal["relu", "tanh", "elu"]
  batch_size: int
  skip: Literal["none", "residual"] = "none"

  def __str__(self) -> str:
    sizes = "-".join(map(str, self.hidden_sizes)) or "no hidden units"
    skip = "" if self.skip == "none" else f" {self.skip}"
    return f"{self.dataset} {sizes} {self.activation}{skip} in batches of {self.batch_size}"


_NETWORKS = (
  Network("mnist", (32,), "relu", 64),
  Network("fashion_mnist", (32, 32, 32), "tanh", 32),
  Network("cifar10", (32,), "relu", 16),
  Network("digits", (24, 24), "elu", 8),
  Network("mnist", (20,) * 5, "relu", 64),
  Network("fashion_mnist", (), "relu", 32),
)

# What the adaptive variant sees besides: noise, and depth with skip connections.
_MORE_NETWORKS = (
  Network("mnist", (40,), "tanh", 4),
  Network("fashion_mnist", (24,) * 6, "relu", 32, "residual"),
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
  more_networks: tuple[Network, ...] = ()
  num_generations: int = 20
  population_size: int = 12

  def adaptive(self) -> "Size":
    """With all networks that the adaptive variant is trained on."""
    return self._replace(networks=self.networks + self.more_networks)


_TEST = Network("fashion_mnist", (64,), "relu", 128)

SIZES = {
  "smoke": Size(
    (Network("digits", (4,), "relu", 8),),
    Network("digits", (5,), "relu", 8),
    *(2_000, 2, (4, 8), 2, 4, 2, 2, 4, 2, 2, ("adam",), (), 1, 4),
  ),
  "cpu": Size(
    *(_NETWORKS, _TEST, 50_000, 50, (200, 1000), 16, 200, 50, 16, 1000, 16, 4),
    more_networks=_MORE_NETWORKS,
  ),
  "gpu": Size(
    *(_NETWORKS, _TEST, 200_000, 50, (200, 2000), 64, 2000, 100, 64, 1000, 100, 32),
    more_networks=_MORE_NETWORKS,
    num_generations=60,
    population_size=24,
  ),
}


def recipe(size: SizeName, seed: int) -> runs.Recipe:
  """The experiment at one of its sizes; all choices are ours."""
  chosen = SIZES[size]
  test = _test_problems(chosen)
  return runs.Recipe(
    name="learned-muon",
    optimizee=_families(chosen, "train"),
    validation_optimizee=_families(chosen, "validation"),
    test_optimizee=test(split="test"),
    tuning_optimizee=test(split="train"),
    optimizee_name=_test_name(chosen),
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
      "optimizee": _words(chosen),
      "estimator": (
        f"es_single, {chosen.unroll_length} of {chosen.horizons[0]} to {chosen.horizons[1]} steps, "
        f"{chosen.num_particles} particles a family, sigma 0.2, mean log loss above 1e-4, late "
        "steps more"
      ),
    },
  )


def evolution_recipe(size: SizeName, seed: int) -> evolution.Recipe:
  """The evolution of the adaptive variant; the start has round numbers of our choice."""
  chosen = SIZES[size].adaptive()
  return evolution.Recipe(
    name="adaptive-muon",
    learned_optimizer=optimizers.learned_muon(
      matrix_rate=0.05,
      rate=0.02,
      matrix_decay=0.6,
      decays=(0.8, 0.997),
      gains=(8.0, 8.0),
      averaging=(0.5, 3.0),
    ),
    problems=_families(chosen, "train"),
    validation_problems=_families(chosen, "validation"),
    num_steps=chosen.num_steps,
    num_problems=min(chosen.num_validation_problems, 8),
    num_validation_problems=chosen.num_validation_problems,
    num_generations=chosen.num_generations,
    population_size=chosen.population_size,
    seed=seed,
    description={
      "command": (
        f"python experiments/learned_muon.py --variant adaptive --size {size} --seed {seed}"
      ),
      "optimizee": _words(chosen),
      "estimator": "CMA-ES, mean logarithm of the speed-up over tuned Adam, at most 2.5 a problem",
    },
  )


def comparison(size: SizeName, seed: int) -> Comparison:
  """The test problems of `recipe`, for what was evolved."""
  chosen = SIZES[size]
  test = _test_problems(chosen)
  return Comparison(
    "full-images",
    test(split="test"),
    num_steps=chosen.num_steps,
    optimizee_name=_test_name(chosen),
    tuning_optimizee=test(split="train"),
    num_problems=chosen.num_test_problems,
    num_tuning_problems=chosen.num_tuning_problems,
    baselines=chosen.baselines,
    seed=seed,
  )


def _words(size: Size) -> str:
  return (
    f"MLPs at 8 x 8: {', '.join(map(str, size.networks))}; quadratics of 20 dimensions; a "
    "transformer and a recurrent network on made-up languages; one factor of 0.22 to 4.5 a problem"
  )


def _test_problems(size: Size) -> Callable[..., Optimizee]:
  images = jax.device_put(datasets.load(size.test.dataset))
  return functools.partial(_problems, size.test, images)


def _test_name(size: Size) -> str:
  return f"full images of {size.test}"


def _problems(network: Network, images: ImageDataset, split: Split) -> Optimizee:
  return optimizees.mlp_classifier(
    images,
    hidden_sizes=network.hidden_sizes,
    activation=network.activation,
    skip=network.skip,
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
  variant: Variant = "plain",
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
) -> None:
  """Meta-trains a general-purpose optimizer and compares it with tuned baselines.

  Args:
    size: how much work to do: smoke takes seconds; cpu about a quarter of an hour on 2 cores.
    variant: plain, six numbers by ES-Single; or adaptive, eleven by CMA-ES.
    out: the folder of the run; by default runs/learned_muon-SIZE-SEED, or adaptive_muon-SIZE-SEED.
    seed: of everything random.
    resume: continue the run in that folder.
  """
  devices.use_cores()
  if variant == "plain":
    out = out or pathlib.Path("runs") / f"learned_muon-{size}-{seed}"
    cli.run_recipe(recipe(size, seed), out, resume=resume)
    return
  out = out or pathlib.Path("runs") / f"adaptive_muon-{size}-{seed}"
  done = cli.run_evolution(evolution_recipe(size, seed), out, resume=resume)
  (evaluation,) = cli.compare(
    [comparison(size, seed)], {"adaptive-muon": done.optimizer}, out, resume=resume
  )
  learned_opt.annotate(done.optimizer, evaluation=evaluation.summary())


if __name__ == "__main__":
  tyro.cli(main)
