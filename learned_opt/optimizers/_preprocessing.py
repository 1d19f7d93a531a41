"""What a coordinatewise optimizer sees of a gradient (paper, appendix A)."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LogAndSign:
  """The magnitude and the sign of the gradient as two inputs of comparable size.

  For a gradient g (paper, appendix A):

      |g| >= exp(-p):  (log|g| / p, sign g)
      otherwise:       (-1, exp(p) g)

  Attributes:
    p: how small a gradient is still told apart by its magnitude, exp(-p). The paper's value is
      10 in all experiments, the released code's 5.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.optimizers import LogAndSign
    >>> LogAndSign(p=10.0)(jnp.array(-1.0)).tolist()
    [0.0, -1.0]
  """

  p: float = 10.0

  num_features = 2

  def __post_init__(self):
    if not (math.isfinite(self.p) and self.p > 0):
      raise ValueError(f"p must be positive and finite, got {self.p}")

  def __call__(self, grad: jax.Array) -> jax.Array:
    """Maps a scalar gradient to its ``[2]`` features."""
    # The floor keeps the logarithm of a zero gradient, and its derivative, finite.
    floor = jnp.finfo(grad.dtype).tiny
    magnitude = jnp.maximum(jnp.log(jnp.maximum(jnp.abs(grad), floor)) / self.p, -1.0)
    direction = jnp.clip(grad * math.exp(self.p), -1.0, 1.0)
    return jnp.stack([magnitude, direction], axis=-1)


@dataclasses.dataclass(frozen=True)
class Scale:
  """The gradient times a constant; a factor of one hands it over as it is.

  The paper reports that rescaling by a constant also works, slightly worse and less robustly than
  `LogAndSign`. The released code divides the quadratics' gradients by 128, as its loss is a mean
  over 128 problems: ``Scale(1 / 128)``.

  Attributes:
    factor: the constant.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.optimizers import Scale
    >>> Scale(0.5)(jnp.array(3.0)).tolist()
    [1.5]
  """

  factor: float = 1.0

  num_features = 1

  def __post_init__(self):
    if not (math.isfinite(self.factor) and self.factor != 0):
      raise ValueError(f"factor must be finite and not zero, got {self.factor}")

  def __call__(self, grad: jax.Array) -> jax.Array:
    """Maps a scalar gradient to its ``[1]`` feature."""
    return self.factor * grad[..., None]


@dataclasses.dataclass(frozen=True)
class Identity:
  """The gradient itself, as the paper has it for the quadratics.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.optimizers import Identity
    >>> Identity()(jnp.array(3.0)).tolist()
    [3.0]
  """

  num_features = 1

  def __call__(self, grad: jax.Array) -> jax.Array:
    """Maps a scalar gradient to its ``[1]`` feature."""
    return grad[..., None]


Preprocessing = LogAndSign | Scale | Identity
