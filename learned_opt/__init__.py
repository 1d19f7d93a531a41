"""Learned optimizers in JAX: meta-train them, judge them, use them as optax transformations."""

from learned_opt import comparisons as comparisons
from learned_opt import curriculum as curriculum
from learned_opt import datasets as datasets
from learned_opt import devices as devices
from learned_opt import doctor as doctor
from learned_opt import estimators as estimators
from learned_opt import families as families
from learned_opt import inspect as inspect
from learned_opt import meta_losses as meta_losses
from learned_opt import meta_train as meta_train
from learned_opt import optimizees as optimizees
from learned_opt import optimizers as optimizers
from learned_opt import population as population
from learned_opt import runs as runs
from learned_opt import search as search
from learned_opt.artifacts import annotate as annotate
from learned_opt.artifacts import convert as convert
from learned_opt.artifacts import load as load
from learned_opt.artifacts import load_artifact as load_artifact
from learned_opt.artifacts import pretrained_names as pretrained_names
from learned_opt.artifacts import save as save
from learned_opt.base import ImageDataset as ImageDataset
from learned_opt.base import Info as Info
from learned_opt.base import LearnedOptimizer as LearnedOptimizer
from learned_opt.base import MetaGradientEstimator as MetaGradientEstimator
from learned_opt.base import Optimizee as Optimizee
from learned_opt.base import TextDataset as TextDataset

__version__ = "0.1.0"
