"""What the sub-commands do with their options."""

import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import learned_opt
from learned_opt import (
  _compilation,
  _run_folder,
  artifacts,
  benchmark_suite,
  benchmarks,
  comparisons,
  curriculum,
  evaluate,
  evolution,
  runs,
  search,
)
from learned_opt._arrays import Path, atomic_write
from learned_opt.benchmark_suite import suite_figure
from learned_opt.cli import _doctor, _inspection, _options, _report, _session, _suite_report
from learned_opt.cli._factories import FactoryConfig


def main(argv: Sequence[str]) -> int:
  """Runs a command line; see `learned_opt.cli.main`."""
  if list(argv) == ["--version"]:
    print(learned_opt.__version__)
    return 0
  with _session.errors_in_one_line():
    command, options = _options.parse(argv)
  session = options.session
  with _session.errors_in_one_line(session.traceback):
    if not isinstance(session, _options.Session):
      return _COMMANDS[command](options)
    if session.compilation_cache:
      _session.use_compilation_cache()
    with _session.on_device(session.device, session.num_devices):
      return _COMMANDS[command](options)


def run_recipe(
  recipe: runs.Recipe,
  out: pathlib.Path,
  *,
  resume: bool = False,
  evaluate: bool = True,
  plots: bool = True,
  as_json: bool = False,
) -> runs.Run:
  """Trains with progress on stderr; prints the outcome; see `learned_opt.cli.run_recipe`."""
  with _report.Reporter() as reporter, _stdout_kept_for_json(as_json):
    run = runs.train(
      recipe,
      out,
      resume=resume,
      callbacks=[reporter],
      evaluate=evaluate,
      plots=plots,
      on_progress=reporter.say,
    )
  if as_json:
    _print_json(_run_to_json(run))
  else:
    _report.print_run(run)
  if run.interrupted:
    _session.say(_what_is_left(run))
    raise SystemExit(_session.INTERRUPTED)
  return run


def run_curriculum(
  stages: Sequence[runs.Recipe], out: pathlib.Path, *, resume: bool, plots: bool
) -> curriculum.Curriculum:
  """Trains with progress on stderr; prints the outcome; see `learned_opt.cli.run_curriculum`."""
  with _report.Reporter() as reporter:
    done = curriculum.train(
      stages, out, resume=resume, callbacks=[reporter], plots=plots, on_progress=reporter.say
    )
  _report.print_run(done)
  _exit_if_interrupted(done)
  return done


def run_search(
  trials: Sequence[search.Trial],
  out: pathlib.Path,
  *,
  num_problems: int,
  resume: bool,
  plots: bool,
) -> search.Search:
  """Searches with progress on stderr; prints the outcome; see `learned_opt.cli.run_search`."""
  with _report.Reporter() as reporter:
    done = search.train(
      trials,
      out,
      num_problems=num_problems,
      resume=resume,
      callbacks=[reporter],
      plots=plots,
      on_progress=reporter.say,
    )
  if done.scores:
    _report.print_scores(done.scores)
  _report.print_run(done)
  _exit_if_interrupted(done)
  return done


def run_evolution(
  recipe: evolution.Recipe, out: pathlib.Path, *, resume: bool
) -> evolution.Evolution:
  """Evolves with progress on stderr; see `learned_opt.cli.run_evolution`."""
  with _report.Reporter() as reporter:
    done = evolution.train(recipe, out, resume=resume, on_progress=reporter.say)
  _report.print_evolution(recipe.name, done)
  return done


def _exit_if_interrupted(done: curriculum.Curriculum | search.Search) -> None:
  if done.interrupted:
    _session.say(f"interrupted: what is done is in {done.out}; --resume continues")
    raise SystemExit(_session.INTERRUPTED)


def evaluate_recipe(
  recipe: runs.Recipe, out: pathlib.Path, *, num_steps: int | None, plots: bool
) -> evaluate.Evaluation:
  """Evaluates with progress on stderr; see `learned_opt.cli.evaluate_recipe`."""
  with _report.Reporter() as reporter:
    evaluation = runs.evaluate(
      recipe, out, num_steps=num_steps, plots=plots, on_progress=reporter.say
    )
  _report.print_evaluation(evaluation)
  return evaluation


