"""How programs are compiled."""

# For programs that run once, for a moment: to optimize them takes longer than it saves. Not for
# those that a training depends on: other rounding would lead it on another course.
RUNS_ONCE = {"xla_backend_optimization_level": 0}
