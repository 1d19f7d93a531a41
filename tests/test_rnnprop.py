"""RNNprop against its equations in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy_lstm
import pytest
from cases import bowl, meta_params_of

from learned_opt import estimators, meta_losses, optimizers


class NumpyRNNprop(numpy_lstm.NumpyLSTM):
  """Lv et al. (2017), with beta = 0.95 and alpha = 0.1."""

  def __init__(self, meta_params, grads):
    layers = {name: parts for name, parts in meta_params.items() if name != "input"}
    super().__init__(layers, self.features, output_scale=1.0)
    self.input = {k: np.asarray(v) for k, v in meta_params["input"].items()}
    self.mean, self.square, self.step = 0.0, 0.0, 0

  def features(self, grad):
    self.step += 1
    self.mean = 0.95 * self.mean + 0.05 * grad
    self.square = 0.95 * self.square + 0.05 * grad**2
    correction = 1 - 0.95**self.step
    scale = np.sqrt(self.square / correction) + 1e-8
    inputs = np.stack([grad / scale, self.mean / correction / scale], axis=1)
    z = inputs @ self.input["kernel"] + self.input["bias"]
    return np.where(z > 0, z, np.expm1(z))

  def updates(self, grads, state=None):
    outputs, state = super().updates(grads, state)
    return -0.1 * np.tanh(outputs), state


def run(architecture, meta_params, grads):
  tx = architecture.optimizer(meta_params)
  update, state, updates = jax.jit(tx.update), tx.init(grads[0]), []
  for grad in grads:
    new, state = update(grad, state)
    updates.append(new)
  return jnp.stack(updates)


def test_equals_numpy_in_float64(x64):
  architecture = optimizers.rnnprop(hidden_size=5)
  meta_params = meta_params_of(architecture, dtype=np.float64)
  grads = np.random.default_rng(0).normal(size=(8, 6)) * 10.0 ** np.arange(-3, 3)
  expected, _ = NumpyRNNprop(meta_params, grads).updates(grads)
  np.testing.assert_allclose(run(architecture, meta_params, jnp.asarray(grads)), expected, 1e-9)


def test_is_free_of_the_scale_of_the_loss(x64):
  architecture = optimizers.rnnprop(1, 4)
  meta_params = meta_params_of(architecture, dtype=np.float64)
  grads = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)))
  updates = run(architecture, meta_params, grads)
  np.testing.assert_allclose(run(architecture, meta_params, 1e4 * grads), updates, rtol=1e-6)
  assert float(abs(updates).max()) < 0.1


def test_replay_equals_autodiff(x64):
  """The derivative goes through the layer before the LSTM, too."""
  architecture = optimizers.rnnprop(2, 4)
  meta_params = meta_params_of(architecture, dtype=np.float64)

  def estimate(path):
    estimator = estimators.truncated_backprop(3, 6, 2, meta_losses.mean, path=path)

    @jax.jit
    def two_truncations():
      state = estimator.init(bowl(), architecture, meta_params, jax.random.key(0))
      _, state, _ = estimator.estimate(bowl(), architecture, meta_params, state, jax.random.key(1))
      return estimator.estimate(bowl(), architecture, meta_params, state, jax.random.key(2))[0]

    return two_truncations()

  plain, fast = estimate("autodiff"), estimate("replay")
  for expected, found in zip(jax.tree.leaves(plain), jax.tree.leaves(fast), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
  assert float(abs(plain["input"]["kernel"]).max()) > 1e-6


def test_has_two_layers_of_twenty():
  shapes = jax.eval_shape(optimizers.rnnprop().init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 3 * 20 + 2 * 41 * 80 + 21


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ({"decay": 1.0}, "decay must be at least 0 and less than 1, got 1.0"),
    ({"output_scale": float("inf")}, "output_scale must be finite, got inf"),
  ],
)
def test_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    optimizers.rnnprop(**options)
