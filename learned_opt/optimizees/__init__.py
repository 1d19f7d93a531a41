"""Families of problems, one a file."""

from learned_opt.optimizees.mlp import mlp_classifier as mlp_classifier
from learned_opt.optimizees.quadratic import quadratic as quadratic

# The optimizees that a command can name.
OPTIMIZEES = (quadratic, mlp_classifier)
