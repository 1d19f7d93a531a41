"""The usual optimizers, and the search for the learning rate that suits one best."""

import dataclasses
import difflib
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, cast, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt._curves import check_positive, learning_curves
from learned_opt._quasi_newton import scale_by_bfgs, scale_by_exact_line_search
from learned_opt._statistics import count_as_infinite
from learned_opt.base import Optimizee

Objective = Literal["final", "late", "sum"]

# Exponents by which a grid grows at a time, and beyond which it does not: 2^-30 to 2^20.
_WIDEN_BY = 4
_EXPONENT_LIMITS = (-60, 40)


Make = Callable[[jax.Array], optax.GradientTransformation]


class Baseline(NamedTuple):
  """An optimizer with a learning rate to be tuned, all else at fixed values.

  Attributes:
    name: as tables and plots show it.
    make: ``learning_rate -> optax.GradientTransformation``; takes a traced learning rate.
    exponents: the first and the last k of the grid 2^(k/2) with which `tune` starts; None if the
      learning rate is 1 and there is nothing to tune.
    to_horizon: whether `make` takes the number of steps as well, ``(learning_rate, num_steps)``,
      for a schedule that ends there.
    gradients_per_step: what a step costs in evaluations of the gradient, those of a line search
      included.
  """

  name: str
  make: Callable[..., optax.GradientTransformation]
  exponents: tuple[int, int] | None
  to_horizon: bool = False
  gradients_per_step: int = 1

  def make_for(self, num_steps: int) -> Make:
    """``learning_rate -> tx`` for so many steps; equal for equal ones, so that it does not retrace.

    Example:
      >>> from learned_opt.baselines import MORE_BASELINES
      >>> make = MORE_BASELINES["adamw_cosine"].make_for(num_steps=100)
      >>> make == MORE_BASELINES["adamw_cosine"].make_for(num_steps=100)
      True
    """
    return _ToHorizon(self.make, num_steps) if self.to_horizon else self.make


@dataclasses.dataclass(frozen=True)
class _ToHorizon:
  make: Callable[[jax.Array, int], optax.GradientTransformation]
  num_steps: int

  def __call__(self, learning_rate: jax.Array) -> optax.GradientTransformation:
    return self.make(learning_rate, self.num_steps)


def _rprop(learning_rate: jax.Array) -> optax.GradientTransformation:
  """Rprop; the learning rate is the first step size of each coordinate."""
  # optax 0.2.8 computes each update and then applies the one before it, the first being zero.
  # What it should have applied is in its next state.
  inner = optax.scale_by_rprop(learning_rate)

  def update(updates, state, params=None):
    _, state = inner.update(updates, state, params)
    current = cast(optax.ScaleByRpropState, state).prev_updates
    return jax.tree.map(jnp.negative, current), state

  return optax.GradientTransformation(inner.init, update)


def _torch_rmsprop(learning_rate: jax.Array) -> optax.GradientTransformation:
  return optax.rmsprop(learning_rate, decay=0.99, eps_in_sqrt=False)


def _adamw_cosine(learning_rate: jax.Array, num_steps: int) -> optax.GradientTransformation:
  # Optax's types do not know that the initial value may be traced.
  return optax.adamw(optax.cosine_decay_schedule(cast(float, learning_rate), num_steps))


def _bfgs(learning_rate: jax.Array) -> optax.GradientTransformation:
  return optax.chain(scale_by_bfgs(), optax.scale_by_learning_rate(learning_rate))


def _lbfgs(learning_rate: jax.Array) -> optax.GradientTransformation:
  return optax.lbfgs(learning_rate, linesearch=None)


def _bfgs_line_search(learning_rate: jax.Array) -> optax.GradientTransformation:
  return optax.chain(scale_by_bfgs(), scale_by_exact_line_search(), optax.scale(learning_rate))


def _lbfgs_line_search(learning_rate: jax.Array) -> optax.GradientTransformation:
  return optax.chain(
    optax.scale_by_lbfgs(), scale_by_exact_line_search(), optax.scale(learning_rate)
  )


def _by_name(*baselines: Baseline) -> dict[str, Baseline]:
  return {baseline.name: baseline for baseline in baselines}


