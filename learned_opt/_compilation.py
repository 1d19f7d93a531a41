"""How programs are compiled."""

# For programs that run once, for a moment: to optimize them takes longer than it saves.
RUNS_ONCE = {"xla_backend_optimization_level": 0}
