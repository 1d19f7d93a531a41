"""The classical test functions of optimization, moved and turned at random."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from learned_opt import _draws
from learned_opt.base import Optimizee
from learned_opt.optimizees._orthogonal import random_orthogonal

ClassicalName = Literal[
  "sphere",
  "rosenbrock",
  "rastrigin",
  "ackley",
  "styblinski_tang",
  "griewank",
  "levy",
  "beale",
  "himmelblau",
  "booth",
]


class ClassicalConstants(NamedTuple):
  """The constants of one problem.

  Attributes:
    rotation: ``[dimension, dimension]``, orthogonal.
    shift: ``[dimension]``, where the origin of the function lies.
    function: int32 scalar, which of the functions it is.
  """

  rotation: jax.Array
  shift: jax.Array
  function: jax.Array


def classical_functions(
  functions: Sequence[ClassicalName] = ("rosenbrock", "beale", "rastrigin", "ackley"),
  dimension: int = 2,
  rotated: bool = True,
  shift: float = 1.0,
  noise: float = 0.0,
) -> Optimizee:
  """f(Q (theta - s)), f one of the classical test functions, with a rotation Q and a shift s.

  Each problem draws one of the functions, a rotation or reflection Q that is uniform over all of
  them (Haar), a Gaussian s, and its start: Q (theta_0 - s) is uniform in the box in which the
  function is usually minimised. All minima are zero; that of Styblinski and Tang's function is
  moved there. Where the functions differ the problems still run in one program, which computes all
  of those that are listed for each problem.

  Source: functions and boxes are those of Jamil and Yang (2013) and Surjanovic and Bingham; a
  family of the training problems of Wichrowska et al. (2017), section 4.

  Args:
    functions: of which each problem has one: ``"sphere"``, ``"rosenbrock"``, ``"rastrigin"``,
      ``"ackley"``, ``"styblinski_tang"``, ``"griewank"``, ``"levy"``; and in two dimensions only
      ``"beale"``, ``"himmelblau"``, ``"booth"``.
    dimension: coordinates of theta.
    rotated: whether Q is drawn; otherwise it is the identity.
    shift: standard deviation of s.
    noise: standard deviation of what is added to the gradient of each coordinate, by the step's
      key; the value of the loss is that without noise.

  Returns:
    The optimizee; its params are a float32 ``[dimension]`` vector.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> import jax
    >>> from learned_opt import optimizees
    >>> optimizee = optimizees.classical_functions(("rosenbrock",), rotated=False, shift=0.0)
    >>> params, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> float(optimizee.loss(jax.numpy.ones(2), constants, (), jax.random.key(1)))
    0.0
  """
  functions = tuple(functions)
  unknown = set(functions) - set(get_args(ClassicalName))
  if unknown or not functions:
    known = ", ".join(get_args(ClassicalName))
    raise ValueError(f"functions must be some of {known}, got {functions}")
  if dimension < 2:
    raise ValueError(f"dimension must be at least 2, got {dimension}")
  flat = sorted(_IN_TWO_DIMENSIONS & set(functions))
  if dimension != 2 and flat:
    raise ValueError(f"{', '.join(flat)} need dimension=2, got {dimension}")
  for name, value in (("shift", shift), ("noise", noise)):
    if not (math.isfinite(value) and value >= 0):
      raise ValueError(f"{name} must be finite and not negative, got {value}")
  return _classical_functions(functions, dimension, bool(rotated), float(shift), float(noise))


# Equal arguments give the same functions, however they are passed: no second compilation for them.
@functools.cache
def _classical_functions(
  names: tuple[str, ...], dimension: int, rotated: bool, shift: float, noise: float
) -> Optimizee:
  values = [_FUNCTIONS[name][0] for name in names]
  boxes = [_FUNCTIONS[name][1] for name in names]

  def init(key, data):
    del data
    rotation_key, shift_key, function_key, start_key = jax.random.split(key, 4)
    rotation = random_orthogonal(rotation_key, dimension) if rotated else jnp.eye(dimension)
    function = jax.random.randint(function_key, (), 0, len(names))
    low, high = jnp.asarray(boxes, jnp.float32)[function]
    start = low + (high - low) * _draws.uniform(start_key, (dimension,))
    constants = ClassicalConstants(
      rotation, shift * _draws.normal(shift_key, (dimension,)), function
    )
    return rotation.T @ start + constants.shift, constants

  def loss(params, constants, data, key):
    del data
    x = constants.rotation @ (params - constants.shift)
    value = jax.lax.switch(constants.function, values, x) if len(values) > 1 else values[0](x)
    if noise:
      force = noise * _draws.normal(key, (dimension,))
      value += force @ (params - jax.lax.stop_gradient(params))
    return value

  return Optimizee(init, loss)


def _sphere(x: jax.Array) -> jax.Array:
  return jnp.sum(x**2)


def _rosenbrock(x: jax.Array) -> jax.Array:
  return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def _rastrigin(x: jax.Array) -> jax.Array:
  return jnp.sum(x**2 + 10 * (1 - jnp.cos(2 * math.pi * x)))


def _ackley(x: jax.Array) -> jax.Array:
  # The root has no derivative at the minimum; this is off by less than 1e-6 there.
  norm = jnp.sqrt(jnp.mean(x**2) + 1e-14)
  waves = jnp.mean(jnp.cos(2 * math.pi * x))
  return 20 * (1 - jnp.exp(-0.2 * norm)) + math.e - jnp.exp(waves)


def _styblinski_tang(x: jax.Array) -> jax.Array:
  return jnp.sum(x**4 - 16 * x**2 + 5 * x) / 2 + 39.16616570377142 * x.size


def _griewank(x: jax.Array) -> jax.Array:
  roots = jnp.sqrt(jnp.arange(1.0, x.size + 1))
  return jnp.sum(x**2) / 4000 + 1 - jnp.prod(jnp.cos(x / roots))


def _levy(x: jax.Array) -> jax.Array:
  w = 1 + (x - 1) / 4
  middle = (w[:-1] - 1) ** 2 * (1 + 10 * jnp.sin(math.pi * w[:-1] + 1) ** 2)
  last = (w[-1] - 1) ** 2 * (1 + jnp.sin(2 * math.pi * w[-1]) ** 2)
  return jnp.sin(math.pi * w[0]) ** 2 + jnp.sum(middle) + last


def _beale(x: jax.Array) -> jax.Array:
  x, y = x
  return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def _himmelblau(x: jax.Array) -> jax.Array:
  x, y = x
  return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def _booth(x: jax.Array) -> jax.Array:
  x, y = x
  return (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2


# With the box in which each is minimised, the same in all directions. Beale's and Griewank's are
# narrower than usual, as gradients do not lead out of the corners of the one, and the other is a
# plain bowl far out.
_FUNCTIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], tuple[float, float]]] = {
  "sphere": (_sphere, (-5.12, 5.12)),
  "rosenbrock": (_rosenbrock, (-2.048, 2.048)),
  "rastrigin": (_rastrigin, (-5.12, 5.12)),
  "ackley": (_ackley, (-32.768, 32.768)),
  "styblinski_tang": (_styblinski_tang, (-5.0, 5.0)),
  "griewank": (_griewank, (-20.0, 20.0)),
  "levy": (_levy, (-10.0, 10.0)),
  "beale": (_beale, (-2.0, 2.0)),
  "himmelblau": (_himmelblau, (-5.0, 5.0)),
  "booth": (_booth, (-10.0, 10.0)),
}
_IN_TWO_DIMENSIONS = {"beale", "himmelblau", "booth"}
