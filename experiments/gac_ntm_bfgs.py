"""What a shared memory is worth: appendix D of Andrychowicz et al. (2016) on hard quadratics.

    python experiments/gac_ntm_bfgs.py

meta-trains four architectures by one recipe on quadratics in ten dimensions whose Hessian has a
condition number of 1,000: the coordinatewise LSTM; the same with global averaging cells; NTM-BFGS
and NTM-L-BFGS, whose memory is that of a quasi-Newton method. It compares them with one another,
with tuned baselines, and with BFGS and L-BFGS at as many evaluations of the gradient. The paper
gives no numbers for its appendix D.

Expected: a mean loss at step 100 of at most 3e-4 for the LSTM and less for each of the other three,
all far above that of L-BFGS.
"""

import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import tyro

import learned_opt
from learned_opt import cli, devices, estimators, meta_losses, optimizees, optimizers, runs
from learned_opt.baselines import find_baselines
from learned_opt.comparisons import Comparison
from learned_opt.evaluate import BASELINES, MORE_BASELINES, Evaluation, Result

ARCHITECTURES = {
  "lstm": optimizers.lstm,
  "lstm_gac": optimizers.lstm_gac,
  "ntm_bfgs": optimizers.ntm_bfgs,
  "ntm_lbfgs": optimizers.ntm_lbfgs,
}

SizeName = Literal["smoke", "cpu", "paper"]


class Size(NamedTuple):
  """How much work to do."""

  num_outer_steps: int
  validate_every: int
  meta_batch_size: int
  num_validation_problems: int
  num_test_problems: int
  num_tuning_problems: int
  baselines: tuple[str, ...] = (*BASELINES, *MORE_BASELINES)
  num_steps: tuple[int, ...] = (10, 20, 100)
  architectures: tuple[str, ...] = tuple(ARCHITECTURES)


SIZES = {
  "smoke": Size(4, 2, 2, 2, 4, 2, ("adam", "bfgs_line_search"), (3,), ("ntm_bfgs",)),
  "cpu": Size(5000, 250, 64, 512, 2000, 256),
  "paper": Size(10_000, 500, 128, 1024, 2000, 512),
}


def recipe(architecture: str, size: SizeName, condition_number: float, seed: int) -> runs.Recipe:
  """The experiment at one of its sizes, for one architecture.

  All choices are ours, from short runs: one layer instead of two, which trains faster and no worse;
  preprocessing with p = 10, as steps must shrink by orders of magnitude with the gradient; and the
  mean of the log loss, for which the last decade is worth as much as the first.
  """
  chosen = SIZES[size]
  return runs.Recipe(
    name=architecture,
    optimizee=optimizees.conditioned_quadratic(condition_number=condition_number),
    optimizee_name=f"quadratic of condition number {condition_number:g}",
    learned_optimizer=ARCHITECTURES[architecture](
      num_layers=1, preprocessing=optimizers.LogAndSign(), output_scale=0.1
    ),
    estimator=estimators.truncated_backprop(
      unroll_length=20,
      horizon=100,
      meta_batch_size=chosen.meta_batch_size,
      meta_loss=meta_losses.mean_log,
    ),
    outer_learning_rate=5e-3,
    schedule="cosine",
    num_outer_steps=chosen.num_outer_steps,
    validate_every=chosen.validate_every,
    num_validation_problems=chosen.num_validation_problems,
    seed=seed,
    description={
      "command": (
        f"python experiments/gac_ntm_bfgs.py --size {size} "
        f"--condition-number {condition_number:g} --seed {seed}"
      ),
      "optimizee": f"conditioned_quadratic, 10 dimensions, condition number {condition_number:g}",
      "estimator": "truncated_backprop, 20 of 100 steps, mean log loss",
      "meta_batch_size": chosen.meta_batch_size,
    },
  )


def comparisons(size: SizeName, condition_number: float, seed: int) -> list[Comparison]:
  """After several numbers of steps, for each of which the baselines are tuned anew."""
  chosen = SIZES[size]
  return [
    Comparison(
      f"{num_steps}-steps",
      optimizees.conditioned_quadratic(condition_number=condition_number),
      num_steps=num_steps,
      optimizee_name=f"quadratic of condition number {condition_number:g}",
      num_problems=chosen.num_test_problems,
      num_tuning_problems=chosen.num_tuning_problems,
      baselines=chosen.baselines,
      seed=seed,
    )
    for num_steps in chosen.num_steps
  ]


def print_at_equal_gradients(evaluations: Sequence[Evaluation]) -> None:
  """Prints the mean and the median loss after as many evaluations of the gradient.

  Args:
    evaluations: for different numbers of steps, for which their baselines were tuned.
  """
  names = list(evaluations[0].results)
  baselines = find_baselines(name for name in names if name not in ARCHITECTURES)
  prices = {baseline.name: baseline.gradients_per_step for baseline in baselines}
  print("\nmean and median loss after as many evaluations of the gradient")
  print(f"{'optimizer':20}", *(f"{one.num_steps:>20}" for one in evaluations))
  for name in names:
    price = prices.get(name, 1)
    cells = [_losses_at(one.results[name], one.num_steps // price) for one in evaluations]
    print(f"{name:20}", *cells)


def _losses_at(result: Result, step: int) -> str:
  return f"{result.mean[step]:>10.3g}{result.median[step]:>10.3g}"


def main(
  size: SizeName = "cpu",
  out: pathlib.Path | None = None,
  condition_number: float = 1000.0,
  seed: int = 0,
  resume: bool = False,
) -> None:
  """Meta-trains four architectures on quadratics and compares them with quasi-Newton methods.

  Args:
    size: how much work to do: smoke takes seconds, cpu about 20 minutes on 2 cores,
      paper hours.
    out: the folder of the runs; by default runs/gac_ntm_bfgs-SIZE-CONDITION_NUMBER-SEED.
    condition_number: of the Hessian.
    seed: of everything random.
    resume: continue the runs in that folder.
  """
  devices.use_cores()
  folder = out or pathlib.Path("runs") / f"gac_ntm_bfgs-{size}-{condition_number:g}-{seed}"
  saved = {}
  for name in SIZES[size].architectures:
    one = recipe(name, size, condition_number, seed)
    begun = (folder / name).exists()
    run = cli.run_recipe(one, folder / name, resume=resume and begun, evaluate=False)
    saved[name] = run.out / "optimizer"
  evaluations = cli.compare(comparisons(size, condition_number, seed), saved, folder, resume=resume)
  for artifact in saved.values():
    learned_opt.annotate(artifact, evaluation=evaluations[-1].summary())
  print_at_equal_gradients(evaluations)


if __name__ == "__main__":
  tyro.cli(main)
