"""A convolutional network on CIFAR-10: Andrychowicz et al. (2016), section 3.3.

    python experiments/cifar.py

meta-trains a pair of LSTMs, one for the convolutions' kernels and one for all other tensors, on all
ten labels; and another pair, LSTM-sub, on problems of five labels of which no test problem has any.
Both go to CIFAR-10, to five labels and to pairs of them, on images of the test split.

Expected: at step 100 on CIFAR-10 below every tuned baseline. The paper's LSTM has 0.823 at step
1,000 there (its NAG 0.801), 0.358 and 0.041 on its subsets of five and two labels.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

import learned_opt
from learned_opt import (
  ImageDataset,
  Optimizee,
  cli,
  datasets,
  devices,
  estimators,
  meta_losses,
  optimizees,
  runs,
)
from learned_opt import optimizers as architectures
from learned_opt.baselines import BASELINES
from learned_opt.comparisons import Comparison
from learned_opt.plots import Published

SizeName = Literal["smoke", "cpu", "paper"]
PairName = Literal["lstm", "lstm-sub"]

# The problems of the subsets have the first five labels; LSTM-sub is trained on the others.
TESTED, HELD_OUT = range(5), range(5, 10)
SUBSETS: dict[str, dict[str, Any]] = {
  "10-labels": {},
  "5-labels": {"num_labels": 5, "labels": TESTED},
  "2-labels": {"num_labels": 2, "labels": TESTED},
}

# Figure 7, read off.
PAPER_STEPS = (10, 50, 100, 200, 400, 600, 800, 1000)
PAPER = {
  "10-labels": {"lstm": (2.034, 1.589, 1.435, 1.314, 1.132, 1.009, 0.907, 0.823)},
  "5-labels": {
    "lstm": (1.218, 0.814, 0.718, 0.604, 0.487, 0.423, 0.397, 0.358),
    "lstm-sub": (1.250, 0.841, 0.706, 0.601, 0.509, 0.459, 0.415, 0.385),
  },
  "2-labels": {
    "lstm": (0.421, 0.278, 0.217, 0.163, 0.108, 0.076, 0.057, 0.041),
    "lstm-sub": (0.483, 0.275, 0.212, 0.161, 0.097, 0.076, 0.051, 0.039),
  },
}


class Stage(NamedTuple):
  """A part of a training; its images have so many `pixels` a side, None for all."""

  pixels: int | None
  horizon: int
  outer_learning_rate: float
  num_outer_steps: int
  validate_every: int


class Trial(NamedTuple):
  """A comparison with tuned baselines."""

  num_steps: int
  num_test_problems: int
  num_tuning_problems: int


class Size(NamedTuple):
  """How much work to do."""

  dataset: str
  channels: tuple[int, ...]
  batch_size: int
  stages: tuple[Stage, ...]
  num_validation_problems: int
  trained: Trial
  longer: Trial
  subsets: tuple[str, ...] = tuple(PAPER)
  pairs: tuple[PairName, ...] = ("lstm", "lstm-sub")
  starts_from_lstm_mnist: bool = False
  baselines: tuple[str, ...] = tuple(BASELINES)


SIZES = {
  "smoke": Size(
    *("digits", (2,), 8, (Stage(4, 20, 3e-3, 2, 2), Stage(None, 20, 1e-3, 2, 2))),
    *(2, Trial(20, 2, 2), Trial(30, 2, 2), ("5-labels",)),
    pairs=("lstm-sub",),
    baselines=("adam",),
  ),
  "cpu": Size(
    *("cifar10", (16, 16, 16), 32),
    (Stage(8, 100, 3e-3, 3000, 150), Stage(16, 100, 1e-3, 1500, 150)),
    *(8, Trial(100, 32, 4), Trial(1000, 8, 1)),
    starts_from_lstm_mnist=True,
    baselines=("nag", "rmsprop", "adam"),
  ),
  "paper": Size(
    *("cifar10", (16, 16, 16), 128, (Stage(None, 1000, 3e-3, 20_000, 500),)),
    *(8, Trial(1000, 100, 8), Trial(1000, 100, 8)),
  ),
}


def network(
  size: SizeName,
  split: Literal["train", "validation", "test"] = "train",
  num_labels: int | None = None,
  labels: range | None = None,
  pixels: int | None = None,
) -> Optimizee:
  """The problems: all labels, or some of `labels`, drawn for each problem; images of a height."""
  chosen = SIZES[size]
  return optimizees.conv_classifier(
    _dataset(chosen.dataset, pixels),
    chosen.channels,
    batch_size=chosen.batch_size,
    split=split,
    num_labels=num_labels,
    labels=labels,
  )


def stages(name: PairName, size: SizeName, seed: int) -> list[runs.Recipe]:
  """The training of one of the two pairs, a recipe a stage.

  The network and the pair are the paper's. Which labels its subsets have, the horizon, the unrolls
  and the number of outer steps it does not say. Ours are the meta-loss, the mean of the log loss,
  the outer learning rate with its schedule, and that each outer step goes back through a sample of
  2,048 coordinates of a tensor. On a CPU both LSTMs start from `lstm-mnist` and are trained on
  images of 8 x 8 pixels, a sixteenth of the convolutions' work, and then on images of 16 x 16.
  """
  first, *later = SIZES[size].stages
  start, beginning = None, "random"
  if SIZES[size].starts_from_lstm_mnist:
    weights = learned_opt.load_artifact("lstm-mnist").meta_params
    start, beginning = {"kernels": weights, "others": weights}, "both LSTMs from lstm-mnist"
  return [
    dataclasses.replace(_recipe(name, size, seed, first, beginning), initial_meta_params=start),
    *(_recipe(name, size, seed, stage, "the best of the stage before") for stage in later),
  ]


def _recipe(name: PairName, size: SizeName, seed: int, stage: Stage, beginning: str) -> runs.Recipe:
  chosen = SIZES[size]
  problems = functools.partial(network, size, pixels=stage.pixels)
  subset = "10-labels"
  if name == "lstm-sub":
    problems = functools.partial(problems, num_labels=len(HELD_OUT), labels=HELD_OUT)
    subset = "5-labels"
  small = "" if stage.pixels is None else f" at {stage.pixels} x {stage.pixels} pixels"
  return runs.Recipe(
    name=name,
    optimizee=problems(),
    validation_optimizee=problems("validation"),
    test_optimizee=network(size, "test", **SUBSETS[subset]),
    tuning_optimizee=network(size, **SUBSETS[subset]),
    optimizee_name=_title(chosen.dataset, subset),
    learned_optimizer=architectures.lstm_pair(),
    estimator=estimators.truncated_backprop(
      unroll_length=20,
      horizon=stage.horizon,
      meta_loss=meta_losses.mean_log,
      replayed_coordinates=2048,
    ),
    outer_learning_rate=stage.outer_learning_rate,
    schedule="cosine",
    num_outer_steps=stage.num_outer_steps,
    validate_every=stage.validate_every,
    num_validation_problems=chosen.num_validation_problems,
    evaluation_steps=chosen.trained.num_steps,
    num_test_problems=chosen.trained.num_test_problems,
    num_tuning_problems=chosen.trained.num_tuning_problems,
    baselines=chosen.baselines,
    objective="late",
    seed=seed,
    description={
      "command": f"python experiments/cifar.py --size {size} --seed {seed}",
      "optimizee": (
        f"{chosen.dataset}{small}, conv_classifier with {chosen.channels} channels, minibatches of "
        f"{chosen.batch_size}, labels {'0 to 9' if name == 'lstm' else '5 to 9'}"
      ),
      "estimator": (
        f"truncated_backprop, 20 of {stage.horizon} steps, mean log loss, one problem, "
        "2048 coordinates a tensor"
      ),
      "start": beginning,
    },
    published=_published(subset, chosen.trained.num_steps),
  )


def comparisons(size: SizeName, seed: int, subsets: Sequence[str] = ()) -> list[Comparison]:
  """On all labels, and on problems of five and of two of the tested ones, or some of these."""
  chosen = SIZES[size]
  return [
    Comparison(
      name,
      network(size, "test", **SUBSETS[name]),
      num_steps=chosen.longer.num_steps,
      optimizee_name=_title(chosen.dataset, name),
      tuning_optimizee=network(size, **SUBSETS[name]),
      num_problems=chosen.longer.num_test_problems,
      num_tuning_problems=chosen.longer.num_tuning_problems,
      baselines=chosen.baselines,
      objective="late",
      seed=seed,
      published=_published(name, chosen.longer.num_steps),
    )
    for name in subsets or chosen.subsets
  ]


def _published(name: str, num_steps: int) -> Published:
  """The paper's curves as far as ours go."""
  number = sum(step <= num_steps for step in PAPER_STEPS)
  if not number:
    return {}
  steps = np.asarray(PAPER_STEPS[:number])
  return {of: (steps, np.asarray(curve[:number])) for of, curve in PAPER[name].items()}


