"""Muon whose learning rates, decays and schedule are learned: six numbers."""

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

_EPSILON = 1e-8


class LearnedMuonState(NamedTuple):
  """Optimizer state.

  Attributes:
    step: int32 scalar, the number of updates so far.
    tensors: the params' tree, with the running means of a tensor in its place.
  """

  step: jax.Array
  tensors: Any


def learned_muon(
  matrix_rate: float = 0.02,
  rate: float = 0.01,
  matrix_decay: float = 0.95,
  decays: tuple[float, float] = (0.9, 0.999),
  num_steps: int | None = None,
) -> LearnedOptimizer:
  """Muon for matrices and Adam for all else, with one schedule: what is chosen by hand is learned.

  The steps of matrices are

      update = -r_matrix(t) 0.2 sqrt(max(rows, columns)) orthogonal(b M + (1 - b) g),

  with gradients g, their running mean M with decay b, and five Newton-Schulz steps. Kernels of
  convolutions and of attention, tensors with three or four axes, are taken for matrices: those with
  four have their last axis for columns, those with three are as square as can be. Scalars and
  vectors get Adam's steps, with the rate r(t). Both rates follow a cosine, which a power p > 1
  makes fall earlier:

      r(t) = r (1 + cos(pi (1 - (1 - t / num_steps)^p))) / 2.

  Learned are the logarithms of both rates and of p, and the logits of the three decays, which
  evolution strategies can find, as their noise has only six dimensions.

  Source: Jordan et al. (2024), "Muon"; the factor 0.2 sqrt(...) is that of Liu et al. (2025), "Muon
  is scalable for LLM training". That hyperparameters are learned on many tasks, as in Metz et al.
  (2020), "Using a thousand optimization tasks to learn hyperparameter search strategies".

  Args:
    matrix_rate: learning rate of matrices where meta-training starts.
    rate: that of all else.
    matrix_decay: b there.
    decays: Adam's beta_1 and beta_2 there.
    num_steps: how many steps the schedule takes; None if each update is told.

  Returns:
    The architecture. Its meta-params are ``{"log_rates": [2], "decay_logits": [3], "log_power":
    []}``, matrices first, float32, the same for all keys. Its transformations keep one array of the
    size of the params for matrices and two for all else, compute in the dtype of the meta-params,
    and give updates of the params' dtypes. They take ``num_steps=n`` in each update, which goes
    before the factory's.

  Raises:
    ValueError: if a rate is not positive and finite, a decay is not between 0 and 1, or `num_steps`
      is not positive.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.learned_muon(num_steps=100)
    >>> tx = architecture.optimizer(architecture.init(jax.random.key(0)))
    >>> params = {"w": jnp.eye(2), "b": jnp.ones(2)}
    >>> updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    >>> {name: f"{leaf.min():.4f}" for name, leaf in updates.items()}
    {'b': '-0.0100', 'w': '-0.0063'}
  """
  for name, value in (("matrix_rate", matrix_rate), ("rate", rate)):
    if not (math.isfinite(value) and value > 0):
      raise ValueError(f"{name} must be positive and finite, got {value}")
  all_decays = (matrix_decay, *decays)
  if len(all_decays) != 3 or not all(0 < decay < 1 for decay in all_decays):
    raise ValueError(
      f"matrix_decay and the two decays must be between 0 and 1, got {matrix_decay} and {decays}"
    )
  return _learned_muon(
    *(float(matrix_rate), float(rate), *map(float, all_decays)),
    num_steps=_scheduler.check_num_steps(num_steps),
  )


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _learned_muon(
  matrix_rate: float,
  rate: float,
  *all_decays: float,
  num_steps: int | None,
) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    del key
    logits = [math.log(decay / (1 - decay)) for decay in all_decays]
    return {
      "log_rates": jnp.log(jnp.array([matrix_rate, rate], jnp.float32)),
      "decay_logits": jnp.array(logits, jnp.float32),
      "log_power": jnp.zeros((), jnp.float32),
    }

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    log_power = meta_params["log_power"]
    dtype = log_power.dtype

    def init_fn(params):
      tensors = _muon.init_moments(params, dtype, orthogonal=True)
      return LearnedMuonState(jnp.zeros((), jnp.int32), tensors)

    def update_fn(updates, state: Any, params: Any = None, **extra_args):
      given = extra_args.get("num_steps")
      planned = _scheduler.planned_steps("learned_muon", num_steps, given, dtype)
      factor = _scheduler.cosine_decay(state.step, planned, jnp.exp(log_power))
      matrix, adam = factor * jnp.exp(meta_params["log_rates"])
      matrix_decay, beta_1, beta_2 = jax.nn.sigmoid(meta_params["decay_logits"])
      rates = _muon.Rates(state.step, adam, (beta_1, beta_2), _EPSILON, matrix, matrix_decay)
      updates, tensors = _muon.update_tree(updates, state.tensors, params, rates)
      return updates, LearnedMuonState(state.step + 1, tensors)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  matrix_decay, *decays = all_decays
  config = FrozenDict(
    matrix_rate=matrix_rate,
    rate=rate,
    matrix_decay=matrix_decay,
    decays=tuple(decays),
    num_steps=num_steps,
  )
  return LearnedOptimizer(init, optimizer, "learned_muon", config)
