"""Optimizees made harder at random, so that what is trained on them works elsewhere as well.

What each wrapper draws belongs to the problem. They go around one another in any order, and around
`random_scaling`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from learned_opt import _draws
from learned_opt.base import Optimizee
from learned_opt.optimizees._bound import Bound

Precision = Literal["bfloat16", "float16"]

# Bits of the exponent and of the mantissa.
_BITS: dict[str, tuple[int, int]] = {"bfloat16": (8, 7), "float16": (5, 10)}

# Folded into the key of a step for the noise, which is not to depend on the minibatch.
_NOISE = 2


class Augmented(NamedTuple):
  """The constants of an augmented problem: what the wrapper drew, and those of the problem."""

  drawn: Any
  constants: Any


def noisy_gradients(optimizee: Optimizee, low: float = 0.01, high: float = 1.0) -> Optimizee:
  """The same losses, with Gaussian noise on the gradients that an optimizer sees.

  Each tensor's gradient g becomes g + s rms(g) epsilon with a standard Gaussian epsilon of each
  step and a strength s of each problem, log-uniform between `low` and `high`. Being relative, the
  noise knows nothing of the problem's scale, and vanishes where the gradient does. The values of
  the loss, its outer loss and its metrics have no noise. A meta-gradient by backpropagation, which
  goes through the gradient of an inner loss, does.

  Args:
    optimizee: whose gradients get noise.
    low: the least strength.
    high: the greatest.

  Returns:
    The optimizee.

  Raises:
    ValueError: unless 0 < low <= high, both finite.

  Example:
    >>> import jax
    >>> from learned_opt import optimizees
    >>> plain = optimizees.quadratic()
    >>> noisy = optimizees.noisy_gradients(plain)
    >>> params, constants = noisy.init(jax.random.key(0), noisy.data)
    >>> at = (params, constants.constants, (), jax.random.key(1))
    >>> bool(noisy.loss(params, constants, (), jax.random.key(1)) == plain.loss(*at))
    True
  """
  if not (0 < low <= high and math.isfinite(high)):
    raise ValueError(f"low and high must be 0 < low <= high, both finite, got {low} and {high}")
  return dataclasses.replace(
    optimizee,
    init=Bound(_augmented_init, optimizee.init, (math.log(low), math.log(high))),
    loss=Bound(_noisy_loss, optimizee.loss),
    outer_loss=optimizee.outer_loss and Bound(_plain, optimizee.outer_loss),
    metrics=optimizee.metrics and Bound(_plain, optimizee.metrics),
  )


def random_batch_size(optimizee: Optimizee, max_minibatches: int = 16) -> Optimizee:
  """Minibatches of a size that each problem draws: the mean over m of the optimizee's own.

  m is log-uniform over 1, ..., `max_minibatches`, rounded down. As shapes cannot depend on it, all
  `max_minibatches` losses are computed, and m of them count: a step always costs as much as one
  with the largest minibatch. Give the optimizee itself the smallest.

  Args:
    optimizee: whose loss is a mean over a minibatch drawn by the step's key; for one without noise
      this changes nothing. Its outer loss and metrics stay as they are.
    max_minibatches: the largest m.

  Returns:
    The optimizee.

  Raises:
    ValueError: if `max_minibatches` is not positive.

  Example:
    >>> import jax
    >>> from learned_opt import datasets, optimizees
    >>> small = optimizees.mlp_classifier(datasets.load("digits"), (4,), batch_size=8)
    >>> optimizee = optimizees.random_batch_size(small, max_minibatches=4)  # 8 to 32 images
    >>> _, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> 1 <= int(constants.drawn) <= 4
    True
  """
  if max_minibatches < 1:
    raise ValueError(f"max_minibatches must be at least 1, got {max_minibatches}")
  return dataclasses.replace(
    optimizee,
    init=Bound(_batches_init, optimizee.init, max_minibatches),
    loss=Bound(_batches_loss, optimizee.loss, max_minibatches),
    outer_loss=optimizee.outer_loss and Bound(_plain, optimizee.outer_loss),
    metrics=optimizee.metrics and Bound(_plain, optimizee.metrics),
  )


def low_precision(optimizee: Optimizee, precision: Precision = "bfloat16") -> Optimizee:
  """f(round(theta)), with gradients that are rounded as well: mixed precision.

  The loss sees the params, and the optimizer the gradients, with the digits of `precision`; the
  params that the optimizer updates have all of theirs, as have activations. The outer loss and
  metrics see rounded params, too. Values beyond the range of float16 become infinite.

  Args:
    optimizee: what is rounded.
    precision: ``"bfloat16"`` (8 bits) or ``"float16"`` (11 bits, and a narrow range).

  Returns:
    The optimizee.

  Raises:
    ValueError: if there is no such precision.

  Example:
    >>> import jax
    >>> from learned_opt import optimizees
    >>> optimizee = optimizees.low_precision(optimizees.conditioned_quadratic(2, 1.0))
    >>> params, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> grads = jax.grad(optimizee.loss)(params, constants, (), jax.random.key(1))
    >>> bool((grads == grads.astype("bfloat16").astype("float32")).all())
    True
  """
  if precision not in get_args(Precision):
    names = " or ".join(map(repr, get_args(Precision)))
    raise ValueError(f"precision must be {names}, got {precision!r}")
  return dataclasses.replace(
    optimizee,
    loss=Bound(_of_rounded, precision, optimizee.loss),
    outer_loss=optimizee.outer_loss and Bound(_of_rounded, precision, optimizee.outer_loss),
    metrics=optimizee.metrics and Bound(_of_rounded, precision, optimizee.metrics),
  )


def _plain(function: Callable, params, constants: Augmented, *rest):
  return function(params, constants.constants, *rest)


def _augmented_init(init: Callable, logs: tuple[float, float], key: chex.PRNGKey, data):
  problem_key, strength_key = jax.random.split(key)
  params, constants = init(problem_key, data)
  strength = jnp.exp(jax.random.uniform(strength_key, (), minval=logs[0], maxval=logs[1]))
  return params, Augmented(strength, constants)


def _noisy_loss(loss: Callable, params, constants: Augmented, data, key):
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.fold_in(key, _NOISE), len(leaves))
  noisy = [
    _with_noise(leaf, constants.drawn.astype(leaf.dtype), key)
    for leaf, key in zip(leaves, keys, strict=True)
  ]
  return loss(treedef.unflatten(noisy), constants.constants, data, key)


@jax.custom_vjp
def _with_noise(x: jax.Array, strength: jax.Array, key: chex.PRNGKey) -> jax.Array:
  """X itself, whose gradient gets noise."""
  del strength, key
  return x


def _with_noise_forward(x, strength, key):
  return x, (strength, key)


def _with_noise_backward(kept, grad):
  strength, key = kept
  size = jnp.sqrt(jnp.mean(grad**2))
  noise = _draws.normal(key, grad.shape, grad.dtype)
  return grad + strength * size * noise, None, None


_with_noise.defvjp(_with_noise_forward, _with_noise_backward)


def _batches_init(init: Callable, max_minibatches: int, key: chex.PRNGKey, data):
  problem_key, number_key = jax.random.split(key)
  params, constants = init(problem_key, data)
  log = jax.random.uniform(number_key, (), maxval=math.log(max_minibatches + 1))
  number = jnp.minimum(jnp.exp(log).astype(jnp.int32), max_minibatches)
  return params, Augmented(number, constants)


def _batches_loss(loss: Callable, max_minibatches: int, params, constants: Augmented, data, key):
  index = jnp.arange(max_minibatches)
  losses = jax.vmap(
    lambda index: loss(params, constants.constants, data, jax.random.fold_in(key, index))
  )(index)
  counts = index < constants.drawn
  return jnp.sum(jnp.where(counts, losses, 0.0)) / constants.drawn.astype(losses.dtype)


def _of_rounded(precision: Precision, function: Callable, params, *rest):
  return function(jax.tree.map(functools.partial(_rounded, precision), params), *rest)


def _rounded(precision: Precision, x: jax.Array) -> jax.Array:
  return jax.lax.reduce_precision(x, *_BITS[precision])
