"""The processes that measure, and how they take turns."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import learned_opt

COMMAND = (sys.executable, "-P", "-m", "learned_opt.benchmarks")

# A worker that waits ends when its input does.
_SECONDS_TO_END = 5.0


class WorkerError(RuntimeError):
  """A worker failed, or died."""


class Measured(NamedTuple):
  """What a worker has told.

  Attributes:
    facts: of the configuration, ``{}`` if it could not be built.
    repetitions: one a round, each with ``seconds`` and ``peak_bytes``.
    error: what went wrong, None if nothing.
  """

  facts: dict[str, Any]
  repetitions: list[dict[str, Any]]
  error: str | None = None


def environment() -> dict[str, str]:
  """The variables of a process that measures: it finds this package, wherever it was found."""
  root = str(pathlib.Path(learned_opt.__file__).resolve().parent.parent)
  paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
  defaults = {
    # The compilations are measured, too.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    # Several processes share one GPU.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
  }
  return {**defaults, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class Worker:
  """A process that builds one configuration and runs it on request; a context manager.

  Args:
    specification: see `learned_opt.benchmarks._tasks`.
    command: of the process.
  """

  def __init__(self, specification: Mapping[str, Any], command: Sequence[str] = COMMAND):
    self._specification = specification
    self._command = tuple(command)

  def __enter__(self) -> Self:
    self._stderr = tempfile.TemporaryFile()
    self._process = subprocess.Popen(
      self._command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._stderr,
      text=True,
      env=environment(),
    )
    return self

  def __exit__(
    self,
    error_type: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    del error, traceback
    self.end(at_once=error_type is not None)

  def build(self) -> dict[str, Any]:
    """Has the configuration built; what is known of it then."""
    return self._ask(json.dumps(self._specification))

  def repeat(self) -> dict[str, Any]:
    """Has it run once; ``seconds`` and ``peak_bytes``."""
    return self._ask("repeat")

  def end(self, at_once: bool = False) -> None:
    """Ends the process, whatever it does; may be called again."""
    process = self._process
    try:
      if not at_once and process.poll() is None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
          process.communicate(timeout=_SECONDS_TO_END)
    finally:
      process.kill()
      process.wait()
      for stream in (process.stdin, process.stdout, self._stderr):
        with contextlib.suppress(OSError):
          stream.close()  # pyright: ignore[reportOptionalMemberAccess]

  def _ask(self, line: str) -> dict[str, Any]:
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
      print(line, file=self._process.stdin, flush=True)
    answer = self._process.stdout.readline()
    if not answer.endswith("\n"):
      raise WorkerError(self._how_it_died())
    told = json.loads(answer)
    if "error" in told:
      raise WorkerError(told["error"])
    return told

  def _how_it_died(self) -> str:
    try:
      code = self._process.wait(timeout=_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
      return "the process closed its output"
    return how_it_died(code, self._stderr)


def how_it_died(code: int, stderr: IO[bytes]) -> str:
  r"""Why a process ended, from its exit code and the last that it said.

  >>> import io
  >>> how_it_died(1, io.BytesIO(b"Traceback:\n  ...\nOSError: no space\n"))
  'the process ended with code 1: OSError: no space'
  """
  if code < 0:
    hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
    return f"the process was killed by {signal.Signals(-code).name}{hint}"
  stderr.seek(0)
  lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines()]
  last = next(filter(None, reversed(lines)), "it said nothing")
  return f"the process ended with code {code}: {last[:300]}"


def take_turns(
  specifications: Mapping[str, Mapping[str, Any]],
  rounds: int,
  say: Callable[[str], None],
  command: Sequence[str] = COMMAND,
) -> dict[str, Measured]:
  """Builds all, then has each run once a round; a worker that fails is left out from then on.

  Args:
    specifications: of the configurations, by the names that they have here.
    rounds: how often each runs.
    say: is told how the work goes on.
    command: of the workers.

  Returns:
    What they told, by the same names. No process is left, whatever happens.
  """
  measured = {name: Measured({}, []) for name in specifications}
  with contextlib.ExitStack() as stack:
    workers: dict[str, Worker] = {}

    def attempt(name: str, work: Callable[[], None]) -> None:
      try:
        work()
      except WorkerError as error:
        say(f"{name}: {error}")
        measured[name] = measured[name]._replace(error=str(error))
        workers.pop(name).end(at_once=True)

    def build(name: str) -> None:
      measured[name] = measured[name]._replace(facts=workers[name].build())

    def repeat(name: str) -> None:
      measured[name].repetitions.append(workers[name].repeat())

    for name, specification in specifications.items():
      say(f"building {name}")
      workers[name] = stack.enter_context(Worker(specification, command))
      attempt(name, lambda name=name: build(name))
    for index in range(rounds):
      say(f"round {index + 1}/{rounds}")
      for name in list(workers):
        attempt(name, lambda name=name: repeat(name))
  return measured
