"""Benchmarks: statistics on known numbers, workers that fail, rows and the command line."""

import contextlib
import inspect
import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import cases
import jax
import numpy as np
import optax
import pytest

from learned_opt import benchmarks, cli, datasets, optimizees, optimizers
from learned_opt.benchmarks import (
  _cases,
  _host_fed,
  _memory,
  _meta_gradient,
  _pes,
  _processes,
  _products,
  _report,
  _start_up,
  _statistics,
  _tasks,
  _update,
  _updates,
  _worker,
)
from learned_opt.benchmarks._processes import Measured, Worker, WorkerError, take_turns

# The smallest program: one layer of two units, two inner steps of eight coordinates.
TINY = benchmarks.Case("tiny", "elementwise", 8, 2, 2, num_layers=1, hidden_size=2)
SMALL_LOOP = _host_fed.Settings(
  num_problems=2, unroll_length=4, steps_per_dispatch=2, horizon=8, batch_size=3
)
REQUIRED = ("case", "path", "milliseconds", "ratio", "gflops", "matmul_gflops")
REQUIRED += ("compile_seconds", "peak_bytes")


def call(*argv):
  """The exit code, and what was printed on stdout and stderr."""
  stdout, stderr = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
    code = cli.main([str(word) for word in argv])
  return code, stdout.getvalue(), stderr.getvalue()


# --- Statistics.


def test_summary_of_known_numbers():
  assert _statistics.summarise([5.0, 1.0, 4.0]) == (4.0, 1.0, 5.0)
  assert _statistics.summarise([1.0, 2.0, 3.0, 10.0], factor=2.0) == (5.0, 2.0, 20.0)
  assert _statistics.summarise([7.0]) == (7.0, 7.0, 7.0)


def test_ratios_are_those_to_the_reference_of_the_same_case():
  rows = [
    {"case": case, "path": path, "milliseconds": milliseconds}
    for case, path, milliseconds in (
      ("a", "fast", 2.0),
      ("a", "slow", 6.0),
      ("a", "broken", None),
      ("b", "slow", 5.0),
      ("c", "fast", 1.0),
    )
  ]
  _statistics.add_ratios(rows, "slow")
  assert [row["ratio"] for row in rows] == [3.0, 1.0, None, 1.0, None]
  _statistics.add_ratios(rows, "slow", "times", inverse=True)
  assert [row["times"] for row in rows] == [2.0 / 6.0, 1.0, None, 1.0, None]


def test_rates_of_known_times():
  measured = Measured({"units": 2}, [{"seconds": 0.2}, {"seconds": 0.4}, {"seconds": 0.3}])
  row = _report.new_row("a", "fast", measured)
  assert (row["milliseconds"], row["low"], row["high"], row["rounds"]) == pytest.approx(
    (150.0, 100.0, 200.0, 3)
  )
  _report.add_rates(row, steps=3_000_000, flops_per_step=40, matmul=8.0)
  assert row["coordinate_steps_per_second"] == pytest.approx(2e7)
  assert row["gflops"] == pytest.approx(0.8)
  assert row["share"] == pytest.approx(0.1)
  products = Measured({"flops": 2e9, "units": 3}, [{"seconds": s} for s in (0.5, 1.0, 2.0)])
  assert _report.matmul_gflops(products) == pytest.approx(6.0)


def test_flops_are_those_of_the_products():
  lstm = _cases.make_lstm(benchmarks.CASES["mnist"])
  meta_params = jax.eval_shape(lstm.init, jax.random.key(0))
  layers = 2 * (2 + 20) * 80 + 2 * (20 + 20) * 80
  assert _cases.forward_flops(meta_params) == layers + 2 * 20


# --- Cases.


def test_cases_are_those_of_the_paper_and_the_sizes():
  mnist, quadratic = (benchmarks.CASES[name] for name in ("mnist", "quadratic"))
  for case in (mnist, quadratic):
    assert (case.unroll_length, case.horizon, case.hidden_size) == (20, 100, 20)
  optimizee, data = _cases.make_optimizee(quadratic)
  params, _ = optimizee.init(jax.random.key(0), optimizee.data)
  assert (params.shape, data, quadratic.meta_batch_size) == ((10,), None, 128)
  assert benchmarks.parse_case("elementwise-1e4x1000")[2:5] == (10_000, 1000, 1000)
  assert [benchmarks.parse_case(name).name for name in benchmarks.CASES] == [*benchmarks.CASES]


