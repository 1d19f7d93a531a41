"""The commands of ``learned-opt``, from ``train`` to ``bench``, for the shell and for scripts.

It needs tyro and rich, which nothing else in the library does, and which are imported when one of
the functions below is called.
"""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from learned_opt import devices

if TYPE_CHECKING:
  from learned_opt.benchmark_suite import Report
  from learned_opt.comparisons import Comparison
  from learned_opt.curriculum import Curriculum
  from learned_opt.evaluate import Evaluation
  from learned_opt.evolution import Evolution
  from learned_opt.evolution import Recipe as EvolutionRecipe
  from learned_opt.runs import Recipe, Run
  from learned_opt.search import Search, Trial


def main(argv: Sequence[str] | None = None) -> int:
  """Runs ``learned-opt``.

  Args:
    argv: the words after the program's name; None means those of this process.

  Returns:
    The exit code: 0, 2 for an error that the user can mend, 130 after Ctrl-C.

  Example:
    >>> from learned_opt import cli
    >>> cli.main(["--version"])
    0.1.0
    0
  """
  try:
    _check_extras()
    from learned_opt.cli import _commands

    return _commands.main(sys.argv[1:] if argv is None else argv)
  except SystemExit as exit_request:
    # tyro's, after --help or a mistake, and ours: so that a caller in Python gets the code.
    code = exit_request.code
    return code if isinstance(code, int) else 0


def run_recipe(
  recipe: "Recipe",
  out: str | os.PathLike[str],
  *,
  resume: bool = False,
  evaluate: bool = True,
  plots: bool = True,
) -> "Run":
  """Does what ``learned-opt train`` does, for a recipe: for scripts such as the experiments.

  Shows progress on stderr, and prints the table, the files and how to load the optimizer. Keeps
  compiled programs in the user's cache folder, and shares the work among all devices: a script
  calls `devices.use_cores` first of all to make one of each core.

  Args:
    recipe: what to do.
    out: the folder of the run; see `learned_opt.runs.train`.
    resume: whether to continue the run that is there.
    evaluate: whether to compare with tuned baselines at the end.
    plots: whether to draw the figures.

  Returns:
    The run.

  Raises:
    SystemExit: with code 2 after an error, which is printed in one line, or 130 after Ctrl-C.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt import cli, estimators, optimizees, optimizers, runs
    >>> recipe = runs.Recipe(
    ...   name="lstm",
    ...   optimizee=optimizees.quadratic(dimension=2),
    ...   learned_optimizer=optimizers.lstm(hidden_size=4),
    ...   estimator=estimators.truncated_backprop(5, 10),
    ...   num_outer_steps=4,
    ...   validate_every=2,
    ...   num_validation_problems=2,
    ...   num_test_problems=2,
    ...   baselines=(),
    ... )
    >>> run = cli.run_recipe(recipe, tempfile.mkdtemp())  # doctest: +ELLIPSIS
    optimizee: mean loss over 2 fresh problems
    ...
      state = tx.init(params)  # an optax.GradientTransformationExtraArgs
  """
  _check_extras()
  from learned_opt.cli import _commands, _session

  with _session.errors_in_one_line(), devices.use(devices.mesh()):
    _session.use_compilation_cache()
    return _commands.run_recipe(
      recipe, pathlib.Path(out), resume=resume, evaluate=evaluate, plots=plots
    )


def run_curriculum(
  stages: Sequence["Recipe"],
  out: str | os.PathLike[str],
  *,
  resume: bool = False,
  plots: bool = True,
) -> "Curriculum":
  """As `run_recipe`, for the stages of a curriculum.

  Args:
    stages: what to do; see `learned_opt.curriculum.train`.
    out: the folder of the curriculum.
    resume: whether to continue the curriculum that is there.
    plots: whether to draw the figures.

  Returns:
    The curriculum.

  Raises:
    SystemExit: as of `run_recipe`.

  Example:
    >>> import tempfile
    >>> from learned_opt import cli, curriculum, estimators, optimizees, optimizers, runs
    >>> recipe = runs.Recipe(
    ...   name="lstm",
    ...   optimizee=optimizees.quadratic(dimension=2),
    ...   learned_optimizer=optimizers.lstm(hidden_size=4),
    ...   estimator=estimators.full_unroll(5),
    ...   num_outer_steps=4,
    ...   validate_every=2,
    ...   num_validation_problems=2,
    ...   num_test_problems=2,
    ...   baselines=(),
    ... )
    >>> stages = curriculum.over_horizons(recipe, estimators.full_unroll, (5, 10))
    >>> done = cli.run_curriculum(stages, tempfile.mkdtemp(), plots=False)
    optimizee: mean loss over 2 fresh problems
    ...
      state = tx.init(params)  # an optax.GradientTransformationExtraArgs
  """
  _check_extras()
  from learned_opt.cli import _commands, _session

  with _session.errors_in_one_line(), devices.use(devices.mesh()):
    _session.use_compilation_cache()
    return _commands.run_curriculum(stages, pathlib.Path(out), resume=resume, plots=plots)


