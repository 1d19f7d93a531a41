"""Muon whose learning rates, decays, schedule and more are learned: six to eleven numbers."""

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
  gains: tuple[float, float] | None = None,
  memory: float = 0.99,
  averaging: tuple[float, float] | None = None,
  num_steps: int | None = None,
) -> LearnedOptimizer:
  """Muon for matrices, Adam for all else, and rates that adapt: what is chosen by hand is learned.

  The steps of matrices are

      update = -f_t r_matrix(t) 0.2 sqrt(max(rows, columns)) orthogonal(b M + (1 - b) g),

  with gradients g, their running mean M with decay b, and five Newton-Schulz steps. Kernels of
  convolutions and of attention, tensors with three or four axes, are taken for matrices: those with
  four have their last axis for columns, those with three are as square as can be. Scalars and
  vectors get Adam's steps, with the rate r(t). Both rates follow a cosine, which a power p > 1
  makes fall earlier:

      r(t) = r (1 + cos(pi (1 - (1 - t / num_steps)^p))) / 2.

  Without `gains`, the factors f_t are one. With them, each tensor has its own, which is large for
  as long as its gradients point where they pointed before, and falls back to one where they are
  noise, and below it where they turn back:

      f_t = exp(gain a_t),  a_t = memory a_{t-1} + (1 - memory) cos(g_t, M_{t-1}),

  between 1 / 100 and 100. With `averaging`, it is another iterate z that takes these steps; the
  params y, where gradients are taken, lie between it and an average x of where it was:

      y_t = weight x_t + (1 - weight) z_t,  x_{t+1} = x_t + k / (t + k) (z_{t+1} - x_t),

  with k the order, so that a training is good long before the schedule has made its rates small.

  Learned are the logarithms of both rates, of p, of both gains and of k, and the logits of the
  decays, of the memory and of the weight, which evolution strategies can find, as their noise has
  only six dimensions, up to eleven.

  Source: Jordan et al. (2024), "Muon"; the factor 0.2 sqrt(...) is that of Liu et al. (2025), "Muon
  is scalable for LLM training". Rates that follow the sign of products of successive gradients are
  those of Jacobs (1988), "Increased rates of convergence through learning rate adaptation"; that
  they follow the products is from Baydin et al. (2018), "Online learning rate adaptation with
  hypergradient descent"; a factor that forgets, of the cosine, is ours. The average is that of
  Defazio et al. (2024), "The road less scheduled", there of Adam or SGD without a schedule. That
  hyperparameters are learned on many tasks, as in Metz et al. (2020), "Using a thousand
  optimization tasks to learn hyperparameter search strategies".

  Args:
    matrix_rate: learning rate of matrices where meta-training starts.
    rate: that of all else.
    matrix_decay: b there.
    decays: Adam's beta_1 and beta_2 there.
    gains: those of matrices and of all else there; None for rates that do not adapt.
    memory: of the running mean of the cosine there.
    averaging: the weight and the order of the average there; None for params that are z.
    num_steps: how many steps the schedule takes; None if each update is told.

  Returns:
    The architecture. Its meta-params are ``{"log_rates": [2], "decay_logits": [3], "log_power":
    []}``, with gains also ``{"log_gains": [2], "memory_logit": []}``, with averaging also
    ``{"weight_logit": [], "log_order": []}``, matrices first, float32, the same for all keys. Its
    transformations keep one array of the size of the params for matrices and two for all else, with
    gains also a number a tensor, with averaging another array, compute in the dtype of the
    meta-params, and give updates of the params' dtypes. They take ``num_steps=n`` in each update,
    which goes before the factory's.

  Raises:
    ValueError: if a rate, a gain or the order is not positive and finite, a decay, the memory or
      the weight is not between 0 and 1, or `num_steps` is not positive.

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
  for name, values in (("matrix_rate", (matrix_rate,)), ("rate", (rate,)), ("gains", gains or ())):
    if not all(math.isfinite(value) and value > 0 for value in values):
      raise ValueError(f"{name} must be positive and finite, got {', '.join(map(str, values))}")
  if gains is not None and len(gains) != 2:
    raise ValueError(f"gains must be two, of matrices and of all else, or None, got {gains}")
  if not 0 < memory < 1:
    raise ValueError(f"memory must be between 0 and 1, got {memory}")
  if averaging is not None:
    _check_averaging(averaging)
  all_decays = (matrix_decay, *decays)
  if len(all_decays) != 3 or not all(0 < decay < 1 for decay in all_decays):
    raise ValueError(
      f"matrix_decay and the two decays must be between 0 and 1, got {matrix_decay} and {decays}"
    )
  return _learned_muon(
    *(float(matrix_rate), float(rate)),
    tuple(map(float, all_decays)),
    None if gains is None else tuple(map(float, gains)),
    float(memory),
    None if averaging is None else tuple(map(float, averaging)),
    _scheduler.check_num_steps(num_steps),
  )


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _learned_muon(
  matrix_rate: float,
  rate: float,
  all_decays: tuple[float, ...],
  gains: tuple[float, ...] | None,
  memory: float,
  averaging: tuple[float, ...] | None,
  num_steps: int | None,
) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    del key
    meta_params = {
      "log_rates": jnp.log(jnp.array([matrix_rate, rate], jnp.float32)),
      "decay_logits": jnp.array([_logit(decay) for decay in all_decays], jnp.float32),
      "log_power": jnp.zeros((), jnp.float32),
    }
    if gains is not None:
      meta_params |= {
        "log_gains": jnp.log(jnp.array(gains, jnp.float32)),
        "memory_logit": jnp.array(_logit(memory), jnp.float32),
      }
    if averaging is not None:
      weight, order = averaging
      meta_params |= {
        "weight_logit": jnp.array(_logit(weight), jnp.float32),
        "log_order": jnp.log(jnp.array(order, jnp.float32)),
      }
    return meta_params

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    log_power = meta_params["log_power"]
    dtype = log_power.dtype

    def init_fn(params):
      tensors = _muon.init_moments(
        params, dtype, orthogonal=True, adapts=gains is not None, averages=averaging is not None
      )
      return LearnedMuonState(jnp.zeros((), jnp.int32), tensors)

    def update_fn(updates, state: Any, params: Any = None, **extra_args):
      given = extra_args.get("num_steps")
      planned = _scheduler.planned_steps("learned_muon", num_steps, given, dtype)
      factor = _scheduler.cosine_decay(state.step, planned, jnp.exp(log_power))
      matrix, adam = factor * jnp.exp(meta_params["log_rates"])
      matrix_decay, beta_1, beta_2 = jax.nn.sigmoid(meta_params["decay_logits"])
      adaptation = None
      if gains is not None:
        matrix_gain, gain = jnp.exp(meta_params["log_gains"])
        decay = jax.nn.sigmoid(meta_params["memory_logit"])
        adaptation = _muon.Adaptation(gain, matrix_gain, decay)
      average = None
      if averaging is not None:
        average = _muon.Averaging(
          jax.nn.sigmoid(meta_params["weight_logit"]), jnp.exp(meta_params["log_order"])
        )
      rates = _muon.Rates(
        state.step, adam, (beta_1, beta_2), _EPSILON, matrix, matrix_decay, adaptation, average
      )
      updates, tensors = _muon.update_tree(updates, state.tensors, params, rates)
      return updates, LearnedMuonState(state.step + 1, tensors)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  matrix_decay, *decays = all_decays
  config = FrozenDict(
    matrix_rate=matrix_rate,
    rate=rate,
    matrix_decay=matrix_decay,
    decays=tuple(decays),
    gains=gains,
    memory=memory,
    averaging=averaging,
    num_steps=num_steps,
  )
  return LearnedOptimizer(init, optimizer, "learned_muon", config)


def _check_averaging(averaging: tuple[float, float]) -> None:
  if len(averaging) != 2:
    raise ValueError(f"averaging must be two, a weight and an order, or None, got {averaging}")
  weight, order = averaging
  if not 0 < weight < 1:
    raise ValueError(f"the weight of averaging must be between 0 and 1, got {weight}")
  if not (math.isfinite(order) and order > 0):
    raise ValueError(f"the order of averaging must be positive and finite, got {order}")


def _logit(probability: float) -> float:
  return math.log(probability / (1 - probability))
