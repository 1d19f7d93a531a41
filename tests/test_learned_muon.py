"""Learned Muon: each of its nine numbers does what it says.

What every architecture promises is tested in test_optimizers.py and test_optax.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import learned_opt
from learned_opt import estimators, meta_losses, meta_train, optimizees, optimizers
from learned_opt.optimizers._orthogonal import orthogonalize

RATES = {
  "matrix_rate": 0.03,
  "rate": 0.02,
  "matrix_decay": 0.8,
  "decays": (0.7, 0.9),
  "gains": (1e-12, 1e-12),  # but where adaptation is tested
}


def start_of(architecture):
  """Its meta-params before any training, which are the same for all keys."""
  return architecture.init(jax.random.key(0))


def updates_of(grads, num_steps=10, power=1.0, **options):
  """The updates of gradients in turn."""
  architecture = optimizers.learned_muon(**{**RATES, **options})
  meta_params = start_of(architecture) | {"log_power": jnp.log(jnp.float32(power))}
  tx = architecture.optimizer(meta_params)
  params = jax.tree.map(jnp.zeros_like, grads[0])
  update, state, found = jax.jit(tx.update), tx.init(params), []
  for grad in grads:
    updates, state = update(grad, state, params, num_steps=num_steps)
    found.append(updates)
  return found, state


def draw(*shapes, number=3):
  rng = np.random.default_rng(0)
  return [[jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes] for _ in range(number)]


def test_its_meta_params_are_where_it_starts():
  meta_params = start_of(optimizers.learned_muon(**RATES))
  np.testing.assert_allclose(np.exp(meta_params["log_rates"]), [0.03, 0.02], rtol=1e-6)
  decays = jax.nn.sigmoid(meta_params["decay_logits"])
  np.testing.assert_allclose(decays, [0.8, 0.7, 0.9], rtol=1e-6)
  assert meta_params["log_power"] == 0
  np.testing.assert_allclose(np.exp(meta_params["log_gains"]), [1e-12, 1e-12], rtol=1e-5)
  start = start_of(optimizers.learned_muon(alignment=-0.2))
  np.testing.assert_allclose(start["alignment"], -2.0, rtol=1e-6)


def test_matrices_get_orthogonal_steps():
  """Of Nesterov's form of a running mean; the first one is that of optax."""
  grads = [grad[0] for grad in draw((4, 3))]
  found, state = updates_of(grads, num_steps=10**9)
  muon = optax.contrib.muon(0.03, beta=0.8, consistent_rms=0.2)
  expected, _ = muon.update(grads[0], muon.init(grads[0]), grads[0])
  np.testing.assert_allclose(found[0], expected, rtol=1e-3)
  mean = 0.0
  for grad, ours in zip(grads, found, strict=True):
    mean = 0.8 * mean + 0.2 * grad
    direction = orthogonalize(0.8 * mean + 0.2 * grad)
    np.testing.assert_allclose(ours, -0.03 * 0.2 * 2.0 * direction, rtol=1e-3)
  assert state.tensors.square is None
  smaller, _ = updates_of([1e-3 * grad for grad in grads], num_steps=10**9)
  np.testing.assert_allclose(smaller[1], found[1], rtol=1e-3, atol=1e-8)


