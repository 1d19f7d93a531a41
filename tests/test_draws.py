"""Random arrays: the numbers are those of jax.random and of flax, whatever the shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import initializers

from learned_opt import _draws

DRAWS = {
  "uniform": (_draws.uniform, jax.random.uniform),
  "between": (
    lambda key, shape, dtype: _draws.uniform(key, shape, dtype, -3.0, 5.0),
    lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -3.0, 5.0),
  ),
  "normal": (_draws.normal, jax.random.normal),
  "truncated_normal": (
    _draws.truncated_normal,
    lambda key, shape, dtype: jax.random.truncated_normal(key, -2, 2, shape, dtype),
  ),
  "normal_init": (_draws.normal_init(0.1), initializers.normal(0.1)),
  "truncated_normal_init": (
    _draws.truncated_normal_init(0.3),
    initializers.truncated_normal(0.3),
  ),
  "lecun_normal_init": (_draws.lecun_normal_init(), initializers.lecun_normal()),
}


@pytest.mark.parametrize("transform", ["eager", "jit", "vmap"])
@pytest.mark.parametrize("name", DRAWS)
def test_the_numbers_are_those_of_jax_and_flax(key, name, transform):
  for shape in [(), (1,), (10,), (0, 3), (20, 10), (2, 80), (3, 3, 2, 5)]:
    if name.startswith("lecun") and (len(shape) < 2 or 0 in shape):
      continue
    ours, theirs = (
      {
        "eager": draw,
        "jit": jax.jit(draw, static_argnums=(1, 2)),
        "vmap": lambda key, *args, draw=draw: jax.jit(jax.vmap(lambda k: draw(k, *args)))(
          jax.random.split(key, 3)
        ),
      }[transform](key, shape, jnp.float32)
      for draw in DRAWS[name]
    )
    assert ours.dtype == jnp.float32
    # The bits are the same; how XLA rounds what it makes of them depends on the shape.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", DRAWS)
def test_in_float64_too(x64, key, name):
  ours, theirs = (draw(key, (7, 3), jnp.float64) for draw in DRAWS[name])
  assert ours.dtype == jnp.float64
  np.testing.assert_allclose(ours, theirs, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", DRAWS)
def test_floats_are_as_wide_as_jax_has_them(x64, key, name):
  draw = DRAWS[name][0]
  if name != "between":
    assert draw(key, (7, 3)).dtype == jnp.float64
  assert draw(key, (7, 3), jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("draw", [_draws.uniform, _draws.normal, _draws.truncated_normal])
def test_the_bits_are_drawn_in_a_row(key, draw):
  program = jax.jit(lambda key: draw(key, (20, 10))).lower(key).as_text()
  assert "208xui32" in program
  # Loops over these axes would be unrolled.
  assert "20x10xui32" not in program
