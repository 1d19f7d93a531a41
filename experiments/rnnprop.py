"""RNNprop: an LSTM on Adam's directions (Lv, Jiang and Li 2017).

    python experiments/rnnprop.py

meta-trains it on 100 steps of a small MNIST network whose coordinates are scaled at random, with a
convex helper beside it, and takes it to what it was not trained on: the network as it is, 10,000
steps, more layers, other activations, a convolutional network, LSTMs on noisy sine waves.

Expected: with ReLU, a mean loss at step 100 below that of tuned Adam, where the paper's LSTM fails
(2.585); no divergence in 10,000 steps.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import tyro

from learned_opt import (
  ImageDataset,
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
from learned_opt.comparisons import Comparison

BASELINES = ("sgd", "momentum", "nag", "rmsprop", "adam")
# For 10,000 steps and for convolutions, where one takes as long as all of them elsewhere.
FEW_BASELINES = ("nag", "adam")
NETWORKS = (
  *("relu", "elu", "tanh", "2-layers", "5-layers", "10-layers"),
  *("sines", "sines-2-layers", "sines-less-noise"),
)
CONVOLUTIONS = "convolutions"


class Size(NamedTuple):
  """How much work to do."""

  dataset: str
  horizon: int
  num_outer_steps: int
  validate_every: int
  num_validation_problems: int
  num_steps: int
  long_steps: tuple[int, ...]
  networks: tuple[str, ...]
  num_test_problems: int
  num_long_problems: int
  num_convolutional_problems: int
  num_tuning_problems: int
  baselines: tuple[str, ...]


SIZES = {
  "smoke": Size("digits", 20, 4, 2, 2, 2, (), ("relu",), 2, 2, 0, 2, ("adam",)),
  "cpu": Size("mnist", 100, 5_000, 250, 16, 100, (1000, 10_000), NETWORKS, 100, 4, 8, 8, BASELINES),
  "paper": Size(
    "mnist", 100, 50_000, 500, 64, 100, (2000, 10_000), NETWORKS, 100, 100, 100, 32, BASELINES
  ),
}


def recipe(size: Literal["smoke", "cpu", "paper"], seed: int) -> runs.Recipe:
  """The training at one of its sizes.

  The optimizer and the problems are the paper's: theta_0 of scale 0.1, factors of e^-3 to e^3 on
  its coordinates, of 1 / e to e on those of the helper. Ours are the meta-loss, the mean of the log
  loss instead of the last loss of each truncation; the outer learning rate with its schedule; and
  that each outer step goes back through a sample of 2,048 coordinates of a tensor.
  """
  chosen = SIZES[size]
  network = functools.partial(
    optimizees.mlp_classifier, _dataset(chosen.dataset), initial_scale=0.1
  )
  scaled = optimizees.random_scaling(network(), radius=3.0)
  return runs.Recipe(
    name="rnnprop",
    optimizee=optimizees.convex_helper(scaled),
    validation_optimizee=network(split="validation"),
    test_optimizee=network(split="test"),
    tuning_optimizee=network(),
    optimizee_name=f"{chosen.dataset}, 20 sigmoid units",
    learned_optimizer=optimizers.rnnprop(),
    estimator=estimators.truncated_backprop(
      unroll_length=20,
      horizon=chosen.horizon,
      meta_loss=meta_losses.mean_log,
      replayed_coordinates=2048,
    ),
    outer_learning_rate=1e-3,
    schedule="cosine",
    num_outer_steps=chosen.num_outer_steps,
    validate_every=chosen.validate_every,
    num_validation_problems=chosen.num_validation_problems,
    num_test_problems=chosen.num_test_problems,
    num_tuning_problems=chosen.num_tuning_problems,
    baselines=chosen.baselines,
    evaluation_steps=chosen.num_steps,
    seed=seed,
    description={
      "command": f"python experiments/rnnprop.py --size {size} --seed {seed}",
      "optimizee": (
        f"{chosen.dataset}, MLP with 20 sigmoid units, minibatches of 128, theta_0 of scale 0.1, "
        "random scaling 3, convex helper"
      ),
      "estimator": (
        f"truncated_backprop, 20 of {chosen.horizon} steps, mean log loss, one problem, "
        "2048 coordinates a tensor"
      ),
    },
  )


def comparisons(size: Literal["smoke", "cpu", "paper"], seed: int) -> list[Comparison]:
  """What the optimizer was not trained on."""
  chosen = SIZES[size]
  networks = _networks(chosen)
  few = min(chosen.num_long_problems, chosen.num_tuning_problems)
  plan = [
    *(
      (f"{steps}-steps", _images(chosen), steps, chosen.num_long_problems, few)
      for steps in chosen.long_steps
    ),
    *(
      (name, networks[name], chosen.num_steps, chosen.num_test_problems, chosen.num_tuning_problems)
      for name in chosen.networks
    ),
  ]
  if number := chosen.num_convolutional_problems:
    plan.append(
      (CONVOLUTIONS, networks[CONVOLUTIONS], chosen.num_steps, number, max(1, number // 4))
    )
  return [
    Comparison(
      name,
      test,
      num_steps=num_steps,
      tuning_optimizee=tuning,
      num_problems=num_problems,
      num_tuning_problems=num_tuning_problems,
      baselines=FEW_BASELINES if num_steps > 1000 or name == CONVOLUTIONS else chosen.baselines,
      seed=seed,
    )
    for name, (test, tuning), num_steps, num_problems, num_tuning_problems in plan
  ]


def _networks(size: Size) -> dict[str, tuple[Optimizee, Optimizee]]:
  """Test problems and those to tune the baselines on."""
  return {
    "relu": _images(size, activation="relu"),
    "elu": _images(size, activation="elu"),
    "tanh": _images(size, activation="tanh"),
    "2-layers": _images(size, hidden_sizes=(20,) * 2),
    "5-layers": _images(size, hidden_sizes=(20,) * 5),
    "10-layers": _images(size, hidden_sizes=(20,) * 10),
    CONVOLUTIONS: _splits(
      optimizees.conv_classifier, _dataset(size.dataset), (8, 16), 16, initial_scale=0.1
    ),
    "sines": _sines(),
    "sines-2-layers": _sines(num_layers=2),
    "sines-less-noise": _sines(noise=0.01),
  }


def _images(size: Size, **options: Any) -> tuple[Optimizee, Optimizee]:
  return _splits(optimizees.mlp_classifier, _dataset(size.dataset), initial_scale=0.1, **options)


def _sines(**options: Any) -> tuple[Optimizee, Optimizee]:
  optimizee = optimizees.noisy_sines(**options)
  return optimizee, optimizee


def _splits(
  make: Callable[..., Optimizee], *args: Any, **options: Any
) -> tuple[Optimizee, Optimizee]:
  return make(*args, split="test", **options), make(*args, split="train", **options)


@functools.cache
def _dataset(name: str) -> ImageDataset:
  """On the device, once for all comparisons."""
  return jax.device_put(datasets.load(name))


def main(
  size: Literal["smoke", "cpu", "paper"] = "cpu",
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
  optimizer: str | None = None,
  problems: tuple[str, ...] = (),
) -> None:
  """Meta-trains RNNprop on a small MNIST network and takes it to other problems.

  Args:
    size: how much work to do: smoke takes seconds, cpu about four hours on 2 cores that are busy;
      paper is for an accelerator.
    out: the folder of the run; by default runs/rnnprop-SIZE-SEED.
    seed: of everything random.
    resume: continue the run in that folder, and take from it what is finished.
    optimizer: name or folder of a saved optimizer to take there; nothing is trained then.
    problems: names of the comparisons, such as sines or 10000-steps; without any, all.
  """
  plan = {one.name: one for one in comparisons(size, seed)}
  unknown = set(problems) - set(plan)
  if unknown:
    raise SystemExit(f"unknown problems {sorted(unknown)}: there are {', '.join(plan)}")
  devices.use_cores()
  folder = out or pathlib.Path("runs") / f"rnnprop-{size}-{seed}"
  if optimizer is None:
    run = cli.run_recipe(recipe(size, seed), folder, resume=resume)
    optimizer = str(run.out / "optimizer")
  chosen = [plan[name] for name in problems or plan]
  cli.compare(chosen, {"rnnprop": optimizer}, folder, resume=resume)


if __name__ == "__main__":
  tyro.cli(main)
