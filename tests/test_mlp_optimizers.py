"""Optimizers of single tensors: parity with published trajectories, large tensors, each formula.

What every architecture promises is tested in test_optimizers.py and test_optax.py.
"""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import bowl, meta_params_of

from learned_opt import Optimizee, estimators, meta_losses, optimizers
from learned_opt.optimizers import _by_rows, _features, _mlp, _published, _tensors
from learned_opt.optimizers._features import Decays
from learned_opt.optimizers._orthogonal import orthogonalize

# --- Trajectories of the published code.

PUBLISHED = {
  "small_fc_mlp": optimizers.adafac_mlp(exp_scale=0.1, output_scale=0.1),
  "mlp_lopt": optimizers.mlp(exp_scale=0.1, output_scale=0.1),
  "scale_by_celo2base": optimizers.celo2(0.01, newton_schulz=False),
  "scale_by_celo2": optimizers.celo2(0.01, adamw_for_vectors=False),
}


def parts_of(arrays, prefix):
  return {key[len(prefix) :]: arrays[key] for key in arrays.files if key.startswith(prefix)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_trajectories(name, shared):
  path = shared / "fixtures" / f"{name}.npz"
  if not path.is_file():
    pytest.skip(f"no trajectories of the published code at {path}")
  arrays, architecture = np.load(path), PUBLISHED[name]
  convert = _published.FROM_PUBLISHED[architecture.name]
  meta_params = jax.tree.map(jnp.asarray, convert(parts_of(arrays, "theta/")))
  tx = architecture.optimizer(meta_params)
  params = [parts_of(arrays, f"params{step:03d}/") for step in range(31)]
  update = jax.jit(tx.update)
  at_theirs, at_ours, ours = tx.init(params[0]), tx.init(params[0]), params[0]
  for step, (before, after) in enumerate(itertools.pairwise(params)):
    grads = parts_of(arrays, f"grads{step:03d}/")
    updates, at_theirs = update(grads, at_theirs, before)
    for leaf, (old, new) in {key: (before[key], after[key]) for key in before}.items():
      # What is recorded are params, whose rounding is part of the difference.
      rounding = 2e-7 * np.abs(old).max()
      change = new.astype(np.float64) - old
      error = np.abs(np.asarray(updates[leaf]) - change).max()
      assert error <= 1e-5 * np.abs(change).max() + rounding, (step, leaf)
    updates, at_ours = update(grads, at_ours, ours)
    ours = jax.tree.map(lambda p, u: np.asarray(p + u), ours, updates)
  for leaf, last in params[-1].items():
    np.testing.assert_allclose(ours[leaf], last, rtol=1e-3, atol=1e-5)


def test_meta_params_are_as_many_as_published(key):
  def number(architecture):
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(architecture.init, key)))

  # Of Celo 2's 347, the 18 of two outputs that nothing reads are left out.
  numbers = [number(make()) for make in (optimizers.adafac_mlp, optimizers.mlp, optimizers.celo2)]
  assert numbers == [197, 1762, 347 - 18]


# --- Features and network.


def test_running_averages_equal_numpy(x64):
  rng = np.random.default_rng(0)
  grad, decays = rng.normal(size=(3, 2, 4)), Decays(*([0.9, 0.5], [0.7], [0.8]))
  old = _features.init_accumulators(grad.shape, decays, np.dtype(float))
  old = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(size=leaf.shape)), old)
  new = _features.update_accumulators(Decays(*map(jnp.asarray, decays)), jnp.asarray(grad), old)
  for index, beta in enumerate(decays.momenta):
    np.testing.assert_allclose(new.momenta[index], beta * old.momenta[index] + (1 - beta) * grad)
  np.testing.assert_allclose(new.squares[0], 0.7 * old.squares[0] + 0.3 * grad**2)
  # The largest axis is the last, the second largest the first.
  rows, columns = old.factored
  assert (rows.shape, columns.shape) == ((1, 3, 2, 1), (1, 1, 2, 4))
  for found, before, axis in zip(new.factored, (rows, columns), (2, 0), strict=True):
    mean = (grad**2).mean(axis, keepdims=True)
    np.testing.assert_allclose(found[0], 0.8 * before[0] + 0.2 * mean, rtol=1e-9)