def compare(
  chosen: Sequence[comparisons.Comparison],
  optimizers: Mapping[str, Path],
  out: pathlib.Path,
  *,
  resume: bool,
  plots: bool,
) -> list[evaluate.Evaluation]:
  """Compares with progress on stderr; see `learned_opt.cli.compare`."""
  evaluations = []
  for one in chosen:
    with _report.Reporter() as reporter:
      reporter.say(f"comparing on {one.optimizee_name or one.name}, {one.num_steps} steps")
      evaluation = comparisons.compare(
        one, optimizers, out, resume=resume, plots=plots, on_progress=reporter.say
      )
    _report.print_evaluation(evaluation)
    _report.print_files(_run_folder.contents(out / one.name))
    evaluations.append(evaluation)
    _compilation.make_room()
  return evaluations


def _train(options: Any) -> int:
  with _stdout_kept_for_json(options.session.json):
    recipe = _recipe(options)
  name = f"{recipe.name}-{options.optimizee}-{recipe.seed}"
  run_recipe(
    recipe,
    options.out or pathlib.Path("runs") / name,
    resume=options.resume,
    evaluate=options.evaluate,
    plots=options.plots,
    as_json=options.session.json,
  )
  return 0


def _recipe(options: Any) -> runs.Recipe:
  configs: dict[str, FactoryConfig] = {
    name: getattr(options, f"{name}_options")
    for name in ("optimizee", "learned_optimizer", "estimator")
  }
  splits = _options.optimizee_splits(configs["optimizee"])
  made = {
    name: type(configs[name]).factory(**configs[name].arguments())
    for name in ("learned_optimizer", "estimator")
  }
  return runs.Recipe(
    optimizee=splits["train"],
    validation_optimizee=splits["validation"],
    test_optimizee=splits["test"],
    optimizee_name=_options.optimizee_name(configs["optimizee"]),
    description={name: configs[name].record() for name in ("optimizee", "estimator")},
    **made,
    **options.recipe.arguments(),
  )


def _evaluate(options: Any) -> int:
  as_json, config = options.session.json, options.optimizee_options
  with _report.Reporter() as reporter, _stdout_kept_for_json(as_json):
    artifact = artifacts.load_artifact(options.name_or_path)
    name = _optimizer_name(options.name_or_path, artifact)
    names = ("name_or_path", "num_steps", "num_problems", "num_tuning_problems", "baselines")
    _make_folder(options, (*names, "objective", "seed"))
    splits = _options.optimizee_splits(config)
    problems = _options.optimizee_name(config)
    reporter.say(f"evaluating {name} on {problems}, {options.num_steps} steps")
    evaluation = evaluate.evaluate(
      splits["test"],
      [evaluate.Candidate.from_learned(name, artifact.learned_optimizer, artifact.meta_params)],
      num_steps=options.num_steps,
      num_problems=options.num_problems,
      key=runs.split_seed(options.seed)[1],
      baselines=options.baselines,
      tuning_optimizee=splits["train"],
      num_tuning_problems=options.num_tuning_problems,
      objective=options.objective,
      optimizee_name=problems,
      on_progress=reporter.say,
    )
    if options.out is not None:
      _run_folder.write_evaluation(evaluation, options.out, plots=options.plots)
  if as_json:
    _print_json(evaluation.to_json())
    return 0
  _report.print_evaluation(evaluation)
  _report.print_files(_run_folder.contents(options.out) if options.out is not None else ())
  return 0