def test_random_images_stand_in_for_data_that_cannot_be_had(monkeypatch):
  def unavailable(name):
    raise FileNotFoundError(name)

  monkeypatch.setattr(datasets, "load", unavailable)
  optimizee, data = _cases.make_optimizee(benchmarks.CASES["mnist"])
  assert data == "random"
  shapes = jax.eval_shape(optimizee.init, jax.random.key(0), optimizee.data)[0]
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 15_910
  mnist = optimizee.data
  assert mnist.train[0].shape == (55_000, 28, 28, 1)
  optimizee, data = _cases.make_optimizee(benchmarks.CASES["cifar"])
  assert (data, optimizee.data.train[0].shape) == ("random", (45_000, 32, 32, 3))
  shapes = jax.eval_shape(optimizee.init, jax.random.key(0), optimizee.data)[0]
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 22_682
  million = optimizee_of_size(benchmarks.CASES["mlp-1m"], mnist)
  assert million == 1_000_120


def optimizee_of_size(case, dataset):
  return 784 * case.size + case.size + 10 * case.size + dataset.num_classes


def test_default_paths_are_those_of_the_estimator():
  names = benchmarks.path_names()
  assert names[0] == "autodiff"
  assert {"autodiff", "replay"} <= set(names)
  assert "auto" not in names


def test_heavy_cases_are_measured_alone():
  cases = [benchmarks.parse_case(name) for name in _cases.ALL]
  groups = [[case.name for case in group] for group in _meta_gradient._groups(cases)]
  assert {"mnist", "quadratic", "elementwise-1e4x20", "elementwise-1e5x20"} <= set(groups[0])
  assert ["mlp-1m"] in groups
  assert sorted(name for group in groups for name in group) == sorted(_cases.ALL)


# --- Workers.


def fake(body):
  """A command that stands in for a worker's; `line` is what it has just read."""
  code = f"import json, os, sys, time, signal\nfor line in sys.stdin:\n  {body}"
  return sys.executable, "-S", "-c", code


ANSWERS = fake("print(json.dumps({'seconds': 0.5, 'peak_bytes': 1, 'echo': line}), flush=True)")


def test_workers_take_turns():
  said = []
  measured = take_turns({"a": {"x": 1}, "b": {"x": 2}}, 2, said.append, ANSWERS)
  assert json.loads(measured["b"].facts["echo"]) == {"x": 2}
  assert [len(one.repetitions) for one in measured.values()] == [2, 2]
  assert said == ["building a", "building b", "round 1/2", "round 2/2"]


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("sys.exit('no such device')", "ended with code 1: no such device"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL, as the system does when memory"),
    ("print(json.dumps({'error': 'out of memory: 3 GB'}), flush=True)", "out of memory: 3 GB"),
    # A line that it began.
    ("print('{', end='', flush=True); sys.exit(3)", "ended with code 3: it said nothing"),
  ],
)
def test_a_worker_that_fails_is_told_and_left_out(body, message):
  said = []
  start = time.monotonic()
  measured = take_turns({"a": {}}, 3, said.append, fake(body))
  assert message in measured["a"].error
  assert measured["a"].repetitions == []
  assert message in " ".join(said)
  assert time.monotonic() - start < 60
  row = _report.new_row("case", "path", measured["a"])
  assert (row["error"], row["milliseconds"]) == (measured["a"].error, None)


def test_a_worker_that_dies_in_a_round():
  body = "print('{}', flush=True) if 'task' in line else os._exit(4)"
  measured = take_turns({"a": {"task": 1}}, 2, lambda words: None, fake(body))
  assert "ended with code 4" in measured["a"].error


def test_no_process_is_left_after_ctrl_c():
  processes = []

  def interrupted(words):
    if words == "round 1/2":
      raise KeyboardInterrupt

  class Recorded(Worker):
    def __enter__(self):
      worker = super().__enter__()
      processes.append(self._process)
      return worker

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(_processes, "Worker", Recorded)
    with pytest.raises(KeyboardInterrupt):
      take_turns({"a": {}, "b": {}}, 2, interrupted, ANSWERS)
  assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2


def test_a_worker_that_works_can_be_ended():
  with Worker({}, fake("time.sleep(1000)")) as worker:
    worker._process.stdin.write("{}\n")
    worker.end(at_once=True)
    worker.end()
    assert worker._process.returncode == -signal.SIGKILL
    with pytest.raises((WorkerError, ValueError)):
      worker.repeat()


