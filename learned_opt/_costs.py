"""What one update of an optimizer costs, without the gradient that it is given."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import _blocks
from learned_opt._curves import MakeTransformation
from learned_opt.base import InnerState, Optimizee

_MIN_REPETITIONS = 5
_MAX_REPETITIONS = 200


class Cost(NamedTuple):
  """The cost of one update of one problem: `tx.update` and `optax.apply_updates`.

  Attributes:
    seconds_per_step: wall-clock seconds of one call of the compiled update, the median of many. On
      small problems this is mostly the time that any call takes.
    flops_per_step: what XLA's cost analysis counts, which takes the body of a loop once (but all
      blocks of an update in blocks); None where XLA does not say.
    state_bytes: bytes of the optimizer's state.
  """

  seconds_per_step: float
  flops_per_step: float | None
  state_bytes: int


def measure_costs(
  optimizee: Optimizee,
  optimizers: Sequence[tuple[MakeTransformation, chex.ArrayTree]],
  problem: InnerState,
  *,
  horizon: int | None = None,
  max_seconds: float = 3.0,
) -> list[Cost]:
  """Measures the updates of several optimizers at the start of the same problem.

  The optimizers take turns, so that a machine that slows down for a moment does so for all.

  Args:
    optimizee: the distribution of problems.
    optimizers: pairs ``(make, hyperparams)``, see `learning_curves`.
    problem: one problem at step 0.
    horizon: what the optimizers are told, see `learned_opt.unroll.inner_step`.
    max_seconds: no further round begins after this time, once there were a few.

  Returns:
    The costs in the order of the optimizers.
  """
  loss, grads = _loss_and_grads(optimizee, problem)
  flops, calls, state_bytes = [], [], []
  for make, hyperparams in optimizers:
    # Host arrays would be copied to the device at each call.
    hyperparams = jax.tree.map(jnp.asarray, hyperparams)
    opt_state = make(hyperparams).init(problem.params)
    arguments = (hyperparams, opt_state, optimizee, problem, loss, grads)
    lowered = jax.jit(_update_function(make, horizon)).lower(*arguments)
    run = lowered.compile()
    calls.append(lambda run=run, arguments=arguments: run(*arguments))
    with _blocks.as_a_whole():
      # Another function, as JAX would take the same one to be the same program.
      whole = jax.jit(_update_function(make, horizon)).lower(*arguments)
    in_blocks = whole.as_text() != lowered.as_text()
    flops.append(_flops(whole.compile() if in_blocks else run))
    state_bytes.append(_num_bytes(opt_state))
  seconds = _median_seconds(calls, max_seconds)
  return [Cost(*cost) for cost in zip(seconds, flops, state_bytes, strict=True)]


def _update_function(make: MakeTransformation, horizon: int | None):
  planned = {} if horizon is None else {"num_steps": horizon}

  def update(hyperparams, opt_state, optimizee: Optimizee, problem: InnerState, loss, grads):
    def value_fn(params: chex.ArrayTree, num_steps: int | None = None) -> jax.Array:
      # As in `learned_opt.unroll`.
      del num_steps
      return _loss(optimizee, problem, params)

    tx = optax.with_extra_args_support(make(hyperparams))
    updates, opt_state = tx.update(
      grads, opt_state, problem.params, value=loss, grad=grads, value_fn=value_fn, **planned
    )
    return optax.apply_updates(problem.params, updates), opt_state

  return update


def _loss(optimizee: Optimizee, problem: InnerState, params: chex.ArrayTree) -> jax.Array:
  return optimizee.loss(params, problem.constants, optimizee.data, problem.key)


@jax.jit
def _loss_and_grads(optimizee: Optimizee, problem: InnerState):
  return jax.value_and_grad(lambda params: _loss(optimizee, problem, params))(problem.params)


def _median_seconds(calls: Sequence[Callable[[], object]], max_seconds: float) -> list[float]:
  for call in calls:
    jax.block_until_ready(call())
  deadline = time.perf_counter() + max_seconds
  rounds: list[list[float]] = []
  while len(rounds) < _MAX_REPETITIONS and (
    len(rounds) < _MIN_REPETITIONS or time.perf_counter() < deadline
  ):
    rounds.append([_seconds(call) for call in calls])
  return [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]


def _seconds(call: Callable[[], object]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def _flops(compiled: jax.stages.Compiled) -> float | None:
  analysis = compiled.cost_analysis()
  flops = (analysis or {}).get("flops", -1.0)
  # XLA says -1 where it does not know.
  return float(flops) if np.isfinite(flops) and flops >= 0 else None


def _num_bytes(opt_state: optax.OptState) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(opt_state))