def test_features_have_a_mean_square_of_one():
  rng = np.random.default_rng(0)
  shape = (30, 20)
  grad, param = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
  decays = Decays(*(jnp.array(betas) for betas in ([0.9, 0.99, 0.999], [0.999], [0.9] * 3)))

  @jax.jit
  def features(grad, param):
    averages = _features.init_accumulators(shape, decays, grad.dtype)
    for step in range(2):
      averages = _features.update_accumulators(decays, (step + 1.0) * grad, averages)
    groups = _features.feature_groups(_features.VELO_GROUPS, grad, param, averages)
    return groups, _features.normalizers(groups, 0.0)

  groups, scales = features(grad, param)
  assert sum(group.shape[0] for group in groups) == 30
  for name, group, scale in zip(_features.VELO_GROUPS, groups, scales, strict=True):
    squares = jnp.mean(jnp.square(jnp.broadcast_to(group * scale, (len(group), *shape))), (1, 2))
    np.testing.assert_allclose(squares, 1.0, rtol=1e-5, err_msg=name)


def test_number_by_number_equals_matrix_products(monkeypatch, key):
  rng = np.random.default_rng(0)
  groups = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 4, 5), (3, 4, 1), (1, 1, 5))]
  scales = [jnp.asarray(rng.uniform(size=(len(g), 1, 1)), jnp.float32) for g in groups]
  weights = _mlp.init_mlp(key, 6 + 2, (3, 4), 2)
  weights = jax.tree.map(lambda leaf: leaf + 0.1, weights)
  shared = jnp.array([0.5, -1.0])
  products = jnp.stack(_mlp.apply_mlp(weights, groups, scales, shared))
  monkeypatch.setattr(_mlp, "_MIN_UNROLLED_SIZE", 1)
  numbers = jnp.stack(_mlp.apply_mlp(weights, groups, scales, shared))
  np.testing.assert_allclose(numbers, products, rtol=1e-5, atol=1e-6)
  full = [jnp.broadcast_to(g * s, (len(g), 4, 5)) for g, s in zip(groups, scales, strict=True)]
  x = np.concatenate([*full, np.broadcast_to(shared[:, None, None], (2, 4, 5))])
  for layer in weights.values():
    x = np.maximum(x, 0) if layer is not weights["layer_0"] else x
    x = np.einsum("ih,irc->hrc", layer["kernel"], x) + np.asarray(layer["bias"])[:, None, None]
  np.testing.assert_allclose(products, x, rtol=1e-5, atol=1e-6)


def test_a_network_of_other_inputs_is_refused(key):
  weights, groups = _mlp.init_mlp(key, 3, (2,), 1), [jnp.ones((2, 4))]
  with pytest.raises(ValueError, match="the network has 3 inputs, but got 2 features"):
    _mlp.apply_mlp(weights, groups, groups)


# --- Many tensors, and large ones.


def test_equal_tensors_are_traced_once():
  traces = []

  def function(shared, x, state):
    traces.append(x.shape)
    return shared * x, state + jnp.sum(x)

  xs = [jnp.full(shape, 1.0 + k) for k, shape in enumerate([(2,), (3, 2), (2,), (2,), (3, 2)])]
  outputs, states = _tensors.map_tensors(function, 2.0, xs, [jnp.zeros(())] * 5)
  assert traces == [(2,), (3, 2)]
  for x, output, state in zip(xs, outputs, states, strict=True):
    np.testing.assert_array_equal(output, 2.0 * x)
    assert state == jnp.sum(x)


