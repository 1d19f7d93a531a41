"""Celo (Moudgil et al. 2025): a per-parameter network times a learned schedule."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from learned_opt.base import LearnedOptimizer
from learned_opt.optimizers import _features, _scheduler, _velo_rule
from learned_opt.optimizers._mlp import check_mlp_options
from learned_opt.optimizers._tensors import init_tree, update_tree


class CeloState(NamedTuple):
  """Optimizer state.

  Attributes:
    step: int32 scalar, the number of updates so far.
    tensors: the params' tree, with the running averages of a tensor in its place.
    schedule: of the learned schedule.
  """

  step: jax.Array
  tensors: Any
  schedule: _scheduler.Schedule


def celo(
  lstm_size: int = 64,
  num_layers: int = 2,
  hidden_size: int = 4,
  exp_scale: float = 1e-3,
  output_scale: float = 1e-3,
  phase: int | None = None,
  num_steps: int | None = None,
) -> LearnedOptimizer:
  """Celo: VeLO's per-parameter network, one for all tensors, and a learned schedule for all.

  The network sees 30 numbers of each coordinate, as `velo`'s does, and gives d and s. The schedule
  is an LSTM's output z, which sees how much of the training is done and how the losses fall:

      update = -(exp(z) / 10) output_scale RMS(tensor) d exp(exp_scale s).

  Source: Moudgil et al. (2025), "Celo: training versatile learned optimizers on a compute diet";
  the constants are those of its released code.

  Args:
    lstm_size: units of the schedule's LSTM.
    num_layers: hidden layers of the network.
    hidden_size: units of each.
    exp_scale: factor of the output in the exponent.
    output_scale: factor of the update.
    phase: of the meta-training in two phases. 1 trains the network: the factor exp(z) / 10 is 1.
      2 trains the schedule: derivatives with respect to the network are zero. None trains both,
      and is what a trained one is used with. An estimator that perturbs meta-params perturbs those
      at rest, too: let the outer optimizer leave them alone, with `optax.masked`.
    num_steps: for how many steps the schedule plans; None if each update is told.

  Returns:
    The architecture. Its transformations read the params and, but for phase 1, the loss:
    ``tx.update(grads, state, params, value=loss)``; ``num_steps=n`` there goes before the
    factory's. They keep four arrays of the size of the params, and few smaller ones.

  Raises:
    ValueError: if a size is not positive, a factor not finite, or there is no such phase.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.celo(num_steps=100)
    >>> def first_update(key, params):
    ...   tx = architecture.optimizer(architecture.init(key))
    ...   return tx.update(params, tx.init(params), params, value=1.0)[0]
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> jax.eval_shape(first_update, jax.random.key(0), params)["w"].shape
    (3, 2)
  """
  check_mlp_options(num_layers, hidden_size, exp_scale=exp_scale, output_scale=output_scale)
  if lstm_size < 1:
    raise ValueError(f"lstm_size must be at least 1, got {lstm_size}")
  if phase not in (None, 1, 2):
    raise ValueError(f"phase must be 1, 2 or None, got {phase!r}")
  num_steps = _scheduler.check_num_steps(num_steps)
  return _celo(
    lstm_size, num_layers, hidden_size, float(exp_scale), float(output_scale), phase, num_steps
  )


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _celo(
  lstm_size: int,
  num_layers: int,
  hidden_size: int,
  exp_scale: float,
  output_scale: float,
  phase: int | None,
  num_steps: int | None,
) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    network_key, scheduler_key = jax.random.split(key)
    num_inputs = _scheduler.NUM_PROGRESS + _scheduler.NUM_LOSSES
    return {
      "network": _velo_rule.init_network(network_key, num_layers, hidden_size),
      "scheduler": _scheduler.init_scheduler(scheduler_key, num_inputs, lstm_size, rate=1),
    }

  rule = _velo_rule.make_rule(exp_scale, lambda shared, _: shared[0], lambda shared, _: shared[1])

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    scheduler, network = meta_params["scheduler"], meta_params["network"]
    dtype = scheduler["lstm"]["bias"].dtype
    if phase == 2:
      network = jax.lax.stop_gradient(network)

    def init_tensor(shape):
      return _features.init_accumulators(shape, _velo_rule.fixed_decays(dtype), dtype)

    def init_fn(params):
      tensors = init_tree(init_tensor, params)
      return CeloState(jnp.zeros((), jnp.int32), tensors, _scheduler.init_schedule(scheduler))

    def update_fn(updates, state: Any, params: Any = None, **extra_args):
      if phase == 1:
        factor, schedule = jnp.ones((), dtype), state.schedule
      else:
        loss = _scheduler.scalar_loss("celo", extra_args.get("value"), dtype)
        planned = extra_args.get("num_steps")
        planned = _scheduler.planned_steps("celo", num_steps, planned, dtype)
        (factor,), schedule = _scheduler.scheduled_rates(
          scheduler, state.schedule, loss, state.step, planned
        )
      updates, tensors = update_tree(
        rule.update,
        (network, output_scale * factor),
        updates,
        params,
        state.tensors,
        lambda accumulators: accumulators.momenta.shape[1:],
        dtype=dtype,
        name="celo",
        init=init_tensor,
        group_function=functools.partial(rule.update_group, dtype=dtype),
      )
      return updates, CeloState(state.step + 1, tensors, schedule)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  config = FrozenDict(
    lstm_size=lstm_size,
    num_layers=num_layers,
    hidden_size=hidden_size,
    exp_scale=exp_scale,
    output_scale=output_scale,
    phase=phase,
    num_steps=num_steps,
  )
  return LearnedOptimizer(init, optimizer, "celo", config)