# All else is at optax's values. Momentum is the paper's (section 3, Torch7's default), and with
# optax's form of NAG the params, and therefore the losses, are those of the look-ahead point, as in
# Torch7. Torch7's Adam differs by where the bias correction leaves epsilon, 1e-8, which matters for
# gradients that small only. RMSprop differs: Torch7's decay of .99 is slightly better on the
# quadratics and far worse on the MNIST network, as the average starts from zero. The grids reach
# from what suits the one to what suits the other.
BASELINES: dict[str, Baseline] = _by_name(
  Baseline("sgd", optax.sgd, (-14, 4)),
  Baseline("momentum", lambda rate: optax.sgd(rate, momentum=0.9), (-12, 2)),
  Baseline("nag", lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True), (-14, 2)),
  Baseline("rprop", _rprop, (-14, -4)),
  Baseline("adagrad", optax.adagrad, (-8, 2)),
  Baseline("rmsprop", optax.rmsprop, (-14, -6)),
  Baseline("adam", optax.adam, (-12, -2)),
)

# Those that an evaluation has only if it asks for them: Torch7's RMSprop, with epsilon outside of
# the root; AdamW, with optax's weight decay of 1e-4, whose rate falls to zero at the horizon; and
# quasi-Newton methods for small problems without noise, BFGS with n^2 numbers for n coordinates and
# optax's L-BFGS with the last ten pairs. The line search is exact on quadratics, and of no use
# elsewhere; it doubles the price of a step. (`optax.lbfgs()` with its own, whose price is not known
# beforehand, can be had as a `Candidate`.)
MORE_BASELINES: dict[str, Baseline] = _by_name(
  Baseline("torch_rmsprop", _torch_rmsprop, (-16, -6)),
  Baseline("adamw_cosine", _adamw_cosine, (-12, 0), to_horizon=True),
  Baseline("lbfgs", _lbfgs, (-8, 2)),
  Baseline("bfgs", _bfgs, (-8, 2)),
  Baseline("lbfgs_line_search", _lbfgs_line_search, None, gradients_per_step=2),
  Baseline("bfgs_line_search", _bfgs_line_search, None, gradients_per_step=2),
)

_ALL_BASELINES = BASELINES | MORE_BASELINES


class Tuned(NamedTuple):
  """The outcome of a search for a learning rate.

  Attributes:
    learning_rate: the best.
    learning_rates: all that were tried, ``[K]`` half powers of two in ascending order.
    values: the objective of each, ``[K]``, a mean over problems; +inf where a problem diverged.
    interior: whether the best lies between two others, as it should; False if even the widest
      grid has its best value at an end. True if there was nothing to tune.
  """

  learning_rate: float
  learning_rates: np.ndarray
  values: np.ndarray
  interior: bool


def find_baselines(names: Iterable[str]) -> list[Baseline]:
  """Looks up baselines by name.

  Args:
    names: keys of `BASELINES` or `MORE_BASELINES`.

  Returns:
    The baselines in the order of the names.

  Raises:
    ValueError: if there is no such baseline; the error names the nearest.
    TypeError: if `names` is a string.

  Example:
    >>> from learned_opt.baselines import find_baselines
    >>> [baseline.name for baseline in find_baselines(["adam", "sgd"])]
    ['adam', 'sgd']
    >>> find_baselines(["adamm"])
    Traceback (most recent call last):
      ...
    ValueError: unknown baseline 'adamm': did you mean 'adam'? Known are sgd, momentum, nag, \
rprop, adagrad, rmsprop, adam, torch_rmsprop, adamw_cosine, lbfgs, bfgs, lbfgs_line_search, \
bfgs_line_search.
  """
  if isinstance(names, str):
    raise TypeError(f"baselines must be several names, got the string {names!r}: give [{names!r}]")
  return [_find_baseline(name) for name in names]


def _find_baseline(name: str) -> Baseline:
  if name in _ALL_BASELINES:
    return _ALL_BASELINES[name]
  near = difflib.get_close_matches(str(name).lower(), _ALL_BASELINES, n=1)
  hint = f"did you mean {near[0]!r}? " if near else ""
  raise ValueError(f"unknown baseline {name!r}: {hint}Known are {', '.join(_ALL_BASELINES)}.")


