"""The replay path against autodiff through the scan, its reference."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import bowl, images, meta_params_of, tiny_lstm

import learned_opt
from learned_opt import _blocks, estimators, meta_losses, optimizees, optimizers
from learned_opt.estimators import _replay

META_LOSSES = {
  "sum": meta_losses.weighted_sum(),
  "weights": meta_losses.weighted_sum(np.linspace(0.0, 2.0, 6)),
  "final": meta_losses.final,
  "mean_log": meta_losses.mean_log,
}


def estimates(
  path, optimizee, meta_loss, num_estimates=3, meta_params=None, wrap=lambda a: a, **options
):
  architecture = wrap(tiny_lstm(num_layers=2))
  if meta_params is None:
    meta_params = meta_params_of(architecture, dtype=np.float64)
  estimator = estimators.truncated_backprop(
    unroll_length=3, horizon=6, meta_loss=meta_loss, path=path, **options
  )
  estimate = jax.jit(
    lambda optimizee, state, key: estimator.estimate(
      optimizee, architecture, meta_params, state, key
    )
  )
  state = estimator.init(optimizee, architecture, meta_params, jax.random.key(1))
  results = []
  for index in range(num_estimates):
    meta_grads, state, info = estimate(optimizee, state, jax.random.key(2 + index))
    results.append((meta_grads, info))
  return results


def with_outer_loss(optimizee):
  def outer_loss(params, constants, data, key):
    del constants, data
    return jnp.sum((params - jax.random.normal(key, params.shape, params.dtype)) ** 4)

  return dataclasses.replace(optimizee, outer_loss=outer_loss)


@pytest.mark.parametrize(
  ("meta_loss", "outer"),
  [("sum", False), ("weights", True), ("final", False), ("mean_log", True)],
)
def test_equals_autodiff_in_float64(meta_loss, outer, x64):
  optimizee = with_outer_loss(bowl()) if outer else bowl()
  plain = estimates("autodiff", optimizee, META_LOSSES[meta_loss], meta_batch_size=3)
  fast = estimates("replay", optimizee, META_LOSSES[meta_loss], meta_batch_size=3)
  # Three estimates: the second carries state over a boundary, the third starts fresh problems.
  chex.assert_trees_all_close(plain, fast, rtol=1e-10, atol=1e-10)
  assert min(float(info.meta_grad_norm) for _, info in plain) > 1e-3


def test_equals_autodiff_on_a_tree_of_tensors_with_minibatches():
  optimizee = optimizees.mlp_classifier(images(), (3,), batch_size=4, initial_scale=0.5)
  meta_params = meta_params_of(tiny_lstm(num_layers=2))
  options = {"meta_params": meta_params, "meta_batch_size": 2}
  plain = estimates("autodiff", optimizee, meta_losses.mean, **options)
  fast = estimates("replay", optimizee, meta_losses.mean, **options)
  for (plain_grads, plain_info), (fast_grads, fast_info) in zip(plain, fast, strict=True):
    scale = float(plain_info.meta_grad_norm)
    chex.assert_trees_all_close(plain_grads, fast_grads, rtol=1e-4, atol=1e-4 * scale)
    chex.assert_trees_all_close(plain_info, fast_info, rtol=1e-4)


def test_a_bfloat16_state_costs_no_more_than_its_rounding():
  """Narrow are the states between steps alone: products, updates and cotangents stay float32."""
  meta_params = meta_params_of(tiny_lstm(num_layers=2))

  def meta_grads(path, state_dtype):
    return [
      np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])
      for grads, _ in estimates(
        *(path, bowl(), meta_losses.mean),
        meta_params=meta_params,
        wrap=lambda _: tiny_lstm(num_layers=2, state_dtype=state_dtype),
      )
    ]

  wide, narrow = meta_grads("replay", None), meta_grads("replay", "bfloat16")
  by_autodiff = meta_grads("autodiff", "bfloat16")
  for exact, rounded, reference in zip(wide, narrow, by_autodiff, strict=True):
    scale = np.linalg.norm(exact)
    assert 1e-6 * scale < np.linalg.norm(rounded - exact) < 0.01 * scale
    # Autodiff rounds the cotangents as well.
    assert np.linalg.norm(rounded - reference) < 0.01 * scale


def two_tensors():
  """A matrix and a vector, each under its own rule of a pair whose kernels have rank two."""

  def init(key, data):
    del data
    return {"kernel": jax.random.normal(key, (3, 2)), "bias": jnp.full((2,), 0.5)}, ()

  def loss(params, constants, data, key):
    del constants, data
    batch = jax.random.normal(key, (5, 3), params["kernel"].dtype)
    return jnp.mean((jnp.tanh(batch @ params["kernel"]) + params["bias"][None] - batch[:, :2]) ** 2)

  return learned_opt.Optimizee(init, loss)


def as_pair(kernel_rank):
  def wrap(architecture):
    del architecture
    return optimizers.lstm_pair(1, 4, kernel_rank=kernel_rank)

  return wrap


@pytest.mark.parametrize(("outer", "kernel_rank"), [(False, 2), (True, 1), (False, 4)])
def test_a_pair_equals_autodiff_in_float64(outer, kernel_rank, x64):
  optimizee = with_outer_loss_of_trees(two_tensors()) if outer else two_tensors()
  wrap = as_pair(kernel_rank)
  options = {
    "meta_batch_size": 3,
    "wrap": wrap,
    "meta_params": meta_params_of(wrap(None), dtype=np.float64),
  }
  plain = estimates("autodiff", optimizee, meta_losses.mean, **options)
  fast = estimates("auto", optimizee, meta_losses.mean, **options)
  chex.assert_trees_all_close(plain, fast, rtol=1e-10, atol=1e-10)
  norms = {name: float(optax.tree.norm(one)) for name, one in fast[0][0].items()}
  # No tensor has rank 4: all are updated by the other rule.
  assert norms["others"] > 1e-3
  assert (norms["kernels"] > 1e-3) == (kernel_rank < 4)


def test_a_group_needs_a_rule(key):
  pair = optimizers.lstm_pair(1, 4)
  rules = pair.coordinatewise._replace(group_of=lambda leaf: "biases")
  estimator = estimators.truncated_backprop(2, 4)
  expected = r"must return one of kernels, others, got 'biases' for a tensor of shape \(2,\)"
  with pytest.raises(ValueError, match=expected):
    estimator.init(two_tensors(), pair._replace(coordinatewise=rules), meta_params_of(pair), key)


@functools.cache
def estimates_in_one_block():
  return estimates("replay", bowl(), meta_losses.mean, num_estimates=2, meta_batch_size=3)


# Small blocks, whose last one is filled up; states kept, computed again, and in segments whose last
# one is filled up.
@pytest.mark.parametrize(
  ("block", "updated", "history_bytes", "segment"),
  [(4, 256, 2**28, 32), (4, 4, 0, 32), (9, 2, 0, 2), (100, 256, 0, 2), (1, 1, 2**28, 2)],
)
def test_layout_does_not_matter(block, updated, history_bytes, segment, monkeypatch, x64):
  whole = estimates_in_one_block()
  monkeypatch.setattr(_replay, "_block_size", lambda bytes_per_coordinate: block)
  monkeypatch.setattr(_replay, "_UNBLOCKED", updated)
  monkeypatch.setattr(_blocks, "LANES", 1)
  monkeypatch.setattr(_blocks, "_BLOCK", updated)
  monkeypatch.setattr(_replay, "_HISTORY_BYTES", history_bytes)
  monkeypatch.setattr(_replay, "_SEGMENT", segment)
  blocks = estimates("replay", bowl(), meta_losses.mean, num_estimates=2, meta_batch_size=3)
  chex.assert_trees_all_close(whole, blocks, rtol=1e-12, atol=1e-12)


def reads_params_and_mixes_coordinates(architecture):
  """The same network between transformations that are not coordinatewise."""

  def optimizer(meta_params):
    return optax.with_extra_args_support(
      optax.chain(
        optax.normalize_by_update_norm(),
        architecture.optimizer(meta_params),
        optax.add_decayed_weights(-0.1),
      )
    )

  return architecture._replace(optimizer=optimizer, coordinatewise=None)


@pytest.mark.parametrize(
  ("path", "outer", "remat"),
  [("auto", False, False), ("single_gradient", True, False), ("single_gradient", False, True)],
)
def test_a_single_gradient_equals_autodiff_for_any_optimizer(path, outer, remat, x64):
  optimizee = with_outer_loss(bowl()) if outer else bowl()
  options = {"meta_batch_size": 2, "wrap": reads_params_and_mixes_coordinates, "remat": remat}
  plain = estimates("autodiff", optimizee, meta_losses.mean_log, **options)
  fast = estimates(path, optimizee, meta_losses.mean_log, **options)
  chex.assert_trees_all_close(plain, fast, rtol=1e-10, atol=1e-10)
  assert min(float(info.meta_grad_norm) for _, info in plain) > 1e-3


def test_a_single_gradient_never_differentiates_the_optimizee_twice():
  """A loss whose derivative is not differentiable in reverse mode."""

  @jax.custom_vjp
  def square(x):
    return jnp.sum(x**2)

  def forward(x):
    return square(x), x

  def backward(x, cotangent):
    calls.append(1)
    return (2.0 * cotangent * x,)

  calls = []
  square.defvjp(forward, backward)
  optimizee = learned_opt.Optimizee.from_functions(
    lambda key: jax.random.normal(key, (3,)), lambda x, key: square(x)
  )
  counts = {}
  for path in ("autodiff", "single_gradient"):
    calls.clear()
    meta_params = meta_params_of(tiny_lstm(num_layers=2))
    estimates(path, optimizee, meta_losses.mean, num_estimates=1, meta_params=meta_params)
    counts[path] = len(calls)
  # In the inner step and after the last one; autodiff walks back through both once more.
  assert counts == {"autodiff": 3, "single_gradient": 2}


def test_diverged_problems_are_dropped_as_in_autodiff(x64):
  def init(key, data):
    del data
    sick = jax.random.bernoulli(key, 0.5)
    return jax.random.normal(key, (3,)), jnp.where(sick, jnp.nan, 1.0)

  def loss(params, constants, data, key):
    del data, key
    return jnp.sum(jnp.cosh(constants * params))

  optimizee = learned_opt.Optimizee(init, loss)
  plain = estimates("autodiff", optimizee, meta_losses.mean, meta_batch_size=8)
  fast = estimates("replay", optimizee, meta_losses.mean, meta_batch_size=8)
  assert 0 < int(plain[0][1].num_diverged) < 8
  chex.assert_trees_all_close(plain, fast, rtol=1e-10, atol=1e-10)


def test_auto_takes_replay_for_first_order_and_autodiff_for_second(monkeypatch, x64):
  taken = []
  real = _replay._replay
  monkeypatch.setattr(_replay, "_replay", lambda *args: taken.append(1) or real(*args))
  estimates("auto", bowl(), meta_losses.mean, num_estimates=1)
  assert len(taken) == 1
  estimates("auto", bowl(), meta_losses.mean, num_estimates=1, second_order=True)
  assert len(taken) == 1


def test_replay_refuses_what_it_cannot_do():
  for path in ("replay", "single_gradient"):
    with pytest.raises(ValueError, match=f"path='{path}' is first order"):
      estimators.truncated_backprop(path=path, second_order=True)
  with pytest.raises(ValueError, match="path must be"):
    estimators.truncated_backprop(path="fast")
  estimator = estimators.truncated_backprop(path="replay")
  no_rule = tiny_lstm()._replace(coordinatewise=None)
  with pytest.raises(ValueError, match="coordinatewise"):
    estimator.init(bowl(), no_rule, meta_params_of(no_rule), jax.random.key(0))


@functools.cache
def sampled_estimates(num_samples, coordinates, pair=False):
  """Estimates of the second truncation of the same two problems."""
  optimizee = with_outer_loss_of_trees(
    optimizees.mlp_classifier(images(), (3,), batch_size=4, initial_scale=0.5)
  )
  architecture = optimizers.lstm_pair(1, 4, kernel_rank=2) if pair else tiny_lstm()
  meta_params = meta_params_of(architecture, dtype=np.float64)
  estimator = estimators.truncated_backprop(
    2, 4, 2, meta_losses.mean_log, replayed_coordinates=coordinates
  )
  estimate = functools.partial(estimator.estimate, optimizee, architecture, meta_params)

  @jax.jit
  def run(keys):
    state = estimator.init(optimizee, architecture, meta_params, jax.random.key(1))
    _, state, _ = estimate(state, jax.random.key(2))
    return jax.vmap(lambda key: estimate(state, key)[0])(keys)

  return run(jax.random.split(jax.random.key(3), num_samples))


def estimate_from_all_coordinates(**options):
  return jax.tree.map(lambda leaf: leaf[0], sampled_estimates(1, coordinates=None, **options))


def with_outer_loss_of_trees(optimizee):
  def outer_loss(params, constants, data, key):
    return 2.0 * optimizee.loss(params, constants, data, key)

  return dataclasses.replace(optimizee, outer_loss=outer_loss)


@pytest.mark.parametrize("pair", [False, True])
def test_a_sample_of_coordinates_is_unbiased(pair, x64):
  samples = sampled_estimates(1000, coordinates=5, pair=pair)
  everything = estimate_from_all_coordinates(pair=pair)
  if pair:  # Both biases have fewer coordinates than a sample.
    exact = jax.tree.map(lambda leaf: leaf[0], samples["others"])
    chex.assert_trees_all_close(exact, everything["others"], rtol=1e-5, atol=1e-9)
    samples, everything = samples["kernels"], everything["kernels"]
  for drawn, exact in zip(jax.tree.leaves(samples), jax.tree.leaves(everything), strict=True):
    standard_error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert float(jnp.min(standard_error)) > 0.0
    # Of some 200 elements none is expected beyond 4.5.
    np.testing.assert_array_less(abs(drawn.mean(axis=0) - exact), 4.5 * standard_error)


def test_a_sample_of_all_coordinates_is_exact(x64):
  samples, everything = sampled_estimates(2, coordinates=90), estimate_from_all_coordinates()
  chex.assert_trees_all_close(
    jax.tree.map(lambda leaf: leaf[0], samples), everything, rtol=1e-5, atol=1e-9
  )


def test_a_sample_needs_the_replay():
  for options in ({"path": "autodiff"}, {"path": "single_gradient"}, {"second_order": True}):
    with pytest.raises(ValueError, match="replayed_coordinates needs the replay"):
      estimators.truncated_backprop(replayed_coordinates=8, **options)
  with pytest.raises(ValueError, match="replayed_coordinates must be at least 1, got 0"):
    estimators.full_unroll(replayed_coordinates=0)
  estimator = estimators.truncated_backprop(replayed_coordinates=8)
  no_rule = tiny_lstm()._replace(coordinatewise=None)
  with pytest.raises(ValueError, match="replayed_coordinates needs a purely coordinatewise"):
    estimator.init(bowl(), no_rule, meta_params_of(no_rule), jax.random.key(0))
