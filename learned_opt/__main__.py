"""``python -m learned_opt`` is ``learned-opt``."""

import sys

from learned_opt.cli import main

if __name__ == "__main__":
  sys.exit(main())
