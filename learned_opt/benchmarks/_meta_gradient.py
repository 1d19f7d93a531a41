"""The cost of outer steps, path by path."""

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from learned_opt import estimators
from learned_opt.benchmarks import _cases, _names, _processes, _report, _statistics
from learned_opt.benchmarks._cases import Case

REFERENCE = "autodiff"
_PRODUCTS = "matrix products"

# Replay of a sample of so many coordinates of each tensor, and that of a state in another dtype.
_SAMPLED, _NARROW = "replay-2048", "replay-bfloat16"

# Coordinate-steps of an outer step above which a case is measured when no other is in memory.
_HEAVY = 10**7


def path_names() -> tuple[str, ...]:
  """The ways in which an estimator can compute the gradient, the reference first.

  Returns:
    The values of the parameter ``path`` of `estimators.truncated_backprop`, but ``"auto"``; and
    ``"replay-2048"``, the replay with 2,048 as `replayed_coordinates`, which estimates the
    gradient that the others compute; and ``"replay-bfloat16"``, the replay of an optimizer that
    keeps its state in bfloat16.

  Example:
    >>> from learned_opt import benchmarks
    >>> benchmarks.path_names()[0]
    'autodiff'
  """
  parameter = inspect.signature(estimators.truncated_backprop, eval_str=True).parameters["path"]
  names = [name for name in typing.get_args(parameter.annotation) if name != "auto"]
  return (*sorted(names, key=lambda name: name != REFERENCE), _SAMPLED, _NARROW)


def meta_gradient(
  cases: Sequence[str | Case] = ("mnist", "quadratic"),
  *,
  paths: Sequence[str] | None = None,
  rounds: int = 5,
  device: str | None = None,
  max_bytes: int | None = None,
  on_progress: Callable[[str], None] | None = None,
) -> _report.Report:
  """Measures outer steps: one meta-gradient and one meta-Adam update each.

  A row's ``milliseconds`` are those of one outer step, that is of one truncation; ``ratio`` is how
  many times as fast as the reference path it is; ``gflops`` counts the products of the LSTM,
  forwards and, three times as many, backwards (of a sample, where only that is replayed), and
  ``share`` is their part of ``matmul_gflops``.
  ``peak_bytes`` is the state of the meta-training and all that the outer steps take on top of it,
  the data set and the compiler's memory apart; ``planned_bytes`` is what XLA says that it takes.
  What does not fit is not run, and its row says so in ``error``.

  Args:
    cases: names as of `parse_case`, ``"all"`` for those of the documentation, or cases.
    paths: some of `path_names`; None means all.
    rounds: repetitions of each, in turn.
    device: ``"cpu"``, or a platform of JAX's such as ``"gpu"`` or ``"gpu:1"``; None leaves the
      choice to JAX.
    max_bytes: programs that need more are not run; None means what the system has left.
    on_progress: is told how the work goes on.

  Returns:
    One row for each case and path.

  Raises:
    ValueError: if a case or path is unknown, or there are no rounds.

  Example:
    >>> from learned_opt import benchmarks
    >>> report = benchmarks.meta_gradient(["quadratic"], rounds=3)  # doctest: +SKIP
    >>> benchmarks.meta_gradient(["mnits"])
    Traceback (most recent call last):
      ...
    ValueError: unknown case 'mnits': did you mean 'mnist'? There are mnist, quadratic, ...
  """
  parsed = _parse(cases)
  paths = path_names() if paths is None else tuple(paths)
  _names.check_names("path", paths, path_names())
  _names.check_rounds(rounds)
  say = on_progress or (lambda words: None)
  date, rows, facts = _report.now(), [], []
  for group in _groups(parsed):
    specifications: dict[str, Mapping[str, Any]] = {
      _PRODUCTS: {"task": "matrix-product", "cores": False, "device": device},
      **{
        f"{case.name}, {path}": _specification(case, path, device, max_bytes)
        for case in group
        for path in paths
      },
    }
    measured = _processes.take_turns(specifications, rounds, say)
    facts += [one.facts for one in measured.values()]
    matmul = _report.matmul_gflops(measured[_PRODUCTS])
    rows += [
      _row(case, path, measured[f"{case.name}, {path}"], matmul) for case in group for path in paths
    ]
  _statistics.add_ratios(rows, REFERENCE)
  return _report.Report(_report.describe_device(facts), date, rows)


def _parse(cases: Sequence[str | Case]) -> list[Case]:
  if not cases:
    raise ValueError(f"choose at least one case of {', '.join(_cases.CASES)}")
  names = [one for case in cases for one in (_cases.ALL if case == "all" else (case,))]
  parsed = [_cases.parse_case(one) if isinstance(one, str) else one for one in names]
  return list({case.name: case for case in parsed}.values())


def _groups(cases: Sequence[Case]) -> Iterator[list[Case]]:
  """Those that are measured in turn with one another."""
  light = [case for case in cases if not _is_heavy(case)]
  if light:
    yield light
  for case in cases:
    if _is_heavy(case):
      yield [case]


def _is_heavy(case: Case) -> bool:
  per_problem = 800 * case.size if case.problem == "mlp" else case.size
  return per_problem * case.meta_batch_size * case.unroll_length >= _HEAVY


def _specification(
  case: Case, path: str, device: str | None, max_bytes: int | None
) -> dict[str, Any]:
  return {
    "task": "meta-gradient",
    # A single problem is shared among devices by its coordinates, which only replay does.
    "cores": path != REFERENCE and (path.startswith("replay") or case.meta_batch_size > 1),
    "device": device,
    "case": list(case),
    "path": path,
    "max_bytes": max_bytes,
  }


def _row(
  case: Case, path: str, measured: _processes.Measured, matmul: float | None
) -> dict[str, Any]:
  facts = measured.facts
  row = _report.new_row(case.name, path, measured)
  peak = _report.peak_bytes(measured.repetitions)
  if row["milliseconds"] is not None and peak is not None:
    row["peak_bytes"] = facts["state_bytes"] + peak
  _report.add_rates(
    row, facts.get("coordinate_steps"), facts.get("flops_per_coordinate_step"), matmul
  )
  return row
