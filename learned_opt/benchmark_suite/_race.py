"""How many times as fast an optimizer is as a tuned one, on problems of one's own."""

from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from learned_opt import baselines
from learned_opt._card import with_num_steps
from learned_opt.base import LearnedOptimizer, Optimizee
from learned_opt.benchmark_suite._report import speed_up
from learned_opt.benchmark_suite._running import (
  at_least_solved,
  curves_of,
  curves_of_rates,
  draw,
  window_steps,
)

# Half powers of two, which are no more than 1.41 times apart.
_RATES = 2.0 ** np.arange(-10.0, 0.5, 0.5)


class Race(NamedTuple):
  """Problems, and how a tuned optimizer does on them. Make one with `race`.

  Attributes:
    optimizee: the distribution of problems.
    problems: P of them at step 0.
    num_steps: T.
    steps: ``[W + 1]``, those at which there are losses: 0, and the ends of windows.
    curves: ``[P, W + 1]``, of the tuned optimizer: the first losses, and the means over windows.
    learning_rate: its own.
  """

  optimizee: Optimizee
  problems: Any
  num_steps: int
  steps: np.ndarray
  curves: np.ndarray
  learning_rate: float

  def speed_ups(
    self, learned_optimizer: LearnedOptimizer, meta_params: chex.ArrayTree
  ) -> np.ndarray:
    """``[P]``, how many times as fast a learned optimizer is on each problem.

    The steps that the tuned optimizer takes to a loss over those that the learned one takes, where
    the loss is the higher of their two final ones, or a hundredth of the first if that is higher.

    Args:
      learned_optimizer: the architecture. If it has an option ``num_steps``, it is told.
      meta_params: its weights; others of the same shapes do not compile again.

    Returns:
      The ratios; 0 where it diverges or ends above where it began.
    """
    make = with_num_steps(learned_optimizer, self.num_steps).optimizer
    num_windows = len(self.steps) - 1
    curves = curves_of(
      self.optimizee, make, meta_params, self.problems, self.num_steps, num_windows
    )
    both = zip(at_least_solved(curves), at_least_solved(self.curves), strict=True)
    return np.array([speed_up(*pair, self.steps) for pair in both])


def race(
  optimizee: Optimizee,
  key: chex.PRNGKey,
  *,
  num_problems: int = 8,
  num_steps: int = 1000,
  num_windows: int = 50,
) -> Race:
  """Tunes Adam's constant learning rate on problems, on which others are to be faster then.

  It has the lowest mean final loss on these very problems, of the half powers of two from 0.001 to
  1 (2^-10 to 2^0): no other problems are asked for, so that the comparison leans towards Adam.

  Args:
    optimizee: the distribution of problems.
    key: decides the problems.
    num_problems: P.
    num_steps: T, inner steps.
    num_windows: into which they are divided; losses are means over a window.

  Returns:
    The race.

  Raises:
    ValueError: if a number is less than one.
    FloatingPointError: if Adam diverges at each rate.

  Example:
    >>> import jax
    >>> from learned_opt import benchmark_suite, optimizees, optimizers
    >>> race = benchmark_suite.race(
    ...   optimizees.quadratic(2), jax.random.key(0), num_problems=2, num_steps=20
    ... )
    >>> tiny_steps = optimizers.learned_muon(rate=1e-6)
    >>> bool(max(race.speed_ups(tiny_steps, tiny_steps.init(jax.random.key(0)))) < 0.5)
    True
  """
  numbers = {"num_problems": num_problems, "num_steps": num_steps, "num_windows": num_windows}
  for name, number in numbers.items():
    if number < 1:
      raise ValueError(f"{name} must be at least 1, got {number}")
  problems = draw(optimizee, jax.random.split(key, num_problems))
  make = baselines.BASELINES["adam"].make
  curves = curves_of_rates(optimizee, make, _RATES, problems, num_steps, num_windows)
  finals = np.mean(at_least_solved(curves)[..., -1], axis=-1)
  best = int(np.argmin(finals))
  if not np.isfinite(finals[best]):
    raise FloatingPointError("Adam diverges on these problems at each of its learning rates")
  steps = window_steps(num_steps, num_windows)
  return Race(optimizee, problems, num_steps, steps, curves[best], float(_RATES[best]))
