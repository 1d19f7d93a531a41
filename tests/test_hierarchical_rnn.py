"""The hierarchical RNN against its equations in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import meta_params_of

from learned_opt import optimizers


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


class NumpyHierarchicalRNN:
  """One tensor after the other, one coordinate after the other."""

  def __init__(self, meta_params, state):
    self.weights = jax.tree.map(np.asarray, meta_params)
    self.problem, self.tensors = np.asarray(state.of_problem), list(np.asarray(state.of_tensors))
    start = self.weights["start"]["parameter"]
    self.rates = [list(np.asarray(tensor.log_rate)) for tensor in state.tensors]
    self.cells = [[self.coordinate(start) for _ in rates] for rates in self.rates]

  @staticmethod
  def coordinate(start):
    return {"h": start, "means": np.zeros(4), "squares": np.zeros(4), "d": 0.0, "delta": 0.0}

  def affine(self, name, x):
    return x @ self.weights[name]["kernel"] + self.weights[name]["bias"]

  def gru(self, name, x, h, bias):
    gates, candidate, size = self.weights[name]["gates"], self.weights[name]["candidate"], h.size
    rz = sigmoid(np.append(x, h) @ gates["kernel"] + gates["bias"] + bias[: 2 * size])
    r, u = rz[:size], rz[size:]
    c = np.append(x, r * h) @ candidate["kernel"] + candidate["bias"] + bias[2 * size :]
    return u * h + (1 - u) * np.tanh(c)

  def inputs(self, cell, grad, rate, mean_rate):
    for j in range(4):
      d = cell["d"] ** (0.5**j)
      cell["means"][j] = d * cell["means"][j] + (1 - d) * grad
      square = cell["means"][j] ** 2 + 1e-12
      cell["squares"][j] = cell["delta"] * cell["squares"][j] + (1 - cell["delta"]) * square
    s = np.arcsinh(cell["means"] / np.sqrt(cell["squares"] + 1e-16))
    logs = np.log(cell["squares"] + 1e-16)
    return s, np.concatenate([s, s[:3] * s[1:], logs - logs.mean(), [rate - mean_rate]])

  def update(self, grads):
    output, updates, summaries = self.weights["output"], [], []
    mean_rate = np.mean(np.concatenate(self.rates))
    from_problem = self.affine("problem_to_parameter", self.problem)
    for tensor, grad in enumerate(grads):
      bias = self.affine("tensor_to_parameter", self.tensors[tensor]) + from_problem
      directions, steps, seen = [], [], []
      for i, g in enumerate(np.ravel(grad)):
        cell, rate = self.cells[tensor][i], self.rates[tensor][i]
        s, x = self.inputs(cell, g, rate, mean_rate)
        cell["h"] = h = self.gru("parameter", x, cell["h"], bias)
        directions.append(h @ output["direction"] + s @ output["scaled"])
        for name, decay in (("d", "input_decay"), ("delta", "scale_decay")):
          cell[name] = sigmoid(h @ output[decay]["kernel"] + output[decay]["bias"])
        new_rate = np.clip(rate + h @ output["rate"]["kernel"] + output["rate"]["bias"], -33, 33)
        mu = sigmoid(output["rate_momentum"])
        self.rates[tensor][i] = mu * rate + (1 - mu) * new_rate
        steps.append(np.exp(new_rate + output["rate_offset"]))
        seen.append(np.append(h, x))
      size = np.sqrt(np.mean(np.square(directions)) + 1e-16)
      updates.append((-np.array(steps) * directions / size).reshape(np.shape(grad)))
      summaries.append(np.mean(seen, axis=0))
    bias = self.affine("problem_to_tensor", self.problem)
    self.tensors = [
      self.gru("tensor", x, h, bias) for x, h in zip(summaries, self.tensors, strict=True)
    ]
    mean = np.mean(self.tensors, axis=0)
    self.problem = self.gru("problem", mean, self.problem, np.zeros(3 * self.problem.size))
    return updates


SHAPES = ((2, 3), (), (4,), (4,))


def draw(seed, shapes=SHAPES, scale=1.0):
  rng = np.random.default_rng(seed)
  return [jnp.asarray(scale * rng.normal(size=shape)) for shape in shapes]


@functools.cache
def make(initial_rates=(1e-6, 1e-2), dtype=np.float64):
  """The compiled `init` and `update`, and the meta-params."""
  architecture = optimizers.hierarchical_rnn(5, 3, 2, initial_rates)
  meta_params = meta_params_of(architecture, seed=1, dtype=dtype)
  tx = architecture.optimizer(meta_params)
  return jax.jit(tx.init), jax.jit(tx.update), meta_params


def test_equals_numpy_in_float64(x64):
  init, update, meta_params = make()
  state = init(draw(0))
  reference = NumpyHierarchicalRNN(meta_params, state)
  for step, scale in enumerate((1.0, 1e-3, 30.0, 0.2)):
    grads = draw(step + 1, scale=scale)
    updates, state = update(grads, state)
    for found, expected in zip(updates, reference.update(grads), strict=True):
      np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-18)
  np.testing.assert_allclose(state.of_problem, reference.problem, rtol=1e-9)


def test_order_of_tensors_and_of_coordinates_does_not_matter(x64):
  init, _, _ = make(initial_rates=(1e-3, 1e-3))
  _, update, _ = make()
  order, grads = np.array([3, 1, 0, 2]), [draw(step) for step in range(3)]
  state, other = init(grads[0]), init(grads[0])
  for plain in grads:
    # The two vectors change places, and so do coordinates of the first of them.
    mixed = [plain[0], plain[1], plain[3], plain[2][order]]
    updates, state = update(plain, state)
    permuted, other = update(mixed, other)
    for found, expected in zip(
      permuted, [updates[0], updates[1], updates[3], updates[2][order]], strict=True
    ):
      np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_first_step_forgets_the_zeros_of_the_means(x64):
  init, update, _ = make()
  grads = draw(3)
  _, state = update(grads, init(grads))
  for grad, tensor in zip(grads, state.tensors, strict=True):
    np.testing.assert_array_equal(tensor.means, np.tile(np.ravel(grad)[:, None], (1, 4)))
    np.testing.assert_allclose(tensor.squares, np.square(tensor.means) + 1e-12, rtol=1e-12)


def test_rates_start_between_the_given_ones_and_differ_between_tensors():
  init, _, _ = make(dtype=np.float32)
  params = [jnp.ones(500), jnp.ones(500)]
  first, second = (np.asarray(tensor.log_rate) for tensor in init(params).tensors)
  low, high = np.log(1e-6), np.log(1e-2)
  for rates in (first, second):
    assert low <= rates.min() < rates.max() <= high
    # Half of the logarithm's range is a tensor's own.
    assert 0.45 * (high - low) < np.ptp(rates) <= 0.5 * (high - low)
  assert not np.any(np.isclose(first, second))


def test_rate_at_its_limit_stays_there_and_has_a_derivative():
  architecture = optimizers.hierarchical_rnn(5, 3, 2)
  meta_params = meta_params_of(architecture)

  def log_rate(bias):
    weights = dict(meta_params, output=dict(meta_params["output"]))
    weights["output"]["rate"] = {"kernel": jnp.zeros(5), "bias": bias}
    weights["output"]["rate_momentum"] = jnp.array(-jnp.inf)
    tx = architecture.optimizer(weights)
    return tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[1].tensors.log_rate[0]

  value, derivative = jax.jit(jax.value_and_grad(log_rate))(jnp.array(100.0))
  assert (float(value), float(derivative)) == (33.0, 1.0)


def test_initialisation_is_that_of_the_released_code(key):
  meta_params = jax.jit(optimizers.hierarchical_rnn().init)(key)
  output, parameter = meta_params["output"], meta_params["parameter"]
  assert parameter["gates"]["kernel"].shape == (22, 20)
  np.testing.assert_array_equal(parameter["gates"]["bias"], np.full(20, 2.2, np.float32))
  assert abs(float(jnp.std(parameter["gates"]["kernel"])) - 0.5 / np.sqrt(22)) < 0.01
  np.testing.assert_array_equal(output["rate"]["kernel"], 0.0)
  assert abs(float(jnp.mean(output["scaled"])) - 0.25) < 0.1
  assert float(jnp.max(jnp.abs(meta_params["start"]["tensor"]))) <= 1.0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
    ({"problem_size": -1}, "problem_size must be at least 1, got -1"),
    ({"initial_rates": (1e-2, 1e-6)}, "two positive numbers in order"),
    ({"initial_rates": (0.0, 1.0)}, "two positive numbers in order"),
  ],
)
def test_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    optimizers.hierarchical_rnn(**options)
