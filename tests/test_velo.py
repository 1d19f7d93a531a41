"""VeLO, Celo and Celo-Adam: what they see, what they are told, and what is at rest.

That they compute what the published code does is tested in test_published.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import meta_params_of

from learned_opt import optimizers
from learned_opt.optimizers import _scheduler

SMALL = {
  "velo": functools.partial(optimizers.velo, 4, 3, 1, 3, bank_scale=1.0),
  "celo": functools.partial(optimizers.celo, 4, 1, 3),
  "celo_adam": functools.partial(optimizers.celo_adam, 4),
}
EACH = pytest.mark.parametrize("name", SMALL)
# Tensors of one shape only: quick to compile.
PARAMS = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([0.7, -0.2, 0.1])}
GRADS = {"a": jnp.array([0.3, 0.5, -0.1]), "b": jnp.array([-0.2, 0.8, 0.6])}


def numpy_loss_features(losses, num_steps):
  """Metz et al. (2022): of ten means of the losses each beside the next slower one."""
  decays = np.exp(-1 / np.logspace(1, np.log10(num_steps), 10))
  means, minima = np.zeros(10), np.full(10, 999999999999.0)
  for step, loss in enumerate(losses):
    largest = loss if step == 0 else np.max(means / (1 - decays ** (step + 1)))
    means = decays * means + (1 - decays) * min(2 * abs(largest), loss)
    corrected = means / (1 - decays ** (step + 1))
    minima = np.minimum(minima, corrected)
    above = np.maximum(corrected[1:] - minima[:-1], 1e-8)
    features = np.clip((corrected[:-1] - minima[:-1]) / above - 1, -1, 1)
    yield features if step > 1 else np.zeros(9)


@pytest.mark.parametrize("num_steps", [1000, 20])
def test_loss_features_equal_numpy(num_steps, x64):
  # Falling, then a jump to far more than twice the mean, then rising.
  losses = [3.0, 2.5, 2.0, 1.2, 50.0, 1.1, 1.3, 1.5]
  state, observe = _scheduler.init_losses(np.float64), jax.jit(_scheduler.observe_loss)
  expected = list(numpy_loss_features(losses, num_steps))
  for step, loss in enumerate(losses):
    state, features = observe(state, jnp.array(loss), jnp.array(step), jnp.array(float(num_steps)))
    np.testing.assert_allclose(features, expected[step], rtol=1e-9, atol=1e-12)
  assert len(np.unique(np.sign(expected[4:]))) > 1


@functools.cache
def compiled(name, planned=None, **options):
  architecture = SMALL[name](num_steps=planned, **options)
  tx = architecture.optimizer(meta_params_of(architecture))
  return tx.init, jax.jit(tx.update)


def run(name, losses, params=PARAMS, grads=GRADS, num_steps=20.0, **options):
  """The updates of the steps that see these losses, on gradients that stay the same."""
  init, update = compiled(name, **options)
  planned = {} if num_steps is None else {"num_steps": num_steps}
  state, found = init(params), []
  for loss in losses:
    updates, state = update(grads, state, params, value=loss, **planned)
    found.append(updates)
  return found


def close(a, b, rtol):
  return all(np.allclose(a[name], b[name], rtol=rtol, atol=0) for name in a)


@EACH
def test_what_is_missing_is_named(name):
  architecture = SMALL[name]()
  tx = architecture.optimizer(meta_params_of(architecture))
  state = tx.init(PARAMS)
  with pytest.raises(ValueError, match=f"{name} reads the loss: call tx.update"):
    tx.update(GRADS, state, PARAMS, num_steps=10)
  with pytest.raises(ValueError, match=r"as a scalar, got value of shape \(2,\)"):
    tx.update(GRADS, state, PARAMS, value=jnp.ones(2), num_steps=10)
  with pytest.raises(
    ValueError, match=rf"{name} plans the whole training: .*{name}\(num_steps=n\)"
  ):
    tx.update(GRADS, state, PARAMS, value=1.0)
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    tx.update(GRADS, state, PARAMS, value=1.0, num_steps=0)
  with pytest.raises(ValueError, match="num_steps must be at least 1, got -1"):
    SMALL[name](num_steps=-1)


@EACH
def test_steps_of_the_update_go_before_those_of_the_factory(name):
  losses = (1.0, 1.0)
  configured = run(name, losses, num_steps=None, planned=5)[1]
  assert close(run(name, losses, num_steps=5.0)[1], configured, 1e-5)
  assert not close(run(name, losses, num_steps=5000.0)[1], configured, 1e-4)


@EACH
def test_loss_is_seen_from_the_third_on(name):
  falling, rising = run(name, (3.0, 2.0, 1.0)), run(name, (1.0, 2.0, 3.0))
  for step in range(2):
    assert close(falling[step], rising[step], 0)
  assert not close(falling[2], rising[2], 1e-6)


def test_phases_of_celo_leave_one_part_at_rest():
  meta_params = meta_params_of(SMALL["celo"]())

  @functools.partial(jax.jit, static_argnums=0)
  def derivatives(phase, meta_params):
    def size(meta_params):
      tx = SMALL["celo"](phase=phase).optimizer(meta_params)
      updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, value=1.0, num_steps=9)
      return jnp.sum(updates["a"] ** 2) * 1e6

    derivative = jax.grad(size)(meta_params)
    return [
      sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(derivative[part]))
      for part in ("network", "scheduler")
    ]

  both, first, second = (derivatives(phase, meta_params) for phase in (None, 1, 2))
  assert min(both) > 0
  assert first[0] > first[1] == 0
  assert second[0] == 0 < second[1]
  np.testing.assert_allclose(second[1], both[1], rtol=1e-5)


def test_first_phase_of_celo_has_a_factor_of_one_and_needs_no_loss():
  meta_params = meta_params_of(SMALL["celo"]())
  # The other phases' factor is exp(z) / 10, which is one for z = log(10).
  rate = {"kernel": jnp.zeros((4, 1)), "bias": jnp.log(jnp.array([10.0]))}
  meta_params["scheduler"]["rate"] = rate
  first, both = (SMALL["celo"](phase=phase).optimizer(meta_params) for phase in (1, None))
  plain, _ = jax.jit(first.update)(GRADS, first.init(PARAMS), PARAMS)
  extras = {"value": 1.0, "num_steps": 3}
  scheduled, _ = jax.jit(both.update)(GRADS, both.init(PARAMS), PARAMS, **extras)
  assert close(plain, scheduled, 1e-6)


@pytest.mark.parametrize(
  ("switch", "first_difference"), [("bugged_lstm_state", 1), ("bugged_loss_features", 2)]
)
def test_switches_for_old_weights_change_what_comes_after_the_start(switch, first_difference):
  """The state of the LSTM matters from the second step on, the losses from the third."""
  losses = (1.0, 0.8, 0.9)
  plain, bugged = run("velo", losses), run("velo", losses, **{switch: True})
  same = [close(a, b, 1e-6) for a, b in zip(plain, bugged, strict=True)]
  assert same == [step < first_difference for step in range(3)]


@EACH
def test_order_and_names_of_tensors_do_not_matter(name):
  def renamed(tree):
    return {"x": tree["b"], "y": jnp.zeros((0, 2)), "z": tree["a"]}

  plain = run(name, (1.0, 1.0))[1]
  other = run(name, (1.0, 1.0), renamed(PARAMS), renamed(GRADS))[1]
  assert close(plain, {"a": other["z"], "b": other["x"]}, 1e-5)
  assert other["y"].shape == (0, 2)


def test_steps_of_velo_grow_with_the_tensor():
  """What the LSTM sees of the gradients is relative to its size; nearly so what networks see."""
  (small,) = run("velo", (1.0,))
  (large,) = run("velo", (1.0,), jax.tree.map(lambda leaf: 100.0 * leaf, PARAMS))
  for name in PARAMS:
    assert 10 < jnp.linalg.norm(large[name]) / jnp.linalg.norm(small[name]) < 1000


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: optimizers.velo(bank_size=0), "bank_size must be at least 1, got 0"),
    (lambda: optimizers.velo(bank_scale=float("inf")), "bank_scale must be finite, got inf"),
    (lambda: optimizers.celo(lstm_size=0), "lstm_size must be at least 1, got 0"),
    (lambda: optimizers.celo(phase=3), "phase must be 1, 2 or None, got 3"),
    (lambda: optimizers.celo_adam(decays=(0.9, 1.0)), "decays must be at least 0 and less than 1"),
    (lambda: optimizers.celo_adam(epsilon=-1.0), "epsilon must be finite and not negative"),
  ],
)
def test_refuses(make, message):
  with pytest.raises(ValueError, match=message):
    make()
