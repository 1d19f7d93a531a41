"""Data sets of images, as numpy arrays split by split."""

from learned_opt.datasets.folder import load_images as load_images
from learned_opt.datasets.images import load as load
from learned_opt.datasets.images import names as names
