"""Learned-optimizer architectures, one a file."""

from learned_opt.optimizers._preprocessing import Identity as Identity
from learned_opt.optimizers._preprocessing import LogAndSign as LogAndSign
from learned_opt.optimizers._preprocessing import Scale as Scale
from learned_opt.optimizers.lstm import lstm as lstm

# The architectures that a saved optimizer or a command can name.
ARCHITECTURES = (lstm,)