def run_search(
  trials: Sequence["Trial"],
  out: str | os.PathLike[str],
  *,
  num_problems: int = 128,
  resume: bool = False,
  plots: bool = True,
) -> "Search":
  """As `run_recipe`, for the trials of a search; prints a table of the trials as well.

  Args:
    trials: what to try; see `learned_opt.search.train`.
    out: the folder of the search.
    num_problems: validation problems on which the trials are compared.
    resume: whether to continue the search that is there.
    plots: whether to draw the figures.

  Returns:
    The search.

  Raises:
    SystemExit: as of `run_recipe`.

  Example:
    >>> import tempfile
    >>> from learned_opt import cli, estimators, optimizees, optimizers, runs, search
    >>> recipe = runs.Recipe(
    ...   name="lstm",
    ...   optimizee=optimizees.quadratic(dimension=2),
    ...   learned_optimizer=optimizers.lstm(hidden_size=4),
    ...   estimator=estimators.full_unroll(5),
    ...   num_outer_steps=2,
    ...   validate_every=2,
    ...   num_validation_problems=2,
    ...   num_test_problems=2,
    ...   baselines=(),
    ... )
    >>> trials = search.grid(recipe, (1e-3, 1e-2), seeds=(0,))
    >>> done = cli.run_search(trials, tempfile.mkdtemp(), num_problems=8, plots=False)
    2 trials, validation loss, the best first
    ...
      state = tx.init(params)  # an optax.GradientTransformationExtraArgs
  """
  _check_extras()
  from learned_opt.cli import _commands, _session

  with _session.errors_in_one_line(), devices.use(devices.mesh()):
    _session.use_compilation_cache()
    return _commands.run_search(
      trials, pathlib.Path(out), num_problems=num_problems, resume=resume, plots=plots
    )


def run_evolution(
  recipe: "EvolutionRecipe", out: str | os.PathLike[str], *, resume: bool = False
) -> "Evolution":
  """Evolves an optimizer with few numbers; prints how fast it is.

  Args:
    recipe: what to do; see `learned_opt.evolution.train`.
    out: the folder of the evolution.
    resume: whether to continue the evolution that is there.

  Returns:
    The evolution.

  Raises:
    SystemExit: as of `run_recipe`.

  Example:
    >>> import tempfile
    >>> from learned_opt import cli, evolution, optimizees, optimizers
    >>> from learned_opt.families import families
    >>> problems = families(optimizees.quadratic(2))
    >>> recipe = evolution.Recipe(
    ...   "mine",
    ...   optimizers.learned_muon(),
    ...   problems,
    ...   problems,
    ...   num_steps=10,
    ...   num_problems=2,
    ...   num_generations=1,
    ...   population_size=4,
    ... )
    >>> done = cli.run_evolution(recipe, tempfile.mkdtemp())
    mine: on the problems of validation ... times as fast as tuned Adam, ...; the best of 1 ...
    ...
      state = tx.init(params)  # an optax.GradientTransformationExtraArgs
  """
  _check_extras()
  from learned_opt.cli import _commands, _session

  with _session.errors_in_one_line(), devices.use(devices.mesh()):
    _session.use_compilation_cache()
    return _commands.run_evolution(recipe, pathlib.Path(out), resume=resume)


