"""The suite: how a learned optimizer does on many tasks unlike those it was trained on.

Beside it stand the usual optimizers, each tuned on each task over learning rates, with a constant
rate and with one that falls to zero along a cosine. Tuning takes hours, and its outcome is shipped
as package data: `run` needs minutes, and no network but for the tasks whose data sets are not at
hand, which it skips and names. ``python -m learned_opt.benchmark_suite`` makes these data.

(`learned_opt.benchmarks` measures how fast things are on a machine.)
"""

from learned_opt.benchmark_suite._baselines import BASELINES as BASELINES
from learned_opt.benchmark_suite._baselines import build as build
from learned_opt.benchmark_suite._figure import suite_figure as suite_figure
from learned_opt.benchmark_suite._race import Race as Race
from learned_opt.benchmark_suite._race import race as race
from learned_opt.benchmark_suite._report import Report as Report
from learned_opt.benchmark_suite._report import TaskResult as TaskResult
from learned_opt.benchmark_suite._suite import run as run
from learned_opt.benchmark_suite._tasks import SIZES as SIZES
from learned_opt.benchmark_suite._tasks import TASKS as TASKS
from learned_opt.benchmark_suite._tasks import Data as Data
from learned_opt.benchmark_suite._tasks import Size as Size
from learned_opt.benchmark_suite._tasks import Task as Task
