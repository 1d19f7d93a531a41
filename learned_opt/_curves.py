"""Learning curves over many fresh problems, in one compiled program for each optimizer."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import devices
from learned_opt.base import InnerState, Optimizee
from learned_opt.unroll import init_inner_state, unroll

# Of hyperparams: any pytree of arrays.
MakeTransformation = Callable[[Any], optax.GradientTransformation]

# How much is optimized side by side unless the caller says otherwise: with an LSTM's state of 320
# bytes a coordinate and its intermediate values this is about half a gigabyte.
_MAX_COORDINATES = 2**18
_MAX_PROBLEMS = 1024


class Curves(NamedTuple):
  """How an optimizer did on P problems of T steps.

  Attributes:
    losses: float ``[P, T + 1]``, f(theta_0), ..., f(theta_T).
    metrics: the optimizee's metrics at theta_T, each ``[P]``; empty if it has none.
  """

  losses: np.ndarray
  metrics: dict[str, np.ndarray]


def learning_curves(
  optimizee: Optimizee,
  make: MakeTransformation,
  hyperparams: chex.ArrayTree,
  keys: chex.PRNGKey,
  num_steps: int,
  *,
  block_size: int | None = None,
) -> Curves:
  """Optimizes problems from their start and records the losses along the way.

  Blocks of equally many problems go through one compiled program, which is reused for other
  hyperparams, other problems and any number of them: `make`, `num_steps`, `block_size` and shapes
  decide whether to compile. The results do not depend on `block_size`, except for rounding.

  Args:
    optimizee: the distribution of problems.
    make: ``hyperparams -> optax.GradientTransformation``, called inside the traced function. Pass
      the same function again to avoid a second compilation.
    hyperparams: a learning rate, meta-params, or any pytree of arrays.
    keys: ``[P]``, one a problem; each decides the problem and all its minibatches.
    num_steps: T, the updates applied to each problem.
    block_size: how many problems are optimized side by side; bounds the memory. None picks it
      by the number of coordinates.

  Returns:
    The losses of each problem, and its metrics after the last update.

  Raises:
    TypeError: if `optimizee` is no `Optimizee` or `make` no function.
    ValueError: if a number is less than one.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from learned_opt import Optimizee
    >>> from learned_opt.evaluate import learning_curves
    >>> bowl = Optimizee.from_functions(lambda key: jnp.ones(2), lambda x, key: jnp.sum(x**2))
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> learning_curves(bowl, optax.sgd, 0.25, keys, num_steps=2).losses[0].tolist()
    [2.0, 0.5, 0.125]
  """
  check_is_optimizee(optimizee=optimizee)
  if not callable(make):
    raise TypeError(f"make must be a function hyperparams -> optax transformation, got {make!r}")
  num_problems = keys.shape[0]
  block_size = default_block_size(optimizee, num_problems) if block_size is None else block_size
  check_positive(num_steps=num_steps, num_problems=num_problems, block_size=block_size)
  optimizee = devices.replicate(optimizee)
  inner = _inner(optimizee)
  # Without this a Python float and an array of the same value would compile twice.
  hyperparams = jax.tree.map(as_array, hyperparams)
  losses, metrics = [], []
  for block_keys in _blocks(keys, block_size):
    problems = _draw(inner, block_keys)
    params, block_losses = _run(inner, make, hyperparams, problems, num_steps)
    losses.append(np.asarray(block_losses))
    metrics.append(jax.device_get(_metrics(optimizee, params, problems.constants)))
  join = functools.partial(_concatenate, num_problems=num_problems)
  return Curves(join(losses), {name: join([b[name] for b in metrics]) for name in metrics[0]})


def default_block_size(optimizee: Optimizee, num_problems: int) -> int:
  """The number of problems that are optimized side by side, at most `num_problems`."""
  params, _ = jax.eval_shape(optimizee.init, jax.random.key(0), optimizee.data)
  coordinates = sum(leaf.size for leaf in jax.tree.leaves(params))
  return max(1, min(num_problems, _MAX_PROBLEMS, _MAX_COORDINATES // max(coordinates, 1)))


def check_is_optimizee(**optimizees: Optimizee) -> None:
  """Raises `TypeError`, naming the argument, unless all are optimizees."""
  for name, optimizee in optimizees.items():
    if not isinstance(optimizee, Optimizee):
      raise TypeError(f"{name} must be a learned_opt.Optimizee, got {type(optimizee).__name__}")


def check_positive(**sizes: int) -> None:
  """Raises `ValueError`, naming the argument, unless all sizes are integers of at least 1."""
  for name, size in sizes.items():
    if not isinstance(size, numbers.Integral) or size < 1:
      raise ValueError(f"{name} must be an integer of at least 1, got {size!r}")


def draw_first_problem(optimizee: Optimizee, keys: chex.PRNGKey, block_size: int) -> InnerState:
  """The first of the problems of `learning_curves` at step 0, by the same compiled program."""
  problems = _draw(_inner(optimizee), _blocks(keys, block_size)[0])
  return jax.tree.map(lambda leaf: leaf[0], problems)


def _inner(optimizee: Optimizee) -> Optimizee:
  """What the inner steps need; without the rest they do not compile again for its sake."""
  return dataclasses.replace(optimizee, outer_loss=None, metrics=None)


# A program of its own, as drawing random numbers takes far longer to compile than the inner steps,
# and is the same for all optimizers.
@jax.jit
def _draw(optimizee: Optimizee, keys: chex.PRNGKey) -> InnerState:
  keys = devices.share(keys)
  return jax.vmap(lambda key: init_inner_state(optimizee, optax.identity(), key))(keys)


@functools.partial(jax.jit, static_argnames=("make", "num_steps"))
def _run(
  optimizee: Optimizee,
  make: MakeTransformation,
  hyperparams: chex.ArrayTree,
  problems: InnerState,
  num_steps: int,
) -> tuple[chex.ArrayTree, jax.Array]:
  tx = make(hyperparams)

  def run_one(problem: InnerState) -> tuple[chex.ArrayTree, jax.Array]:
    problem = problem._replace(opt_state=tx.init(problem.params))
    problem, trajectory = unroll(optimizee, tx, problem, num_steps, horizon=num_steps)
    return problem.params, trajectory.losses

  return jax.vmap(run_one)(devices.share(problems))


@jax.jit
def _metrics(
  optimizee: Optimizee, params: chex.ArrayTree, constants: chex.ArrayTree
) -> dict[str, jax.Array]:
  if optimizee.metrics is None:
    return {}
  return jax.vmap(optimizee.metrics, in_axes=(0, 0, None))(params, constants, optimizee.data)


def as_array(leaf: chex.Numeric) -> jax.Array:
  """The number as an array with a dtype of its own, whether it is Python's, NumPy's or JAX's."""
  return jnp.asarray(leaf, jnp.result_type(leaf))


def _blocks(keys: chex.PRNGKey, block_size: int) -> list[chex.PRNGKey]:
  """Equally long blocks; the last one is filled up with keys from the beginning."""
  num_blocks = math.ceil(keys.shape[0] / block_size)
  index = np.arange(num_blocks * block_size) % keys.shape[0]
  return [keys[block] for block in np.split(index, num_blocks)]


def _concatenate(blocks: list[np.ndarray], num_problems: int) -> np.ndarray:
  return np.concatenate(blocks)[:num_problems]
