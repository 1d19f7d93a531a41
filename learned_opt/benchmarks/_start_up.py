"""The time from the start of a process to what a user waits for."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from learned_opt import devices, estimators, meta_train
from learned_opt.benchmarks import _cases, _names, _processes, _report, _tasks
from learned_opt.benchmarks._cases import Case

_DEPENDENCIES = "import of jax, flax and optax"
_IMPORT = "import of learned_opt"
_COLD = "first outer step, cold"
_WARM = "first outer step, warm cache"

_PYTHON = (sys.executable, "-P", "-c")
_DEPENDENCY_CODE = "import jax, flax, optax; print('{}')"
_IMPORT_CODE = "import learned_opt; print('{}')"
_FIRST_STEP_CODE = "from learned_opt.benchmarks._start_up import first_step; first_step({!r})"


def start_up(
  case: str | Case = "mnist",
  *,
  rounds: int = 5,
  device: str | None = None,
  on_progress: Callable[[str], None] | None = None,
) -> _report.Report:
  """Measures fresh processes: imports, and the first outer step of a meta-training.

  The outer step is that of `meta_train.run`, data loaded and programs compiled, with an empty
  compilation cache, and once more with the cache that this left.

  Args:
    case: a name as of `parse_case`, or a case.
    rounds: processes of each kind, in turn.
    device: see `meta_gradient`.
    on_progress: is told how the work goes on.

  Returns:
    One row for each of the four.

  Raises:
    ValueError: if the case is unknown or there are no rounds.

  Example:
    >>> from learned_opt import benchmarks
    >>> report = benchmarks.start_up(rounds=3)  # doctest: +SKIP
    >>> benchmarks.start_up(rounds=0)
    Traceback (most recent call last):
      ...
    ValueError: rounds must be at least 1, got 0
  """
  parsed = _cases.parse_case(case) if isinstance(case, str) else case
  _names.check_rounds(rounds)
  say = on_progress or (lambda words: None)
  arguments = json.dumps([list(parsed), device])
  commands = {
    _DEPENDENCIES: (*_PYTHON, _DEPENDENCY_CODE),
    _IMPORT: (*_PYTHON, _IMPORT_CODE),
    _COLD: (*_PYTHON, _FIRST_STEP_CODE.format(arguments)),
    _WARM: (*_PYTHON, _FIRST_STEP_CODE.format(arguments)),
  }
  measured = {name: _processes.Measured({}, []) for name in commands}
  date = _report.now()
  for index in range(rounds):
    say(f"round {index + 1}/{rounds}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
      for name, command in commands.items():
        if measured[name].error is None:
          measured[name] = _add(measured[name], command, cache)
  rows = [
    _report.new_row(name, parsed.name if name in (_COLD, _WARM) else None, one)
    for name, one in measured.items()
  ]
  told = [one.facts for one in measured.values()]
  return _report.Report(_report.describe_device(told), date, rows)


def _add(measured: _processes.Measured, command: Sequence[str], cache: str) -> _processes.Measured:
  try:
    facts, seconds = _seconds_to_answer(command, cache)
  except _processes.WorkerError as error:
    return measured._replace(error=str(error))
  return measured._replace(facts=facts, repetitions=[*measured.repetitions, {"seconds": seconds}])


def _seconds_to_answer(command: Sequence[str], cache: str) -> tuple[dict[str, Any], float]:
  """What the process says in its first line, and when, process start included."""
  environment = _processes.environment() | {
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_COMPILATION_CACHE_DIR": cache,
    # As the command line has it.
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
  }
  with tempfile.TemporaryFile() as stderr:
    start = time.perf_counter()
    process = subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environment
    )
    assert process.stdout is not None
    # Leaving the block closes the pipe and waits for the end.
    with process:
      try:
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.wait()
      finally:
        process.kill()
    if not line:
      raise _processes.WorkerError(_processes.how_it_died(process.returncode, stderr))
  return json.loads(line), seconds


def first_step(arguments: str) -> None:
  """What the process does: one outer step, then a line of facts.

  Args:
    arguments: the case and the device, JSON.
  """
  case, device = json.loads(arguments)
  case = _cases.Case(*case)
  mesh = _tasks.set_up(True, device)
  optimizee, data = _cases.make_optimizee(case)

  def tell(progress: meta_train.Progress) -> None:
    jax.block_until_ready(progress.state.meta_params)
    print(json.dumps({"data": data, **_tasks.describe_device(mesh)}), flush=True)
    raise _Done

  with devices.use(mesh), contextlib.suppress(_Done):
    meta_train.run(
      optimizee,
      _cases.make_lstm(case),
      estimators.truncated_backprop(case.unroll_length, case.horizon, case.meta_batch_size),
      # There is no validation after the first of two.
      num_outer_steps=2,
      validate_every=2,
      steps_per_dispatch=1,
      outer_optimizer=meta_train.with_clipping(optax.adam(1e-3), max_meta_grad_norm=1.0),
      key=jax.random.key(0),
      callbacks=[tell],
    )


class _Done(Exception):  # noqa: N818
  """Ends the run after the first outer step."""
