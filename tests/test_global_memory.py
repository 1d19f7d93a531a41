"""Global averaging cells and shared memories, against the paper's equations (appendix D)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import pytest
from cases import meta_params_of

from learned_opt import optimizers
from learned_opt.optimizers import ntm


def updates_of(architecture, meta_params, grads, like=None):
  """Updates for a list of gradients, and the last state."""
  tx = architecture.optimizer(meta_params)
  update = jax.jit(tx.update)
  state, updates = tx.init(grads[0] if like is None else like), []
  for grad in grads:
    new, state = update(grad, state)
    updates.append(new)
  return updates, state


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


# --- Global averaging cells.


class NumpyGAC(numpy_lstm.NumpyLSTM):
  """The first units of each layer give out their mean."""

  def __init__(self, meta_params, num_global, **options):
    super().__init__({**meta_params["stack"], "output": meta_params["output"]}, **options)
    self.num_global = num_global

  def update(self, grads, state):
    x, next_state = self.preprocess(grads), []
    for layer, (c, h) in zip(self.layers, state, strict=True):
      z = np.concatenate([x, h], axis=1) @ layer["kernel"] + layer["bias"]
      i, j, f, o = np.split(z, 4, axis=1)
      c = numpy_lstm.sigmoid(f + self.forget_bias) * c + numpy_lstm.sigmoid(i) * np.tanh(j)
      x = np.tanh(c) * numpy_lstm.sigmoid(o)
      x[:, : self.num_global] = x[:, : self.num_global].mean(axis=0)
      next_state.append((c, x))
    updates = (x @ self.output["kernel"] + self.output["bias"])[:, 0] * self.output_scale
    return updates, next_state


def test_lstm_gac_equals_numpy(x64):
  architecture = optimizers.lstm_gac(2, 5, num_global=2)
  meta_params = meta_params_of(architecture, dtype=np.float64)
  grads = normal(6, 7)
  reference = NumpyGAC(meta_params, 2, preprocess=numpy_lstm.log_and_sign(10.0), output_scale=0.1)
  updates, _ = updates_of(architecture, meta_params, list(jnp.asarray(grads)))
  np.testing.assert_allclose(jnp.stack(updates), reference.updates(grads)[0], rtol=1e-10)


def test_the_mean_is_over_all_tensors_whatever_they_are(x64):
  architecture = optimizers.lstm_gac(1, 4, num_global=1)
  meta_params = meta_params_of(architecture, dtype=np.float64)
  whole = list(jnp.asarray(normal(4, 6)))
  parts = [{"a": g[:1], "b": (g[1:5].reshape(2, 2), jnp.zeros((0, 3))), "c": g[5]} for g in whole]
  expected, _ = updates_of(architecture, meta_params, whole)
  found, _ = updates_of(architecture, meta_params, parts)
  for tree, flat in zip(found, expected, strict=True):
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]
    chex.assert_trees_all_close(jnp.concatenate(leaves), flat, rtol=1e-12)


def test_without_averaging_cells_it_is_the_lstm(x64):
  plain, gac = optimizers.lstm(2, 4), optimizers.lstm_gac(2, 4, num_global=0)
  meta_params = meta_params_of(plain, dtype=np.float64)
  layers = {name: parts for name, parts in meta_params.items() if name != "output"}
  grads = list(jnp.asarray(normal(3, 5)))
  expected, _ = updates_of(plain, meta_params, grads)
  found, _ = updates_of(gac, {"stack": layers, "output": meta_params["output"]}, grads)
  chex.assert_trees_all_close(found, expected, rtol=1e-12)


def test_with_an_averaging_cell_coordinates_see_each_other(x64):
  architecture = optimizers.lstm_gac(1, 4, num_global=1)
  meta_params = meta_params_of(architecture, dtype=np.float64)
  first, second = jnp.asarray(normal(2, 3))
  (_, alone), _ = updates_of(architecture, meta_params, [first, second])
  (_, other), _ = updates_of(architecture, meta_params, [first, second.at[2].add(1.0)])
  assert float(abs(alone - other)[0]) > 1e-6


def test_lstm_gac_has_the_meta_params_of_the_lstm():
  shapes = jax.eval_shape(optimizers.lstm_gac().init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 5141


# --- Shared memories.


def bfgs(inverse_hessian, s, y):
  """The textbook update of the inverse Hessian (Nocedal and Wright, equation 6.17)."""
  rho = 1.0 / (y @ s)
  left = np.eye(len(s)) - rho * np.outer(s, y)
  return left @ inverse_hessian @ left.T + rho * np.outer(s, s)


@pytest.mark.parametrize(
  "memory", [ntm.dense_memory(), ntm.low_rank_memory(num_pairs=3 * 9)], ids=["dense", "low_rank"]
)
def test_three_writes_and_one_read_are_bfgs(memory, x64):
  """The heads that make it so are functions of a coordinate's own numbers and two global sums."""
  n, num_steps = 6, 10
  factor = normal(n, n)
  hessian, minimum = factor @ factor.T + np.eye(n), normal(n, seed=1)
  theta = np.zeros(n)
  grad = hessian @ (theta - minimum)
  expected = np.eye(n)
  state, product = memory.init(n, np.float64), grad  # M_0 is the identity.
  for _ in range(num_steps - 1):
    s = -0.3 * product
    theta = theta + s
    next_grad = hessian @ (theta - minimum)
    y = next_grad - grad
    # One read: M grad was read in the step before.
    q = np.asarray(memory.read(state, jnp.asarray(next_grad)[:, None]))[:, 0] - product
    c1, c2 = y @ s, y @ q
    a = jnp.stack([-s / c1, -q / c1, (c2 / c1**2 + 1.0 / c1) * s], axis=1)
    b = jnp.stack([q, s, s], axis=1)
    state = memory.write(state, a, b)
    expected = bfgs(expected, s, y)
    grad, product = next_grad, expected @ next_grad
    np.testing.assert_allclose(memory.read(state, jnp.eye(n)), expected, rtol=1e-9, atol=1e-9)
  # That is what a quasi-Newton method is for: it has found the curvature along its path.
  np.testing.assert_allclose(expected @ y, s, rtol=1e-9, atol=1e-9)


