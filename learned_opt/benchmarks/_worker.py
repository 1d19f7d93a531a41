"""The process in which one configuration is measured.

It reads a specification, builds what is to be measured, and then runs it once for every line that
it reads. Its answers are lines of JSON, ``{"error": ...}`` among them. It ends with its input.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from learned_opt.benchmarks import _tasks


def serve(specification: str, requests: TextIO, answers: TextIO) -> None:
  """Answers to the specification of a task, and to each request to repeat it."""
  task = _answer(lambda: _tasks.build(json.loads(specification)), lambda task: task.facts, answers)
  if task is not None:
    for _ in requests:
      _answer(task.repeat, lambda measured: measured, answers)


def _answer(work: Callable[[], Any], to_json: Callable[[Any], Any], answers: TextIO) -> Any:
  """Does the work and says how it went; None if it failed."""
  try:
    result = work()
    line = json.dumps(to_json(result), allow_nan=False)
  # Whatever it was, the table shall tell.
  except Exception as error:
    result, line = None, json.dumps({"error": _message(error)})
  print(line, file=answers, flush=True)
  return result


def _message(error: Exception) -> str:
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
    return f"out of memory: {' '.join(str(error).split())[:200]}"
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> None:
  """Serves on stdin and stdout; what libraries print goes to stderr."""
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  serve(sys.stdin.readline(), sys.stdin, answers)
