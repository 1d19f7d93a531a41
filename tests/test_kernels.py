"""The fused LSTM against its plain form: values, weight gradients, state gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import meta_params_of

from learned_opt import optimizers

ARCHITECTURES = {
  "paper": optimizers.lstm(),
  "three_layers_scale": optimizers.lstm(3, 5, optimizers.Scale(0.5), 0.3, 0.7),
  "one_layer_identity": optimizers.lstm(1, 4, optimizers.Identity(), 1.0, 0.0),
}
ALL = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


def run_plain(architecture, meta_params, grads):
  tx = architecture.optimizer(meta_params)
  state = tx.init(grads[0])
  updates = []
  for grad in grads:
    update, state = tx.update(grad, state)
    updates.append(update)
  return jnp.stack(updates), [tuple(layer) for layer in state.layers]


def run_rule(architecture, meta_params, grads):
  rule = architecture.coordinatewise
  state = rule.init(meta_params, grads.shape[1])
  updates = []
  for grad in grads:
    update, state = rule.update(meta_params, grad, state)
    updates.append(update)
  return jnp.stack(updates), [tuple(layer) for layer in state.layers]


def random_grads(dtype, num_coordinates=7, num_steps=3):
  grads = np.random.default_rng(1).normal(size=(num_steps, num_coordinates))
  grads[0, 0], grads[1, 1], grads[2, 2] = 0.0, 1e-9, 1e9
  return jnp.asarray(grads, dtype)


@ALL
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float64", 1e-12)])
def test_rule_equals_plain_form(architecture, dtype, rtol, x64):
  meta_params = meta_params_of(architecture, dtype=dtype)
  grads = random_grads(dtype)
  plain = jax.jit(lambda m, g: run_plain(architecture, m, g))(meta_params, grads)
  fused = jax.jit(lambda m, g: run_rule(architecture, m, g))(meta_params, grads)
  chex.assert_trees_all_equal_shapes_and_dtypes(plain[0], fused[0])
  chex.assert_trees_all_close(plain, fused, rtol=rtol, atol=rtol)


@ALL
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float64", 1e-10)])
def test_backward_pass_equals_autodiff_of_plain_form(architecture, dtype, rtol, x64):
  meta_params = meta_params_of(architecture, dtype=dtype)
  grads = random_grads(dtype)
  # Cotangents for the updates and for the final state, so that both ways into the VJP are walked.
  cotangents = jnp.asarray(np.random.default_rng(2).normal(size=grads.shape), dtype)

  def objective(run):
    def value(meta_params):
      updates, layers = run(architecture, meta_params, grads)
      return jnp.vdot(updates, cotangents) + sum(jnp.sum(c * c + 2 * h) for c, h in layers)

    return jax.jit(jax.grad(value))

  plain, fused = objective(run_plain)(meta_params), objective(run_rule)(meta_params)
  scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(plain))
  chex.assert_trees_all_close(plain, fused, rtol=rtol, atol=rtol * scale)
  assert scale > 0.1
