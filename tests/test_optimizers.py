"""Learned optimizers: the contract of each, then the LSTM against the paper's equations."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import optax
import pytest
from cases import OPTIMIZERS, bound, meta_params_of, tiny_lstm

from learned_opt import optimizers

ALL = pytest.mark.parametrize("case", OPTIMIZERS.values(), ids=OPTIMIZERS)
COORDINATEWISE = pytest.mark.parametrize(
  "case",
  [case for case in OPTIMIZERS.values() if case.coordinatewise],
  ids=[name for name, case in OPTIMIZERS.items() if case.coordinatewise],
)


def params_tree():
  """Every rank from 0 to 4, an empty leaf, no leaf at all, two dtypes."""
  return {
    "scalar": jnp.array(0.5),
    "vector": jnp.arange(3.0),
    "nested": (jnp.ones((2, 3)), {"empty": jnp.zeros((0, 4)), "none": None}),
    "kernel": jnp.full((1, 2, 1, 2), 0.25, jnp.bfloat16),
  }


def random_like(tree, key):
  keys = jax.random.split(key, len(jax.tree.leaves(tree)))
  leaves = [
    jax.random.normal(k, leaf.shape).astype(leaf.dtype)
    for k, leaf in zip(keys, jax.tree.leaves(tree), strict=True)
  ]
  return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def bind(architecture):
  """A transformation with meta-params of its own."""
  return architecture.optimizer(meta_params_of(architecture))


def run(tx, params, grads_list):
  """Updates for each gradient; the params stay where they are."""
  state, all_updates = tx.init(params), []
  update = jax.jit(tx.update)
  for grads in grads_list:
    updates, state = update(grads, state, params)
    all_updates.append(updates)
  return all_updates, state


# --- The contract of every architecture.


@ALL
def test_meta_params_are_float32_and_as_many_as_said(case, key):
  meta_params = jax.jit(case.make().init)(key)
  assert sum(leaf.size for leaf in jax.tree.leaves(meta_params)) == case.num_meta_params
  assert {leaf.dtype for leaf in jax.tree.leaves(meta_params)} == {jnp.dtype("float32")}


@ALL
def test_init_is_a_function_of_the_key(case, key):
  init = jax.jit(case.make().init)
  chex.assert_trees_all_equal(init(key), init(key))
  other = init(jax.random.key(1))
  equal = all(
    jnp.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(init(key)), jax.tree.leaves(other), strict=True)
  )
  assert equal != case.random_init


@ALL
def test_init_gives_float32_where_64_bit_is_on(case, key, x64):
  meta_params = jax.jit(case.make().init)(key)
  assert {leaf.dtype for leaf in jax.tree.leaves(meta_params)} == {jnp.dtype("float32")}


@ALL
def test_name_and_config_make_it_again(case, key):
  architecture = case.make()
  factory = getattr(optimizers, architecture.name)
  again = factory(**architecture.config)
  assert again.config == architecture.config
  chex.assert_trees_all_equal(jax.jit(again.init)(key), jax.jit(architecture.init)(key))


@ALL
def test_updates_have_shapes_and_dtypes_of_params_and_state_is_stable(case, key):
  params = params_tree()
  tx = bound(case)
  grads = random_like(params, key)
  state = tx.init(params)
  updates, next_state = jax.jit(tx.update)(grads, state, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(next_state, state)
  weak = [leaf.weak_type for leaf in jax.tree.leaves((state, next_state))]
  assert not any(weak)
  assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates) if leaf.size) > 0


@ALL
@pytest.mark.parametrize("params", [{}, (), {"a": jnp.zeros((0, 2))}, None], ids=repr)
def test_trees_without_coordinates(case, key, params):
  tx = bound(case)
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@ALL
def test_params_and_extra_keywords_are_optional(case, key):
  tx = bound(case)
  assert isinstance(tx, optax.GradientTransformationExtraArgs)
  params = {"w": jnp.arange(1.0, 4.0)}
  grads, state = {"w": jnp.array([0.3, -2.0, 1e-4])}, tx.init(params)
  if case.reads_params:
    with pytest.raises(ValueError, match=r"reads the parameters: call tx\.update"):
      tx.update(grads, state)
    plain, _ = jax.jit(tx.update)(grads, state, params)
  else:
    plain, _ = jax.jit(tx.update)(grads, state)

  @jax.jit
  def with_extras(grads, state, params):
    extras = {"value": jnp.array(3.0), "grad": grads, "value_fn": jnp.sum, "unheard_of": 1}
    return tx.update(grads, state, params, **extras)

  chex.assert_trees_all_equal(with_extras(grads, state, params)[0], plain)


@ALL
def test_one_trace_for_all_meta_params_steps_and_calls_of_the_factory(case):
  params, results = jnp.arange(4.0), []

  @functools.partial(jax.jit, static_argnums=0)
  @chex.assert_max_traces(n=1)
  def step(optimizer, meta_params, grads, state, params):
    return optimizer(meta_params).update(grads, state, params)

  for seed in range(2):
    architecture = case.make()
    meta_params = meta_params_of(architecture, seed)
    state = architecture.optimizer(meta_params).init(params)
    for _ in range(2):
      updates, state = step(architecture.optimizer, meta_params, params + 1.0, state, params)
    results.append(updates)
  assert not jnp.array_equal(*results)


@ALL
def test_no_two_state_leaves_share_a_buffer(case, key):
  """So that the state can be donated."""
  params = jnp.arange(4.0)
  tx = bound(case)
  state = tx.init(params)
  pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
  assert len(set(pointers)) == len(pointers)
  step = jax.jit(tx.update, donate_argnums=1)
  _, state = step(params, state, params)
  updates, _ = step(params, state, params)
  assert jnp.all(jnp.isfinite(updates))


@ALL
def test_differentiable_in_meta_params_at_zero_huge_and_tiny_gradients(case, key):
  architecture = case.make()
  grads = jnp.array([0.0, -0.0, 1e-38, -1e-30, 1e-5, 1e5, -1e20])

  def total(meta_params, grads):
    tx = architecture.optimizer(meta_params)
    updates, state = tx.update(grads, tx.init(grads), grads)
    updates, _ = tx.update(grads, state, grads)
    return jnp.sum(updates)

  value, (by_meta_params, by_grads) = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(
    meta_params_of(architecture), grads
  )
  chex.assert_tree_all_finite((value, by_meta_params, by_grads))


@COORDINATEWISE
def test_permutation_of_coordinates_permutes_updates(case, key):
  tx = bound(case)
  params = jnp.zeros(13)
  grads_list = [jax.random.normal(k, (13,)) for k in jax.random.split(key, 3)]
  order = jax.random.permutation(key, 13)
  updates, _ = run(tx, params, grads_list)
  permuted, _ = run(tx, params, [grads[order] for grads in grads_list])
  for a, b in zip(updates, permuted, strict=True):
    np.testing.assert_allclose(a[order], b, rtol=1e-6, atol=1e-8)


@COORDINATEWISE
def test_splitting_a_tensor_splits_updates(case, key):
  tx = bound(case)
  grads_list = [jax.random.normal(k, (12,)) for k in jax.random.split(key, 3)]

  def tree(vector):
    return {"b": vector[:5], "a": (vector[5].reshape(()), vector[6:].reshape(2, 3))}

  whole, _ = run(tx, jnp.zeros(12), grads_list)
  split, _ = run(tx, tree(jnp.zeros(12)), [tree(grads) for grads in grads_list])
  for a, b in zip(whole, split, strict=True):
    chex.assert_trees_all_close(tree(a), b, rtol=1e-6, atol=1e-8)


@COORDINATEWISE
def test_a_coordinate_does_not_see_the_others(case, key):
  tx = bound(case)
  grads = jax.random.normal(key, (3, 2, 5))
  disturbed = grads.at[:, 0].multiply(-3.0)
  tree = [{"a": g[0], "b": g[1]} for g in grads]
  other = [{"a": g[0], "b": g[1]} for g in disturbed]
  params = {"a": jnp.zeros(5), "b": jnp.zeros(5)}
  updates, _ = run(tx, params, tree)
  disturbed_updates, _ = run(tx, params, other)
  for a, b in zip(updates, disturbed_updates, strict=True):
    np.testing.assert_array_equal(a["b"], b["b"])
    assert not np.any(np.isclose(a["a"], b["a"], rtol=1e-6, atol=0))


@COORDINATEWISE
def test_all_at_once_equals_one_coordinate_at_a_time(case, key):
  tx = bound(case)
  grads = jax.random.normal(key, (4, 6))
  together, _ = run(tx, jnp.zeros(6), list(grads))
  alone = [run(tx, jnp.zeros(()), list(grads[:, k]))[0] for k in range(6)]
  np.testing.assert_allclose(jnp.stack(together), np.array(alone).T, rtol=1e-6, atol=1e-8)


@ALL
def test_vmap_over_meta_params_and_params_equals_a_loop(case, key):
  architecture = case.make()
  factors, grads = jnp.array([1.0, -0.5, 2.0]), jax.random.normal(key, (3, 5))

  def two_steps(factor, grads):
    meta_params = jax.tree.map(lambda leaf: factor * leaf, meta_params_of(architecture))
    tx = architecture.optimizer(meta_params)
    updates, state = tx.update(grads, tx.init(grads), grads)
    return tx.update(grads + updates, state, grads)[0]

  one = jax.jit(two_steps)
  loop = jnp.stack([one(factor, g) for factor, g in zip(factors, grads, strict=True)])
  together = jax.jit(jax.vmap(two_steps))(factors, grads)
  np.testing.assert_allclose(together, loop, rtol=1e-5, atol=1e-7)


@ALL
def test_bfloat16_gradients_are_computed_in_float32(case, key):
  tx = bound(case)
  grads = jnp.array([0.3, -1.7, 2e-3], jnp.bfloat16)
  low, _ = run(tx, grads, [grads, grads])
  high, _ = run(tx, grads.astype(jnp.float32), [grads.astype(jnp.float32)] * 2)
  for a, b in zip(low, high, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))


@ALL
@pytest.mark.parametrize(
  ("leaf", "message"),
  [
    (jnp.arange(3), r"params\['w'\] has dtype int32"),
    (jnp.ones(3, bool), r"params\['w'\] has dtype bool"),
    (jnp.ones(3, jnp.complex64), r"params\['w'\] has dtype complex64"),
    ("weights", r"params\['w'\] is a str"),
  ],
  ids=["int", "bool", "complex", "str"],
)
def test_params_that_are_not_real_floats_are_refused(case, key, leaf, message):
  tx = bound(case)
  with pytest.raises(TypeError, match=message):
    tx.init({"w": leaf})


@ALL
@pytest.mark.parametrize(
  ("updates", "params", "message"),
  [
    ({"a": jnp.ones(3)}, {"w": jnp.ones(3)}, "same tree structure"),
    ({"w": jnp.ones(3)}, {"w": jnp.ones((3, 1))}, r"updates\['w'\] has shape \(3,\)"),
    ({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, "made for 3"),
    ({"w": jnp.ones(4)}, None, "made for 3"),
  ],
  ids=["structure", "shape", "state", "state_without_params"],
)
def test_trees_that_do_not_agree_are_refused(case, key, updates, params, message):
  if message == "made for 3" and not case.has_state:
    pytest.skip("there is no state to disagree with")
  if params is None and case.reads_params:
    message = "reads the parameters"
  tx = bound(case)
  state = tx.init({"w": jnp.ones(3)})
  with pytest.raises(ValueError, match=message):
    tx.update(updates, state, params)


@ALL
def test_integer_gradients_are_refused(case, key):
  tx = bound(case)
  with pytest.raises(TypeError, match="updates has dtype int32"):
    tx.update(jnp.arange(3), tx.init(jnp.ones(3)), jnp.ones(3))


# --- The LSTM of the paper.

PREPROCESSINGS = {
  "identity": (optimizers.Identity(), numpy_lstm.identity),
  "scale": (optimizers.Scale(-0.25), numpy_lstm.scale(-0.25)),
  "log_and_sign": (optimizers.LogAndSign(), numpy_lstm.log_and_sign(10.0)),
  "log_and_sign_5": (optimizers.LogAndSign(p=5.0), numpy_lstm.log_and_sign(5.0)),
}


def gradients(num_steps, num_coordinates, dtype):
  """Both signs, magnitudes from below exp(-10) to above one."""
  rng = np.random.default_rng(0)
  magnitudes = 10.0 ** rng.uniform(-6, 1.5, (num_steps, num_coordinates))
  return (magnitudes * rng.choice([-1.0, 1.0], magnitudes.shape)).astype(dtype)


def check_against_numpy(preprocessing, dtype, tolerance, **options):
  ours, theirs = PREPROCESSINGS[preprocessing]
  architecture = optimizers.lstm(preprocessing=ours, **options)
  meta_params = meta_params_of(architecture, seed=3, dtype=dtype)
  reference = numpy_lstm.NumpyLSTM(
    meta_params, theirs, options.get("output_scale", 0.1), options.get("forget_bias", 1.0)
  )
  grads = gradients(12, 9, dtype)
  updates, state = run(architecture.optimizer(meta_params), jnp.zeros(9, dtype), list(grads))
  expected, expected_state = reference.updates(grads)
  assert updates[0].dtype == dtype
  np.testing.assert_allclose(jnp.stack(updates), expected, rtol=tolerance, atol=tolerance)
  for cell, (c, h) in zip(state.layers, expected_state, strict=True):
    np.testing.assert_allclose(cell.c.T, c, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(cell.h.T, h, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_lstm_equals_numpy_in_float64(preprocessing, x64):
  check_against_numpy(preprocessing, np.float64, 1e-10)


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS)
def test_lstm_equals_numpy_in_float32(preprocessing):
  check_against_numpy(preprocessing, np.float32, 1e-5)


@pytest.mark.parametrize(
  "options",
  [
    {"num_layers": 1, "hidden_size": 1},
    {"num_layers": 3, "hidden_size": 5},
    {"output_scale": 2.5, "forget_bias": -0.7},
  ],
  ids=repr,
)
def test_lstm_options_equal_numpy_in_float64(options, x64):
  check_against_numpy("log_and_sign", np.float64, 1e-10, **options)


def test_log_and_sign_at_its_border_and_at_zero(x64):
  p = 10.0
  grads = jnp.array([np.exp(-p) * (1 + 1e-9), np.exp(-p) * (1 - 1e-9), 0.0, -np.exp(-p) / 2, -1e30])
  features = jax.vmap(optimizers.LogAndSign(p))(grads)
  expected = [[-1, 1], [-1, 1], [-1, 0], [-1, -0.5], [np.log(1e30) / p, -1]]
  np.testing.assert_allclose(features, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
  ("preprocessing", "number"), [(optimizers.LogAndSign(), 5141), (optimizers.Identity(), 5061)]
)
def test_lstm_has_the_papers_number_of_meta_params(preprocessing, number, key):
  shapes = jax.eval_shape(optimizers.lstm(preprocessing=preprocessing).init, key)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == number


def test_lstm_state_is_two_zero_arrays_a_layer(key):
  lstm = optimizers.lstm(num_layers=3, hidden_size=7)
  tx = bind(lstm)
  state = tx.init({"a": jnp.ones((2, 3)), "b": jnp.ones(())})
  assert [tuple(leaf.shape for leaf in layer) for layer in state.layers] == [((7, 7), (7, 7))] * 3
  chex.assert_trees_all_equal(state, jax.tree.map(jnp.zeros_like, state))


# The standard deviation of a standard normal variable truncated at two.
_DENSITY_AT_2, _MASS_WITHIN_2 = np.exp(-2.0) / np.sqrt(2 * np.pi), 0.9544997361036416
_TRUNCATED_STD = np.sqrt(1 - 4 * _DENSITY_AT_2 / _MASS_WITHIN_2)


@pytest.mark.parametrize(
  ("layer", "part", "fan_in"),
  [
    ("layer_0", "kernel", 22),
    ("layer_0", "bias", 22),
    ("layer_1", "kernel", 40),
    ("layer_1", "bias", 40),
    ("output", "kernel", 20),
  ],
)
def test_lstm_initialisation_is_truncated_normal(layer, part, fan_in):
  """Standard deviation 1 / sqrt(fan_in) before truncation at two of it, biases of gates too."""
  init = jax.jit(jax.vmap(optimizers.lstm().init))
  meta_params = init(jax.random.split(jax.random.key(5), 200))[layer]
  values = np.asarray(
    (meta_params if layer == "output" else meta_params["gates"])[part], np.float64
  )
  bound, std = 2 / np.sqrt(fan_in), _TRUNCATED_STD / np.sqrt(fan_in)
  assert np.abs(values).max() <= bound * (1 + 1e-6)
  assert np.abs(values).max() > 0.97 * bound
  centered = values.ravel()
  number = centered.size
  assert abs(centered.mean()) < 4 * std / np.sqrt(number)
  variance_error = np.sqrt((np.mean(centered**4) - std**4) / number)
  assert abs(np.mean(centered**2) - std**2) < 4 * variance_error


def test_lstm_output_bias_starts_at_zero_and_layers_are_drawn_independently(key):
  meta_params = jax.jit(optimizers.lstm(preprocessing=optimizers.Identity()).init)(key)
  np.testing.assert_array_equal(meta_params["output"]["bias"], [0.0])
  first = meta_params["layer_0"]["gates"]["kernel"][1:21].ravel()
  second = meta_params["layer_1"]["gates"]["kernel"][:20].ravel()
  correlation = np.corrcoef(first, second)[0, 1]
  assert abs(correlation) < 4 / np.sqrt(first.size)
  bias = meta_params["layer_1"]["gates"]["bias"]
  assert np.std(bias) > 0.05


def test_nan_gradient_spoils_only_its_own_coordinate(key):
  tx = bind(tiny_lstm())
  bad, good = jnp.array([1.0, jnp.nan, -1.0]), jnp.array([1.0, 0.5, -1.0])
  (_, updates), _ = run(tx, good, [bad, good])
  np.testing.assert_array_equal(jnp.isnan(updates), [False, True, False])


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
    ({"hidden_size": 0}, ValueError, "hidden_size must be at least 1, got 0"),
    ({"output_scale": float("nan")}, ValueError, "output_scale must be finite, got nan"),
    ({"forget_bias": float("inf")}, ValueError, "forget_bias must be finite, got inf"),
    ({"preprocessing": "log_and_sign"}, TypeError, r"LogAndSign\(p\), Scale\(factor\)"),
    ({"state_dtype": "int8"}, ValueError, "one of 'float32', 'bfloat16', got 'int8'"),
  ],
  ids=[
    *("num_layers", "hidden_size", "output_scale", "forget_bias", "preprocessing"),
    "state_dtype",
  ],
)
def test_lstm_refuses(options, error, message):
  with pytest.raises(error, match=message):
    optimizers.lstm(**options)


@pytest.mark.parametrize("p", [0.0, -1.0, float("nan"), float("inf")])
def test_log_and_sign_refuses(p):
  with pytest.raises(ValueError, match="p must be positive and finite"):
    optimizers.LogAndSign(p)


@pytest.mark.parametrize("factor", [0.0, float("nan"), float("inf")])
def test_scale_refuses(factor):
  with pytest.raises(ValueError, match="factor must be finite and not zero"):
    optimizers.Scale(factor)
