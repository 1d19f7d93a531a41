"""``python -m learned_opt.benchmark_suite`` tunes the baselines that the package ships.

It takes hours, and goes on where it was interrupted. With ``--out`` the files go to another folder,
for ``learned-opt benchmark --baselines``.
"""

import argparse
import pathlib
import sys

from learned_opt import devices
from learned_opt.benchmark_suite import SIZES, TASKS, Data, build


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns the exit code, 1 if a task was skipped."""
  parser = argparse.ArgumentParser(
    prog="python -m learned_opt.benchmark_suite", description=__doc__
  )
  parser.add_argument("--size", choices=tuple(SIZES), default="cpu")
  parser.add_argument("--tasks", nargs="*", choices=tuple(TASKS), default=None)
  parser.add_argument("--out", type=pathlib.Path, default=None)
  parser.add_argument("--text", type=pathlib.Path, default=None, help="tiny shakespeare")
  options = parser.parse_args(argv)
  # Where the text lies says nothing of what is computed.
  words = ["python -m learned_opt.benchmark_suite", "--size", options.size]
  with devices.use(devices.mesh()):
    skipped = build(
      options.size,
      folder=options.out,
      tasks=options.tasks,
      data=Data(text=options.text),
      command=" ".join(words),
      on_progress=lambda words: print(words, file=sys.stderr, flush=True),
    )
  for one in skipped:
    print(f"skipped {one}", file=sys.stderr)
  return 1 if skipped else 0


if __name__ == "__main__":
  devices.use_cores()
  raise SystemExit(main())