def evaluate_recipe(
  recipe: "Recipe",
  out: str | os.PathLike[str],
  *,
  num_steps: int | None = None,
  plots: bool = True,
) -> "Evaluation":
  """Evaluates the optimizer of a run once more, for example for more steps; prints the table.

  Args:
    recipe: of the run.
    out: its folder.
    num_steps: see `learned_opt.runs.evaluate`.
    plots: whether to draw the figure.

  Returns:
    The evaluation.

  Raises:
    SystemExit: as of `run_recipe`.

  Example:
    >>> import tempfile
    >>> from learned_opt import cli, estimators, optimizees, optimizers, runs
    >>> recipe = runs.Recipe(
    ...   name="lstm",
    ...   optimizee=optimizees.quadratic(dimension=2),
    ...   learned_optimizer=optimizers.lstm(hidden_size=4),
    ...   estimator=estimators.truncated_backprop(5, 10),
    ...   num_outer_steps=4,
    ...   validate_every=2,
    ...   num_validation_problems=2,
    ...   num_test_problems=2,
    ...   baselines=(),
    ... )
    >>> run = runs.train(recipe, tempfile.mkdtemp(), plots=False)
    >>> evaluation = cli.evaluate_recipe(recipe, run.out, num_steps=20, plots=False)
    optimizee: mean loss over 2 fresh problems
    ...
    >>> evaluation.num_steps
    20
  """
  _check_extras()
  from learned_opt.cli import _commands, _session

  with _session.errors_in_one_line(), devices.use(devices.mesh()):
    return _commands.evaluate_recipe(recipe, pathlib.Path(out), num_steps=num_steps, plots=plots)


def compare(
  comparisons: Sequence["Comparison"],
  optimizers: Mapping[str, str | os.PathLike[str]],
  out: str | os.PathLike[str],
  *,
  resume: bool = False,
  plots: bool = True,
) -> list["Evaluation"]:
  """Compares saved optimizers on one family of problems after the other; prints the tables.

  Args:
    comparisons: on which problems.
    optimizers: names or folders of saved optimizers, by the names that tables show.
    out: a folder, in which each comparison has its own.
    resume: whether to take from there the outcomes that are finished; see
      `learned_opt.comparisons.compare`.
    plots: whether to draw the figures.

  Returns:
    The evaluations, in the order of the comparisons.

  Raises:
    SystemExit: as of `run_recipe`.

  Example:
    >>> import tempfile
    >>> from learned_opt import cli, optimizees
    >>> from learned_opt.comparisons import Comparison
    >>> problems = optimizees.quadratic(dimension=2)
    >>> small = Comparison("small", problems, num_steps=5, num_problems=2, baselines=())
    >>> evaluations = cli.compare(
    ...   [small], {"lstm": "lstm-quadratic"}, tempfile.mkdtemp(), plots=False
    ... )  # doctest: +ELLIPSIS
    small: mean loss over 2 fresh problems
    ...
  """
  _check_extras()
  from learned_opt.cli import _commands, _session

  with _session.errors_in_one_line(), devices.use(devices.mesh()):
    _session.use_compilation_cache()
    return _commands.compare(comparisons, optimizers, pathlib.Path(out), resume=resume, plots=plots)


def benchmark(
  optimizer: str | os.PathLike[str],
  out: str | os.PathLike[str],
  *,
  size: str = "cpu",
  name: str | None = None,
  baselines: pathlib.Path | None = None,
  plots: bool = True,
) -> "Report":
  """Does what ``learned-opt benchmark`` does; builds baselines that are not there, if told where.

  Args:
    optimizer: a name or folder, as for `learned_opt.load`.
    out: the folder of the outcome.
    size: of the suite; see `learned_opt.benchmark_suite.SIZES`.
    name: of the optimizer in the report; None means its own.
    baselines: a folder of tuned baselines, in which those that are missing are made; None means
      the ones that are shipped.
    plots: whether to draw the figure.

  Returns:
    The report.

  Raises:
    SystemExit: as of `run_recipe`.

  Example:
    >>> import tempfile
    >>> from learned_opt import cli
    >>> report = cli.benchmark("lstm-mnist", tempfile.mkdtemp(), size="smoke", plots=False)
    skipped softmax-regression: no tuned baselines in ...
    skipped shakespeare-lstm: ...
    >>> report.results
    ()
  """
  _check_extras()
  from learned_opt import benchmark_suite
  from learned_opt.cli import _commands, _report, _session, _suite_report

  with _session.errors_in_one_line(), devices.use(devices.mesh()):
    _session.use_compilation_cache()
    with _report.Reporter() as reporter:
      if baselines is not None:
        benchmark_suite.build(size, folder=baselines, on_progress=reporter.say)
      report = benchmark_suite.run(
        optimizer, name=name, size=size, baselines=baselines, on_progress=reporter.say
      )
    pathlib.Path(out).mkdir(parents=True, exist_ok=True)
    _commands.write_suite(report, pathlib.Path(out), plots=plots)
    _suite_report.print_suite(report)
    return report


def _check_extras() -> None:
  missing = [name for name in ("tyro", "rich") if importlib.util.find_spec(name) is None]
  if missing:
    print(
      f"learned-opt: the command line needs {' and '.join(missing)}: "
      "pip install 'learned_opt[cli]'",
      file=sys.stderr,
    )
    raise SystemExit(2)
