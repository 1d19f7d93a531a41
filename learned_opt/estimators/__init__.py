"""Meta-gradient estimators, one a file."""

from learned_opt.estimators._autodiff import drop_diverged as drop_diverged
from learned_opt.estimators.backprop import full_unroll as full_unroll
from learned_opt.estimators.backprop import truncated_backprop as truncated_backprop
from learned_opt.estimators.imitation import imitation as imitation
from learned_opt.estimators.mixture import mixture as mixture
from learned_opt.estimators.over_families import over_families as over_families

# The estimators that a command can name.
ESTIMATORS = (truncated_backprop, full_unroll)
