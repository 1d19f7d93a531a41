"""Learned optimizers as citizens of optax: they go wherever an optax transformation goes.

What holds for one `update` alone is tested in test_optimizers.py.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import OPTIMIZERS, bound

ALL = pytest.mark.parametrize("case", OPTIMIZERS.values(), ids=OPTIMIZERS)
COORDINATEWISE = pytest.mark.parametrize(
  "case",
  [case for case in OPTIMIZERS.values() if case.coordinatewise],
  ids=[name for name, case in OPTIMIZERS.items() if case.coordinatewise],
)

PARAMS = {"w": jnp.array([[0.5, -1.0], [2.0, 0.25]]), "b": jnp.array([1.0, -0.5, 0.75])}


def loss_fn(params):
  """Asymmetric, and no quadratic."""
  leaves = jax.tree.leaves(params)
  return sum(jnp.sum(jnp.cos((i + 1.0) * leaf) + leaf**2) for i, leaf in enumerate(leaves, 1))


def grads_list(num_steps, like=PARAMS):
  rng = np.random.default_rng(0)
  return [
    jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), like)
    for _ in range(num_steps)
  ]


def run(tx, grads, params=PARAMS, **extra_args):
  """The updates for each gradient, at params that stay where they are."""
  update = jax.jit(tx.update)
  state, all_updates = tx.init(params), []
  for g in grads:
    updates, state = update(g, state, params, **extra_args)
    all_updates.append(updates)
  return all_updates, state


def norm(tree):
  return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def assert_all_close(found, expected):
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-8)


def training_step(tx):
  def step(params, state):
    value, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state, params, value=value)
    return optax.apply_updates(params, updates), state

  return step


# --- jax's transformations.


@ALL
def test_a_loop_of_steps_a_scan_and_donated_buffers_give_the_same(case):
  tx, num_steps = bound(case), 4
  step = training_step(tx)
  plain, looped = jax.jit(step), (PARAMS, tx.init(PARAMS))
  for _ in range(num_steps):
    looped = plain(*looped)

  @jax.jit
  def scan(params):
    carry = (params, tx.init(params))
    return jax.lax.scan(lambda carry, _: (step(*carry), None), carry, length=num_steps)[0]

  donating = jax.jit(step, donate_argnums=(0, 1))
  start = donated = (jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS))
  for _ in range(num_steps):
    donated = donating(*donated)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
  chex.assert_trees_all_close(scan(PARAMS), looped, rtol=1e-5, atol=1e-7)
  chex.assert_trees_all_close(donated, looped, rtol=1e-5, atol=1e-7)


@ALL
def test_without_jit_the_updates_are_the_same(case):
  tx, params = bound(case), PARAMS["b"]
  (grads,) = grads_list(1, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  assert_all_close([updates], run(tx, [grads], params)[0])


@ALL
def test_vmap_trains_several_models_as_a_loop_does(case):
  tx = bound(case)
  models = jax.tree.map(lambda leaf: jnp.stack([leaf, -2.0 * leaf, leaf + 1.0]), PARAMS)

  def train(params):
    step = training_step(tx)
    return step(*step(params, tx.init(params)))

  together = jax.jit(jax.vmap(train))(models)
  one = jax.jit(train)
  alone = [one(jax.tree.map(lambda leaf, i=i: leaf[i], models)) for i in range(3)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
  chex.assert_trees_all_close(together, stacked, rtol=1e-5, atol=1e-7)


@ALL
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "mixed"])
def test_types_are_the_same_after_a_step(case, dtype, x64):
  """Shapes, dtypes and weak types, with 64-bit arithmetic switched on."""
  tx = bound(case)
  dtypes = ["float16", "float64"] if dtype == "mixed" else [dtype, dtype]
  params = [jnp.ones((2, 3), dtypes[0]), jnp.ones((), dtypes[1]), None, jnp.ones((0, 2), dtypes[0])]
  state = jax.eval_shape(tx.init, params)
  updates, next_state = jax.eval_shape(tx.update, params, state, params)
  assert types(updates) == types(params)
  assert types(next_state) == types(state)
  assert not any(weak for *_, weak in types(state)[0])


def types(tree):
  leaves, treedef = jax.tree.flatten(tree)
  return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves], treedef


@ALL
def test_float32_gradients_of_bfloat16_params_give_bfloat16_updates(case):
  tx = bound(case)
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
  (updates,), _ = run(tx, grads_list(1), params)
  (expected,), _ = run(tx, grads_list(1))
  rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected)
  chex.assert_trees_all_equal(updates, rounded)


@ALL
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_zero_tiny_and_huge_gradients_give_finite_updates(case, dtype):
  if not case.bounded:
    pytest.skip("updates grow with the gradients")
  info = jnp.finfo(dtype)
  grads = jnp.array(
    [0.0, -0.0, 1.0, info.tiny, -info.smallest_subnormal, info.max, info.min], dtype
  )
  all_updates, state = run(bound(case), [grads] * 3, grads)
  chex.assert_tree_all_finite((all_updates, state))


# --- optax's wrappers, each against what it should come to.


@ALL
def test_chain_clips_before_and_scales_and_clips_after(case):
  tx, all_grads = bound(case), grads_list(3)
  schedule = optax.linear_schedule(1.0, 0.25, transition_steps=3)
  chained = optax.chain(
    optax.clip_by_global_norm(0.5), tx, optax.scale_by_schedule(schedule), optax.clip(0.02)
  )
  clipped = [jax.tree.map(lambda leaf, g=g: leaf * 0.5 / norm(g), g) for g in all_grads]
  expected = [
    jax.tree.map(lambda leaf, t=t: jnp.clip(schedule(t) * leaf, -0.02, 0.02), updates)
    for t, updates in enumerate(run(tx, clipped)[0])
  ]
  assert_all_close(run(chained, all_grads)[0], expected)


@ALL
def test_extra_keywords_pass_through_a_chain(case):
  """`reduce_on_plateau` needs `value`, and the learned optimizer between lets it through."""
  tx, all_grads = bound(case), grads_list(3)
  plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.0, atol=1.0)
  chained = optax.chain(optax.clip(10.0), tx, plateau)
  reduced, _ = run(chained, all_grads, value=jnp.array(1.0), unheard_of=None)
  expected = [
    jax.tree.map(lambda leaf, f=factor: f * leaf, updates)
    for factor, updates in zip((1.0, 0.5, 0.25), run(tx, all_grads)[0], strict=True)
  ]
  assert_all_close(reduced, expected)


@ALL
def test_multi_steps_gives_one_update_for_the_mean_gradient(case):
  tx, all_grads = bound(case), grads_list(4)
  accumulated, _ = run(
    optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation(), all_grads
  )
  means = [jax.tree.map(lambda a, b: (a + b) / 2, all_grads[i], all_grads[i + 1]) for i in (0, 2)]
  first, second = run(tx, means)[0]
  nothing = jax.tree.map(jnp.zeros_like, PARAMS)
  assert_all_close(accumulated, [nothing, first, nothing, second])


@ALL
def test_masked_leaves_the_other_leaves_alone(case):
  tx, all_grads = bound(case), grads_list(2)
  masked, _ = run(optax.masked(tx, {"w": True, "b": False}), all_grads)
  only_w, _ = run(tx, [{"w": g["w"]} for g in all_grads], {"w": PARAMS["w"]})
  expected = [{"w": u["w"], "b": g["b"]} for u, g in zip(only_w, all_grads, strict=True)]
  assert_all_close(masked, expected)


def test_multi_transform_is_partition():
  assert optax.multi_transform is optax.partition


@ALL
def test_different_learned_optimizers_for_different_tensors(case):
  params = {**PARAMS, "frozen": jnp.arange(3)}
  all_grads = grads_list(2)
  first, second = bound(case), bound(OPTIMIZERS["lstm"], seed=1)
  transforms = {"first": first, "second": second, "none": optax.set_to_zero()}
  tx = optax.partition(transforms, {"w": "first", "b": "second", "frozen": "none"})
  grads = [{**g, "frozen": params["frozen"]} for g in all_grads]
  updates, _ = run(tx, grads, params, value=jnp.array(1.0))
  ws, _ = run(first, [g["w"] for g in all_grads], PARAMS["w"])
  bs, _ = run(second, [g["b"] for g in all_grads], PARAMS["b"])
  zeros = jnp.zeros(3, jnp.int32)
  expected = [{"w": w, "b": b, "frozen": zeros} for w, b in zip(ws, bs, strict=True)]
  assert_all_close(updates, expected)


@ALL
def test_inject_hyperparams_around_a_scale(case):
  tx, all_grads = bound(case), grads_list(2)

  @optax.inject_hyperparams
  def scaled(scale):
    return optax.chain(tx, optax.scale(scale))

  injected = scaled(scale=0.5)
  update = jax.jit(chex.assert_max_traces(injected.update, n=1))
  first, state = update(all_grads[0], injected.init(PARAMS), PARAMS, value=jnp.array(1.0))
  state.hyperparams["scale"] = jnp.full_like(state.hyperparams["scale"], -2.0)
  second, _ = update(all_grads[1], state, PARAMS, value=jnp.array(1.0))
  expected = [
    jax.tree.map(lambda leaf, f=factor: f * leaf, updates)
    for factor, updates in zip((0.5, -2.0), run(tx, all_grads)[0], strict=True)
  ]
  assert_all_close([first, second], expected)


@ALL
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_apply_if_finite_keeps_the_state_clean(case, bad):
  tx, (first, second) = bound(case), grads_list(2)
  spoilt = {"w": first["w"].at[0, 1].set(bad), "b": first["b"]}
  guarded, state = run(optax.apply_if_finite(tx, 5), [first, spoilt, second])
  clean, clean_state = run(tx, [first, second])
  nothing = jax.tree.map(jnp.zeros_like, PARAMS)
  assert_all_close(guarded, [clean[0], nothing, clean[1]])
  chex.assert_trees_all_close(state.inner_state, clean_state, rtol=1e-5, atol=1e-8)
  assert int(state.total_notfinite) == 1


@COORDINATEWISE
def test_flattening_the_tree_changes_nothing(case):
  tx, all_grads = bound(case), grads_list(2)
  assert_all_close(run(optax.flatten(tx), all_grads)[0], run(tx, all_grads)[0])


@ALL
def test_tree_map_params_finds_what_is_kept_of_each_tensor(case):
  """Else the state is one array for all tensors; `transform_non_params` sees all of it."""
  tx = bound(case)
  state = tx.init(PARAMS)
  if case.state_like_params:
    mapped = optax.tree_map_params(tx, lambda leaf: leaf + 1, state)
    tensors = jax.tree.map(lambda leaf: leaf + 1, state.tensors)
    chex.assert_trees_all_equal(mapped, state._replace(tensors=tensors))
    return
  unchanged = optax.tree_map_params(tx, lambda leaf: leaf + 1, state)
  chex.assert_trees_all_equal(unchanged, state)
  seen = optax.tree_map_params(tx, lambda _: None, state, transform_non_params=jnp.shape)
  assert seen == jax.tree.map(jnp.shape, state)


@ALL
def test_init_takes_abstract_params(case):
  tx = bound(case)
  abstract = jax.eval_shape(lambda: PARAMS)
  chex.assert_trees_all_equal(tx.init(abstract), tx.init(PARAMS))


# --- optax's own checks of optimizers, which are in its wheel.


@pytest.fixture(scope="module")
def optax_checks():
  """An instance of optax's common test case, whose methods take the optimizer as arguments."""
  path = pathlib.Path(optax.__file__).parent / "contrib" / "_common_test.py"
  if not path.is_file():
    pytest.skip("this optax comes without its tests")
  from absl.testing import parameterized

  spec = importlib.util.spec_from_file_location("optax_common_test", path)
  module = importlib.util.module_from_spec(spec)
  with pytest.MonkeyPatch.context() as patch:
    # Without the decorator that fills in optax's own optimizers.
    patch.setattr(parameterized, "product", lambda *args, **kwargs: lambda function: function)
    spec.loader.exec_module(module)
  return module


