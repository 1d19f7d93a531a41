"""How programs are compiled, and how long they are kept."""

import pathlib

import jax

# For programs that run once, for a moment: to optimize them takes longer than it saves. Not for
# those that a training depends on: other rounding would lead it on another course.
RUNS_ONCE = {"xla_backend_optimization_level": 0}

# Linux gives a process 65,530 memory maps by default. A compiled program takes up to hundreds of
# them, and XLA ends the process when there are no more.
_MAX_MAPS = 30_000
_MAPS = pathlib.Path("/proc/self/maps")


def make_room() -> bool:
  """Forgets the programs of this process if they have become very many.

  To be called between pieces of work with programs of their own, by what runs many of these.

  Returns:
    Whether it did.

  >>> make_room()
  False
  """
  try:
    with _MAPS.open("rb") as maps:
      number = sum(1 for _ in maps)
  except OSError:  # Other systems have no such file.
    return False
  if number <= _MAX_MAPS:
    return False
  jax.clear_caches()
  return True
