"""Learned-optimizer architectures, one a file."""

from learned_opt.optimizers._preprocessing import Identity as Identity
from learned_opt.optimizers._preprocessing import LogAndSign as LogAndSign
from learned_opt.optimizers._preprocessing import Scale as Scale
from learned_opt.optimizers.adafac_mlp import adafac_mlp as adafac_mlp
from learned_opt.optimizers.celo import celo as celo
from learned_opt.optimizers.celo2 import celo2 as celo2
from learned_opt.optimizers.celo_adam import celo_adam as celo_adam
from learned_opt.optimizers.hierarchical_rnn import hierarchical_rnn as hierarchical_rnn
from learned_opt.optimizers.learned_muon import learned_muon as learned_muon
from learned_opt.optimizers.learned_sgd import learned_sgd as learned_sgd
from learned_opt.optimizers.lstm import lstm as lstm
from learned_opt.optimizers.lstm import lstm_pair as lstm_pair
from learned_opt.optimizers.lstm_gac import lstm_gac as lstm_gac
from learned_opt.optimizers.mlp import mlp as mlp
from learned_opt.optimizers.nn_adam import nn_adam as nn_adam
from learned_opt.optimizers.ntm import ntm_bfgs as ntm_bfgs
from learned_opt.optimizers.ntm import ntm_lbfgs as ntm_lbfgs
from learned_opt.optimizers.rnn_mlp import rnn_mlp as rnn_mlp
from learned_opt.optimizers.rnnprop import rnnprop as rnnprop
from learned_opt.optimizers.star import star as star
from learned_opt.optimizers.velo import velo as velo

# The architectures that a saved optimizer or a command can name; the first is the default.
ARCHITECTURES = (
  lstm,
  adafac_mlp,
  celo,
  celo2,
  celo_adam,
  hierarchical_rnn,
  learned_muon,
  learned_sgd,
  lstm_gac,
  lstm_pair,
  mlp,
  nn_adam,
  ntm_bfgs,
  ntm_lbfgs,
  rnnprop,
  rnn_mlp,
  star,
  velo,
)