def ask(module, monkeypatch, check, factory, **arguments):
  monkeypatch.setattr(module, "_get_opt_factory", lambda name: factory)
  getattr(module.ContribTest(check), check)(
    opt_name="learned", wrapper_name=None, wrapper_kwargs=None, **arguments
  )


@ALL
@pytest.mark.parametrize(
  ("check", "arguments"),
  [
    ("test_optimizers_accept_extra_args", {"wrap": False}),
    ("test_preserve_dtype", {"dtype": "bfloat16"}),
    ("test_gradient_accumulation", {"dtype": "bfloat16"}),
    ("test_state_shape_dtype_shard_stability", {"dtype": jnp.float16}),
  ],
)
def test_optax_common_checks(optax_checks, monkeypatch, case, check, arguments):
  ask(optax_checks, monkeypatch, check, lambda: bound(case), opt_kwargs={}, **arguments)


@ALL
def test_optax_check_of_inject_hyperparams(optax_checks, monkeypatch, case):
  tx = bound(case)

  def factory(scale):
    return optax.chain(tx, optax.scale(scale))

  check = "test_optimizers_can_be_wrapped_in_inject_hyperparams"
  ask(optax_checks, monkeypatch, check, factory, opt_kwargs={"scale": 0.5})


def test_optax_checks_can_fail(optax_checks, monkeypatch):
  tx = bound(OPTIMIZERS["lstm"])

  def update(updates, state, params=None):
    updates, state = tx.update(updates, state, params)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), updates), state

  careless = optax.GradientTransformation(tx.init, update)
  for check, error, arguments in (
    ("test_preserve_dtype", AssertionError, {"dtype": "bfloat16"}),
    ("test_optimizers_accept_extra_args", TypeError, {"wrap": False}),
  ):
    with pytest.raises(error):
      ask(optax_checks, monkeypatch, check, lambda: careless, opt_kwargs={}, **arguments)