def _inspect(options: Any) -> int:
  as_json = options.session.json
  with _report.Reporter() as reporter, _stdout_kept_for_json(as_json):
    artifact = artifacts.load_artifact(options.name_or_path)
    name = _optimizer_name(options.name_or_path, artifact)
    subject = _inspection.find_subject(options)
    names = ("name_or_path", "num_steps", "coordinate", "steps", "max_gradient", "baselines")
    _make_folder(options, (*names, "learning_rates", "num_tuning_problems", "seed"))
    leader = evaluate.Candidate.from_learned(name, artifact.learned_optimizer, artifact.meta_params)
    inspection = _inspection.inspect_optimizer(options, subject, leader, reporter.say)
    if options.out is not None:
      _inspection.write(inspection, options.out, plots=options.plots)
  if as_json:
    _print_json(inspection.to_json())
    return 0
  _inspection.print_inspection(inspection)
  _report.print_files(_run_folder.contents(options.out) if options.out is not None else ())
  return 0


def _examine(options: Any) -> int:
  as_json = options.session.json
  with _report.Reporter() as reporter, _stdout_kept_for_json(as_json):
    names = ("saved", "unroll_lengths", "horizon", "methods", "meta_batch_size", "num_samples")
    _make_folder(options, (*names, "sigma", "seed"))
    diagnosis = _doctor.examine(options, reporter.say)
    if options.out is not None:
      _doctor.write(diagnosis, options.out, plots=options.plots)
  if as_json:
    _print_json(diagnosis.to_json())
    return 0
  _doctor.print_diagnosis(diagnosis)
  _report.print_files(_run_folder.contents(options.out) if options.out is not None else ())
  return 0


def _make_folder(options: Any, names: Sequence[str]) -> None:
  """Makes the folder of what a command finds, with the options that decide it."""
  if options.out is None:
    return
  if options.plots:
    runs.check_matplotlib()
  config = {name: getattr(options, name) for name in names}
  _run_folder.make(options.out, {**config, "optimizee": options.optimizee_options.record()})


def _optimizer_name(name_or_path: str, artifact: artifacts.Artifact) -> str:
  """What tables and plots call an optimizer: its shipped name, or the one in its recipe."""
  if name_or_path in artifacts.pretrained_names():
    return name_or_path
  named = (artifact.card["recipe"] or {}).get("name")
  return named if isinstance(named, str) else pathlib.Path(name_or_path).resolve().name


def _list(options: _options.ListOptions) -> int:
  shipped = {name: artifacts.load_artifact(name) for name in artifacts.pretrained_names()}
  if options.session.json:
    rows = [{"name": name, **_report.summary_of(one.card)} for name, one in shipped.items()]
    _print_json({"optimizers": rows})
  elif shipped:
    _report.print_list(shipped)
  else:
    _session.say("no learned optimizer is shipped with this version")
  return 0


def _info(options: _options.InfoOptions) -> int:
  artifact = artifacts.load_artifact(options.name_or_path)
  if options.session.json:
    _print_json(artifact.card)
  else:
    _report.print_card(options.name_or_path, artifact.card)
  return 0


def _convert(options: _options.ConvertOptions) -> int:
  config = dict(map(_setting, options.config))
  folder = artifacts.convert(
    options.source, options.out, config=config, overwrite=options.overwrite
  )
  artifact = artifacts.load_artifact(folder)
  if options.session.json:
    _print_json({"out": str(folder), "card": artifact.card})
    return 0
  _report.print_card(str(folder), artifact.card)
  return 0


def _setting(text: str) -> tuple[str, Any]:
  """A name and a value: a number, true, false or a list as JSON has them, else a text."""
  name, equals, value = text.partition("=")
  if not equals or not name:
    raise ValueError(f"--config {text}: give NAME=VALUE")
  try:
    read = json.loads(value)
  except ValueError:
    return name, value
  return name, tuple(read) if isinstance(read, list) else read


