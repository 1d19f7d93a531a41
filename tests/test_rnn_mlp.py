"""The RNN-MLP against its equations in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import meta_params_of

from learned_opt import optimizers

DECAYS = np.array([0.5, 0.9, 0.99, 0.999, 0.9999])
SCALES = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def log_magnitude(x):
  return np.clip(np.log(1e-8 + np.abs(x)), -5, 5)


def moments(x):
  return [log_magnitude(x.mean()), np.sign(x.mean()), log_magnitude(x.var())]


class NumpyRNNMLP:
  """One tensor after the other; coordinates by rows."""

  def __init__(self, meta_params, params):
    self.weights = jax.tree.map(np.asarray, meta_params)
    start = self.weights["start"]
    self.cells = [(start["c"], start["h"]) for _ in params]
    self.from_network = [start["from_network"] for _ in params]
    self.from_lstms = start["from_lstms"]
    self.averages = [(np.zeros((p.size, 5)), np.zeros((p.size, 5))) for p in params]
    self.loss, self.size, self.step = (0.0, 0.0), 0.01, 0

  def affine(self, name, x):
    return x @ self.weights[name]["kernel"] + self.weights[name]["bias"]

  def lstm(self, x, c, h):
    i, j, f, o = np.split(self.affine("lstm", np.append(x, h)), 4)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
    return c, sigmoid(o) * np.tanh(c)

  def loss_features(self, loss):
    mean = 0.9 * self.loss[0] + 0.1 * loss
    self.loss = mean, 0.9 * self.loss[1] + 0.1 * (mean - loss) ** 2
    bias = 1 - 0.9 ** (self.step + 1) + 1e-8
    deviations = (np.array([loss, 0.0]) - mean / bias) / np.sqrt(self.loss[1] / bias + 1e-8)
    return np.clip(deviations, -5, 5)

  def statistics(self, tensor, grad, param):
    m, r = self.averages[tensor]
    sizes = [*param.shape, 1, 1, 1, 1][:4]
    norms = [log_magnitude(np.linalg.norm(param)), log_magnitude(np.linalg.norm(grad))]
    of_shape = [1.0 if param.ndim == 0 else -1.0, *(np.log(sizes) - 1)]
    return [*moments(m), *moments(r), *moments(param), *norms, *of_shape]

  def network(self, tensor, grad, param, of_lstm, num_tensors):
    m, r = self.averages[tensor]
    g, p = np.reshape(grad, (-1, 1)), np.reshape(param, (-1, 1))
    rsqrt = 1 / np.sqrt(r + 1e-6)
    own = np.concatenate([g, p, np.log(np.abs(p) + 1e-8), m, r, m * rsqrt, rsqrt], axis=1)
    own = own / np.sqrt(1e-5 + np.mean(own**2, axis=0))
    shared = [*np.sin(self.step / (np.pi * SCALES)), np.log(num_tensors) - 1]
    shared += [np.log(np.linalg.norm(p) + 1e-8), np.log(p.size), *of_lstm]
    x = np.concatenate([own, np.tile(shared, (p.size, 1))], axis=1)
    *hidden, output = self.weights["network"].values()
    for layer in hidden:
      x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    return x @ output["kernel"] + output["bias"]

  def update(self, grads, params, loss):
    losses = self.loss_features(loss)
    limit = 10 * self.size / (1 - 0.99 ** (self.step + 1))
    grads = [np.clip(grad, -limit, limit) for grad in grads]
    size = np.sqrt(1e-8 + np.mean([np.mean(grad**2) for grad in grads]))
    self.size = 0.99 * self.size + 0.01 * size
    told, updates = [], []
    for tensor, (grad, param) in enumerate(zip(grads, params, strict=True)):
      g, (m, r) = np.reshape(grad, (-1, 1)), self.averages[tensor]
      self.averages[tensor] = DECAYS * m + (1 - DECAYS) * g, DECAYS * r + (1 - DECAYS) * g**2
      statistics = self.statistics(tensor, grad, param)
      inputs = [*self.from_lstms, *self.from_network[tensor], *statistics, *losses]
      self.cells[tensor] = self.lstm(np.array(inputs), *self.cells[tensor])
      h = self.cells[tensor][1]
      told.append(self.affine("to_lstms", h))
      of_lstm = self.affine("to_network", h)
      outputs = self.network(tensor, grad, param, of_lstm, len(params))
      self.from_network[tensor] = outputs[:, 2:].mean(axis=0)
      step = -1e-3 * outputs[:, 0] * np.exp(1e-3 * outputs[:, 1])
      updates.append(step.reshape(param.shape))
    self.from_lstms = np.mean(told, axis=0)
    self.step += 1
    return updates


SHAPES = ((3, 2), (), (4,), (4,))


def draw(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(scale * rng.normal(size=shape)) for shape in SHAPES]


@functools.cache
def make():
  architecture = optimizers.rnn_mlp(5, 1, 6)
  meta_params = meta_params_of(architecture, seed=1, dtype=np.float64)
  tx = architecture.optimizer(meta_params)
  return jax.jit(tx.init), jax.jit(tx.update), meta_params


def test_equals_numpy_in_float64(x64):
  init, update, meta_params = make()
  params = draw(0)
  state, reference = init(params), NumpyRNNMLP(meta_params, params)
  # The second gradients are so large that they are clipped.
  for step, scale in enumerate((1.0, 30.0, 1e-3)):
    grads, loss = draw(step + 1, scale), 2.0 - step
    updates, state = update(grads, state, params, value=loss)
    expected = reference.update(list(map(np.asarray, grads)), list(map(np.asarray, params)), loss)
    for found, wanted in zip(updates, expected, strict=True):
      np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-16)
    params = [param + found for param, found in zip(params, updates, strict=True)]
  np.testing.assert_allclose(state.from_lstms, reference.from_lstms, rtol=1e-8)


def test_order_of_tensors_and_of_coordinates_does_not_matter(x64):
  init, update, _ = make()
  order = np.array([3, 1, 0, 2])

  def mixed(tree):
    # The two vectors change places, and so do coordinates of the first of them.
    return [tree[0], tree[1], tree[3], tree[2][order]]

  params = draw(0)
  state, other = init(params), init(mixed(params))
  for step in range(2):
    grads = draw(step + 1)
    updates, state = update(grads, state, params, value=1.0)
    permuted, other = update(mixed(grads), other, mixed(params), value=1.0)
    for found, expected in zip(permuted, mixed(updates), strict=True):
      np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_has_the_published_sizes(key):
  shapes = jax.eval_shape(optimizers.rnn_mlp().init, key)
  assert shapes["lstm"]["kernel"].shape == (52 + 64, 4 * 64)
  assert shapes["network"]["layer_0"]["kernel"].shape == (37 + 17, 32)
  assert shapes["network"]["output"]["kernel"].shape == (32, 2 + 16)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"lstm_size": 0}, "lstm_size must be at least 1, got 0"),
    ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
    ({"exp_scale": float("nan")}, "exp_scale must be finite, got nan"),
  ],
)
def test_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    optimizers.rnn_mlp(**options)
