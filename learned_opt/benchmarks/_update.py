"""The cost of one update by a learned optimizer, beside Adam's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from learned_opt.benchmarks import _cases, _names, _processes, _report, _statistics, _updates
from learned_opt.benchmarks._cases import Case

_PRODUCTS = "matrix products"
_ADAM = "adam"


def update(
  sizes: Sequence[int] = (100_000, 1_000_000, 10_000_000),
  *,
  optimizers: Sequence[str] = (_updates.LSTM,),
  paths: Sequence[str] | None = None,
  rounds: int = 5,
  device: str | None = None,
  max_bytes: int | None = None,
  on_progress: Callable[[str], None] | None = None,
  lstm: Case = _cases.CASES["mnist"],
) -> _report.Report:
  """Measures one compiled `tx.update` whose state's memory is reused, by default of the LSTM.

  The paths of the LSTM, which updates one vector, are ``"plain"``, the Flax module of one
  coordinate under `vmap`, to which ``ratio`` compares; ``"default"``, what `optimizers.lstm` gives;
  ``"default-cores"``, the same with all arrays split over one virtual device a core; and
  ``"adam"``, optax's. A row's
  ``milliseconds`` are those of one update; ``times_adam`` is how many times as slow as Adam it is;
  ``gflops`` counts the products of the LSTM; ``gigabytes_per_second`` the state, read and written,
  the gradients and the updates. ``peak_bytes`` is what the update takes on top of parameters,
  gradients and state.

  Other optimizers update square matrices of 1,000 rows, what is left of the parameters being one
  vector; their path is their name, and Adam is measured on the same tensors in the same rounds.
  ``temporary_share`` is the memory that XLA plans for what is made on the way, neither state nor
  updates, over that of the state.

  Args:
    sizes: numbers of parameters.
    optimizers: some of `UPDATE_OPTIMIZERS`.
    paths: of the LSTM, some of the above; None means all.
    rounds: repetitions of each, in turn.
    device: see `meta_gradient`.
    max_bytes: see `meta_gradient`.
    on_progress: is told how the work goes on.
    lstm: of which case the LSTM is.

  Returns:
    One row for each size and path.

  Raises:
    ValueError: if an optimizer or a path is unknown, a size is not positive, or there are no
      rounds.

  Example:
    >>> from learned_opt import benchmarks
    >>> report = benchmarks.update([1_000_000], rounds=3)  # doctest: +SKIP
    >>> benchmarks.update([0])
    Traceback (most recent call last):
      ...
    ValueError: sizes must be at least 1, got 0
  """
  paths = tuple(_updates.PATHS) if paths is None else tuple(paths)
  _names.check_names("optimizer", optimizers, _updates.UPDATE_OPTIMIZERS)
  _names.check_names("path", paths, _updates.PATHS)
  if not sizes:
    raise ValueError("sizes must name at least one number of parameters")
  for size in sizes:
    if size < 1:
      raise ValueError(f"sizes must be at least 1, got {size}")
  _names.check_rounds(rounds)
  date, rows, facts = _report.now(), [], []
  for size in dict.fromkeys(sizes):
    common = {"device": device, "size": size, "case": list(lstm), "max_bytes": max_bytes}
    specifications: dict[str, Mapping[str, Any]] = {
      _PRODUCTS: {"task": "matrix-product", "cores": False, "device": device}
    }
    configurations = _configurations(size, optimizers, paths)
    for case, name, specification in configurations:
      specifications[f"{case}, {name}"] = {"task": "update", **common, **specification}
    measured = _processes.take_turns(specifications, rounds, on_progress or (lambda words: None))
    products, *others = measured.values()
    facts += [one.facts for one in measured.values()]
    matmul = _report.matmul_gflops(products)
    rows += [
      _row(size, case, name, one, matmul)
      for (case, name, _), one in zip(configurations, others, strict=True)
    ]
  _statistics.add_ratios(rows, _updates.REFERENCE)
  _statistics.add_ratios(rows, _ADAM, "times_adam", inverse=True)
  return _report.Report(_report.describe_device(facts), date, rows)


def _configurations(
  size: int, optimizers: Sequence[str], paths: Sequence[str]
) -> list[tuple[str, str, dict[str, Any]]]:
  """Of each row the case, the path as the table calls it, and what its task is told."""
  found = []
  if _updates.LSTM in optimizers:
    for path in paths:
      specification = {"path": path, "cores": _updates.PATHS[path].cores}
      found.append((f"update-{size}", path, specification))
  others = [name for name in dict.fromkeys(optimizers) if name != _updates.LSTM]
  for name in [*others, _ADAM] if others else []:
    path = _ADAM if name == _ADAM else "default"
    specification = {"path": path, "cores": False, "optimizer": name}
    found.append((f"update-{size}-matrices", name, specification))
  return found


def _row(
  size: int, case: str, path: str, measured: _processes.Measured, matmul: float | None
) -> dict[str, Any]:
  facts = measured.facts
  row = _report.new_row(case, path, measured, coordinates=size)
  milliseconds = row["milliseconds"]
  if milliseconds is not None:
    row["peak_bytes"] = _report.peak_bytes(measured.repetitions)
  _report.add_rates(row, size, facts.get("flops_per_coordinate_step"), matmul)
  moved = None if milliseconds is None else 2 * facts["state_bytes"] + 8 * size
  return row | {
    "milliseconds_per_million": _statistics.divide(milliseconds, size / 1e6),
    "gigabytes_per_second": _statistics.divide(moved, milliseconds and milliseconds * 1e6),
    "temporary_share": _statistics.divide(
      facts.get("temporary_bytes"), facts.get("state_bytes") or None
    ),
    "times_adam": None,
  }
