"""The suite: learned optimizers on tasks that they were not trained on, beside tuned baselines.

    python experiments/benchmark.py

compares each of the optimizers with all baselines on the suite's tasks: other widths, depths and
activations, convolutions, recurrent networks, a transformer, an auto-encoder, other data sets and
batch sizes, horizons of 1,000, 5,000 and 25,000 steps. Data sets that are not at hand are skipped
and named. The baselines are tuned beforehand, once, by

    python -m learned_opt.benchmark_suite --size cpu

Expected: for `adaptive-muon` an interquartile-mean speed-up of at least 1.3 over Adam with a tuned
constant rate, and of 1.1 over AdamW with a tuned cosine schedule; for `learned-muon` 1.2 and 1.0;
one that was trained on a single network, as `rnnprop-mnist`, stays below 0.8.
"""

import pathlib
from typing import Literal

import tyro

from learned_opt import cli, devices

OPTIMIZERS = ("adaptive-muon", "learned-muon")


def main(
  size: Literal["smoke", "cpu"] = "cpu",
  out: pathlib.Path | None = None,
  optimizers: tuple[str, ...] = OPTIMIZERS,
  baselines: pathlib.Path | None = None,
) -> None:
  """Compares optimizers with tuned baselines on the suite.

  Args:
    size: how much work to do: smoke takes seconds, cpu some minutes an optimizer.
    out: the folder of the outcome; by default runs/benchmark-SIZE.
    optimizers: names or folders of saved optimizers.
    baselines: a folder of tuned baselines, in which those that are missing are made; by default
      the ones that are shipped, and at smoke size a folder in `out`.
  """
  devices.use_cores()
  folder = out or pathlib.Path("runs") / f"benchmark-{size}"
  if size == "smoke" and baselines is None:
    baselines = folder / "baselines"
  for optimizer in optimizers:
    name = pathlib.Path(optimizer).name
    cli.benchmark(optimizer, folder / name, size=size, name=name, baselines=baselines)


if __name__ == "__main__":
  tyro.cli(main)