def test_all_else_gets_adam():
  grads = draw((3,), (), (2, 1, 1, 2, 2))
  found, _ = updates_of(grads, num_steps=10**9)
  adam = optax.adam(0.02, 0.7, 0.9, eps=1e-8, eps_root=1e-10)
  state = adam.init(grads[0])
  for grad, ours in zip(grads, found, strict=True):
    expected, state = adam.update(grad, state)
    for one, other in zip(ours, expected, strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize(
  ("shape", "matrix"), [((2, 1, 2, 3), (4, 3)), ((2, 2, 3), (4, 3)), ((4, 1, 4), (4, 4))]
)
def test_kernels_are_taken_for_matrices(shape, matrix):
  grads = [grad[0] for grad in draw(matrix)]
  found, _ = updates_of([grad.reshape(shape) for grad in grads])
  expected, _ = updates_of(grads)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours.reshape(matrix), theirs, rtol=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_schedule_is_a_bent_cosine(power):
  """The steps of a constant gradient, which Adam makes equal; none after the planned ones."""
  grads = [jnp.array([0.5, -2.0])] * 6
  found, _ = updates_of(grads, num_steps=5, power=power)
  for step, ours in enumerate(found):
    left = max(1 - step / 5, 1e-7) ** power
    expected = -0.02 * (1 - math.cos(math.pi * left)) / 2 * np.array([1.0, -1.0])
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rates_follow_the_cosine_of_gradients_and_their_mean(shape, sign):
  """The gain is that of the kind of the tensor, and each tensor has a factor of its own."""
  (grad,), (other,) = draw(shape, number=2)
  grads = [[grad, other], [sign * grad, other], [grad, other]]
  gains = {(3,): (1e-12, 0.5), (3, 2): (0.5, 1e-12)}[shape]
  plain, _ = updates_of(grads, alignment=0.1)
  found, state = updates_of(grads, alignment=0.1, gains=gains)
  decay = 0.7 if shape == (3,) else 0.8
  # The mean after the second gradient, in units of the first: of its sign is the third's cosine.
  turned = np.sign(decay * (1 - decay) + sign * (1 - decay))
  logs = 0.5 * np.cumsum([0.0 - 0.1, sign - 0.1, turned - 0.1])
  for one, without, log in zip(found, plain, logs, strict=True):
    np.testing.assert_allclose(one[0], math.exp(log) * without[0], rtol=1e-5)
  np.testing.assert_allclose(state.tensors[0].log_factor, logs[-1], rtol=1e-5)
  np.testing.assert_allclose(state.tensors[1].log_factor, 0.5 * (0.0 + 1.0 + 1.0 - 0.3), rtol=1e-5)


@pytest.mark.parametrize(("alignment", "factor"), [(-0.5, 100.0), (0.5, 0.01)])
def test_factors_are_bounded(alignment, factor):
  """Gradients of zero have no direction: their cosine is zero."""
  grads = [[jnp.zeros(3), jnp.zeros((3, 2))]] * 4
  found, state = updates_of(grads, gains=(10.0, 10.0), alignment=alignment)
  for moments in state.tensors:
    np.testing.assert_allclose(np.exp(moments.log_factor), factor, rtol=1e-5)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_evolution_strategies_find_a_rate(key):
  """From a hundredth of the rate that helps on quadratics, in few outer steps."""
  trained = meta_train.run(
    optimizees.quadratic(4),
    optimizers.learned_muon(rate=1e-3),
    estimators.es_single(10, 20, 32, meta_losses.mean_log, sigma=0.3),
    num_outer_steps=20,
    key=key,
    outer_optimizer=optax.adam(0.3),
    num_validation_problems=8,
    validate_every=20,
  )
  assert np.exp(trained.meta_params["log_rates"][1]) > 0.01


def test_what_is_wrong_is_named():
  for options, message in (
    ({"matrix_rate": 0.0}, "matrix_rate must be positive and finite, got 0.0"),
    ({"rate": math.inf}, "rate must be positive and finite, got inf"),
    ({"gains": (0.0, 0.1)}, "gains must be positive and finite, got 0.0, 0.1"),
    ({"gains": (0.1,)}, r"gains must be two, of matrices and of all else, got \(0.1,\)"),
    ({"alignment": 1.0}, "alignment must be between -1 and 1, got 1.0"),
    ({"matrix_decay": 1.0}, "must be between 0 and 1, got 1.0 and"),
    ({"decays": (0.9, 0.0)}, "must be between 0 and 1, got 0.95 and"),
    ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
  ):
    with pytest.raises(ValueError, match=message):
      optimizers.learned_muon(**options)
  architecture = optimizers.learned_muon()
  tx = architecture.optimizer(start_of(architecture))
  params = jnp.ones(2)
  with pytest.raises(ValueError, match=r"learned_muon plans the whole training: .*num_steps=n"):
    tx.update(params, tx.init(params), params)


def test_load_says_for_how_many_steps_to_plan(tmp_path):
  architecture = optimizers.learned_muon(**RATES)
  learned_opt.save(tmp_path / "it", architecture, start_of(architecture))
  tx = learned_opt.load(tmp_path / "it", num_steps=4)
  grads = [grad[0] for grad in draw((3,))]
  state = tx.init(grads[0])
  expected, _ = updates_of(grads, num_steps=4)
  for grad, theirs in zip(grads, expected, strict=True):
    updates, state = tx.update(grad, state)
    np.testing.assert_allclose(updates, theirs, rtol=1e-5)
