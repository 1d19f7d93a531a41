"""Meta-training driven from the host, as a stated comparison for the one compiled program.

The same outer step as that of `estimators.pes` in the way in which it is often written: minibatches
are gathered by numpy and sent to the device, a dispatch takes a few inner steps of all problems,
the two signs of the noise take turns, and the estimate is put together at the end.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt.base import ImageDataset, InnerState, LearnedOptimizer, Optimizee
from learned_opt.unroll import init_inner_state, inner_step

_SIGNS = (1.0, -1.0)


class Settings(NamedTuple):
  """Sizes of the loop.

  Attributes:
    num_problems: particles.
    unroll_length: inner steps of one outer step.
    steps_per_dispatch: inner steps of one dispatch, a divisor of `unroll_length`.
    horizon: inner steps of one problem.
    batch_size: images of one minibatch.
    sigma: the standard deviation of the noise.
  """

  num_problems: int
  unroll_length: int
  steps_per_dispatch: int
  horizon: int
  batch_size: int
  sigma: float = 0.01


class HostFedPES:
  """Persistent evolution strategies, one outer step a call; state lives in the object.

  Args:
    optimizee: image classifiers.
    learned_optimizer: the architecture.
    outer_optimizer: of the meta-params.
    settings: sizes.
    key: of everything random on the device.
  """

  def __init__(
    self,
    optimizee: Optimizee,
    learned_optimizer: LearnedOptimizer,
    outer_optimizer: optax.GradientTransformation,
    settings: Settings,
    key: chex.PRNGKey,
  ):
    self._settings = settings
    self._images, self._labels = map(np.asarray, optimizee.data.train)
    self._rng = np.random.default_rng(0)
    self._key = key
    # What a minibatch is put into.
    self._optimizee = dataclasses.replace(optimizee, data=())
    self.meta_params = learned_optimizer.init(key)
    self._outer_state = outer_optimizer.init(self.meta_params)
    keys = jax.random.split(key, settings.num_problems)
    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    self._sum = zeros(_noise(settings, self.meta_params, keys))
    parts = (self._optimizee, learned_optimizer, settings)
    self._prepare = jax.jit(functools.partial(_prepare, *parts))
    self._advance = jax.jit(functools.partial(_advance, *parts), donate_argnums=(2,))
    self._finish = jax.jit(functools.partial(_finish, outer_optimizer, settings))
    start = jax.jit(functools.partial(_draw, *parts))(self.meta_params, keys)
    self._problems: list[Any] = [start, jax.tree.map(jnp.copy, start)]

  def step(self) -> jax.Array:
    """One outer step; the mean loss."""
    settings = self._settings
    self._key, key = jax.random.split(self._key)
    noise, self._sum, self._problems = self._prepare(
      self.meta_params, self._sum, self._problems, key
    )
    number = settings.unroll_length // settings.steps_per_dispatch
    batches = [self._batches() for _ in range(number)]
    losses: list[list[jax.Array]] = [[], []]
    for index, sign in enumerate(_SIGNS):
      for batch in batches:
        self._problems[index], chunk = self._advance(
          self.meta_params, noise, self._problems[index], sign, batch
        )
        losses[index].append(chunk)
    self.meta_params, self._outer_state, loss = self._finish(
      self.meta_params, self._outer_state, self._sum, losses
    )
    return loss

  def _batches(self) -> ImageDataset:
    settings = self._settings
    shape = (settings.num_problems, settings.steps_per_dispatch, settings.batch_size)
    index = self._rng.integers(len(self._images), size=shape)
    batch = (self._images[index], self._labels[index])
    return ImageDataset(batch, (), ())  # pyright: ignore[reportArgumentType]


def _noise(settings: Settings, meta_params: chex.ArrayTree, keys: chex.PRNGKey) -> Any:
  def draw(key: chex.PRNGKey) -> Any:
    return optax.tree.random_like(key, meta_params, jax.random.normal)

  return jax.tree.map(lambda leaf: settings.sigma * leaf, jax.vmap(draw)(keys))


def _draw(
  optimizee: Optimizee,
  learned_optimizer: LearnedOptimizer,
  settings: Settings,
  meta_params: chex.ArrayTree,
  keys: chex.PRNGKey,
) -> InnerState:
  del settings
  tx = learned_optimizer.optimizer(meta_params)
  return jax.vmap(lambda key: init_inner_state(optimizee, tx, key))(keys)


def _prepare(
  optimizee: Optimizee,
  learned_optimizer: LearnedOptimizer,
  settings: Settings,
  meta_params: chex.ArrayTree,
  total: chex.ArrayTree,
  problems: list[InnerState],
  key: chex.PRNGKey,
) -> tuple[chex.ArrayTree, chex.ArrayTree, list[InnerState]]:
  """The noise, its sums over each episode, and problems, replaced where they have ended."""
  noise_keys, problem_keys = (
    jax.random.split(key, settings.num_problems) for key in jax.random.split(key)
  )
  noise = _noise(settings, meta_params, noise_keys)
  fresh = _draw(optimizee, learned_optimizer, settings, meta_params, problem_keys)
  over = problems[0].step >= settings.horizon

  def choose(on_true: jax.Array, on_false: jax.Array) -> jax.Array:
    return jnp.where(over.reshape(-1, *(1,) * (on_true.ndim - 1)), on_true, on_false)

  total = jax.tree.map(lambda new, old: new + choose(jnp.zeros_like(old), old), noise, total)
  return noise, total, [jax.tree.map(choose, fresh, one) for one in problems]


def _advance(
  optimizee: Optimizee,
  learned_optimizer: LearnedOptimizer,
  settings: Settings,
  meta_params: chex.ArrayTree,
  noise: chex.ArrayTree,
  problems: InnerState,
  sign: jax.Array,
  batches: ImageDataset,
) -> tuple[InnerState, jax.Array]:
  """A few inner steps of all problems with one sign of their noise; their losses."""

  def run(noise: chex.ArrayTree, problem: InnerState, batches: ImageDataset):
    phi = jax.tree.map(lambda leaf, by: leaf + sign * by, meta_params, noise)
    tx = learned_optimizer.optimizer(phi)

    def step(problem: InnerState, batch: ImageDataset):
      fed = dataclasses.replace(optimizee, data=batch)
      return inner_step(fed, tx, problem, horizon=settings.horizon)

    return jax.lax.scan(step, problem, batches)

  return jax.vmap(run)(noise, problems, batches)


def _finish(
  outer_optimizer: optax.GradientTransformation,
  settings: Settings,
  meta_params: chex.ArrayTree,
  outer_state: Any,
  total: chex.ArrayTree,
  losses: list[list[jax.Array]],
) -> tuple[Any, Any, jax.Array]:
  """The estimate from the losses of both signs, and the outer update along it."""
  means = [jnp.mean(jnp.concatenate(chunks, axis=1), axis=1) for chunks in losses]
  difference = means[0] - means[1]
  difference = jnp.where(jnp.isfinite(difference), difference, 0.0)
  scale = 2 * settings.sigma**2 * settings.num_problems
  meta_grads = jax.tree.map(lambda leaf: jnp.tensordot(difference, leaf, 1) / scale, total)
  updates, outer_state = outer_optimizer.update(meta_grads, outer_state, meta_params)
  return optax.apply_updates(meta_params, updates), outer_state, jnp.mean(means[0] + means[1]) / 2
