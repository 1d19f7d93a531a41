"""Judging optimizers: learning curves on fresh problems, beside tuned baselines and their costs."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

import chex
import jax
import numpy as np
import optax

from learned_opt._costs import Cost as Cost
from learned_opt._costs import measure_costs
from learned_opt._curves import Curves as Curves
from learned_opt._curves import (
  MakeTransformation,
  check_is_optimizee,
  check_positive,
  default_block_size,
  draw_first_problem,
)
from learned_opt._curves import learning_curves as learning_curves
from learned_opt._results import Evaluation as Evaluation
from learned_opt._results import Result as Result
from learned_opt._results import Row as Row
from learned_opt._results import summarize
from learned_opt._statistics import Interval as Interval
from learned_opt.base import LearnedOptimizer, Optimizee
from learned_opt.baselines import BASELINES as BASELINES
from learned_opt.baselines import MORE_BASELINES as MORE_BASELINES
from learned_opt.baselines import Baseline as Baseline
from learned_opt.baselines import Objective, find_baselines
from learned_opt.baselines import Tuned as Tuned
from learned_opt.baselines import tune as tune


@dataclasses.dataclass(frozen=True)
class _Always:
  """``hyperparams -> tx`` that ignores them; equal for equal `tx`, so that it does not retrace."""

  tx: optax.GradientTransformation

  def __call__(self, hyperparams: chex.ArrayTree) -> optax.GradientTransformation:
    del hyperparams
    return self.tx


class Candidate(NamedTuple):
  """An optimizer to be judged: a name, and an optax transformation with its numbers set apart.

  Make one with `from_learned` or `from_transformation`.

  Attributes:
    name: as tables and plots show it.
    make: ``hyperparams -> optax.GradientTransformation``, called inside the traced function.
    hyperparams: meta-params, a learning rate, or any pytree of arrays.
  """

  name: str
  make: MakeTransformation
  hyperparams: chex.ArrayTree = ()

  @classmethod
  def from_learned(
    cls, name: str, learned_optimizer: LearnedOptimizer, meta_params: chex.ArrayTree
  ) -> Self:
    """A learned optimizer; other meta-params of the same architecture do not recompile.

    Example:
      >>> import optax
      >>> from learned_opt import LearnedOptimizer
      >>> from learned_opt.evaluate import Candidate
      >>> one_rate = LearnedOptimizer(lambda key: {"rate": 0.1}, lambda phi: optax.sgd(phi["rate"]))
      >>> Candidate.from_learned("one rate", one_rate, {"rate": 0.2}).hyperparams
      {'rate': 0.2}
    """
    if not isinstance(learned_optimizer, LearnedOptimizer):
      raise TypeError(
        "learned_optimizer must be a learned_opt.LearnedOptimizer, "
        f"got {type(learned_optimizer).__name__}; from_transformation takes a loaded one"
      )
    return cls(name, learned_optimizer.optimizer, meta_params)

  @classmethod
  def from_transformation(cls, name: str, tx: optax.GradientTransformation) -> Self:
    """Any optax transformation, such as a loaded optimizer; its numbers are compiled in.

    Example:
      >>> import optax
      >>> from learned_opt.evaluate import Candidate
      >>> Candidate.from_transformation("lion", optax.lion(1e-3)).name
      'lion'
    """
    if not isinstance(tx, optax.GradientTransformation):
      raise TypeError(f"tx must be an optax transformation, got {type(tx).__name__}")
    return cls(name, _Always(tx))


def evaluate(
  optimizee: Optimizee,
  candidates: Sequence[Candidate],
  *,
  num_steps: int,
  num_problems: int,
  key: chex.PRNGKey,
  baselines: Iterable[str] = tuple(BASELINES),
  tuning_optimizee: Optimizee | None = None,
  num_tuning_problems: int = 32,
  objective: Objective = "final",
  optimizee_name: str = "optimizee",
  block_size: int | None = None,
  on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
  """Compares optimizers with tuned baselines on problems that none of them has seen.

  All optimizers get the same test problems and minibatches. The baselines' learning rates are
  tuned on others, drawn from another key. Candidates see neither; whoever trained them must have
  used another `key`.

  Args:
    optimizee: the distribution of test problems.
    candidates: the optimizers to judge, any number.
    num_steps: T, the updates applied to each problem.
    num_problems: P, how many test problems.
    key: decides test and tuning problems.
    baselines: names in `BASELINES` or `MORE_BASELINES`; empty for none.
    tuning_optimizee: what the baselines are tuned on, for example the train split where
      `optimizee` is the test split. None means `optimizee`.
    num_tuning_problems: how many they are. More of them cost more, and make the choice between
      neighbouring learning rates more certain.
    objective: what the learning rates are tuned for: ``"final"``, ``"late"`` or ``"sum"``; see
      `tune`.
    optimizee_name: what the result calls the problems.
    block_size: problems optimized side by side; see `learning_curves`.
    on_progress: called with a few words before each part of the work.

  Returns:
    The curves, statistics and costs of each optimizer.

  Raises:
    TypeError: if an argument has the wrong type.
    ValueError: if a number is less than one, a baseline is unknown, or two optimizers have the
      same name.
    FloatingPointError: if a baseline diverges with all learning rates.

  Warns:
    UserWarning: if a baseline has no best learning rate on the widest grid.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from learned_opt import Optimizee
    >>> from learned_opt.evaluate import Candidate, evaluate
    >>> bowl = Optimizee.from_functions(jax.random.normal, lambda x, key: jnp.sum(x**2))
    >>> evaluation = evaluate(
    ...   bowl,
    ...   [Candidate.from_transformation("newton", optax.scale(-0.5))],
    ...   num_steps=2,
    ...   num_problems=8,
    ...   key=jax.random.key(0),
    ...   baselines=["sgd"],
    ... )
    >>> [(row.name, row.learning_rate, row.losses) for row in evaluation.rows()]
    [('newton', None, (0.0,)), ('sgd', 0.5, (0.0,))]
  """
  tuning_optimizee = optimizee if tuning_optimizee is None else tuning_optimizee
  check_is_optimizee(optimizee=optimizee, tuning_optimizee=tuning_optimizee)
  candidates, chosen = tuple(candidates), find_baselines(baselines)
  _check_names([one.name for one in (*candidates, *chosen)])
  check_positive(
    num_steps=num_steps, num_problems=num_problems, num_tuning_problems=num_tuning_problems
  )
  report = on_progress or (lambda words: None)
  if block_size is None:
    # One size for tuning and test, and so one compilation for both.
    block_size = default_block_size(optimizee, min(num_problems, num_tuning_problems))
  test_key, tuning_key = jax.random.split(key)

  def tune_one(baseline: Baseline) -> Tuned:
    report(f"tuning {baseline.name}")
    return tune(
      tuning_optimizee,
      baseline,
      num_steps=num_steps,
      num_problems=num_tuning_problems,
      key=tuning_key,
      objective=objective,
      block_size=block_size,
    )

  tuned = {baseline.name: tune_one(baseline) for baseline in chosen}
  rates = {name: np.float32(found.learning_rate) for name, found in tuned.items()}
  candidates += tuple(Candidate(b.name, b.make_for(num_steps), rates[b.name]) for b in chosen)
  test_keys = jax.random.split(test_key, num_problems)

  def test_one(candidate: Candidate) -> Curves:
    report(f"testing {candidate.name}")
    _, make, hyperparams = candidate
    return learning_curves(
      optimizee, make, hyperparams, test_keys, num_steps, block_size=block_size
    )

  curves = [test_one(candidate) for candidate in candidates]
  report("measuring costs")
  costs = measure_costs(
    optimizee,
    [(candidate.make, candidate.hyperparams) for candidate in candidates],
    draw_first_problem(optimizee, test_keys, block_size),
    horizon=num_steps,
  )
  results = {
    candidate.name: summarize(curve, cost, tuned.get(candidate.name))
    for candidate, curve, cost in zip(candidates, curves, costs, strict=True)
  }
  return Evaluation(optimizee_name, num_steps, num_problems, results)


def _check_names(names: Sequence[str]) -> None:
  repeated = [name for name, number in Counter(names).items() if number > 1]
  if repeated:
    raise ValueError(f"candidates and baselines must have different names, got {repeated} twice")
  if not names:
    raise ValueError("there is nothing to evaluate: give a candidate or a baseline")
