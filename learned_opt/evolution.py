"""Meta-training of optimizers with few numbers for speed itself, by CMA-ES.

How many times as fast as tuned Adam an optimizer is has no useful derivatives, and is known at the
end of whole trainings only. Where there are ten numbers or so to learn, covariance matrix
adaptation (Hansen & Ostermeier 2001, "Completely derandomized self-adaptation in evolution
strategies") finds them from a few hundred such scores. The outer loop runs on the host, a
generation at a time; each score is one program on the device for each family of problems.

An evolution owns a folder, which holds

* ``config.json``: the recipe, less what it trains on, which its description names;
* ``history.json``: the losses of all generations, from which it continues;
* ``optimizer/``: the best meta-params by validation, an artifact for `learned_opt.load`.
"""

import dataclasses
import importlib.util
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from learned_opt import _card, _run_folder, artifacts
from learned_opt._arrays import Path
from learned_opt._compilation import make_room
from learned_opt._outcome import Report
from learned_opt.base import LearnedOptimizer
from learned_opt.benchmark_suite import Race, race
from learned_opt.families import Families, members

# The most that one problem counts for or against an optimizer.
_LARGEST_RATIO = 2.5

_TRAIN, _VALIDATION = range(2)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What to evolve, on what.

  Attributes:
    name: of the optimizer.
    learned_optimizer: the architecture; if it has an option ``num_steps``, it is told.
    problems: the families to be fast on, all of the same weight.
    validation_problems: those on which the best generation is chosen.
    meta_params: where to start; None for what the architecture's `init` gives.
    num_steps: of a whole training.
    num_problems: of each family, which stay the same.
    num_validation_problems: likewise.
    num_generations: outer steps.
    population_size: meta-params that are tried in each of them.
    sigma: the standard deviation of the first generation.
    seed: of everything random.
    description: JSON values for the card: the command, and what the problems are.
  """

  name: str
  learned_optimizer: LearnedOptimizer
  problems: Families
  validation_problems: Families
  meta_params: chex.ArrayTree | None = None
  num_steps: int = 1000
  num_problems: int = 8
  num_validation_problems: int = 8
  num_generations: int = 20
  population_size: int = 12
  sigma: float = 0.3
  seed: int = 0
  description: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name in ("num_steps", "num_problems", "num_validation_problems", "num_generations"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
    if self.population_size < 4:
      raise ValueError(f"population_size must be at least 4, got {self.population_size}")
    if not (math.isfinite(self.sigma) and self.sigma > 0):
      raise ValueError(f"sigma must be positive and finite, got {self.sigma}")


class Generation(NamedTuple):
  """An outer step.

  Attributes:
    losses: of the meta-params that were tried: minus the mean logarithm of the speed-up.
    validation_loss: likewise, of the mean of the distribution that comes out.
  """

  losses: tuple[float, ...]
  validation_loss: float


class Evolution(NamedTuple):
  """A finished evolution.

  Attributes:
    out: its folder.
    meta_params: the best by validation, numpy arrays.
    best_generation: after how many generations; 0 for the start.
    best_loss: the validation loss there.
    first_loss: the validation loss of the start.
    history: the generations.
    optimizer: the folder of the artifact.
  """

  out: pathlib.Path
  meta_params: chex.ArrayTree
  best_generation: int
  best_loss: float
  first_loss: float
  history: tuple[Generation, ...]
  optimizer: pathlib.Path

  @property
  def files(self) -> tuple[pathlib.Path, ...]:
    """What the evolution has written."""
    return _run_folder.contents(self.out)


def train(
  recipe: Recipe,
  out: Path,
  *,
  resume: bool = False,
  on_progress: Report | None = None,
) -> Evolution:
  """Finds the meta-params with the highest mean logarithm of the speed-up over tuned Adam.

  Adam's constant learning rate is tuned on the very problems of each family; see
  `benchmark_suite.race`. One problem counts for at most a factor of 2.5 either way, so that a
  few easy ones do not decide. Kept are the
  meta-params in the middle of the generation that validates best, on other problems, or the start.

  Args:
    recipe: what to do.
    out: the folder, which is made.
    resume: whether to continue the evolution of the same recipe that `out` holds. The result is
      that of the uninterrupted one: what was scored is not scored again.
    on_progress: called with a few words before each part of the work.

  Returns:
    The evolution.

  Raises:
    ImportError: if the package cmaes is not installed.
    FloatingPointError: if Adam diverges on a family at each of its learning rates.
    FileExistsError, FileNotFoundError, ValueError, OSError: if the folder is taken, has nothing to
      resume, or that of another recipe, or cannot be written.

  Example:
    >>> import pathlib, tempfile
    >>> from learned_opt import evolution, optimizees, optimizers
    >>> from learned_opt.families import families
    >>> problems = families(optimizees.quadratic(2))
    >>> recipe = evolution.Recipe(
    ...   "mine",
    ...   optimizers.learned_muon(),
    ...   problems,
    ...   problems,
    ...   num_steps=10,
    ...   num_problems=2,
    ...   num_generations=1,
    ...   population_size=4,
    ... )
    >>> done = evolution.train(recipe, pathlib.Path(tempfile.mkdtemp()) / "mine")
    >>> len(done.history), done.best_loss <= done.first_loss
    (1, True)
  """
  _check_cmaes()
  out, report = pathlib.Path(out), on_progress or (lambda words: None)
  config = _describe(recipe)
  _run_folder.begin(out, config, resume=resume)
  start = recipe.meta_params
  if start is None:
    start = recipe.learned_optimizer.init(jax.random.key(recipe.seed))
  first, unravel = jax.flatten_util.ravel_pytree(start)

  def as_tree(vector: np.ndarray) -> chex.ArrayTree:
    return unravel(jnp.asarray(vector, first.dtype))

  loss, validate = (
    _loss(recipe, problems, number, purpose, as_tree, report)
    for problems, number, purpose in (
      (recipe.problems, recipe.num_problems, _TRAIN),
      (recipe.validation_problems, recipe.num_validation_problems, _VALIDATION),
    )
  )
  vector = np.asarray(first, np.float64)
  first_loss, found = _load_history(out)
  first_loss = validate(vector) if first_loss is None else first_loss
  report(f"the start: {_as_speed_up(first_loss)}")
  best_generation, best_loss, best, history = 0, first_loss, vector, []
  search = _cma(recipe, vector)
  for number in range(1, recipe.num_generations + 1):
    known = found[number - 1] if number <= len(found) else None
    generation = _next_generation(search, known, loss, validate)
    history.append(generation)
    if generation.validation_loss < best_loss:
      best_generation, best_loss, best = number, generation.validation_loss, np.copy(search.mean)
    _save_history(out, first_loss, history)
    report(
      f"generation {number} of {recipe.num_generations}: "
      f"{_as_speed_up(generation.validation_loss)}, best {_as_speed_up(best_loss)}"
    )
  meta_params = jax.device_get(as_tree(best))
  record = {
    **config,
    "best_step": best_generation,
    "best_validation_loss": best_loss,
    "first_validation_loss": first_loss,
    "outer_steps_taken": recipe.num_generations,
    "device": jax.devices()[0].device_kind,
  }
  optimizer = artifacts.save(
    out / _run_folder.OPTIMIZER,
    recipe.learned_optimizer,
    meta_params,
    recipe=record,
    overwrite=True,
  )
  return Evolution(
    out, meta_params, best_generation, best_loss, first_loss, tuple(history), optimizer
  )


def _next_generation(
  search: Any,
  known: Generation | None,
  loss: Callable[[np.ndarray], float],
  validate: Callable[[np.ndarray], float],
) -> Generation:
  """Takes an outer step, without scoring what is known: the candidates are the same again."""
  candidates = [search.ask() for _ in range(search.population_size)]
  losses = tuple(map(loss, candidates)) if known is None else known.losses
  search.tell(list(zip(candidates, losses, strict=True)))
  return Generation(losses, validate(search.mean)) if known is None else known


def _loss(
  recipe: Recipe,
  problems: Families,
  number: int,
  purpose: int,
  as_tree: Callable[[np.ndarray], chex.ArrayTree],
  report: Report,
) -> Callable[[np.ndarray], float]:
  """The loss of meta-params as a vector on problems on which Adam is tuned here."""
  key = jax.random.fold_in(jax.random.key(recipe.seed), purpose)
  races: list[Race] = []
  words = ("of the training", "of the validation")[purpose]
  for index, member in enumerate(members(problems)):
    report(f"tuning Adam on family {index + 1} of {len(problems)} {words}")
    races.append(
      race(
        member,
        jax.random.fold_in(key, index),
        num_problems=number,
        num_steps=recipe.num_steps,
      )
    )
    make_room()

  def loss(vector: np.ndarray) -> float:
    meta_params = as_tree(vector)
    bound = math.log(_LARGEST_RATIO)
    logs = []
    for one in races:
      with np.errstate(divide="ignore"):
        log = np.log(one.speed_ups(recipe.learned_optimizer, meta_params))
      logs.append(np.mean(np.clip(log, -bound, bound)))
    return -float(np.mean(logs))

  return loss


def _as_speed_up(loss: float) -> str:
  return f"speed-up {math.exp(-loss):.3f}"


def _cma(recipe: Recipe, start: np.ndarray) -> Any:
  import cmaes

  return cmaes.CMA(start, recipe.sigma, seed=recipe.seed, population_size=recipe.population_size)


def _check_cmaes() -> None:
  if importlib.util.find_spec("cmaes") is None:
    raise ImportError("evolutions need cmaes: pip install 'learned_opt[evolution]'")


def _describe(recipe: Recipe) -> dict[str, Any]:
  parts = {"learned_optimizer", "problems", "validation_problems", "meta_params"}
  values = {
    field.name: getattr(recipe, field.name)
    for field in dataclasses.fields(recipe)
    if field.name not in parts
  }
  start = recipe.meta_params
  values["meta_params"] = (
    None if start is None else jax.tree.map(np.ndarray.tolist, jax.device_get(start))
  )
  values["num_families"] = len(recipe.problems)
  values["learned_optimizer"] = _card.describe(recipe.learned_optimizer)
  return values


def _save_history(out: pathlib.Path, first_loss: float, history: Sequence[Generation]) -> None:
  generations = [generation._asdict() for generation in history]
  values = {"first_validation_loss": first_loss, "generations": generations}
  _run_folder.write_json(out / _run_folder.HISTORY, values)


def _load_history(out: pathlib.Path) -> tuple[float | None, list[Generation]]:
  path = out / _run_folder.HISTORY
  if not path.exists():
    return None, []
  found = _run_folder.read_json(path, "it has just been there")
  try:
    generations = [
      Generation(tuple(map(float, one["losses"])), float(one["validation_loss"]))
      for one in found["generations"]
    ]
    return float(found["first_validation_loss"]), generations
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} is damaged: it is not the history of an evolution ({error!r})"
    ) from error
