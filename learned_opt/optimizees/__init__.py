"""Families of problems, one a file."""

from learned_opt.optimizees._vgg import VGGFeatures as VGGFeatures
from learned_opt.optimizees._vgg import load_vgg as load_vgg
from learned_opt.optimizees.conv import conv_classifier as conv_classifier
from learned_opt.optimizees.mlp import mlp_classifier as mlp_classifier
from learned_opt.optimizees.neural_style import neural_style as neural_style
from learned_opt.optimizees.quadratic import conditioned_quadratic as conditioned_quadratic
from learned_opt.optimizees.quadratic import quadratic as quadratic
from learned_opt.optimizees.sines import noisy_sines as noisy_sines
from learned_opt.optimizees.wrappers import convex_helper as convex_helper
from learned_opt.optimizees.wrappers import random_scaling as random_scaling

# The optimizees that a command can name. The images and weights of neural_style cannot be typed.
OPTIMIZEES = (quadratic, conditioned_quadratic, mlp_classifier, conv_classifier, noisy_sines)
