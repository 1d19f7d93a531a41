"""Learned optimizers in Flax: linen's TrainState and nnx.Optimizer."""

import chex
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import OPTIMIZERS, meta_params_of
from flax import nnx
from flax.training.train_state import TrainState

ALL = pytest.mark.parametrize("case", OPTIMIZERS.values(), ids=OPTIMIZERS)
X = np.linspace(-1.0, 2.0, 15, dtype=np.float32).reshape(5, 3)
Y = np.sin(3.0 * X[:, :2])
NUM_STEPS = 4


def bind(case):
  architecture = case.make()
  return architecture.optimizer(meta_params_of(architecture))


def plain_training(tx, params, loss_fn, with_value=True):
  """What the classes of Flax should come to."""

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state, params, **({"value": value} if with_value else {}))
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(NUM_STEPS):
    params, state = step(params, state)
  return params, state


@pytest.fixture
def linen_loss(key):
  model = nn.Dense(2)
  return lambda params: jnp.mean((model.apply(params, X) - Y) ** 2)


@pytest.fixture
def linen_params():
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
  return {"params": {"kernel": kernel, "bias": jnp.array([0.5, -0.25])}}


@ALL
def test_linen_train_state(case, linen_params, linen_loss):
  tx = bind(case)
  state = TrainState.create(apply_fn=nn.Dense(2).apply, params=linen_params, tx=tx)

  @jax.jit
  @chex.assert_max_traces(n=1)
  def step(state):
    return state.apply_gradients(grads=jax.grad(linen_loss)(state.params))

  # Linen starts to count with a Python integer, of which XLA would make another type.
  state = state.replace(step=jnp.zeros((), jnp.int32))
  for _ in range(NUM_STEPS):
    state = step(state)
  # A train state tells the loss to nobody.
  params, opt_state = plain_training(tx, linen_params, linen_loss, not case.reads_loss)
  assert int(state.step) == NUM_STEPS
  chex.assert_trees_all_close(state.params, params, rtol=1e-5, atol=1e-7)
  chex.assert_trees_all_close(state.opt_state, opt_state, rtol=1e-5, atol=1e-7)


@ALL
def test_a_train_state_continues_from_its_bytes(case, linen_params, linen_loss):
  """A checkpoint holds the optimizer's state; the weights of the optimizer stay out of it."""
  tx = bind(case)
  start = TrainState.create(apply_fn=nn.Dense(2).apply, params=linen_params, tx=tx)

  @jax.jit
  def step(state):
    return state.apply_gradients(grads=jax.grad(linen_loss)(state.params))

  half = step(start)
  content = flax.serialization.to_bytes(half)
  restored = flax.serialization.from_bytes(start, content)
  chex.assert_trees_all_equal(step(restored).params, step(half).params)
  num_numbers = sum(leaf.size for leaf in jax.tree.leaves((half.params, half.opt_state)))
  assert len(content) < 4 * num_numbers + 1000


class Model(nnx.Module):
  """A linear layer, and a count of its calls, which is no parameter."""

  def __init__(self):
    rng = np.random.default_rng(1)
    self.kernel = nnx.Param(jnp.asarray(rng.normal(size=(3, 2)), jnp.float32))
    self.bias = nnx.Param(jnp.array([0.5, -0.25]))
    self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

  def __call__(self, x):
    self.calls[...] += 1
    return x @ self.kernel[...] + self.bias[...][None]


def nnx_loss(model):
  return jnp.mean((model(X) - Y) ** 2)


@ALL
@pytest.mark.parametrize("with_value", [False, True])
def test_nnx_optimizer(case, with_value):
  tx, model = bind(case), Model()
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  params = {"kernel": model.kernel[...], "bias": model.bias[...]}

  @nnx.jit
  def step(model, optimizer):
    value, grads = nnx.value_and_grad(nnx_loss)(model)
    optimizer.update(model, grads, **({"value": value} if with_value else {}))

  for _ in range(NUM_STEPS):
    step(model, optimizer)
  expected, _ = plain_training(
    tx,
    params,
    lambda p: jnp.mean((X @ p["kernel"] + p["bias"][None] - Y) ** 2),
    with_value or not case.reads_loss,
  )
  np.testing.assert_allclose(model.kernel[...], expected["kernel"], rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(model.bias[...], expected["bias"], rtol=1e-5, atol=1e-7)
  assert int(optimizer.step[...]) == int(model.calls[...]) == NUM_STEPS


@ALL
def test_nnx_optimizer_hands_the_value_on(case):
  """`reduce_on_plateau` fails without it."""
  tx, model = bind(case), Model()
  plateau = optax.contrib.reduce_on_plateau(patience=100)
  optimizer = nnx.Optimizer(model, optax.chain(tx, plateau), wrt=nnx.Param)

  @nnx.jit(static_argnames="with_value")
  def step(model, optimizer, with_value):
    value, grads = nnx.value_and_grad(nnx_loss)(model)
    optimizer.update(model, grads, **({"value": value} if with_value else {}))

  before = model.kernel[...]
  step(model, optimizer, with_value=True)
  assert float(jnp.abs(model.kernel[...] - before).max()) > 0
  with pytest.raises(TypeError, match="value"):
    step(model, optimizer, with_value=False)
