"""Learned Muon: each of its numbers does what it says.

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

RATES = {"matrix_rate": 0.03, "rate": 0.02, "matrix_decay": 0.8, "decays": (0.7, 0.9)}


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
  assert "log_gains" not in meta_params
  adapts = start_of(optimizers.learned_muon(**RATES, gains=(4.0, 2.0), memory=0.9))
  np.testing.assert_allclose(np.exp(adapts["log_gains"]), [4.0, 2.0], rtol=1e-6)
  np.testing.assert_allclose(jax.nn.sigmoid(adapts["memory_logit"]), 0.9, rtol=1e-6)
  assert "log_order" not in adapts
  averages = start_of(optimizers.learned_muon(**RATES, averaging=(0.8, 4.0)))
  np.testing.assert_allclose(jax.nn.sigmoid(averages["weight_logit"]), 0.8, rtol=1e-6)
  np.testing.assert_allclose(np.exp(averages["log_order"]), 4.0, rtol=1e-6)


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
  """With the gain of the kind of a tensor, and for each tensor by itself."""
  (grad,), (other,) = draw(shape, number=2)
  grads = [[grad, other], [sign * grad, other], [grad, other]]
  gains = {(3,): (1e-12, 2.0), (3, 2): (2.0, 1e-12)}[shape]
  plain, _ = updates_of(grads)
  found, state = updates_of(grads, gains=gains, memory=0.6)
  decay = 0.7 if shape == (3,) else 0.8
  # Of the third gradient and the mean of the other two.
  last = np.sign(decay + sign)
  alignments = [0.0, 0.4 * sign, 0.6 * 0.4 * sign + 0.4 * last]
  for one, without, alignment in zip(found, plain, alignments, strict=True):
    np.testing.assert_allclose(one[0], math.exp(2 * alignment) * without[0], rtol=1e-5)
  np.testing.assert_allclose(state.tensors[0].alignment, alignments[-1], rtol=1e-5)
  np.testing.assert_allclose(state.tensors[1].alignment, 0.6 * 0.4 + 0.4, rtol=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_factors_are_bounded(sign):
  """By a hundred, either way."""
  (grad,), _ = draw((3,), number=2)
  grads = [[grad], [sign * grad]]
  plain, _ = updates_of(grads)
  found, _ = updates_of(grads, gains=(100.0, 100.0), memory=0.1)
  np.testing.assert_allclose(found[1][0], 100.0**sign * plain[1][0], rtol=1e-4)


def test_gradients_of_zero_have_no_direction():
  grads = [[jnp.zeros(3), jnp.zeros((3, 2))]] * 3
  found, state = updates_of(grads, gains=(4.0, 4.0))
  assert [float(moments.alignment) for moments in state.tensors] == [0.0, 0.0]
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_params_are_between_an_iterate_and_its_average():
  """Of iterates that take the steps of the same gradients without averaging."""
  grads = draw((3,), (3, 2), number=5)
  plain, _ = updates_of(grads)
  found, state = updates_of(grads, averaging=(0.8, 2.0))
  for one, like in enumerate(grads[0]):
    params, iterate, average = (np.zeros(like.shape) for _ in range(3))
    for step in range(5):
      params += found[step][one]
      iterate += plain[step][one]
      average += 2 / (step + 2) * (iterate - average)
      np.testing.assert_allclose(params, 0.8 * average + 0.2 * iterate, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.tensors[one].offset, iterate - average, rtol=1e-4, atol=1e-6)


def test_the_average_weighs_steps_by_a_power():
  """With order 3 the iterate after step i counts i (i + 1)."""
  grads = draw((3,), number=4)
  plain, _ = updates_of(grads)
  _, state = updates_of(grads, averaging=(0.8, 3.0))
  iterates = np.cumsum([step[0] for step in plain], axis=0)
  average = np.average(iterates, axis=0, weights=[i * (i + 1) for i in range(1, 5)])
  np.testing.assert_allclose(state.tensors[0].offset, iterates[-1] - average, rtol=1e-4, atol=1e-6)


def test_the_first_step_has_derivatives():
  """Where there is no running mean yet, of which the angle would be taken."""
  architecture = optimizers.learned_muon(num_steps=10, gains=(4.0, 4.0))
  params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}

  @jax.jit
  def meta_grads(meta_params):
    def total(meta_params):
      tx = architecture.optimizer(meta_params)
      updates, state = tx.update(params, tx.init(params))
      updates, _ = tx.update(updates, state)
      return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(updates))

    return jax.grad(total)(meta_params)

  found = meta_grads(start_of(architecture))
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
  assert np.all(found["log_gains"] != 0)


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
    ({"gains": (0.1,)}, r"gains must be two, of matrices and of all else, or None, got \(0.1,\)"),
    ({"memory": 1.0}, "memory must be between 0 and 1, got 1.0"),
    ({"averaging": (0.8,)}, r"averaging must be two, a weight and an order, or None, got \(0.8,\)"),
    ({"averaging": (1.0, 4.0)}, "weight of averaging must be between 0 and 1, got 1.0"),
    ({"averaging": (0.8, 0.0)}, "order of averaging must be positive and finite, got 0.0"),
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
