"""``python -m learned_opt.benchmarks`` is a worker."""

from learned_opt.benchmarks._worker import main

if __name__ == "__main__":
  main()
