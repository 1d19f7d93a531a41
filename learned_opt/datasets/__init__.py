"""Data sets of images and texts, as numpy arrays split by split."""

from learned_opt.datasets.folder import load_images as load_images
from learned_opt.datasets.images import load as load
from learned_opt.datasets.images import names as names
from learned_opt.datasets.resize import cut_to_equal_sizes as cut_to_equal_sizes
from learned_opt.datasets.resize import resize as resize
from learned_opt.datasets.text import load_text as load_text
from learned_opt.datasets.text import markov_text as markov_text
from learned_opt.datasets.text import text_of_bytes as text_of_bytes