@pytest.mark.parametrize("num_tensors", [1, 2, 5])
def test_large_tensors_one_after_the_other_give_the_same(monkeypatch, num_tensors):
  def function(shared, x, state):
    return shared * x, {"total": state["total"] + x}

  xs = [jnp.arange(6.0).reshape(2, 3) + k for k in range(num_tensors)]
  states = [{"total": 10.0 * x} for x in xs]
  expected = _tensors.map_tensors(function, 2.0, xs, states)
  monkeypatch.setattr(_tensors, "_MIN_LARGE", 1)
  monkeypatch.setattr(_tensors, "_MIN_LOOPED_SIZE", 1)
  monkeypatch.setattr(_tensors, "_MIN_LOOPED", 5)
  chex.assert_trees_all_equal(_tensors.map_tensors(function, 2.0, xs, states), expected)
  # On accelerators, where a branch waits for the host, they are stacked.
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  chex.assert_trees_all_equal(_tensors.map_tensors(function, 2.0, xs, states), expected)


SHAPES = {"a": (12, 7), "b": (12, 7), "tall": (10, 4), "kernel": (2, 3, 4, 5), "v": (9,)}


def trajectory(architecture, dtypes, num_steps=3):
  """Updates and state after some steps, in one program."""
  rng = np.random.default_rng(0)
  draws = [{k: rng.normal(size=s) for k, s in SHAPES.items()} for _ in range(num_steps + 1)]
  params, *grads = [
    {k: jnp.asarray(leaf, dtypes.get(k, np.float32)) for k, leaf in draw.items()} for draw in draws
  ]

  @jax.jit
  def run(meta_params, params, grads):
    tx = architecture.optimizer(meta_params)
    state, updates = tx.init(params), None
    for g in grads:
      updates, state = tx.update(g, state, params, value=1.0)
    return updates, state

  return run(meta_params_of(architecture), params, grads)


@pytest.mark.parametrize(
  "architecture",
  [
    optimizers.adafac_mlp(1, 2),
    optimizers.celo2(weight_decay=0.1, num_layers=1, hidden_size=2),
    optimizers.star(1, 2, learned_decay=True, weight_decay=0.1),
  ],
  ids=lambda architecture: architecture.name,
)
def test_large_tensors_by_rows_give_the_same(monkeypatch, architecture):
  whole = trajectory(architecture, {"tall": jnp.bfloat16}, 2)
  monkeypatch.setattr(_by_rows, "_MIN_SIZE", 1)
  # Of tensors a and b, three rows of each at a time.
  monkeypatch.setattr(_by_rows, "_BLOCK", 2 * 7 * 3)
  assert _by_rows.block_size((12, 7), 2) == 3
  by_rows = trajectory(architecture, {"tall": jnp.bfloat16}, 2)
  chex.assert_trees_all_equal_shapes_and_dtypes(by_rows, whole)
  (updates, state), (expected, expected_state) = by_rows, whole
  for leaf, values in expected.items():
    tolerance = 1e-2 if values.dtype == jnp.bfloat16 else 1e-4
    error = np.abs(np.asarray(updates[leaf] - values, np.float32)).max()
    assert error <= tolerance * np.abs(np.asarray(values, np.float32)).max(), leaf
  chex.assert_trees_all_close(state, expected_state, rtol=1e-5, atol=1e-6)


LOOPED = [
  optimizers.adafac_mlp(1, 2),
  optimizers.celo(8, 1, 2, num_steps=9),
  optimizers.celo2(weight_decay=0.1, num_layers=1, hidden_size=2),
  optimizers.celo_adam(num_steps=9),
  optimizers.mlp(1, 2),
  optimizers.nn_adam(),
  optimizers.star(1, 2, learned_decay=True, weight_decay=0.1),
  optimizers.velo(8, 4, 1, 2, num_steps=9),
]