def test_what_is_read_arrives_one_step_later(x64):
  architecture = optimizers.ntm_bfgs(1, 4, num_global=1, num_reads=2, num_writes=1)
  meta_params = meta_params_of(architecture, dtype=np.float64)
  # Heads that ignore the state: r = (1, 2), a = 3, b = 5, times the scale of heads.
  heads = {"kernel": jnp.zeros((4, 4)), "bias": jnp.array([1.0, 2.0, 3.0, 5.0])}
  meta_params = {**meta_params, "heads": heads}
  _, state = updates_of(architecture, meta_params, [jnp.ones(3)] * 2)
  np.testing.assert_allclose(state.reads, np.tile([0.1, 0.2], (3, 1)))
  np.testing.assert_allclose(state.memory, np.eye(3) + 2 * 0.3 * 0.5, rtol=1e-12)
  # The controller of the second step read M_1 r_1.
  tx = architecture.optimizer(meta_params)
  _, first = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
  blind = first._replace(memory=jnp.zeros((3, 3)))
  seen, unseen = tx.update(jnp.ones(3), first)[0], tx.update(jnp.ones(3), blind)[0]
  assert float(abs(seen - unseen).max()) > 1e-4


def test_low_rank_equals_dense_until_it_forgets(x64):
  options = {"num_layers": 1, "hidden_size": 4, "num_global": 1, "num_writes": 2}
  dense = optimizers.ntm_bfgs(**options)
  low_rank = optimizers.ntm_lbfgs(**options, num_pairs=6)
  meta_params = meta_params_of(dense, dtype=np.float64)
  grads = list(jnp.asarray(normal(6, 5)))
  expected, _ = updates_of(dense, meta_params, grads)
  found, state = updates_of(low_rank, meta_params, grads)
  # Three steps write six pairs; the fourth step reads them, and the fifth what is left of them.
  chex.assert_trees_all_close(found[:4], expected[:4], rtol=1e-10)
  assert float(abs(found[5] - expected[5]).max()) > 1e-12
  assert state.memory.a.shape == (5, 6)


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match="num_global must be between 0 and hidden_size=4, got 5"):
    optimizers.lstm_gac(hidden_size=4, num_global=5)
  with pytest.raises(ValueError, match="num_writes must be at least 1, got 0"):
    optimizers.ntm_bfgs(num_writes=0)
  with pytest.raises(ValueError, match="num_pairs must be at least num_writes=3, got 2"):
    optimizers.ntm_lbfgs(num_pairs=2)
  with pytest.raises(ValueError, match="head_scale must be finite"):
    optimizers.ntm_bfgs(head_scale=float("nan"))
  with pytest.raises(TypeError, match="preprocessing must be"):
    optimizers.ntm_lbfgs(preprocessing="log")  # pyright: ignore[reportArgumentType]
