"""Optimizees made of other optimizees: the training tricks of Lv et al. (2017)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from learned_opt import _draws
from learned_opt.base import LossFn, Optimizee
from learned_opt.optimizees._bound import Bound

Per = Literal["coordinate", "tensor", "problem"]

# Where the helper stops to rise.
_CEILING = 10.0


class Scaled(NamedTuple):
  """The constants of a scaled problem: c, a tree as the params', and those of the problem."""

  scales: Any
  constants: Any


class WithHelper(NamedTuple):
  """The params, or the constants, of a problem beside those of the convex one."""

  problem: Any
  helper: Any


def random_scaling(optimizee: Optimizee, radius: float = 3.0, per: Per = "coordinate") -> Optimizee:
  """f(c theta) in place of f(theta), with random factors c: params of many different scales.

  Each coordinate, tensor or problem has a factor of its own, exp(u) with u uniform on
  [-radius, radius]. The problem starts where it would have started, from theta_0 / c. What is
  trained on it cannot rely on the size of gradients.

  Source: Lv, Jiang and Li (2017), with factors of coordinates, and a radius of 3 for networks and 1
  for the convex helper. The augmentation of Metz et al. (2022) and Moudgil et al. (2025) has one
  factor a problem, log-uniform between 1e-3 and 1e3: a radius of log(1000) = 6.9.

  Args:
    optimizee: whose problems are scaled; its outer loss and metrics see c theta, too.
    radius: r; zero scales nothing.
    per: what has a factor of its own, each ``"coordinate"``, each ``"tensor"`` of a problem, or
      each ``"problem"``.

  Returns:
    The optimizee.

  Raises:
    ValueError: if `radius` is negative or not finite, or there is no such `per`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizees
    >>> plain = optimizees.quadratic()
    >>> scaled = optimizees.random_scaling(plain, radius=2.0)
    >>> key = jax.random.key(0)
    >>> params, constants = scaled.init(key, scaled.data)
    >>> loss = scaled.loss(params, constants, scaled.data, key)
    >>> theta = constants.scales * params
    >>> bool(jnp.allclose(loss, plain.loss(theta, constants.constants, plain.data, key)))
    True
  """
  if not (math.isfinite(radius) and radius >= 0):
    raise ValueError(f"radius must be finite and not negative, got {radius}")
  if per not in get_args(Per):
    raise ValueError(f"per must be one of {', '.join(get_args(Per))}, got {per!r}")
  return dataclasses.replace(
    optimizee,
    init=Bound(_scaled_init, optimizee.init, (float(radius), per)),
    loss=Bound(_scaled, optimizee.loss),
    outer_loss=optimizee.outer_loss and Bound(_scaled, optimizee.outer_loss),
    metrics=optimizee.metrics and Bound(_scaled, optimizee.metrics),
  )


def convex_helper(optimizee: Optimizee, dimension: int = 20, radius: float = 1.0) -> Optimizee:
  """f(theta) + h(x), with params (theta, x): every problem has an easy part as well.

  The convex part is h(x) = mean_i min((x_i - a_i)^2, 10), from x = 0, with a uniform on [-1, 1]
  and the coordinates scaled as by `random_scaling`. What is trained on it learns that to follow
  gradients helps, even where f is hopeless.

  Source: Lv, Jiang and Li (2017).

  Args:
    optimizee: f; its metrics stay as they are, its outer loss, if any, has h added as well.
    dimension: coordinates of x.
    radius: of the scaling of x.

  Returns:
    The optimizee; its params and constants are pairs ``(problem, helper)``.

  Raises:
    ValueError: if `dimension` is not positive, or `radius` is negative or not finite.

  Example:
    >>> import jax
    >>> from learned_opt import optimizees
    >>> optimizee = optimizees.convex_helper(optimizees.quadratic(), dimension=5)
    >>> params, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> params.problem.shape, params.helper.shape
    ((10,), (5,))
  """
  if dimension < 1:
    raise ValueError(f"dimension must be at least 1, got {dimension}")
  helper = random_scaling(Optimizee(Bound(_helper_init, dimension), _helper_loss), radius)
  return dataclasses.replace(
    optimizee,
    init=Bound(_pair_init, optimizee.init, helper.init),
    loss=Bound(_pair_loss, optimizee.loss, helper.loss),
    outer_loss=optimizee.outer_loss and Bound(_pair_loss, optimizee.outer_loss, helper.loss),
    metrics=optimizee.metrics and Bound(_pair_metrics, optimizee.metrics),
  )


def _scaled_init(init: Callable, options: tuple[float, Per], key: chex.PRNGKey, data):
  radius, per = options
  problem_key, scales_key = jax.random.split(key)
  params, constants = init(problem_key, data)
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(scales_key, len(leaves))

  def factors(index: int, leaf: jax.Array) -> jax.Array:
    key = scales_key if per == "problem" else keys[index]
    shape = leaf.shape if per == "coordinate" else ()
    return jnp.exp(_draws.uniform(key, shape, leaf.dtype, -radius, radius))

  scales = treedef.unflatten(factors(index, leaf) for index, leaf in enumerate(leaves))
  return jax.tree.map(jnp.divide, params, scales), Scaled(scales, constants)


def _scaled(function: Callable, params, constants: Scaled, *rest):
  params = jax.tree.map(jnp.multiply, constants.scales, params)
  return function(params, constants.constants, *rest)


def _helper_init(dimension: int, key: chex.PRNGKey, data):
  del data
  return jnp.zeros(dimension), _draws.uniform(key, (dimension,), minval=-1.0)


def _helper_loss(params, constants, data, key):
  del data, key
  return jnp.mean(jnp.minimum((params - constants) ** 2, _CEILING))


def _pair_init(problem_init: Callable, helper_init: Callable, key: chex.PRNGKey, data):
  problem_key, helper_key = jax.random.split(key)
  params, constants = problem_init(problem_key, data)
  helper_params, helper_constants = helper_init(helper_key, ())
  return WithHelper(params, helper_params), WithHelper(constants, helper_constants)


def _pair_loss(problem: LossFn, helper: LossFn, params, constants, data, key):
  loss = problem(params.problem, constants.problem, data, key)
  return loss + helper(params.helper, constants.helper, (), key)


def _pair_metrics(metrics: Callable, params, constants, data):
  return metrics(params.problem, constants.problem, data)