@pytest.mark.parametrize("architecture", LOOPED, ids=lambda architecture: architecture.name)
def test_many_large_tensors_in_a_loop_give_the_same(monkeypatch, architecture):
  side_by_side = trajectory(architecture, {"tall": jnp.bfloat16}, 2)
  monkeypatch.setattr(_tensors, "_MIN_LARGE", 1)
  monkeypatch.setattr(_tensors, "_MIN_LOOPED_SIZE", 1)
  monkeypatch.setattr(_tensors, "_MIN_LOOPED", 2)
  in_a_loop = trajectory(architecture, {"tall": jnp.bfloat16}, 2)
  chex.assert_trees_all_equal_shapes_and_dtypes(in_a_loop, side_by_side)
  chex.assert_trees_all_close(in_a_loop, side_by_side, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("problems", [None, 3], ids=["one", "three problems"])
def test_a_loop_over_tensors_has_the_same_derivatives(monkeypatch, key, problems):
  architecture = optimizers.adafac_mlp(1, 2)

  def loss(meta_params, scale):
    tx, params = architecture.optimizer(meta_params), {k: jnp.ones((3, 2)) for k in "abc"}
    grads = {k: scale * jnp.cos(jnp.arange(6.0) + i).reshape(3, 2) for i, k in enumerate("abc")}
    updates, state = tx.update(grads, tx.init(params), params)
    updates, _ = tx.update(updates, state, params)
    return sum(jnp.sum(jnp.square(1e3 * leaf + 1)) for leaf in updates.values())

  def gradient():
    f, scales = jax.value_and_grad(loss, argnums=(0, 1)), jnp.float32(1.0)
    if problems is not None:
      f, scales = jax.vmap(f, (None, 0)), jnp.arange(1.0, problems + 1)
    return jax.jit(f)(architecture.init(key), scales)

  expected = gradient()
  monkeypatch.setattr(_tensors, "_MIN_LARGE", 1)
  monkeypatch.setattr(_tensors, "_MIN_LOOPED_SIZE", 1)
  monkeypatch.setattr(_tensors, "_MIN_LOOPED", 2)
  chex.assert_trees_all_close(gradient(), expected, rtol=1e-4, atol=1e-5)
  assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected[1])) > 0


def lowered(architecture, num_tensors, shape=(64, 48)):
  params = [jax.ShapeDtypeStruct(shape, jnp.float32)] * num_tensors
  tx = architecture.optimizer(meta_params_of(architecture))
  state = jax.eval_shape(tx.init, params)
  return jax.jit(tx.update, donate_argnums=1).lower(params, state, params), state


@pytest.fixture
def by_rows(monkeypatch):
  monkeypatch.setattr(_by_rows, "_MIN_SIZE", 1)
  monkeypatch.setattr(_by_rows, "_BLOCK", 4 * 48)


def test_the_program_hardly_grows_with_equal_layers(by_rows):
  few, many = (
    lowered(optimizers.adafac_mlp(), number)[0].as_text().count("\n") for number in (1, 9)
  )
  # Reading and writing rows, and the running averages, are what a layer adds.
  assert many - few < 8 * 0.15 * few


def test_a_loop_over_many_layers_adds_copies_alone(by_rows, monkeypatch):
  monkeypatch.setattr(_tensors, "_MIN_LARGE", 1)
  monkeypatch.setattr(_tensors, "_MIN_LOOPED_SIZE", 1)

  def count(number):
    text = lowered(optimizers.adafac_mlp(1, 2), number)[0].compile().as_text()
    return text.count(" fusion("), text.count(" copy(")

  (kernels, copies), (more_kernels, more_copies) = count(20), count(40)
  # A layer has one comparison, which decides whether it is written.
  assert more_kernels - kernels <= 20
  assert more_copies > copies


def test_an_update_needs_little_memory_besides_the_state(by_rows):
  program, state = lowered(optimizers.adafac_mlp(1, 2), 6)
  plan = program.compile().memory_analysis()
  num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  assert plan.alias_size_in_bytes >= 0.99 * num_bytes
  assert plan.temp_size_in_bytes <= 0.25 * num_bytes


# --- Each formula.


def one_update(tx, grads, params, num_steps=1):
  update, state, updates = jax.jit(tx.update), tx.init(params), None
  for _ in range(num_steps):
    updates, state = update(grads, state, params)
  return updates, state