def test_processes_find_the_package_and_keep_what_is_set(monkeypatch):
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
  monkeypatch.setenv("PYTHONPATH", "elsewhere")
  environment = _processes.environment()
  assert environment["JAX_ENABLE_COMPILATION_CACHE"] == "true"
  first, second = environment["PYTHONPATH"].split(os.pathsep)
  assert os.path.isdir(os.path.join(first, "learned_opt"))
  assert second == "elsewhere"


# --- What a worker does, in this process.


def serve(specification, requests="repeat\n"):
  answers = io.StringIO()
  _worker.serve(json.dumps(specification), io.StringIO(requests), answers)
  return [json.loads(line) for line in answers.getvalue().splitlines()]


def specification(path="replay", max_bytes=None, case=TINY):
  task = _meta_gradient._specification(case, path, None, max_bytes)
  return {**task, "cores": False}


def test_too_little_memory_is_told_before_anything_runs():
  (answer,) = serve(specification(max_bytes=100))
  assert answer["error"].startswith("out of memory: XLA plans ")
  assert answer["error"].endswith(" there are 1e-07 GB")


def test_mistakes_in_a_worker_are_answers():
  (answer,) = serve({"task": "no such", "cores": False, "device": None})
  assert answer["error"] == "KeyError: 'no such'"
  assert "RESOURCE" not in _worker._message(RuntimeError("x"))
  assert _worker._message(RuntimeError("RESOURCE_EXHAUSTED: y")).startswith("out of memory")


def test_updates_are_those_of_the_lstm():
  """What is measured is the same computation, path by path."""
  lstm = _cases.make_lstm(TINY)
  meta_params = lstm.init(jax.random.key(0))
  grads = {"w": np.linspace(-1.0, 1.0, 6, dtype=np.float32).reshape(2, 3)}
  results = []
  for name in ("plain", "default"):
    tx = _updates.PATHS[name].make(lstm, meta_params)
    results.append(tx.update(grads, tx.init(grads), grads)[0]["w"])
  np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-7)


def test_memory_grows_with_what_is_allocated():
  if not os.access("/proc/self/clear_refs", os.W_OK):
    pytest.skip("peaks are reset on Linux only")
  memory = _memory.PeakMemory(jax.devices("cpu")[0])
  block = bytearray(b"x") * 30_000_000
  del block
  assert 25e6 < memory.growth() < 100e6


# --- Whole benchmarks, at their smallest.


@pytest.fixture
def cached(monkeypatch):
  """The compilation times are not looked at."""
  monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")


def is_positive(row, names):
  return {name for name in names if not (math.isfinite(row[name]) and row[name] > 0)} == set()


def test_meta_gradient_rows(cached):
  report = benchmarks.meta_gradient([TINY], paths=["autodiff", "replay"], rounds=1)
  assert [(row["case"], row["path"]) for row in report.rows] == [
    ("tiny", "autodiff"),
    ("tiny", "replay"),
  ]
  for row in report.rows:
    assert set(REQUIRED) <= set(_report.KEYS) <= set(row)
    assert row["error"] is None
    assert is_positive(row, REQUIRED[2:])
    assert is_positive(row, ("coordinate_steps_per_second", "share", "planned_bytes"))
    assert row["low"] <= row["milliseconds"] <= row["high"]
    assert row["coordinates"] == 8
    assert row["matmul_gflops"] == report.rows[0]["matmul_gflops"]
  assert report.rows[0]["ratio"] == 1.0
  assert "JAX" in report.device
  assert json.loads(json.dumps(report.to_json(), allow_nan=False))["rows"] == report.rows


@pytest.fixture
def in_this_process(monkeypatch):
  def take_turns(specifications, rounds, say):
    answers = {name: serve(one, "repeat\n" * rounds) for name, one in specifications.items()}
    return {name: Measured(facts, repeated) for name, (facts, *repeated) in answers.items()}

  monkeypatch.setattr(_processes, "take_turns", take_turns)


def test_update_rows(in_this_process):
  report = benchmarks.update([16], paths=["plain", "adam"], rounds=1, lstm=TINY)
  plain, adam = report.rows
  assert (plain["case"], plain["path"], plain["ratio"]) == ("update-16", "plain", 1.0)
  assert is_positive(plain, ("milliseconds", "gflops", "share", "times_adam", "compile_seconds"))
  assert plain["milliseconds_per_million"] == pytest.approx(plain["milliseconds"] * 62_500)
  assert (adam["times_adam"], adam["gflops"]) == (1.0, None)
  assert plain["state_bytes"] == 16 * 2 * 2 * 4


