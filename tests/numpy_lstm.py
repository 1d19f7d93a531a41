"""The paper's coordinatewise LSTM in plain numpy, in float64: what the library is compared with.

Written from the equations (Andrychowicz et al. 2016, section 2.1, section 2 and appendix A; the
cell of Sonnet 1), not from the library's code. It differentiates by finite differences only.
"""

from collections.abc import Callable

import numpy as np


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


def identity(grads):
  """[n] gradients -> [n, 1] features."""
  return grads[:, None]


def scale(factor):
  return lambda grads: factor * grads[:, None]


def log_and_sign(p):
  """[n] gradients -> [n, 2] features, appendix A."""

  def preprocess(grads):
    features = np.empty((grads.size, 2))
    for row, g in enumerate(grads):
      if abs(g) >= np.exp(-p):
        features[row] = np.log(abs(g)) / p, np.sign(g)
      else:
        features[row] = -1.0, np.exp(p) * g
    return features

  return preprocess


class NumpyLSTM:
  """m_phi with fixed weights.

  Args:
    meta_params: those of `learned_opt.optimizers.lstm`; only their names are shared with it.
    preprocess: [n] gradients -> [n, features].
  """

  def __init__(self, meta_params, preprocess: Callable, output_scale=1.0, forget_bias=1.0):
    weights = {
      layer: {name: np.asarray(array, np.float64) for name, array in parts["gates"].items()}
      for layer, parts in meta_params.items()
      if layer != "output"
    }
    self.layers = [weights[f"layer_{k}"] for k in range(len(weights))]
    self.output = {k: np.asarray(v, np.float64) for k, v in meta_params["output"].items()}
    self.preprocess = preprocess
    self.output_scale = output_scale
    self.forget_bias = forget_bias

  def zero_state(self, n):
    hidden = self.layers[0]["kernel"].shape[1] // 4
    return [(np.zeros((n, hidden)), np.zeros((n, hidden))) for _ in self.layers]

  def update(self, grads, state):
    """[n] gradients and [(c, h), ...] -> [n] updates and the next state."""
    x = self.preprocess(np.asarray(grads, np.float64))
    next_state = []
    for layer, (c, h) in zip(self.layers, state, strict=True):
      z = np.concatenate([x, h], axis=1) @ layer["kernel"] + layer["bias"]
      i, j, f, o = np.split(z, 4, axis=1)
      c = sigmoid(f + self.forget_bias) * c + sigmoid(i) * np.tanh(j)
      h = np.tanh(c) * sigmoid(o)
      next_state.append((c, h))
      x = h
    updates = (x @ self.output["kernel"] + self.output["bias"])[:, 0] * self.output_scale
    return updates, next_state

  def updates(self, grads, state=None):
    """Runs over gradients [T, n]; returns updates [T, n] and the last state."""
    state = self.zero_state(grads.shape[1]) if state is None else state
    updates = []
    for g in grads:
      update, state = self.update(g, state)
      updates.append(update)
    return np.stack(updates), state


def optimize(lstm: NumpyLSTM, loss, grad, theta, num_steps, state=None):
  """theta_{t+1} = theta_t + m(grad f(theta_t)).

  Returns:
    losses [T + 1] and gradients [T + 1, n] at theta_0, ..., theta_T; theta_T; the last state.
  """
  state = lstm.zero_state(theta.size) if state is None else state
  losses, grads = [loss(theta)], [grad(theta)]
  for _ in range(num_steps):
    update, state = lstm.update(grads[-1], state)
    theta = theta + update
    losses.append(loss(theta))
    grads.append(grad(theta))
  return np.array(losses), np.stack(grads), theta, state


def first_order_objective(lstm: NumpyLSTM, grads, weighted_grads, state=None):
  """sum_t <u_t(phi; g), R_t>, R_t = sum_{s > t} w_s g_s: its gradient is the first-order rule's.

  Args:
    lstm: m_phi.
    grads: [T, n], the recorded gradients at theta_0, ..., theta_{T-1}, held fixed.
    weighted_grads: [T, n], w_s times the gradient of what the meta-loss is made of, at theta_1,
      ..., theta_T, held fixed.
    state: where the LSTM starts; zero if None.
  """
  rewards = np.cumsum(weighted_grads[::-1], axis=0)[::-1]
  return np.sum(lstm.updates(grads, state)[0] * rewards)


def derivative(function, step=1e-4):
  """Central difference of fourth order of a function of one number, at zero."""
  near = function(step) - function(-step)
  far = function(2 * step) - function(-2 * step)
  return (8 * near - far) / (12 * step)