def test_celo2_gives_vectors_what_adamw_gives():
  architecture = optimizers.celo2(0.01, weight_decay=0.1)
  params = {"b": jnp.array([0.5, -1.0, 2.0]), "s": jnp.array(0.3)}
  grads = {"b": jnp.array([1e-3, -2.0, 0.0]), "s": jnp.array(-0.7)}
  updates, _ = one_update(architecture.optimizer(meta_params_of(architecture)), grads, params, 3)
  expected, _ = one_update(optax.adamw(0.2, 0.9, 0.95, weight_decay=0.1), grads, params, 3)
  chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("newton_schulz", [False, True])
def test_celo2_steps_are_as_long_as_the_learning_rate(newton_schulz):
  architecture = optimizers.celo2(0.01, newton_schulz=newton_schulz, hidden_size=3)
  rng = np.random.default_rng(0)
  params, grads = (jnp.asarray(rng.normal(size=(2, 4, 5)), jnp.float32) for _ in range(2))
  tx = architecture.optimizer(meta_params_of(architecture))
  updates, _ = one_update(tx, grads, params)
  # Of each of the two matrices.
  np.testing.assert_allclose(jnp.sqrt(jnp.mean(updates**2, (1, 2))), 0.01, rtol=1e-4)
  shape = np.linalg.svd(np.asarray(updates), compute_uv=False)
  assert (shape.max(1) / shape.min(1) < 1.8).all() == newton_schulz


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (2, 4, 4)])
def test_newton_schulz_brings_singular_values_near_one(shape):
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  u, before, v = np.linalg.svd(np.asarray(x), full_matrices=False)
  found = np.asarray(jax.jit(orthogonalize)(x))
  after = np.linalg.svd(found, compute_uv=False)
  assert before.max() / before.min() > 1.8
  assert after.min() > 0.6
  assert after.max() < 1.3
  # The singular vectors stay.
  inner = np.matrix_transpose(u) @ found @ np.matrix_transpose(v)
  off_diagonal = inner * (1 - np.eye(inner.shape[-1]))
  assert np.abs(off_diagonal).max() < 1e-5


def test_star_without_its_network_is_nominal_and_decays():
  architecture = optimizers.star(output_scale=0.0, nominal_scale=0.1, weight_decay=0.2)
  params, grads = jnp.array([1.0, -2.0, 0.5]), np.array([0.3, -0.1, 2.0])
  tx = architecture.optimizer(architecture.init(jax.random.key(0)))
  updates, _ = one_update(tx, jnp.asarray(grads, jnp.float32), params)
  momenta = np.array([0.1, 0.01, 0.001])[:, None] * grads
  nominal = momenta.mean(0) / np.sqrt(0.001 * grads**2 + 1e-6)
  # The nominal head is one where it is not learned.
  expected = -0.1 * np.exp(1e-3) * nominal - 0.2 * np.asarray(params)
  np.testing.assert_allclose(updates, expected, rtol=1e-3)


def test_star_is_adafac_mlp_without_its_extras():
  options = {"num_layers": 1, "hidden_size": 2, "output_scale": 0.5, "exp_scale": 0.3}
  star = optimizers.star(**options, nominal_scale=0.0, precondition=False)
  adafac = optimizers.adafac_mlp(**options)
  params, grads = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, -0.1, 2.0])
  found, _ = one_update(star.optimizer(meta_params_of(star)), grads, params, 2)
  expected, _ = one_update(adafac.optimizer(meta_params_of(adafac)), grads, params, 2)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_learned_sgd_has_the_meta_gradient_that_is_worked_out(key):
  """With f = theta^2 / 2, theta_t = (1 - eta)^t theta_0; the meta-loss is the sum over t."""
  optimizee = Optimizee.from_functions(lambda key: jnp.array(3.0), lambda x, key: x**2 / 2)
  architecture, horizon, eta = optimizers.learned_sgd(0.3), 4, 0.3
  estimator = estimators.full_unroll(horizon, 1, meta_loss=meta_losses.weighted_sum())
  meta_params = architecture.init(key)
  state = estimator.init(optimizee, architecture, meta_params, key)
  estimate = jax.jit(estimator.estimate, static_argnums=1)
  meta_grads, _, info = estimate(optimizee, architecture, meta_params, state, key)
  steps = np.arange(1, horizon + 1)
  losses = 4.5 * (1 - eta) ** (2 * steps)
  np.testing.assert_allclose(info.losses[1:], losses, rtol=1e-5)
  # d theta_t / d eta with gradients held constant is -sum_{s<t} theta_s.
  theta = 3.0 * (1 - eta) ** np.arange(horizon + 1)
  by_eta = sum(theta[t] * -theta[:t].sum() for t in steps)
  np.testing.assert_allclose(meta_grads["log_learning_rate"], eta * by_eta, rtol=1e-5)


