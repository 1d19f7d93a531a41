"""Meta-gradient estimators, one a file."""

from learned_opt.estimators._autodiff import drop_diverged as drop_diverged
from learned_opt.estimators._horizons import Constant as Constant
from learned_opt.estimators._horizons import Growing as Growing
from learned_opt.estimators._horizons import Horizon as Horizon
from learned_opt.estimators._horizons import LogUniform as LogUniform
from learned_opt.estimators.backprop import full_unroll as full_unroll
from learned_opt.estimators.backprop import truncated_backprop as truncated_backprop
from learned_opt.estimators.es_single import es_single as es_single
from learned_opt.estimators.full_es import full_es as full_es
from learned_opt.estimators.imitation import imitation as imitation
from learned_opt.estimators.inverse_variance import inverse_variance as inverse_variance
from learned_opt.estimators.mixture import mixture as mixture
from learned_opt.estimators.of_part import of_part as of_part
from learned_opt.estimators.over_families import over_families as over_families
from learned_opt.estimators.pes import pes as pes
from learned_opt.estimators.truncated_es import truncated_es as truncated_es

# The estimators that a command can name.
ESTIMATORS = (
  truncated_backprop,
  full_unroll,
  full_es,
  truncated_es,
  pes,
  es_single,
  inverse_variance,
)