def tune(
  optimizee: Optimizee,
  baseline: Baseline | str,
  *,
  num_steps: int,
  num_problems: int,
  key: chex.PRNGKey,
  objective: Objective = "final",
  block_size: int | None = None,
) -> Tuned:
  """Finds the best of all learning rates that are half powers of two.

  The grid is widened at the end where the best value lies until it lies between two others. All
  learning rates see the same problems and minibatches, so that their differences are less noisy
  than their values. A learning rate with which any problem diverges is out of the question.

  Args:
    optimizee: the distribution of problems.
    baseline: a `Baseline`, or the name of one that `find_baselines` knows.
    num_steps: T, the updates applied to each problem.
    num_problems: problems over which the objective is averaged. A loss that is drawn from
      minibatches needs more than one that is not.
    key: decides the problems.
    objective: ``"final"`` for f(theta_T), as in the paper; ``"late"`` for the mean of the last
      tenth of the losses, which needs fewer problems where minibatches make them noisy; ``"sum"``
      for f(theta_0) + ... + f(theta_{T-1}). The rankings differ.
    block_size: see `learning_curves`.

  Returns:
    The best learning rate, and the whole grid.

  Raises:
    ValueError: if an argument is out of its range.
    FloatingPointError: if all learning rates diverge.

  Warns:
    UserWarning: if the best value lies at the end of the widest grid, 2^-30 to 2^20.

  Example:
    The curvature of x^2 is 2, so that gradient descent with the rate 1/2 arrives in one step.

    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import Optimizee
    >>> from learned_opt.baselines import tune
    >>> parabola = Optimizee.from_functions(lambda key: jnp.ones(()), lambda x, key: x**2)
    >>> tuned = tune(parabola, "sgd", num_steps=1, num_problems=1, key=jax.random.key(0))
    >>> tuned.learning_rate, tuned.interior
    (0.5, True)
  """
  if isinstance(baseline, str):
    baseline = _find_baseline(baseline)
  if objective not in get_args(Objective):
    raise ValueError(f"objective must be one of {get_args(Objective)}, got {objective!r}")
  check_positive(num_steps=num_steps, num_problems=num_problems)
  keys = jax.random.split(key, num_problems)
  make = baseline.make_for(num_steps)

  def value_at(exponent: int) -> float:
    rate = np.float32(_learning_rate(exponent))
    curves = learning_curves(optimizee, make, rate, keys, num_steps, block_size=block_size)
    return float(np.mean(_scores(curves.losses, objective)))

  values = {0: value_at(0)} if baseline.exponents is None else _search(value_at, baseline.exponents)
  exponents = sorted(values)
  best = min(exponents, key=values.__getitem__)
  interior = baseline.exponents is None or exponents[0] < best < exponents[-1]
  _check_outcome(baseline.name, values, best, interior)
  return Tuned(
    learning_rate=_learning_rate(best),
    learning_rates=np.array([_learning_rate(k) for k in exponents]),
    values=np.array([values[k] for k in exponents]),
    interior=interior,
  )


def _learning_rate(exponent: int) -> float:
  return 2.0 ** (exponent / 2)


def _scores(losses: np.ndarray, objective: Objective) -> np.ndarray:
  """``[P]``; a run with any loss that is not finite is +inf as a whole."""
  losses = count_as_infinite(losses)
  if objective == "sum":
    scores = losses[:, :-1].sum(axis=1)
  else:
    num_last = 1 if objective == "final" else math.ceil((losses.shape[1] - 1) / 10)
    scores = losses[:, -num_last:].mean(axis=1)
  return np.where(np.isfinite(losses).all(axis=1), scores, np.inf)


def _search(value_at: Callable[[int], float], start: tuple[int, int]) -> dict[int, float]:
  """Values by exponent, on a grid that grows until its best value is interior or it is full."""
  first, last = start
  values = {k: value_at(k) for k in range(first, last + 1)}
  while True:
    best = min(sorted(values), key=values.__getitem__)
    if best == min(values):
      new = range(max(best - _WIDEN_BY, _EXPONENT_LIMITS[0]), best)
    elif best == max(values):
      new = range(best + 1, min(best + _WIDEN_BY, _EXPONENT_LIMITS[1]) + 1)
    else:
      return values
    if not new:
      return values
    values |= {k: value_at(k) for k in new}


def _check_outcome(name: str, values: dict[int, float], best: int, interior: bool) -> None:
  low, high = _learning_rate(min(values)), _learning_rate(max(values))
  if not np.isfinite(values[best]):
    raise FloatingPointError(
      f"{name} diverges with every learning rate from {low:.3g} to {high:.3g}; "
      "learned_opt.base.check_optimizee tells whether the loss is finite where a problem starts"
    )
  if not interior:
    warnings.warn(
      f"the best learning rate of {name}, {_learning_rate(best):.3g}, lies at an end of the grid "
      f"from {low:.3g} to {high:.3g}: it is not known to be the best",
      stacklevel=3,
    )