def test_nn_adam_starts_as_adam_without_bias_correction():
  architecture = optimizers.nn_adam(4, learning_rate=0.1, epsilon=1e-3)
  tx = architecture.optimizer(architecture.init(jax.random.key(0)))
  grads, mean, square = np.array([0.3, -0.1, 2.0]), 0.0, 0.0
  state, params = tx.init(jnp.ones(3)), jnp.ones(3)
  for _ in range(3):
    updates, state = jax.jit(tx.update)(jnp.asarray(grads, jnp.float32), state, params)
    mean, square = 0.9 * mean + 0.1 * grads, 0.999 * square + 0.001 * grads**2
    expected = -0.1 * (1 + 1e-3) / (1e-3 + np.sqrt(square + 1e-10)) * mean
    np.testing.assert_allclose(updates, expected, rtol=2e-4)


def test_nn_adam_moves_its_hyperparameters_within_their_ranges():
  architecture = optimizers.nn_adam(4)
  meta_params = architecture.init(jax.random.key(0))
  moves = jnp.array([1.0, -2.0, 300.0, -1e4])
  meta_params["output"]["bias"] = moves
  params = {"w": jnp.ones((2, 2)), "s": jnp.ones(())}
  _, state = one_update(architecture.optimizer(meta_params), params, params)
  for tensor in state.tensors.values():
    rate, beta1, beta2, epsilon = tensor.logs
    np.testing.assert_allclose(rate, np.log(1e-4) / 10 + 0.01, rtol=1e-5)
    np.testing.assert_allclose(beta1, np.log(0.1) / 10 - 0.02, rtol=1e-5)
    np.testing.assert_allclose(beta2, 0.0)
    np.testing.assert_allclose(epsilon, np.log(1e-11) / 10, rtol=1e-5)


def test_the_gradient_of_the_optimizee_is_taken_once(key):
  """The path of optimizers that read params equals plain automatic differentiation."""
  architecture = optimizers.mlp(1, 2, output_scale=0.1)
  meta_params, estimates = meta_params_of(architecture), []
  for path in ("single_gradient", "autodiff"):
    estimator = estimators.full_unroll(2, 1, path=path)
    state = estimator.init(bowl(), architecture, meta_params, key)
    estimate = jax.jit(estimator.estimate, static_argnums=1)
    estimates.append(estimate(bowl(), architecture, meta_params, state, key)[0])
  chex.assert_trees_all_close(*estimates, rtol=1e-4, atol=1e-6)
  assert optax.tree.norm(estimates[0]) > 0


# --- What is refused.


@pytest.mark.parametrize(
  ("make", "options", "message"),
  [
    (optimizers.adafac_mlp, {"num_layers": 0}, "num_layers must be at least 1, got 0"),
    (optimizers.adafac_mlp, {"exp_scale": np.nan}, "exp_scale must be finite, got nan"),
    (optimizers.mlp, {"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
    (optimizers.mlp, {"output_scale": np.inf}, "output_scale must be finite, got inf"),
    (optimizers.celo2, {"learning_rate": np.inf}, "learning_rate must be finite, got inf"),
    (optimizers.star, {"nominal_scale": np.nan}, "nominal_scale must be finite, got nan"),
    (optimizers.learned_sgd, {"learning_rate": 0.0}, "must be positive and finite, got 0.0"),
    (optimizers.nn_adam, {"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
    (optimizers.nn_adam, {"beta2": 1.0}, "beta2 must be between 0 and 0.99995"),
  ],
  ids=lambda value: getattr(value, "__name__", None),
)
def test_factories_refuse(make, options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)
