"""All that decides a run, as one value."""

import dataclasses
import functools
import hashlib
import io
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import chex
import jax
import optax

from learned_opt import _arrays, _card
from learned_opt.base import LearnedOptimizer, MetaGradientEstimator, Optimizee
from learned_opt.baselines import BASELINES, Objective, find_baselines
from learned_opt.families import Families
from learned_opt.meta_train import with_clipping
from learned_opt.plots import Published

Schedule = Literal["constant", "cosine"]

# What suits a run that does not say how often it wants to be called back.
_MAX_STEPS_PER_DISPATCH = 25

_POSITIVE = (
  "num_outer_steps",
  "validate_every",
  "num_validation_problems",
  "num_test_problems",
  "num_tuning_problems",
)
_POSITIVE_OR_NONE = ("patience", "steps_per_dispatch", "validation_steps", "evaluation_steps")


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
  """All that decides a run, as values.

  Attributes:
    name: what tables and plots call the learned optimizer.
    optimizee: the problems to train on; the baselines are tuned on them, too, unless there is a
      `tuning_optimizee`. Or `families.families` of several, with a `test_optimizee`.
    learned_optimizer: an architecture of `learned_opt.optimizers`.
    estimator: of the meta-gradient.
    num_outer_steps: outer steps of the whole run.
    optimizee_name: what tables and plots call the problems.
    validation_optimizee: the problems to validate on; None means `optimizee`.
    test_optimizee: the problems of the evaluation; None means `optimizee`.
    tuning_optimizee: the problems on which the baselines are tuned; None means `optimizee`, or
      the `test_optimizee` of a recipe on families.
    outer_learning_rate: of Adam, the outer optimizer.
    schedule: how it goes on after the warm-up: ``"constant"``, or ``"cosine"`` down to zero.
    num_warmup_steps: outer steps in which it rises linearly from zero.
    max_meta_grad_norm: the meta-gradient is clipped to this global norm; None for no clipping.
    validate_every: outer steps between validations.
    num_validation_problems: held-out problems of one validation.
    validation_steps: inner steps of one validation; None means the estimator's horizon.
    patience: stop after so many validations in a row without a better one; None never stops.
    steps_per_dispatch: outer steps between two calls of the callbacks, which divides
      `num_outer_steps` and `validate_every`; None chooses at most 25.
    initial_meta_params: where the training starts, for example the `meta_params` of a loaded
      artifact, which are validated as well; None draws them.
    seed: of everything random, 0 to 2^32 - 1.
    evaluation_steps: inner steps of the evaluation; None means the estimator's horizon.
    num_test_problems: fresh problems of the evaluation.
    num_tuning_problems: problems on which each baseline is tuned.
    baselines: names in `BASELINES` or `MORE_BASELINES` of `learned_opt.evaluate`.
    objective: what the baselines are tuned for, ``"final"``, ``"late"`` or ``"sum"``.
    description: what the optimizees and the estimator are, and whatever else should be on
      record; JSON values. It goes into config.json and the card.
    published: curves of others for the figures of the evaluations, by name, as pairs
      ``(steps, losses)``.

  Raises:
    ValueError: if a number is out of its range, a name unknown or taken, or the initial meta-params
      do not fit the architecture.

  Example:
    >>> from learned_opt import estimators, optimizees, optimizers
    >>> from learned_opt.runs import Recipe
    >>> recipe = Recipe(
    ...   name="lstm",
    ...   optimizee=optimizees.quadratic(),
    ...   learned_optimizer=optimizers.lstm(),
    ...   estimator=estimators.truncated_backprop(),
    ...   num_outer_steps=1000,
    ... )
    >>> recipe.seed
    0
  """

  name: str
  optimizee: Optimizee | Families
  learned_optimizer: LearnedOptimizer
  estimator: MetaGradientEstimator
  num_outer_steps: int
  optimizee_name: str = "optimizee"
  validation_optimizee: Optimizee | Families | None = None
  test_optimizee: Optimizee | None = None
  tuning_optimizee: Optimizee | None = None
  outer_learning_rate: float = 1e-3
  schedule: Schedule = "constant"
  num_warmup_steps: int = 0
  max_meta_grad_norm: float | None = 1.0
  validate_every: int = 100
  num_validation_problems: int = 32
  validation_steps: int | None = None
  patience: int | None = None
  steps_per_dispatch: int | None = None
  initial_meta_params: chex.ArrayTree | None = None
  seed: int = 0
  evaluation_steps: int | None = None
  num_test_problems: int = 128
  num_tuning_problems: int = 32
  baselines: tuple[str, ...] = tuple(BASELINES)
  objective: Objective = "final"
  description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  published: Published = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name in _POSITIVE:
      _check_positive(name, getattr(self, name), optional=False)
    for name in _POSITIVE_OR_NONE:
      _check_positive(name, getattr(self, name), optional=True)
    _check_learning_rate(self)
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed must be between 0 and 2^32 - 1, got {self.seed}")
    if self.objective not in get_args(Objective):
      raise ValueError(f"objective must be one of {get_args(Objective)}, got {self.objective!r}")
    find_baselines(self.baselines)
    if not self.name or self.name in self.baselines:
      raise ValueError(f"name must not be empty or that of a baseline, got {self.name!r}")
    _check_initial_meta_params(self)
    if isinstance(self.optimizee, Families) and self.test_optimizee is None:
      raise ValueError("a recipe on families needs a test_optimizee, on which it is evaluated")


