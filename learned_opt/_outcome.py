"""What a run leaves: the artifact of the learned optimizer, and how it compares with baselines."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax.numpy as jnp

from learned_opt import _run_folder, artifacts
from learned_opt._recipe import Recipe, split_seed
from learned_opt.evaluate import Candidate, Evaluation
from learned_opt.evaluate import evaluate as evaluate_candidates
from learned_opt.families import Families
from learned_opt.meta_train import MetaTrainState

Report = Callable[[str], None]


def of_training(state: MetaTrainState) -> dict[str, Any]:
  """What the card says of the training, beside the configuration."""
  return {
    "outer_steps_taken": int(state.outer_step),
    "best_step": int(state.best_step),
    "best_validation_loss": float(state.best_loss),
    "device": next(iter(jnp.zeros(()).devices())).device_kind,
  }


def save(
  recipe: Recipe,
  meta_params: chex.ArrayTree,
  record: Mapping[str, Any],
  out: pathlib.Path,
  evaluation: Evaluation | None = None,
) -> pathlib.Path:
  """Writes the artifact to the folder of a run, over the one that is there.

  Args:
    recipe: of the run.
    meta_params: the best.
    record: what the card says of how they were made.
    out: the folder.
    evaluation: what else the card says; None if there was none.

  Returns:
    The folder of the artifact.
  """
  return artifacts.save(
    out / _run_folder.OPTIMIZER,
    recipe.learned_optimizer,
    meta_params,
    recipe=record,
    evaluation=None if evaluation is None else evaluation.summary(),
    overwrite=True,
  )


def judge(
  recipe: Recipe,
  meta_params: chex.ArrayTree,
  record: Mapping[str, Any],
  out: pathlib.Path,
  plots: bool,
  report: Report,
) -> Evaluation | None:
  """Evaluates, and writes the evaluation and the artifact with it; None after Ctrl-C.

  A finished run that is resumed has its evaluation in its folder.
  """
  try:
    evaluation = _run_folder.read_evaluation(out) or evaluate(recipe, meta_params, None, report)
  except KeyboardInterrupt:
    return None
  _run_folder.write_evaluation(evaluation, out, plots=plots, published=recipe.published)
  save(recipe, meta_params, record, out, evaluation)
  return evaluation


def evaluate(
  recipe: Recipe, meta_params: chex.ArrayTree, num_steps: int | None, report: Report
) -> Evaluation:
  """Compares meta-params with tuned baselines, as the recipe says."""
  # A recipe on families has a test optimizee.
  of_training = None if isinstance(recipe.optimizee, Families) else recipe.optimizee
  test_optimizee: Any = recipe.test_optimizee or of_training
  return evaluate_candidates(
    test_optimizee,
    [Candidate.from_learned(recipe.name, recipe.learned_optimizer, meta_params)],
    num_steps=num_steps or recipe.evaluation_steps or recipe.estimator.horizon,
    num_problems=recipe.num_test_problems,
    key=split_seed(recipe.seed)[1],
    baselines=recipe.baselines,
    tuning_optimizee=recipe.tuning_optimizee or of_training or test_optimizee,
    num_tuning_problems=recipe.num_tuning_problems,
    objective=recipe.objective,
    optimizee_name=recipe.optimizee_name,
    on_progress=report,
  )
