"""Looking into optimizers: what they propose along one trajectory, and what they would propose.

One optimizer, the leader, optimizes a problem. Others look on: they are given the gradients of the
leader's trajectory, keep their own states, and propose updates that nobody applies. So all answer
the same questions (Andrychowicz et al. 2016, appendix B).

Step t is the update from theta_{t-1} to theta_t; the first is step 1.
"""

import itertools
import numbers
from collections import Counter
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt import _coordinates, _watching, devices
from learned_opt._curves import (
  MakeTransformation,
  as_array,
  check_is_optimizee,
  check_positive,
  draw_first_problem,
)
from learned_opt._watching import Counterfactuals as Counterfactuals
from learned_opt._watching import Proposals as Proposals
from learned_opt._watching import Proposed as Proposed
from learned_opt.base import InnerState, Optimizee
from learned_opt.evaluate import Candidate


def draw_coordinates(optimizee: Optimizee, num_coordinates: int, key: chex.PRNGKey) -> list[int]:
  """Draws coordinates of one problem, those first whose gradient is not zero where it starts.

  There are coordinates of which nothing can be seen, such as the weights of a pixel that is black
  in all images.

  Args:
    optimizee: the distribution of problems.
    num_coordinates: how many.
    key: the problem's key.

  Returns:
    Different flat indices, counted leaf after leaf.

  Raises:
    TypeError: if `optimizee` is no `Optimizee`.
    ValueError: if there are not so many coordinates.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import Optimizee, inspect
    >>> valley = Optimizee.from_functions(lambda key: jnp.ones(9), lambda x, key: x[3] ** 2)
    >>> inspect.draw_coordinates(valley, 1, jax.random.key(0))
    [3]
  """
  check_is_optimizee(optimizee=optimizee)
  there = _coordinates.count(_params_shape(optimizee))
  if not isinstance(num_coordinates, numbers.Integral) or not 1 <= num_coordinates <= there:
    raise ValueError(f"num_coordinates must be between 1 and {there}, got {num_coordinates!r}")
  scores = np.asarray(_watching.scores(optimizee, _problem(optimizee, key)))
  return np.argsort(-scores)[:num_coordinates].tolist()


def coordinate_names(optimizee: Optimizee, coordinates: Sequence[int]) -> dict[int, str]:
  """Where in the params coordinates are.

  Args:
    optimizee: the distribution of problems.
    coordinates: different flat indices, counted leaf after leaf; at least one.

  Returns:
    By flat index, the path of the leaf and the index in it.

  Raises:
    TypeError: if an index is no integer, or `optimizee` no `Optimizee`.
    ValueError: if an index is out of range, occurs twice, or there is none.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt import Optimizee, inspect
    >>> line = Optimizee.from_functions(
    ...   lambda key: {"bias": jnp.zeros(()), "w": jnp.zeros((2, 3))}, lambda params, key: 0.0
    ... )
    >>> inspect.coordinate_names(line, [0, 5])
    {0: 'bias', 5: 'w[1, 1]'}
  """
  check_is_optimizee(optimizee=optimizee)
  params = _params_shape(optimizee)
  number = _coordinates.count(params)
  for one in coordinates:
    if not isinstance(one, numbers.Integral):
      raise TypeError(f"coordinates must be integers, got {one!r}")
    if not 0 <= one < number:
      raise ValueError(f"coordinates must be between 0 and {number - 1}, got {one}")
  if not 0 < len(set(coordinates)) == len(coordinates):
    raise ValueError(f"coordinates must be different, and at least one, got {list(coordinates)}")
  return {int(one): _coordinates.name(params, int(one)) for one in coordinates}


def proposed_updates(
  optimizee: Optimizee,
  leader: Candidate,
  others: Sequence[Candidate] = (),
  *,
  num_steps: int,
  coordinates: Sequence[int],
  key: chex.PRNGKey,
) -> Proposals:
  """Traces what several optimizers propose along the trajectory of one of them.

  One compiled program, which is reused for other hyperparams, problems and coordinates.

  Args:
    optimizee: the distribution of problems.
    leader: the optimizer whose updates are applied.
    others: optimizers that look on.
    num_steps: T, the updates that are applied.
    coordinates: flat indices of the coordinates whose updates are kept, counted leaf after leaf;
      `draw_coordinates` draws some.
    key: decides the problem and its minibatches.

  Returns:
    The updates of the chosen coordinates, and what describes the updates and the leader's state
    as a whole.

  Raises:
    TypeError: if an argument has the wrong type.
    ValueError: if `num_steps` is less than one, a coordinate is out of range, or two optimizers
      have the same name.

  Source: Andrychowicz et al. (2016), appendix B, the first figure.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from learned_opt import Optimizee, inspect
    >>> from learned_opt.evaluate import Candidate
    >>> bowl = Optimizee.from_functions(lambda key: jnp.ones(2), lambda x, key: jnp.sum(x**2))
    >>> proposals = inspect.proposed_updates(
    ...   bowl,
    ...   Candidate("sgd", optax.sgd, 0.25),
    ...   [Candidate("sign", optax.sign_sgd, 0.125)],
    ...   num_steps=2,
    ...   coordinates=[1],
    ...   key=jax.random.key(0),
    ... )
    >>> proposals.optimizers["sgd"].updates.tolist()
    [[-0.5], [-0.25]]
    >>> proposals.optimizers["sign"].effective_rate.tolist()
    [0.0625, 0.125]
  """
  names, makes, hyperparams = _check(optimizee, leader, others)
  check_positive(num_steps=num_steps)
  places = coordinate_names(optimizee, coordinates)
  trace = _watching.trace(
    devices.replicate(optimizee),
    makes,
    hyperparams,
    _problem(optimizee, key),
    np.array(list(places), np.int32),
    num_steps,
  )
  losses, rows, last = jax.device_get(trace)
  return Proposals(
    losses=np.append(losses, last),
    coordinates=places,
    gradients=rows.gradients,
    gradient_norms=rows.gradient_norm,
    optimizers={name: Proposed(*one) for name, one in zip(names, rows.proposed, strict=True)},
    state_norms=rows.state_norms,
  )


