"""The meta-trainings whose outer steps are measured."""

import functools
import re
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import datasets, optimizees, optimizers
from learned_opt.base import ImageDataset, LearnedOptimizer, Optimizee
from learned_opt.benchmarks import _names
from learned_opt.optimizers.lstm import StateDtype

_ELEMENTWISE = re.compile(r"elementwise-(\d+(?:e\d)?)x(\d+)")


class Case(NamedTuple):
  """One meta-training: problems, an LSTM, and how long the unrolls are.

  Attributes:
    name: what tables call it.
    problem: ``"mlp"`` is a classifier of MNIST's images with one hidden layer of `size` units;
      ``"conv"`` one of CIFAR-10's with three convolutions of `size` channels, in minibatches of 32,
      under a pair of LSTMs; ``"quadratic"`` has `size` dimensions; ``"elementwise"`` is a sum of
      `size` squares, whose own gradient costs next to nothing.
    size: see `problem`.
    unroll_length: inner steps of one outer step.
    horizon: inner steps of one problem.
    meta_batch_size: problems side by side.
    outer_steps: how many run in one dispatch.
    num_layers: of the LSTM.
    hidden_size: of the LSTM.
  """

  name: str
  problem: Literal["mlp", "conv", "quadratic", "elementwise"]
  size: int
  unroll_length: int = 20
  horizon: int = 100
  meta_batch_size: int = 1
  outer_steps: int = 1
  num_layers: int = 2
  hidden_size: int = 20


# The first two are the paper's, in dispatches of whole problems.
CASES: dict[str, Case] = {
  case.name: case
  for case in (
    Case("mnist", "mlp", 20, outer_steps=5),
    Case("quadratic", "quadratic", 10, meta_batch_size=128, outer_steps=20),
    *(
      Case(f"elementwise-{n}x{steps}", "elementwise", int(float(n)), steps, steps, outer_steps=k)
      for n, steps, k in (
        ("1e4", 20, 2),
        ("1e5", 20, 1),
        ("1e6", 20, 1),
        ("1e7", 20, 1),
        ("1e4", 100, 1),
        ("1e4", 1000, 1),
      )
    ),
    Case("cifar", "conv", 16),
    # 1,000,120 parameters.
    Case("mlp-1m", "mlp", 1258, 100, 100),
  )
}

# Of "all", the one with ten million coordinates is left out: it takes minutes and gigabytes.
ALL = tuple(name for name in CASES if name != "elementwise-1e7x20")


def parse_case(name: str) -> Case:
  """The case of a name; ``elementwise-NxT`` has N coordinates and unrolls of T steps.

  Args:
    name: one of `CASES`, or such a name with other numbers, as ``elementwise-500x20``.

  Returns:
    The case.

  Raises:
    ValueError: if there is no such case, or a number is not positive.

  Example:
    >>> from learned_opt import benchmarks
    >>> benchmarks.parse_case("mnist").unroll_length
    20
    >>> benchmarks.parse_case("elementwise-2e3x50")[:4]
    ('elementwise-2e3x50', 'elementwise', 2000, 50)
  """
  if name in CASES:
    return CASES[name]
  match = _ELEMENTWISE.fullmatch(name)
  if match is None:
    raise ValueError(_names.unknown("case", name, (*CASES, "elementwise-NxT", "all")))
  size, steps = int(float(match[1])), int(match[2])
  if min(size, steps) < 1:
    raise ValueError(f"case {name!r}: coordinates and steps must be at least 1")
  return Case(name, "elementwise", size, steps, steps)


def load_dataset(name: Literal["mnist", "cifar10", "digits"] = "mnist") -> tuple[ImageDataset, str]:
  """Images, or random ones of the same shapes where they cannot be had; and which of the two."""
  try:
    return datasets.load(name), name
  except (ImportError, OSError, RuntimeError):
    rng = np.random.default_rng(0)
    shape, numbers = _SHAPES[name]
    return ImageDataset(*(_random_split(rng, number, shape) for number in numbers)), "random"


# Of an image, and how many of them there are in each split.
_SHAPES = {
  "mnist": ((28, 28, 1), (55_000, 5_000, 10_000)),
  "cifar10": ((32, 32, 3), (45_000, 5_000, 10_000)),
  "digits": ((8, 8, 1), (1400, 200, 200)),
}


def _random_split(
  rng: np.random.Generator, number: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  images = rng.integers(256, size=(number, *shape), dtype=np.uint8)
  return images, rng.integers(10, size=number, dtype=np.int32)


def make_optimizee(case: Case) -> tuple[Optimizee, str | None]:
  """The problems of a case, their data on the device; and what the data are."""
  if case.problem in ("mlp", "conv"):
    dataset, name = load_dataset("mnist" if case.problem == "mlp" else "cifar10")
    dataset = jax.device_put(dataset)
    if case.problem == "mlp":
      return optimizees.mlp_classifier(dataset, hidden_sizes=(case.size,)), name
    return optimizees.conv_classifier(dataset, (case.size,) * 3, batch_size=32), name
  if case.problem == "quadratic":
    return optimizees.quadratic(case.size), None
  return _elementwise(case.size), None


def _elementwise(size: int) -> Optimizee:
  """f(theta) = |theta - y|^2 / 2; each problem begins elsewhere."""

  def init(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (size,))

  def loss(params: jax.Array, target: jax.Array, key: jax.Array) -> jax.Array:
    del key
    return 0.5 * jnp.sum((params - target) ** 2)

  return Optimizee.from_functions(init, loss, jnp.linspace(-1.0, 1.0, size))


def make_lstm(case: Case, state_dtype: StateDtype | None = None) -> LearnedOptimizer:
  """The LSTM of a case, or the pair, as the paper has it for these problems."""
  make = optimizers.lstm_pair if case.problem == "conv" else optimizers.lstm
  sizes = {"num_layers": case.num_layers, "hidden_size": case.hidden_size}
  lstm = functools.partial(make, **sizes, state_dtype=state_dtype)
  if case.problem == "quadratic":
    return lstm(preprocessing=optimizers.Identity(), output_scale=1.0)
  return lstm()


def forward_flops(meta_params: Any) -> int:
  """Floating point operations of one update of one coordinate, matrix products only.

  Two for each weight of a product: ``2 (in + H) 4 H`` a layer and ``2 H`` for the output. A step
  forwards and backwards costs four times as much, where the backward pass computes the forward
  pass again. Of a pair, a coordinate sees one.

  >>> for name in ("mnist", "cifar"):
  ...   forward_flops(jax.eval_shape(make_lstm(CASES[name]).init, jax.random.key(0)))
  9960
  9960
  """
  if "kernels" in meta_params:
    meta_params = meta_params["kernels"]
  return 2 * sum(leaf.size for leaf in jax.tree.leaves(meta_params) if leaf.ndim == 2)