# --- Several devices.

SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from cases import OPTIMIZERS, meta_params_of

# In float32 rounding, which orthogonalization magnifies, would hide small flaws.
jax.config.update("jax_enable_x64", True)
assert len(jax.devices()) == 4
mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
specs = {"w": P("x", "y"), "b": P("y"), "c": P()}
rng = np.random.default_rng(0)
params = {"w": rng.normal(size=(4, 6)), "b": rng.normal(size=8), "c": rng.normal(size=())}
params = jax.tree.map(jnp.asarray, params)
sharded = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)),
                       params, specs)

for name, case in OPTIMIZERS.items():
  architecture = case.make()
  meta_params = jax.tree.map(lambda leaf: leaf.astype(float), meta_params_of(architecture))
  tx = optax.chain(architecture.optimizer(meta_params), optax.scale(case.scale))

  @jax.jit
  def train(params):
    def step(carry, _):
      params, state = carry
      loss = lambda p: jnp.sum(jnp.cos(p["w"] @ p["b"][:6])) + jnp.sum(p["b"] ** 3) * p["c"] ** 2
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None
    return jax.lax.scan(step, (params, tx.init(params)), length=5)[0]

  one, many = train(params), train(sharded)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), one, many)
  assert len(many[0]["w"].sharding.device_set) == 4
  if case.coordinatewise:
    # Each device updates its own part of the tensors, without talking to the others.
    local = lambda g: tx.update(g, tx.init(g), g)[0]
    parts = {"w": P("x", "y"), "b": P(("x", "y"))}
    grads = {name: sharded[name] for name in parts}
    updates = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(parts,), out_specs=parts))(grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
                 updates, local(grads))
  print(name)
"""


def test_sharded_params_give_the_trajectory_of_one_device(repo_root):
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
  paths = os.pathsep.join([str(repo_root), str(repo_root / "tests")])
  process = subprocess.run(
    [sys.executable, "-c", SHARDED],
    capture_output=True,
    text=True,
    env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
  )
  assert process.returncode == 0, process.stderr[-2000:]
  assert process.stdout.split() == list(OPTIMIZERS)
