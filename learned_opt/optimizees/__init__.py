"""Families of problems, one a file."""

from learned_opt.optimizees._vgg import VGGFeatures as VGGFeatures
from learned_opt.optimizees._vgg import load_vgg as load_vgg
from learned_opt.optimizees.augmentation import low_precision as low_precision
from learned_opt.optimizees.augmentation import noisy_gradients as noisy_gradients
from learned_opt.optimizees.augmentation import random_batch_size as random_batch_size
from learned_opt.optimizees.autoencoder import image_autoencoder as image_autoencoder
from learned_opt.optimizees.classical import classical_functions as classical_functions
from learned_opt.optimizees.conv import conv_classifier as conv_classifier
from learned_opt.optimizees.logistic import logistic_regression as logistic_regression
from learned_opt.optimizees.mlp import mlp_classifier as mlp_classifier
from learned_opt.optimizees.neural_style import neural_style as neural_style
from learned_opt.optimizees.quadratic import conditioned_quadratic as conditioned_quadratic
from learned_opt.optimizees.quadratic import quadratic as quadratic
from learned_opt.optimizees.recurrent_lm import recurrent_lm as recurrent_lm
from learned_opt.optimizees.sines import noisy_sines as noisy_sines
from learned_opt.optimizees.transformer_lm import transformer_lm as transformer_lm
from learned_opt.optimizees.wrappers import convex_helper as convex_helper
from learned_opt.optimizees.wrappers import random_scaling as random_scaling

# The optimizees that a command can name. The images and weights of neural_style cannot be typed.
OPTIMIZEES = (
  quadratic,
  conditioned_quadratic,
  logistic_regression,
  classical_functions,
  mlp_classifier,
  conv_classifier,
  image_autoencoder,
  noisy_sines,
  recurrent_lm,
  transformer_lm,
)