def _benchmark(options: _options.BenchmarkOptions) -> int:
  as_json = options.session.json
  with _report.Reporter() as reporter, _stdout_kept_for_json(as_json):
    name = _optimizer_name(options.name_or_path, artifacts.load_artifact(options.name_or_path))
    if options.out is not None:
      if options.plots:
        runs.check_matplotlib()
      config = {"name_or_path": options.name_or_path, "size": options.size}
      _run_folder.make(options.out, {**config, "tasks": list(options.tasks)})
    report = benchmark_suite.run(
      options.name_or_path,
      name=name,
      size=options.size,
      tasks=options.tasks or None,
      data=benchmark_suite.Data(options.data_dir, options.manual_dir, options.text),
      baselines=options.baselines,
      on_progress=reporter.say,
    )
    if options.out is not None:
      write_suite(report, options.out, plots=options.plots)
  if as_json:
    _print_json(report.to_json())
    return 0
  _suite_report.print_suite(report)
  _report.print_files(_run_folder.contents(options.out) if options.out is not None else ())
  return 0


def write_suite(report: benchmark_suite.Report, out: pathlib.Path, *, plots: bool) -> None:
  """Writes what the suite says of an optimizer into a folder."""
  text = json.dumps(report.to_json(), allow_nan=False)
  with atomic_write(out / _run_folder.EVALUATION) as file:
    file.write(text.encode())
  if plots and report.results:
    suite_figure(report, out / _run_folder.LEARNING_CURVES)


def _bench(options: _options.BenchOptions) -> int:
  one, session = options.benchmark, options.session
  with _report.Reporter() as reporter:
    common: dict[str, Any] = {
      "rounds": one.rounds,
      "device": session.device,
      "on_progress": reporter.say,
    }
    if not isinstance(one, _options.StartUpOptions):
      common["paths"] = one.paths
    if not isinstance(one, _options.StartUpOptions | _options.ProductsOptions):
      limit = one.max_gigabytes
      common["max_bytes"] = None if limit is None else int(limit * 1e9)
    if isinstance(one, _options.MetaGradientOptions):
      report = benchmarks.meta_gradient(one.cases, **common)
    elif isinstance(one, _options.UpdateOptions):
      report = benchmarks.update(one.sizes, optimizers=one.optimizers, **common)
    elif isinstance(one, _options.PESOptions):
      report = benchmarks.pes(**common)
    elif isinstance(one, _options.ProductsOptions):
      report = benchmarks.products(**common)
    else:
      report = benchmarks.start_up(one.case, **common)
  if session.json:
    _print_json(report.to_json())
  elif session.markdown:
    print(report.to_markdown())
  else:
    _report.print_benchmark(report)
  return 0


_COMMANDS: dict[str, Callable[[Any], int]] = {
  "train": _train,
  "evaluate": _evaluate,
  "inspect": _inspect,
  "doctor": _examine,
  "list": _list,
  "info": _info,
  "convert": _convert,
  "benchmark": _benchmark,
  "bench": _bench,
}


@contextlib.contextmanager
def _stdout_kept_for_json(as_json: bool) -> Iterator[None]:
  """Sends to stderr what libraries print, such as TFDS while it downloads."""
  with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
    yield


def _print_json(value: Any) -> None:
  print(json.dumps(value, allow_nan=False), flush=True)


def _run_to_json(run: runs.Run) -> dict[str, Any]:
  training = run.training
  return {
    "out": str(run.out),
    "optimizer": None if run.optimizer is None else str(run.optimizer),
    "files": [str(path) for path in run.files],
    "stopped": "interrupted" if run.interrupted else training.stopped,
    "outer_steps": int(training.state.outer_step),
    "best_step": training.best_step,
    "best_validation_loss": training.best_loss if training.history.validation_loss else None,
    "seconds": training.seconds,
    "evaluation": None if run.evaluation is None else run.evaluation.to_json(),
  }


def _what_is_left(run: runs.Run) -> str:
  step = int(run.training.state.outer_step)
  if run.optimizer is None:
    return "interrupted before the first outer step was done: there is nothing to save"
  kept = (
    f"the best so far, of outer step {run.training.best_step}"
    if run.training.history.validation_loss
    else "the latest meta-params, which were never validated,"
  )
  return f"interrupted at outer step {step}: {kept} is in {run.optimizer}; --resume continues"