def _title(dataset: str, labels: str) -> str:
  return f"{dataset}, {labels.replace('-', ' ')}"


@functools.cache
def _dataset(name: str, pixels: int | None) -> ImageDataset:
  """On the device, once for all problems."""
  images = datasets.load(name)
  return jax.device_put(images if pixels is None else datasets.resize(images, pixels))


def main(
  size: SizeName = "cpu",
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
  pairs: tuple[PairName, ...] = (),
  optimizers: tuple[str, ...] = (),
  subsets: tuple[Literal["10-labels", "5-labels", "2-labels"], ...] = (),
) -> None:
  """Meta-trains two pairs of LSTMs on convolutional networks and compares them with baselines.

  Args:
    size: how much work to do: smoke takes seconds; cpu, with minibatches of 32 instead of 128,
      trainings on smaller images and few problems to compare on, hours on 2 cores; paper is for
      an accelerator.
    out: the folder of the runs; by default runs/cifar-SIZE-SEED.
    seed: of everything random.
    resume: continue the runs in that folder.
    pairs: which to train and compare; without any, both.
    optimizers: names or folders of saved optimizers to compare instead; nothing is trained then.
    subsets: of the labels, on which they are compared; without any, all three.
  """
  devices.use_cores()
  folder = out or pathlib.Path("runs") / f"cifar-{size}-{seed}"
  saved = {name: name for name in optimizers}
  for name in () if saved else pairs or SIZES[size].pairs:
    begun = (folder / name).exists()
    run = cli.run_curriculum(stages(name, size, seed), folder / name, resume=resume and begun)
    saved[name] = str(run.out / "optimizer")
  cli.compare(comparisons(size, seed, subsets), saved, folder, resume=resume)


if __name__ == "__main__":
  tyro.cli(main)
