"""What ``learned-opt doctor`` does: estimators compared on the problems that were chosen."""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from learned_opt import _run_folder, artifacts, doctor, runs
from learned_opt.cli import _options, _report
from learned_opt.plots import doctor_figure


def examine(options: Any, report: Callable[[str], None]) -> doctor.Diagnosis:
  """Examines the optimizer that was chosen; draws its meta-params if there are none.

  Raises:
    ValueError: if an option is out of its range.
  """
  key, init_key = jax.random.split(runs.split_seed(options.seed)[1])
  if options.saved is not None:
    artifact = artifacts.load_artifact(options.saved)
    learned_optimizer, meta_params = artifact.learned_optimizer, artifact.meta_params
  else:
    config = options.learned_optimizer_options
    learned_optimizer = type(config).factory(**config.arguments())
    meta_params = jax.jit(learned_optimizer.init)(init_key)
  return doctor.examine(
    _options.optimizee_splits(options.optimizee_options)["train"],
    learned_optimizer,
    meta_params,
    unroll_lengths=options.unroll_lengths,
    key=key,
    horizon=options.horizon,
    methods=options.methods,
    meta_batch_size=options.meta_batch_size,
    num_samples=options.num_samples,
    sigma=options.sigma,
    on_progress=report,
  )


def write(diagnosis: doctor.Diagnosis, out: pathlib.Path, *, plots: bool) -> None:
  """Writes what was found, and the figure of it."""
  _run_folder.write_json(out / _run_folder.DIAGNOSIS, diagnosis.to_json())
  if plots:
    doctor_figure(diagnosis, out / _run_folder.DIAGNOSIS_FIGURE)


def print_diagnosis(diagnosis: doctor.Diagnosis) -> None:
  """Prints a line for each estimator at each unroll length, and what is to be done."""
  rows = [
    {
      "estimator": one.estimator,
      "unroll": one.unroll_length,
      "bias": one.bias,
      "\u00b1": one.bias_error,
      "variance": one.variance,
      "cosine": one.cosine,
      "|gradient|": one.gradient_norm,
      "ms": 1000 * one.seconds,
      "dropped": f"{one.diverged:.0%}" if math.isfinite(one.diverged) else "",
    }
    for one in diagnosis.measurements
  ]
  title = (
    f"{diagnosis.num_samples} episodes of {diagnosis.horizon:,} steps, {diagnosis.meta_batch_size} "
    f"problems each; bias and variance relative to |g| = {diagnosis.full_gradient_norm:.3g} "
    f"\u00b1 {diagnosis.full_gradient_error:.0%} of {diagnosis.reference} through the whole episode"
  )
  _report.print_rows(title, rows)
  for name, by_backprop in diagnosis.overtaken_at.items():
    for backprop, length in by_backprop.items():
      where = "at no unroll length here" if length is None else f"from unroll length {length} on"
      print(f"the variance of {backprop} is above that of {name} {where}")
  share, where = diagnosis.nonfinite.share, diagnosis.nonfinite.where
  if share:
    print(f"{share:.0%} of the problems have values that are not finite; the first is {where}")
  else:
    print("all losses, gradients, states and updates are finite")
  print(f"recommended: {diagnosis.recommendation}")
