"""The compiled programs of `learned_opt.inspect`: several optimizers along one trajectory."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from learned_opt import _coordinates, _draws
from learned_opt._curves import MakeTransformation
from learned_opt.base import InnerState, Optimizee
from learned_opt.unroll import inner_step, step_key

# Folded into a problem's key: no step comes to it.
_SCORES = 2**32 - 1


class _Sight(NamedTuple):
  """What there is to see at one step.

  Attributes:
    params: theta_{t-1}.
    grads: there.
    updates: what each optimizer proposes.
    states: of each optimizer after it.
    propose: ``grads -> (updates, states)``, what all would do with other gradients.
  """

  params: Any
  grads: chex.ArrayTree
  updates: Sequence[chex.ArrayTree]
  states: Sequence[optax.OptState]
  propose: Callable[[chex.ArrayTree], tuple[Any, Any]]


class Proposed(NamedTuple):
  """What one optimizer proposes along the leader's trajectory of T steps.

  With g the gradient and u the proposed update, over all coordinates:

  Attributes:
    updates: ``[T, C]``, those of the chosen coordinates.
    effective_rate: ``[T]``, -<u, g> / <g, g>: the learning rate with which gradient descent comes
      nearest to the update. Negative where the update points uphill.
    cosine: ``[T]``, of the angle between u and -g.
    norm_ratio: ``[T]``, |u| / |g|.
  """

  updates: np.ndarray
  effective_rate: np.ndarray
  cosine: np.ndarray
  norm_ratio: np.ndarray


class Proposals(NamedTuple):
  """What several optimizers propose along the leader's trajectory of T steps.

  Attributes:
    losses: ``[T + 1]``, f(theta_0), ..., f(theta_T) of the leader.
    coordinates: of the chosen coordinates, their flat indices and their names, ``{3: "w[0, 3]"}``;
      there are C.
    gradients: ``[T, C]``, those of the chosen coordinates, at theta_0, ..., theta_{T-1}.
    gradient_norms: ``[T]``, over all coordinates.
    optimizers: by name, the leader first.
    state_norms: ``[T]`` each, of the floating point arrays in the leader's state after each step,
      by their place in the state. A part with the structure of the params has one norm.
  """

  losses: np.ndarray
  coordinates: dict[int, str]
  gradients: np.ndarray
  gradient_norms: np.ndarray
  optimizers: dict[str, Proposed]
  state_norms: dict[str, np.ndarray]


class Counterfactuals(NamedTuple):
  """Updates of one coordinate, had its gradient been another, at S steps of the leader.

  Attributes:
    coordinate: its flat index.
    name: of the coordinate.
    steps: ``[S]``.
    gradients: ``[G]``, the gradients put in the place of the true one.
    updates: ``[S, G]`` by optimizer, the leader first.
    true_gradients: ``[S]``.
    true_updates: ``[S]`` by optimizer.
  """

  coordinate: int
  name: str
  steps: np.ndarray
  gradients: np.ndarray
  updates: dict[str, np.ndarray]
  true_gradients: np.ndarray
  true_updates: dict[str, np.ndarray]


class Row(NamedTuple):
  """One step of `trace`, as `Proposals` and `Proposed` have it of all steps."""

  gradients: jax.Array
  gradient_norm: jax.Array
  proposed: list[tuple[jax.Array, ...]]
  state_norms: dict[str, jax.Array]


@functools.partial(jax.jit, static_argnames=("makes", "num_steps"))
def trace(
  optimizee: Optimizee,
  makes: tuple[MakeTransformation, ...],
  hyperparams: tuple[chex.ArrayTree, ...],
  problem: InnerState,
  coordinates: jax.Array,
  num_steps: int,
) -> tuple[jax.Array, Row, jax.Array]:
  """The losses at theta_0, ..., theta_{T-1}, a `Row` of T steps, and the loss at theta_T."""
  txs = _bind(makes, hyperparams)

  def look(sight: _Sight) -> Row:
    gradient = _flat(sight.grads)
    return Row(
      gradient[coordinates],
      jnp.linalg.norm(gradient),
      [_describe(_flat(updates), gradient, coordinates) for updates in sight.updates],
      _state_norms(sight.states[0], sight.params),
    )

  state, (losses, rows) = jax.lax.scan(
    lambda state, _: _step(optimizee, txs, look, state, num_steps),
    _start(txs, problem),
    length=num_steps,
  )
  last = optimizee.loss(state.params, state.constants, optimizee.data, step_key(state))
  return losses, rows, last


@functools.partial(jax.jit, static_argnames=("makes", "horizon"))
def ask(
  optimizee: Optimizee,
  makes: tuple[MakeTransformation, ...],
  hyperparams: tuple[chex.ArrayTree, ...],
  problem: InnerState,
  coordinate: jax.Array,
  steps: jax.Array,
  gradients: jax.Array,
  horizon: int | None,
) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
  """The true gradients and updates of a coordinate at S steps, and ``[S, G]`` other updates."""
  txs = _bind(makes, hyperparams)

  def look(sight: _Sight):
    gradient, unravel = ravel_pytree(sight.grads)

    def answer(other: jax.Array) -> list[jax.Array]:
      grads = unravel(gradient.at[coordinate].set(other.astype(gradient.dtype)))
      return [_flat(updates)[coordinate] for updates in sight.propose(grads)[0]]

    updates = [_flat(updates)[coordinate] for updates in sight.updates]
    # One after another: all states of all answers might not fit into the memory.
    return gradient[coordinate], updates, jax.lax.map(answer, gradients)

  def advance(_, state: InnerState) -> InnerState:
    return _step(optimizee, txs, lambda sight: None, state, horizon)[0]

  def ask_at(state: InnerState, step: jax.Array):
    state = jax.lax.fori_loop(state.step, step - 1, advance, state)
    return state, _step(optimizee, txs, look, state, horizon)[1][1]

  return jax.lax.scan(ask_at, _start(txs, problem), steps)[1]


@jax.jit
def scores(optimizee: Optimizee, problem: InnerState) -> jax.Array:
  """A random number for each coordinate, above one where its first gradient is not zero."""
  key = step_key(problem)
  gradient = _flat(jax.grad(optimizee.loss)(problem.params, problem.constants, optimizee.data, key))
  noise = _draws.uniform(jax.random.fold_in(problem.key, _SCORES), gradient.shape)
  return noise + (gradient != 0)


def _bind(
  makes: Sequence[MakeTransformation], hyperparams: Sequence[chex.ArrayTree]
) -> list[optax.GradientTransformationExtraArgs]:
  bound = [make(numbers) for make, numbers in zip(makes, hyperparams, strict=True)]
  return [optax.with_extra_args_support(tx) for tx in bound]


def _start(txs: Sequence[optax.GradientTransformation], problem: InnerState) -> InnerState:
  return problem._replace(opt_state=tuple(tx.init(problem.params) for tx in txs))


def _step(
  optimizee: Optimizee,
  txs: Sequence[optax.GradientTransformationExtraArgs],
  look: Callable[[_Sight], Any],
  state: InnerState,
  horizon: int | None,
) -> tuple[InnerState, tuple[jax.Array, Any]]:
  """Applies the first optimizer's update, gives its gradients to all, and looks at them.

  Args:
    optimizee: the distribution of problems.
    txs: the optimizers, whose states are the problem's `opt_state`.
    look: what to see.
    state: the problem.
    horizon: what the optimizers are told, see `learned_opt.unroll.inner_step`.

  Returns:
    The problem after the step; the loss before it, and what was seen.
  """

  def update(updates, state, params=None, **extra):
    def propose(grads: chex.ArrayTree) -> tuple[Any, Any]:
      keywords = {**extra, "grad": grads}
      pairs = [
        tx.update(grads, own, params, **keywords) for tx, own in zip(txs, state, strict=True)
      ]
      proposed, states = zip(*pairs, strict=True)
      return proposed, states

    proposed, states = propose(updates)
    return proposed[0], (states, look(_Sight(params, updates, proposed, states, propose)))

  watched = optax.GradientTransformationExtraArgs(lambda params: (), update)
  state, loss = inner_step(optimizee, watched, state, horizon=horizon)
  states, seen = state.opt_state
  return state._replace(opt_state=states), (loss, seen)


def _describe(
  update: jax.Array, gradient: jax.Array, coordinates: jax.Array
) -> tuple[jax.Array, ...]:
  """The fields of `Proposed` at one step."""
  descent, squares = -jnp.sum(update * gradient), jnp.sum(gradient**2)
  norm = jnp.linalg.norm(update)
  return (
    update[coordinates],
    descent / squares,
    descent / (norm * jnp.sqrt(squares)),
    norm / jnp.sqrt(squares),
  )


def _state_norms(opt_state: optax.OptState, params: chex.ArrayTree) -> dict[str, jax.Array]:
  like = jax.tree.structure(params)
  parts, _ = jax.tree_util.tree_flatten_with_path(
    opt_state, is_leaf=lambda node: jax.tree.structure(node) == like
  )
  floating = {
    _coordinates.path_name(path) or "state": [
      leaf for leaf in jax.tree.leaves(part) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    for path, part in parts
  }
  return {name: optax.tree.norm(leaves) for name, leaves in floating.items() if leaves}


def _flat(tree: chex.ArrayTree) -> jax.Array:
  return ravel_pytree(tree)[0]
