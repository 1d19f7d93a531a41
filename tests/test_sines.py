"""Noisy sine waves, and the LSTM that predicts them."""

import jax
import numpy as np
import pytest

from learned_opt import optimizees
from learned_opt.optimizees.sines import draw_waves


def test_waves_are_sines_with_the_published_ranges():
  waves = np.asarray(draw_waves(jax.random.key(0), 2000, 12, 0.0), np.float64)
  # Sines of a common frequency obey f(k + 1) + f(k - 1) = 2 cos(omega) f(k).
  middle = waves[:, 1:-1]
  twice_cos = np.sum((waves[:, 2:] + waves[:, :-2]) * middle, 1) / np.sum(middle**2, 1)
  np.testing.assert_allclose(waves[:, 2:] + waves[:, :-2], twice_cos[:, None] * middle, atol=2e-5)
  omega = np.arccos(np.clip(twice_cos / 2, -1, 1))
  assert 0 <= omega.min() < 0.02
  assert np.pi / 2 - 0.02 < omega.max() < np.pi / 2 + 1e-3
  np.testing.assert_allclose(omega.mean(), np.pi / 4, atol=4 * np.pi / 2 / np.sqrt(12 * 2000))
  # E f^2 = E A^2 / 2 = 100 / 6.
  assert np.abs(waves).max() <= 10
  np.testing.assert_allclose(np.mean(waves[:, 0] ** 2), 100 / 6, rtol=0.1)


def test_noise_is_on_the_inputs_alone():
  clean, noisy = (np.asarray(draw_waves(jax.random.key(1), 1000, 5, s)) for s in (0.0, 0.5))
  difference = noisy - clean
  np.testing.assert_array_equal(difference[:, -1], 0)
  np.testing.assert_allclose(difference[:, :-1].std(), 0.5, rtol=0.05)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def predict(params, sequences):
  """One layer, in numpy."""
  cell = params["layer_0"]
  h = c = np.zeros((sequences.shape[0], 3))
  for x in sequences.T:
    gates = {
      gate: x[:, None] @ cell[f"i{gate}"]["kernel"]
      + h @ cell[f"h{gate}"]["kernel"]
      + cell[f"h{gate}"]["bias"]
      for gate in "ifgo"
    }
    c = sigmoid(gates["f"]) * c + sigmoid(gates["i"]) * np.tanh(gates["g"])
    h = sigmoid(gates["o"]) * np.tanh(c)
  return (h @ params["output"]["kernel"] + params["output"]["bias"])[:, 0]


def test_loss_is_that_of_an_lstm():
  optimizee = optimizees.noisy_sines(hidden_size=3, length=4, batch_size=6, initial_scale=0.5)
  params, constants = optimizee.init(jax.random.key(0), optimizee.data)
  key = jax.random.key(1)
  waves = np.asarray(draw_waves(key, 6, 4, 0.1), np.float64)
  params64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  expected = np.mean((predict(params64, waves[:, :-1]) - waves[:, -1]) ** 2)
  loss = optimizee.loss(params, constants, optimizee.data, key)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ({"length": 0}, "length must be at least 1, got 0"),
    ({"noise": -0.1}, "noise must be finite and not negative, got -0.1"),
    ({"initial_scale": float("inf")}, "initial_scale must be finite and not negative, got inf"),
  ],
)
def test_refuses_what_is_out_of_range(options, words):
  with pytest.raises(ValueError, match=words):
    optimizees.noisy_sines(**options)
