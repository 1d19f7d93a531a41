"""Losses along an optimization, as means over windows of steps."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import devices
from learned_opt._curves import as_array
from learned_opt._statistics import count_as_infinite
from learned_opt.base import InnerState, Optimizee
from learned_opt.unroll import init_inner_state, inner_step, step_key

# The part of the first loss at which a task counts as solved.
_SOLVED = 0.01

Make = Callable[[Any], optax.GradientTransformation]


def window_steps(num_steps: int, num_windows: int) -> np.ndarray:
  """``[W + 1]``, the steps at which the curves of `curves_of` are: 0, and the ends of the windows.

  >>> window_steps(10, 3).tolist()  # the windows are equally long, and end with the last step
  [0, 4, 7, 10]
  """
  num_windows = min(num_windows, num_steps)
  length = num_steps // num_windows
  return np.append(0, num_steps - length * np.arange(num_windows)[::-1])


def at_least_solved(curves: np.ndarray) -> np.ndarray:
  """Losses ``[..., W + 1]``, of which those below a hundredth of the first count as that much.

  A task is solved there: whether networks that know a small data set by heart have losses of 1e-4
  or 1e-7 says little. What is not finite is infinite.

  >>> at_least_solved(np.array([5.0, 1.0, 0.01, np.nan])).tolist()
  [5.0, 1.0, 0.05, inf]
  """
  curves = count_as_infinite(curves)
  return np.maximum(curves, _SOLVED * curves[..., :1])


@jax.jit
def draw(optimizee: Optimizee, keys: chex.PRNGKey) -> InnerState:
  """The problems of these keys at step 0, without an optimizer's state.

  A program of its own: to draw random numbers takes far longer to compile than the inner steps.
  """
  return jax.vmap(lambda key: init_inner_state(optimizee, optax.identity(), key))(keys)


def curves_of(
  optimizee: Optimizee,
  make: Make,
  hyperparams: chex.ArrayTree,
  problems: InnerState,
  num_steps: int,
  num_windows: int,
) -> np.ndarray:
  """The losses of one optimizer on several problems.

  Args:
    optimizee: the distribution of problems.
    make: ``hyperparams -> tx``; equal ones do not compile again.
    hyperparams: any pytree of arrays.
    problems: P of them; see `draw`.
    num_steps: T.
    num_windows: W, of T // W steps each; what is over comes before the first.

  Returns:
    float32 ``[P, W + 1]``: the loss at theta_0, and the mean over each window of the losses of its
    minibatches, those that the optimizer saw, before each update.
  """
  hyperparams = jax.tree.map(as_array, hyperparams)
  optimizee = devices.replicate(optimizee)
  return np.asarray(_run(optimizee, make, hyperparams, problems, num_steps, num_windows))


def curves_of_rates(
  optimizee: Optimizee,
  make: Make,
  rates: np.ndarray,
  problems: InnerState,
  num_steps: int,
  num_windows: int,
) -> np.ndarray:
  """As `curves_of` for each of several learning rates, ``[K, P, W + 1]``, side by side."""
  optimizee = devices.replicate(optimizee)
  rates = np.asarray(rates, np.float32)
  return np.asarray(_run_rates(optimizee, make, rates, problems, num_steps, num_windows))


@functools.partial(jax.jit, static_argnames=("make", "num_steps", "num_windows"))
def _run(optimizee, make, hyperparams, problems, num_steps, num_windows) -> jax.Array:
  tx = make(hyperparams)
  return jax.vmap(lambda problem: _one(optimizee, tx, problem, num_steps, num_windows))(
    devices.share(problems)
  )


@functools.partial(jax.jit, static_argnames=("make", "num_steps", "num_windows"))
def _run_rates(optimizee, make, rates, problems, num_steps, num_windows) -> jax.Array:
  # One vmap for the pairs, not one in the other: JAX has no batching rule for a convolution that is
  # mapped over its kernels alone, once it has groups.
  num_rates, num_problems = len(rates), len(problems.step)
  pairs = jax.tree.map(
    lambda leaf: leaf[jnp.arange(num_rates * num_problems) % num_problems], problems
  )

  def of_pair(rate, problem):
    return _one(optimizee, make(rate), problem, num_steps, num_windows)

  curves = jax.vmap(of_pair)(*devices.share((jnp.repeat(rates, num_problems), pairs)))
  return curves.reshape(num_rates, num_problems, -1)


def _one(
  optimizee: Optimizee,
  tx: optax.GradientTransformation,
  problem: InnerState,
  num_steps: int,
  num_windows: int,
) -> jax.Array:
  state = problem._replace(opt_state=tx.init(problem.params))
  first = optimizee.loss(state.params, state.constants, optimizee.data, step_key(state))
  num_windows = min(num_windows, num_steps)
  length, before = num_steps // num_windows, num_steps % num_windows

  def step(state, _):
    return inner_step(optimizee, tx, state)

  def window(state, _):
    state, losses = jax.lax.scan(step, state, length=length)
    return state, jnp.mean(losses)

  if before:
    state, _ = jax.lax.scan(step, state, length=before)
  _, means = jax.lax.scan(window, state, length=num_windows)
  return jnp.append(first, means)
