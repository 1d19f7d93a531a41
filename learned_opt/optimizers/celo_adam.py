"""Celo-Adam (Moudgil et al. 2025): Adam, whose learning rate an LSTM sets in every step."""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from learned_opt import _coordinates
from learned_opt.base import LearnedOptimizer
from learned_opt.optimizers import _orthogonal, _scheduler

_MAX_GRADIENT = 1000.0

# Of tensors whose steps are orthogonalized: Muon's decay, and the root mean square of a step of
# full rank at the learning rate 1, about that of Adam's (Liu et al. 2025, "Muon is scalable for LLM
# training").
_MATRIX_DECAY = 0.95
_MATRIX_SCALE = 0.2


class Moments(NamedTuple):
  """Of one tensor: running means of the gradients and of their squares.

  The latter are None for tensors whose steps are orthogonalized.
  """

  mean: jax.Array
  square: jax.Array | None


class CeloAdamState(NamedTuple):
  """Optimizer state.

  Attributes:
    step: int32 scalar, the number of updates so far.
    tensors: the params' tree, with the `Moments` of a tensor in its place.
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
  newton_schulz: bool = False,
  cosine_decay: bool = False,
) -> LearnedOptimizer:
  """Adam with a learned schedule: an LSTM that sees the training's progress and its losses.

  With Adam's running means m and v, corrected for their bias, and the LSTM's output z,

      update = -(exp(z) / 10) output_scale m / (epsilon + sqrt(v + 1e-10)).

  Source: Moudgil et al. (2025), "Celo: training versatile learned optimizers on a compute diet";
  the constants are those of its released code. Gradients are clipped to +-1000, as there.

  With `newton_schulz`, an addition of ours, that is the update of all tensors but matrices and the
  kernels of convolutions over images, tensors with four axes, each of which is taken for a matrix
  with its last axis for columns. Their update is Muon's (Jordan et al. 2024), with the second of
  two outputs:

      update = -(exp(z_2) / 10) output_scale 0.2 sqrt(max(rows, columns)) orthogonal(M),
      M = 0.95 m + 0.05 g,

  where m is the running mean of the gradients g with a decay of 0.95, and ``orthogonal`` are five
  Newton-Schulz steps; the factors before it are those of Liu et al. (2025).

  Args:
    lstm_size: units of the LSTM.
    decays: Adam's beta_1 and beta_2.
    epsilon: Adam's.
    output_scale: factor of the update.
    num_steps: for how many steps the schedule plans; None if each update is told.
    newton_schulz: whether to orthogonalize the steps of matrices and of convolutions' kernels.
    cosine_decay: whether all steps are multiplied by (1 + cos(pi step / num_steps)) / 2 besides, an
      addition of ours: what is learned are then departures from that schedule.

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
  return _celo_adam(
    *(lstm_size, decays, float(epsilon), float(output_scale), num_steps),
    *(bool(newton_schulz), bool(cosine_decay)),
  )


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _celo_adam(
  lstm_size: int,
  decays: tuple[float, float],
  epsilon: float,
  output_scale: float,
  num_steps: int | None,
  newton_schulz: bool,
  cosine_decay: bool,
) -> LearnedOptimizer:
  def is_orthogonalized(tensor) -> bool:
    shape = jnp.shape(tensor)
    return newton_schulz and len(shape) in (2, 4) and 0 not in shape

  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    num_inputs = _scheduler.NUM_PROGRESS + _scheduler.NUM_LOSSES
    return {
      "scheduler": _scheduler.init_scheduler(key, num_inputs, lstm_size, rate=1 + newton_schulz)
    }

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    scheduler = meta_params["scheduler"]
    dtype = scheduler["lstm"]["bias"].dtype

    def init_fn(params):
      _coordinates.count(params)

      def zeros(leaf):
        mean, square = (jnp.zeros(jnp.shape(leaf), dtype) for _ in range(2))
        return Moments(mean, None if is_orthogonalized(leaf) else square)

      tensors = jax.tree.map(zeros, params)
      return CeloAdamState(jnp.zeros((), jnp.int32), tensors, _scheduler.init_schedule(scheduler))

    def update_fn(updates, state: Any, params: Any = None, **extra_args):
      leaves, treedef, tensors = _check(updates, params, state)
      loss = _scheduler.scalar_loss("celo_adam", extra_args.get("value"), dtype)
      planned = extra_args.get("num_steps")
      planned = _scheduler.planned_steps("celo_adam", num_steps, planned, dtype)
      factors, schedule = _scheduler.scheduled_rates(
        scheduler, state.schedule, loss, state.step, planned
      )
      if cosine_decay:
        progress = jnp.minimum(state.step.astype(dtype) / planned, 1.0)
        factors *= 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
      beta_1, beta_2 = jnp.asarray(decays, dtype)
      count = (state.step + 1).astype(dtype)
      rate = output_scale * factors[0] / (1 - beta_1**count)
      bias = 1 - beta_2**count

      def adam(grad, moments):
        mean = beta_1 * moments.mean + (1 - beta_1) * grad
        square = beta_2 * moments.square + (1 - beta_2) * jnp.square(grad)
        return -rate * mean / (epsilon + jnp.sqrt(square / bias + 1e-10)), Moments(mean, square)

      def muon(grad, moments):
        mean = _MATRIX_DECAY * moments.mean + (1 - _MATRIX_DECAY) * grad
        direction = _MATRIX_DECAY * mean + (1 - _MATRIX_DECAY) * grad
        matrix = direction.reshape(-1, grad.shape[-1])
        scale = output_scale * factors[1] * _MATRIX_SCALE * math.sqrt(max(matrix.shape))
        step = -scale * _orthogonal.orthogonalize(matrix)
        return step.reshape(grad.shape), Moments(mean, None)

      def one(grad, moments, like):
        grad = jnp.clip(jnp.asarray(grad, dtype), -_MAX_GRADIENT, _MAX_GRADIENT)
        step, moments = (muon if is_orthogonalized(grad) else adam)(grad, moments)
        return step.astype(jnp.result_type(like)), moments

      likes = leaves if params is None else jax.tree.leaves(params)
      pairs = [one(*all_three) for all_three in zip(leaves, tensors, likes, strict=True)]
      updates, tensors = (treedef.unflatten(pair[k] for pair in pairs) for k in range(2))
      return updates, CeloAdamState(state.step + 1, tensors, schedule)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  config = FrozenDict(
    lstm_size=lstm_size,
    decays=decays,
    epsilon=epsilon,
    output_scale=output_scale,
    num_steps=num_steps,
    newton_schulz=newton_schulz,
    cosine_decay=cosine_decay,
  )
  return LearnedOptimizer(init, optimizer, "celo_adam", config)


def _check(grads: Any, params: Any, state: CeloAdamState) -> tuple[list[Any], Any, list[Moments]]:
  _coordinates.check_gradients(grads, params)
  leaves, treedef = jax.tree.flatten(grads)
  tensors = treedef.flatten_up_to(state.tensors)
  shapes = [jnp.shape(leaf) for leaf in leaves], [moments.mean.shape for moments in tensors]
  if shapes[0] != shapes[1]:
    found, expected = (sum(map(math.prod, one)) for one in shapes)
    raise ValueError(
      f"updates have {found} coordinates, but the optimizer's state was made for {expected}, or "
      "for tensors of other shapes: call tx.init with the params that these gradients belong to"
    )
  return leaves, treedef, tensors