def test_products_rows(monkeypatch, in_this_process):
  monkeypatch.setattr(_products, "_SIZES", ((4, 5, 6),))
  monkeypatch.setattr(_tasks, "_PRODUCT_FLOPS", 10 * 2 * 4 * 5 * 6)
  report = benchmarks.products(rounds=1)
  wide, narrow = report.rows
  assert [(row["case"], row["path"]) for row in report.rows] == [
    *(("4x5x6", "float32"), ("4x5x6", "bfloat16")),
  ]
  assert narrow["ratio"] == pytest.approx(wide["milliseconds"] / narrow["milliseconds"])
  for row in report.rows:
    assert row["error"] is None
    assert row["gflops"] * 1e6 * row["milliseconds"] == pytest.approx(10 * 2 * 4 * 5 * 6)


def test_pes_rows(monkeypatch, in_this_process):
  monkeypatch.setattr(_pes, "_ARCHITECTURE", "learned_sgd")
  monkeypatch.setattr(_pes, "_SETTINGS", SMALL_LOOP)
  report = benchmarks.pes(paths=["host-fed", "one-program"], rounds=1)
  host_fed, one_program = report.rows
  assert (host_fed["case"], host_fed["path"], host_fed["ratio"]) == (
    *("pes-learned_sgd", "host-fed", 1.0),
  )
  for row in report.rows:
    assert row["error"] is None
    assert is_positive(row, ("milliseconds", "ratio", "compile_seconds"))
    assert row["outer_steps_per_second"] == pytest.approx(1e3 / row["milliseconds"])
  assert one_program["ratio"] == pytest.approx(
    host_fed["milliseconds"] / one_program["milliseconds"]
  )


def test_the_host_fed_loop_is_persistent_evolution_strategies():
  optimizee = optimizees.mlp_classifier(cases.images(), (3,), batch_size=SMALL_LOOP.batch_size)
  loop = _host_fed.HostFedPES(
    optimizee, optimizers.learned_sgd(), optax.sgd(1.0), SMALL_LOOP, jax.random.key(0)
  )
  finished = []
  finish = loop._finish

  def note(meta_params, outer_state, total, losses):
    finished.append((total, losses))
    return finish(meta_params, outer_state, total, losses)

  loop._finish = note
  sums = []
  for steps in (4, 8, 4):
    before = loop.meta_params
    loss = loop.step()
    assert all(one.step.tolist() == [steps] * 2 for one in loop._problems)
    total, (plus, minus) = jax.tree.map(np.asarray, finished[-1])
    means = [np.concatenate(chunks, 1).mean(1) for chunks in (plus, minus)]
    np.testing.assert_allclose(loss, np.mean(means), rtol=1e-6)
    estimate = jax.tree.map(
      lambda leaf, means=means: np.tensordot(means[0] - means[1], leaf, 1) / (4 * 0.01**2), total
    )
    jax.tree.map(
      lambda a, b, c: np.testing.assert_allclose(a - b, c, rtol=1e-2, atol=2e-5),
      *(before, loop.meta_params, estimate),
    )
    sums.append(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(total)]))
  # The noise adds up over an episode, and begins anew with the next.
  assert len({tuple(one) for one in sums}) == 3
  assert np.all(np.isfinite(sums))


def test_update_rows_of_other_optimizers(monkeypatch, in_this_process):
  monkeypatch.setattr(_updates, "MATRIX_SIZE", 4)
  report = benchmarks.update([35], optimizers=["learned_sgd", "nn_adam"], rounds=1, lstm=TINY)
  assert [row["path"] for row in report.rows] == ["learned_sgd", "nn_adam", "adam"]
  for row in report.rows:
    assert (row["case"], row["error"]) == ("update-35-matrices", None)
    assert is_positive(row, ("milliseconds", "times_adam", "compile_seconds"))
  sgd, nn_adam, adam = report.rows
  assert (sgd["state_bytes"], sgd["temporary_share"], adam["times_adam"]) == (0, None, 1.0)
  assert adam["state_bytes"] == 2 * 35 * 4 + 4
  # Two matrices and a vector, each with four numbers and an LSTM of 32 units; and the step.
  assert nn_adam["state_bytes"] == 4 * (2 * 35 + 3 * (4 + 2 * 32) + 1)
  assert nn_adam["temporary_share"] > 0


