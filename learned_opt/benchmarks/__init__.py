"""What things cost on this machine: meta-gradients, updates, the start of a process.

Each configuration is measured in a process of its own, because the number of devices, the flags of
XLA and the peak memory belong to a process. All processes of a table are built first; then they
take turns, one repetition each, while the others wait: a machine that slows down for a moment does
so for all. Times are medians over the rounds, with their range.

How fast the machine multiplies matrices is measured in turn with the rest, by products of 1,024 x
1,024 float32 matrices in a process that is left as JAX sets it up. So are the reference paths; the
fast paths run in a process that is set up by `learned_opt.devices`.
"""

from learned_opt.benchmarks._cases import CASES as CASES
from learned_opt.benchmarks._cases import Case as Case
from learned_opt.benchmarks._cases import parse_case as parse_case
from learned_opt.benchmarks._meta_gradient import meta_gradient as meta_gradient
from learned_opt.benchmarks._meta_gradient import path_names as path_names
from learned_opt.benchmarks._pes import PES_PATHS as PES_PATHS
from learned_opt.benchmarks._pes import pes as pes
from learned_opt.benchmarks._products import PRODUCT_PATHS as PRODUCT_PATHS
from learned_opt.benchmarks._products import products as products
from learned_opt.benchmarks._report import Report as Report
from learned_opt.benchmarks._start_up import start_up as start_up
from learned_opt.benchmarks._update import update as update
from learned_opt.benchmarks._updates import UPDATE_OPTIMIZERS as UPDATE_OPTIMIZERS
from learned_opt.benchmarks._updates import UPDATE_PATHS as UPDATE_PATHS
