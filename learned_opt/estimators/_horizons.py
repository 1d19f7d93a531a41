"""Horizons: how many inner steps a problem sees, drawn anew for each problem.

A horizon is a small immutable value with ``draw(key, num_estimates) -> int32 scalar`` and the
bounds `shortest` and `longest` of what may be drawn. Any object with these will do.
"""

import dataclasses
import math
import numbers
from typing import Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp


@runtime_checkable
class Horizon(Protocol):
  """How many inner steps a problem sees."""

  @property
  def shortest(self) -> int:
    """The least that `draw` gives."""
    ...

  @property
  def longest(self) -> int:
    """The most that `draw` gives; what validation uses."""
    ...

  def draw(self, key: chex.PRNGKey, num_estimates: jax.Array) -> jax.Array:
    """The horizon of one problem, an int32 scalar, after so many estimates."""
    ...


@dataclasses.dataclass(frozen=True)
class Constant:
  """The same for all problems.

  Attributes:
    num_steps: T.

  Example:
    >>> from learned_opt import estimators
    >>> estimators.Constant(50).longest
    50
  """

  num_steps: int

  def __post_init__(self):
    _check_bounds(self.num_steps, self.num_steps)

  @property
  def shortest(self) -> int:
    return self.num_steps

  @property
  def longest(self) -> int:
    return self.num_steps

  def draw(self, key: chex.PRNGKey, num_estimates: jax.Array) -> jax.Array:
    del key, num_estimates
    return jnp.int32(self.num_steps)


@dataclasses.dataclass(frozen=True)
class LogUniform:
  """Drawn anew for each problem, with log T uniform.

  Attributes:
    shortest: the least.
    longest: the most.

  Source: Metz et al. (2022), "VeLO", and Moudgil et al. (2025), "Celo": from 100 to 2,000.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import estimators
    >>> drawn = estimators.LogUniform(10, 100).draw(jax.random.key(0), jnp.int32(0))
    >>> 10 <= int(drawn) <= 100
    True
  """

  shortest: int
  longest: int

  def __post_init__(self):
    _check_bounds(self.shortest, self.longest)

  def draw(self, key: chex.PRNGKey, num_estimates: jax.Array) -> jax.Array:
    del num_estimates
    # Rounded down from an interval that is one longer, so that the longest can be drawn as well.
    drawn = jax.random.uniform(
      key, (), jnp.float32, math.log(self.shortest), math.log(self.longest + 1)
    )
    return jnp.clip(jnp.exp(drawn).astype(jnp.int32), self.shortest, self.longest)


@dataclasses.dataclass(frozen=True)
class Growing:
  """The same for all problems that begin at one time, and growing over the meta-training.

  After k estimates, T = first (last / first)^min(k / num_estimates, 1), rounded. A problem keeps
  the horizon with which it began.

  Attributes:
    first: T at the beginning.
    last: T from `num_estimates` on.
    num_estimates: over how many estimates it grows; an estimate is one outer step.

  Source: Metz et al. (2019), section 4, where the unroll length grows.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import estimators
    >>> horizon, key = estimators.Growing(10, 1000, num_estimates=200), jax.random.key(0)
    >>> [int(horizon.draw(key, jnp.int32(k))) for k in (0, 100, 200, 300)]
    [10, 100, 1000, 1000]
  """

  first: int
  last: int
  num_estimates: int

  def __post_init__(self):
    _check_bounds(self.first, self.last)
    if self.num_estimates < 1:
      raise ValueError(f"num_estimates must be at least 1, got {self.num_estimates}")

  @property
  def shortest(self) -> int:
    return self.first

  @property
  def longest(self) -> int:
    return self.last

  def draw(self, key: chex.PRNGKey, num_estimates: jax.Array) -> jax.Array:
    del key
    done = jnp.minimum(num_estimates.astype(jnp.float32) / self.num_estimates, 1.0)
    growth = math.log(self.last / self.first)
    return jnp.round(self.first * jnp.exp(done * growth)).astype(jnp.int32)


def as_horizon(horizon: int | tuple[int, int] | Horizon) -> Horizon:
  """A number as a `Constant`, a pair of numbers as a `LogUniform`, the others as they are.

  Raises:
    TypeError: if it is none of these.
    ValueError: if a number is not positive, or the bounds are in the wrong order.
  """
  if isinstance(horizon, numbers.Integral):
    return Constant(int(horizon))
  if isinstance(horizon, tuple | list) and len(horizon) == 2:
    return LogUniform(*horizon)
  if isinstance(horizon, Horizon):
    return horizon
  raise TypeError(
    "horizon must be a number of steps, a pair (shortest, longest), or a horizon such as "
    f"estimators.Growing(10, 100, num_estimates=1000), got {horizon!r}"
  )


def _check_bounds(shortest: int, longest: int) -> None:
  for bound in (shortest, longest):
    if not isinstance(bound, numbers.Integral):
      raise TypeError(f"horizon must be of whole steps, got {bound!r}")
  if shortest < 1:
    raise ValueError(f"horizon must be at least 1, got {shortest}")
  if longest < shortest:
    raise ValueError(f"horizon must not be longest first, got {shortest} and {longest}")
