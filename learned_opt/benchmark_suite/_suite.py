"""Runs an optimizer on the tasks of the suite, beside the baselines that were tuned before."""

import pathlib
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax

from learned_opt import artifacts
from learned_opt._arrays import Path
from learned_opt._card import with_num_steps
from learned_opt._costs import measure_costs
from learned_opt.base import Optimizee
from learned_opt.benchmark_suite import _baselines
from learned_opt.benchmark_suite._report import Report, TaskResult
from learned_opt.benchmark_suite._running import curves_of, draw, window_steps
from learned_opt.benchmark_suite._tasks import NOT_AT_HAND, Data, Size, Task, fingerprint
from learned_opt.evaluate import Candidate

# Of what is known of an update's cost within this time; tasks are many.
_MAX_SECONDS = 0.5

ForSteps = Callable[[int], Candidate]


def run(
  optimizer: Path | Candidate | ForSteps,
  *,
  name: str | None = None,
  size: str = "cpu",
  tasks: Iterable[str] | None = None,
  data: Data = Data(),
  baselines: pathlib.Path | None = None,
  on_progress: Callable[[str], None] | None = None,
) -> Report:
  """Compares an optimizer with tuned baselines on the tasks of the suite.

  A task is skipped, and named with the reason, if its data set is not at hand or its baselines
  are not: `build` makes them. The problems are the same for all optimizers.

  Args:
    optimizer: a name or folder as for `learned_opt.load`; a `Candidate`; or a function
      ``num_steps -> Candidate``, for optimizers that have to know the horizon. A saved optimizer
      whose architecture has an option ``num_steps`` is told it.
    name: of the optimizer in the report; None means its own.
    size: one of `SIZES`.
    tasks: names of `TASKS`; None means those of the size.
    data: where data sets lie.
    baselines: the folder of the tuned baselines; None means those that are shipped.
    on_progress: called with a few words before each task.

  Returns:
    The report.

  Raises:
    ValueError: if there is no such size, task or optimizer.

  Example:
    >>> import optax, pathlib, tempfile
    >>> from learned_opt import benchmark_suite
    >>> from learned_opt.evaluate import Candidate
    >>> report = benchmark_suite.run(
    ...   Candidate.from_transformation("sgd", optax.sgd(0.1)), size="smoke", tasks=[]
    ... )
    >>> report.name, report.results
    ('sgd', ())
  """
  report = on_progress or (lambda words: None)
  chosen = _baselines.size_of(size)
  folder = _baselines.package_folder(size) if baselines is None else baselines
  for_steps = _for_steps(optimizer, name)
  results, skipped = [], {}
  for task in chosen.chosen(tasks):
    try:
      optimizee = task.optimizee(data)
      tuned = _baselines.read(folder, task, chosen)
      if tuned is None:
        raise FileNotFoundError(
          f"no tuned baselines in {folder}: python -m learned_opt.benchmark_suite makes them"
        )
    except NOT_AT_HAND as error:
      skipped[task.name] = str(error)
      continue
    report(f"{task.name}, {chosen.steps_of(task):,} steps")
    record = _baselines.read_record(folder, task) or {}
    note = "" if record.get("data") == fingerprint(optimizee) else "its data are not the baselines'"
    results.append(_run_one(task, optimizee, for_steps, chosen, tuned, note))
  return Report(name or for_steps(chosen.num_steps).name, size, tuple(results), skipped)


def _run_one(
  task: Task,
  optimizee: Optimizee,
  for_steps: ForSteps,
  size: Size,
  tuned: dict[str, _baselines.Tuned],
  note: str,
) -> TaskResult:
  num_steps = size.steps_of(task)
  candidate = for_steps(num_steps)
  problems = draw(optimizee, _baselines.test_keys(size.num_seeds))
  curves = curves_of(
    optimizee, candidate.make, candidate.hyperparams, problems, num_steps, size.num_windows
  )
  cost, adam_cost = measure_costs(
    optimizee,
    [(candidate.make, candidate.hyperparams), (optax.adam, jnp.float32(1e-3))],
    jax.tree.map(lambda leaf: leaf[0], problems),
    max_seconds=_MAX_SECONDS,
  )
  return TaskResult(
    task.name,
    task.differs,
    window_steps(num_steps, size.num_windows),
    curves,
    {name: one.curves for name, one in tuned.items()},
    {name: one.learning_rate for name, one in tuned.items()},
    cost,
    adam_cost,
    note,
  )


def _for_steps(optimizer: Path | Candidate | ForSteps, name: str | None) -> ForSteps:
  if isinstance(optimizer, Candidate):
    return lambda num_steps: optimizer
  if callable(optimizer):
    return optimizer
  artifact = artifacts.load_artifact(optimizer)
  architecture = artifact.learned_optimizer
  shown = name or (artifact.card["recipe"] or {}).get("name") or pathlib.Path(optimizer).name

  def for_steps(num_steps: int) -> Candidate:
    told = with_num_steps(architecture, num_steps)
    return Candidate.from_learned(shown, told, jax.tree.map(jnp.asarray, artifact.meta_params))

  return for_steps