def counterfactual_updates(
  optimizee: Optimizee,
  leader: Candidate,
  others: Sequence[Candidate] = (),
  *,
  coordinate: int,
  steps: Sequence[int],
  gradients: chex.Array | Sequence[float],
  key: chex.PRNGKey,
  horizon: int | None = None,
) -> Counterfactuals:
  """Asks optimizers what they would propose, had the gradient of one coordinate been another.

  The states are those of the true history, along the leader's trajectory; the gradients of all
  other coordinates, and the loss, are the true ones. Each answer takes a whole update, one after
  another: S times G updates of each optimizer. One compiled program, which is reused for other
  hyperparams, problems, coordinates, steps and gradients.

  Args:
    optimizee: the distribution of problems.
    leader: the optimizer whose updates are applied.
    others: optimizers that look on.
    coordinate: flat index, counted leaf after leaf.
    steps: S increasing numbers, 1 for the first update.
    gradients: ``[G]``, what to put in the place of the true gradient.
    key: decides the problem and its minibatches.
    horizon: the number of updates for which optimizers that plan ahead do so; None tells none.

  Returns:
    The updates of the coordinate as functions of its gradient, and the true values.

  Raises:
    TypeError: if an argument has the wrong type.
    ValueError: if the coordinate or a step is out of range, the gradients are no vector of finite
      numbers, or two optimizers have the same name.

  Source: Andrychowicz et al. (2016), appendix B, the second figure.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from learned_opt import Optimizee, inspect
    >>> from learned_opt.evaluate import Candidate
    >>> bowl = Optimizee.from_functions(lambda key: jnp.ones(2), lambda x, key: jnp.sum(x**2))
    >>> answers = inspect.counterfactual_updates(
    ...   bowl,
    ...   Candidate("momentum", lambda rate: optax.sgd(rate, momentum=0.5), 0.25),
    ...   coordinate=0,
    ...   steps=[1, 2],
    ...   gradients=[-4.0, 0.0, 4.0],
    ...   key=jax.random.key(0),
    ... )
    >>> answers.updates["momentum"].tolist()
    [[1.0, -0.0, -1.0], [0.75, -0.25, -1.25]]
    >>> answers.true_gradients.tolist()
    [2.0, 1.0]
  """
  names, makes, hyperparams = _check(optimizee, leader, others)
  (name,) = coordinate_names(optimizee, [coordinate]).values()
  steps_array, grid = _check_steps(steps), _check_gradients(gradients)
  answers = _watching.ask(
    devices.replicate(optimizee),
    makes,
    hyperparams,
    _problem(optimizee, key),
    np.int32(coordinate),
    steps_array,
    grid,
    horizon,
  )
  true_gradients, true_updates, updates = jax.device_get(answers)
  return Counterfactuals(
    coordinate=int(coordinate),
    name=name,
    steps=steps_array,
    gradients=grid,
    updates=dict(zip(names, updates, strict=True)),
    true_gradients=true_gradients,
    true_updates=dict(zip(names, true_updates, strict=True)),
  )


def _check(
  optimizee: Optimizee, leader: Candidate, others: Sequence[Candidate]
) -> tuple[list[str], tuple[MakeTransformation, ...], tuple[chex.ArrayTree, ...]]:
  """The names, functions and hyperparams of all, the leader first."""
  check_is_optimizee(optimizee=optimizee)
  candidates = (leader, *others)
  for one in candidates:
    if not isinstance(one, Candidate):
      raise TypeError(f"optimizers must be evaluate.Candidates, got {type(one).__name__}")
  names = [one.name for one in candidates]
  repeated = [name for name, number in Counter(names).items() if number > 1]
  if repeated:
    raise ValueError(f"optimizers must have different names, got {repeated} twice")
  hyperparams = tuple(jax.tree.map(as_array, one.hyperparams) for one in candidates)
  return names, tuple(one.make for one in candidates), hyperparams


def _check_steps(steps: Sequence[int]) -> np.ndarray:
  integers = all(isinstance(step, numbers.Integral) for step in steps)
  increasing = all(first < second for first, second in itertools.pairwise((0, *steps)))
  if not (len(steps) and integers and increasing):
    raise ValueError(f"steps must be increasing integers from 1 on, got {list(steps)}")
  return np.array(steps, np.int32)


def _check_gradients(gradients: chex.Array | Sequence[float]) -> np.ndarray:
  grid = np.asarray(gradients, jnp.result_type(float))
  if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all():
    raise ValueError(f"gradients must be a vector of finite numbers, got {gradients}")
  return grid


def _problem(optimizee: Optimizee, key: chex.PRNGKey) -> InnerState:
  return draw_first_problem(optimizee, key[None], block_size=1)


def _params_shape(optimizee: Optimizee) -> Any:
  return jax.eval_shape(optimizee.init, jax.random.key(0), optimizee.data)[0]