def test_start_up_rows(monkeypatch):
  # The first outer step itself is taken below, in this process.
  monkeypatch.setattr(_start_up, "_PYTHON", (sys.executable, "-S", "-c"))
  monkeypatch.setattr(_start_up, "_DEPENDENCY_CODE", "print('{}')")
  monkeypatch.setattr(_start_up, "_IMPORT_CODE", "raise OSError('disk')")
  monkeypatch.setattr(_start_up, "_FIRST_STEP_CODE", 'print(\'{{"data": "x"}}\')')
  report = benchmarks.start_up(TINY, rounds=2)
  dependencies, imported, cold, warm = report.rows
  for row in (dependencies, cold, warm):
    assert is_positive(row, ("milliseconds", "low", "high"))
    assert (row["rounds"], row["error"]) == (2, None)
  assert imported["error"] == "the process ended with code 1: OSError: disk"
  assert (cold["path"], cold["data"]) == ("tiny", "x")


def test_first_step_ends_after_one_outer_step(capsys):
  _start_up.first_step(json.dumps([list(TINY), None]))
  (line,) = capsys.readouterr().out.splitlines()
  assert json.loads(line)["platform"] == jax.default_backend()


# --- The command line.


def test_json_is_one_object_and_nothing_else(monkeypatch):
  monkeypatch.setattr(_processes, "COMMAND", None)
  measured = {"facts": {"units": 1, "flops": 1, "state_bytes": 1, "coordinate_steps": 5}}

  def told(specifications, rounds, say):
    say("building")
    one = Measured(measured["facts"], [{"seconds": 1.0, "peak_bytes": 3}] * rounds)
    return dict.fromkeys(specifications, one)

  monkeypatch.setattr(_processes, "take_turns", told)
  for argv in (("meta-gradient", "--rounds", 2), ("update", "--sizes", 10, "20")):
    code, stdout, stderr = call("bench", *argv, "--json")
    assert code == 0, stderr
    assert stdout.count("\n") == 1
    printed = json.loads(stdout)
    assert set(printed) == {"device", "date", "rows"}
    assert all(set(_report.KEYS) <= set(row) for row in printed["rows"])
    assert "building" in stderr
  assert [row["case"] for row in printed["rows"]][-1] == "update-20"
  assert "| mnist | autodiff | 1,000 |" in call("bench", "meta-gradient", "--markdown")[1]
  table = call("bench", "meta-gradient")[1]
  assert "times as fast" in table
  assert len([line for line in table.splitlines() if line.startswith("mnist")]) == len(
    benchmarks.path_names()
  )


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["meta-gradient", "--cases", "mnits"], "unknown case 'mnits': did you mean 'mnist'?"),
    (["meta-gradient", "--cases", "elementwise-0x3"], "must be at least 1"),
    (["meta-gradient", "--cases"], "choose at least one case"),
    (["meta-gradient", "--paths", "autodif"], "unknown path 'autodif': did you mean 'autodiff'?"),
    (["meta-gradient", "--rounds", "0"], "rounds must be at least 1, got 0"),
    (["update", "--sizes", "10", "0"], "sizes must be at least 1, got 0"),
    (["update", "--paths", "adamm"], "did you mean 'adam'?"),
    (["pes", "--paths", "host"], "unknown path 'host': did you mean 'host-fed'?"),
    (["products", "--paths", "bfloat"], "unknown path 'bfloat': did you mean 'bfloat16'?"),
    (["update", "--optimizers", "adafac"], "did you mean 'adafac_mlp'?"),
    (["start-up", "--case", "mnits"], "did you mean 'mnist'?"),
    (["start-up", "--rounds", "0"], "rounds must be at least 1"),
    (["meta-gradiant"], "meta-gradient"),
    ([], "Expected one of {meta-gradient, update, pes, products, start-up}"),
  ],
)
def test_mistakes_are_told_before_a_process_starts(argv, message, monkeypatch):
  monkeypatch.setattr(subprocess, "Popen", None)
  code, stdout, stderr = call("bench", *argv)
  assert (code, stdout) == (2, "")
  assert message in " ".join(stderr.replace("│", " ").split())


def test_options_are_those_of_the_library():
  for name, function in (("meta-gradient", benchmarks.meta_gradient), ("update", _update.update)):
    code, stdout, _ = call("bench", name, "--help")
    assert code == 0
    assert f"(default: {inspect.signature(function).parameters['rounds'].default})" in stdout


def test_tasks_can_be_named():
  assert set(_tasks.TASKS) == {"matrix-product", "products", "meta-gradient", "update", "pes"}