def describe(recipe: Recipe) -> dict[str, Any]:
  """The recipe as JSON values. The optimizees and the estimator are in its description."""
  optimizees = {"optimizee", "validation_optimizee", "test_optimizee", "tuning_optimizee"}
  parts = optimizees | {"learned_optimizer", "estimator", "initial_meta_params", "published"}
  values = {
    field.name: getattr(recipe, field.name)
    for field in dataclasses.fields(recipe)
    if field.name not in parts
  }
  start = recipe.initial_meta_params
  values["initial_meta_params"] = None if start is None else f"sha256 {_digest(start)}"
  values["horizon"] = recipe.estimator.horizon
  values["learned_optimizer"] = _card.describe(recipe.learned_optimizer)
  return _card.to_json(values, "recipe")


def split_seed(seed: int) -> tuple[chex.PRNGKey, chex.PRNGKey]:
  """The key of the training and that of the evaluation, which share no problem for any seeds.

  Example:
    >>> from learned_opt import runs
    >>> training_key, evaluation_key = runs.split_seed(0)
    >>> bool(training_key == evaluation_key)
    False
  """
  training_key, evaluation_key = jax.random.split(jax.random.key(seed))
  return training_key, evaluation_key


def steps_per_dispatch(recipe: Recipe) -> int:
  if recipe.steps_per_dispatch is not None:
    return recipe.steps_per_dispatch
  common = math.gcd(recipe.num_outer_steps, recipe.validate_every)
  return max(n for n in range(1, _MAX_STEPS_PER_DISPATCH + 1) if common % n == 0)


def outer_optimizer(recipe: Recipe) -> optax.GradientTransformation:
  """Adam at the recipe's learning rates, behind a clip of the meta-gradient."""
  return _outer_optimizer(
    recipe.outer_learning_rate,
    recipe.schedule,
    recipe.num_warmup_steps,
    recipe.num_outer_steps,
    recipe.max_meta_grad_norm,
  )


# Equal arguments give the same object, so that a second run does not compile anew.
@functools.cache
def _outer_optimizer(
  learning_rate: float,
  schedule: Schedule,
  num_warmup_steps: int,
  num_outer_steps: int,
  max_meta_grad_norm: float | None,
) -> optax.GradientTransformation:
  if schedule == "cosine":
    rate = optax.cosine_decay_schedule(learning_rate, num_outer_steps - num_warmup_steps)
  else:
    rate = optax.constant_schedule(learning_rate)
  if num_warmup_steps:
    warmup = optax.linear_schedule(0.0, learning_rate, num_warmup_steps)
    rate = optax.join_schedules([warmup, rate], [num_warmup_steps])
  return with_clipping(optax.adam(rate), max_meta_grad_norm)


def _digest(arrays: chex.ArrayTree) -> str:
  buffer = io.BytesIO()
  _arrays.write_arrays(buffer, jax.device_get(arrays))
  return hashlib.sha256(buffer.getvalue()).hexdigest()


def _check_initial_meta_params(recipe: Recipe) -> None:
  if recipe.initial_meta_params is None:
    return
  like = jax.eval_shape(recipe.learned_optimizer.init, jax.random.key(0))
  differences = _arrays.differences(recipe.initial_meta_params, like)
  if differences:
    raise ValueError(
      "initial_meta_params do not fit the architecture of the recipe: " + "; ".join(differences)
    )


def _check_positive(name: str, value: int | None, *, optional: bool) -> None:
  if value is None and optional:
    return
  if not isinstance(value, int) or value < 1:
    words = "an integer of at least 1" + (", or None" if optional else "")
    raise ValueError(f"{name} must be {words}, got {value!r}")


def _check_learning_rate(recipe: Recipe) -> None:
  rate, norm = recipe.outer_learning_rate, recipe.max_meta_grad_norm
  if not (math.isfinite(rate) and rate > 0):
    raise ValueError(f"outer_learning_rate must be positive and finite, got {rate}")
  if norm is not None and not norm > 0:
    raise ValueError(f"max_meta_grad_norm must be positive or None, got {norm}")
  if recipe.schedule not in get_args(Schedule):
    raise ValueError(f"schedule must be one of {get_args(Schedule)}, got {recipe.schedule!r}")
  if not 0 <= recipe.num_warmup_steps < recipe.num_outer_steps:
    raise ValueError(
      f"num_warmup_steps must be at least 0 and below num_outer_steps={recipe.num_outer_steps}, "
      f"got {recipe.num_warmup_steps}"
    )
