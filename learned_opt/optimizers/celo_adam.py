"""Celo-Adam (Moudgil et al. 2025): Adam, whose learning rate an LSTM sets in every step."""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from learned_opt.base import LearnedOptimizer
from learned_opt.optimizers import _muon, _scheduler


class CeloAdamState(NamedTuple):
  """Optimizer state.

  Attributes:
    step: int32 scalar, the number of updates so far.
    tensors: the params' tree, with the running means of a tensor in its place.
    schedule: of the learned schedule.
  """

  step: jax.Array
  tensors: Any
  schedule: _scheduler.Schedule


def celo_adam(
  lstm_size: int = 64,
  decays: tuple[float, float] = (0.9, 0.999),
  epsilon: float = 1e-8,
  output_scale: float = 1e-3,
  num_steps: int | None = None,
) -> LearnedOptimizer:
  """Adam with a learned schedule: an LSTM that sees the training's progress and its losses.

  With Adam's running means m and v, corrected for their bias, and the LSTM's output z,

      update = -(exp(z) / 10) output_scale m / (epsilon + sqrt(v + 1e-10)).

  Source: Moudgil et al. (2025), "Celo: training versatile learned optimizers on a compute diet";
  the constants are those of its released code. Gradients are clipped to +-1000, as there.

  Args:
    lstm_size: units of the LSTM.
    decays: Adam's beta_1 and beta_2.
    epsilon: Adam's.
    output_scale: factor of the update.
    num_steps: for how many steps the schedule plans; None if each update is told.

  Returns:
    The architecture. Its transformations read the loss: ``tx.update(grads, state, params,
    value=loss)``; ``num_steps=n`` there goes before the factory's.

  Raises:
    ValueError: if a size or `num_steps` is not positive, a decay is not in [0, 1), or a factor is
      negative or not finite.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.celo_adam()
    >>> def first_update(key, params):
    ...   tx = architecture.optimizer(architecture.init(key))
    ...   return tx.update(params, tx.init(params), params, value=1.0, num_steps=100)[0]
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> jax.eval_shape(first_update, jax.random.key(0), params)["w"].shape
    (3, 2)
  """
  if lstm_size < 1:
    raise ValueError(f"lstm_size must be at least 1, got {lstm_size}")
  first, second = decays
  if not (0 <= first < 1 and 0 <= second < 1):
    raise ValueError(f"decays must be at least 0 and less than 1, got {decays}")
  for name, factor in (("epsilon", epsilon), ("output_scale", output_scale)):
    if not (math.isfinite(factor) and factor >= 0):
      raise ValueError(f"{name} must be finite and not negative, got {factor}")
  num_steps = _scheduler.check_num_steps(num_steps)
  decays = float(first), float(second)
  return _celo_adam(lstm_size, decays, float(epsilon), float(output_scale), num_steps)


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _celo_adam(
  lstm_size: int,
  decays: tuple[float, float],
  epsilon: float,
  output_scale: float,
  num_steps: int | None,
) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    num_inputs = _scheduler.NUM_PROGRESS + _scheduler.NUM_LOSSES
    return {"scheduler": _scheduler.init_scheduler(key, num_inputs, lstm_size, rate=1)}

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    scheduler = meta_params["scheduler"]
    dtype = scheduler["lstm"]["bias"].dtype

    def init_fn(params):
      tensors = _muon.init_moments(params, dtype)
      return CeloAdamState(jnp.zeros((), jnp.int32), tensors, _scheduler.init_schedule(scheduler))

    def update_fn(updates, state: Any, params: Any = None, **extra_args):
      loss = _scheduler.scalar_loss("celo_adam", extra_args.get("value"), dtype)
      planned = extra_args.get("num_steps")
      planned = _scheduler.planned_steps("celo_adam", num_steps, planned, dtype)
      factors, schedule = _scheduler.scheduled_rates(
        scheduler, state.schedule, loss, state.step, planned
      )
      rates = _muon.Rates(state.step, output_scale * factors[0], decays, epsilon)
      updates, tensors = _muon.update_tree(updates, state.tensors, params, rates)
      return updates, CeloAdamState(state.step + 1, tensors, schedule)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  config = FrozenDict(
    lstm_size=lstm_size,
    decays=decays,
    epsilon=epsilon,
    output_scale=output_scale,
    num_steps=num_steps,
  )
  return LearnedOptimizer(init, optimizer, "celo_adam", config)
