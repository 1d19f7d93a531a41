"""The families of problems beyond the papers', against numpy, statistics and known minima."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import images, text

from learned_opt import datasets, optimizees
from learned_opt.optimizees import classical
from learned_opt.optimizees.mlp import MLP
from learned_opt.optimizees.recurrent_lm import RecurrentLM
from learned_opt.optimizees.transformer_lm import TransformerLM


def draw(optimizee, key):
  return jax.jit(optimizee.init)(key, optimizee.data)


def float64(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def dense(layer, x):
  return x @ layer["kernel"] + layer["bias"]


def cross_entropy(logits, labels):
  """Over the last axis."""
  shifted = logits - logits.max(axis=-1, keepdims=True)
  log_sum = np.log(np.sum(np.exp(shifted), axis=-1))
  return log_sum - np.take_along_axis(shifted, labels[..., None], axis=-1)[..., 0]


# --- Smaller images.


def test_resized_pixels_are_means_over_their_areas():
  """5 x 7 to 2 x 3 against a grid of 10 x 21, on which all borders are those of cells."""
  dataset = images((3, 2, 2), shape=(5, 7, 2))
  small = datasets.resize(dataset, (2, 3))
  for name in ("train", "test"):
    pixels, labels = getattr(dataset, name)
    fine = np.repeat(np.repeat(pixels.astype(np.float64), 2, axis=1), 3, axis=2)
    expected = fine.reshape(len(pixels), 2, 5, 3, 7, 2).mean(axis=(2, 4))
    found, found_labels = getattr(small, name)
    assert found.dtype == np.uint8
    assert abs(found - expected).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(found_labels, labels)


def test_grey_is_the_luma_and_equal_sizes_change_nothing():
  dataset = images((4, 1, 1), shape=(3, 3, 3))
  grey = datasets.resize(dataset, 3, grey=True)
  expected = dataset.train[0] @ np.array([0.299, 0.587, 0.114])
  assert abs(grey.train[0][..., 0] - expected).max() <= 0.5 + 1e-4
  same = datasets.resize(grey, (3, 3), grey=True)
  np.testing.assert_array_equal(same.train[0], grey.train[0])


@pytest.mark.parametrize(
  ("size", "grey", "message"),
  [
    (7, False, r"size must be between 1 and that of the images, \(6, 5\), got 7"),
    ((0, 2), False, r"size must be between 1 and .* got \(0, 2\)"),
    (2, True, "grey needs images of one or three channels, got 2"),
  ],
)
def test_resize_refuses(size, grey, message):
  with pytest.raises(ValueError, match=message):
    datasets.resize(images(shape=(6, 5, 2)), size, grey=grey)


# --- Texts.


def test_a_text_is_numbered_and_split_in_order(tmp_path):
  raw = "Öl, oil; öl. ".encode() * 20
  (tmp_path / "a.txt").write_bytes(raw)
  found = datasets.load_text(tmp_path / "a.txt")
  joined = np.concatenate(found[:3])
  assert found.vocabulary[joined].tobytes() == raw
  assert [len(split) for split in found[:3]] == [270, 15, 15]
  assert np.all(np.diff(found.vocabulary.astype(int)) > 0)
  assert found.num_characters == len(set(raw))


def test_tiny_shakespeare_has_65_characters(shared):
  found = datasets.load_text(shared / "data" / "text" / "tinyshakespeare.txt")
  assert found.num_characters == 65
  assert found.vocabulary[found.train[:14]].tobytes() == b"First Citizen:"
  assert len(found.train) == 1_003_854


def test_a_made_up_language_is_a_markov_chain_of_known_entropy():
  found = datasets.markov_text(60_000, num_characters=4, order=1, seed=3)
  numbers = np.concatenate(found[:3]).astype(int)
  counts = np.zeros((4, 4))
  np.add.at(counts, (numbers[:-1], numbers[1:]), 1)
  rows = np.random.default_rng(3)
  successors = np.argsort(rows.random((4, 4)), axis=1)
  chances = np.take_along_axis(rows.dirichlet(np.ones(4), 4), np.argsort(successors, 1), axis=1)
  expected = counts.sum(axis=1, keepdims=True) * chances
  assert abs((counts - expected) / np.sqrt(expected)).max() < 4.5
  # The entropy of flat Dirichlet probabilities, over many contexts.
  p = np.random.default_rng(0).dirichlet(np.ones(4), 20_000)
  np.testing.assert_allclose(-np.sum(p * np.log(p), axis=1).mean(), 13 / 12, rtol=0.01)


def test_bad_texts_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no text file .*nowhere\.txt.*tiny shakespeare"):
    datasets.load_text(tmp_path / "nowhere.txt")
  with pytest.raises(ValueError, match="at least 40 bytes, got 3"):
    datasets.text_of_bytes(b"abc")
  for options, message in (
    ({"num_bytes": 39}, "num_bytes must be at least 40, got 39"),
    ({"num_characters": 3}, "num_characters must be between 4 and 256, got 3"),
    ({"num_characters": 200, "order": 3}, "order must be .* a million contexts, got 3"),
  ):
    with pytest.raises(ValueError, match=message):
      datasets.markov_text(**options)


# --- Networks.


@pytest.mark.parametrize("skip", ["residual", "highway"])
def test_connections_around_layers_equal_numpy(skip, key):
  pixels = images((5, 1, 1)).train[0]
  module = MLP((4, 4, 4), 3, "tanh", 0.3, skip)
  variables = jax.jit(module.init)(key, jnp.asarray(pixels))
  params = float64(variables["params"])
  x = np.tanh(dense(params["Dense_0"], pixels.reshape(5, -1) / 255.0))
  for index in (1, 2):
    hidden = np.tanh(dense(params[f"Dense_{index}"], x))
    if skip == "highway":
      gate = sigmoid(dense(params[f"gate_{index}"], x) - 1.0)
      x = gate * hidden + (1 - gate) * x
    else:
      x = x + hidden
  expected = dense(params["Dense_3"], x)
  found = jax.jit(module.apply)(variables, jnp.asarray(pixels))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_lecuns_start_has_the_variance_of_one_over_fan_in(key):
  optimizee = optimizees.mlp_classifier(images(shape=(20, 20, 1)), (50,), initial_scale=None)
  params, _ = draw(optimizee, key)
  kernel = np.asarray(params["Dense_0"]["kernel"], np.float64)
  assert abs(kernel.var() * 400 - 1) < 5 * np.sqrt(2 / kernel.size)
  np.testing.assert_array_equal(params["Dense_0"]["bias"], 0.0)


def test_no_hidden_layers_is_soft_max_regression(key):
  optimizee = optimizees.mlp_classifier(images(), (), initial_scale=0.5)
  params, _ = draw(optimizee, key)
  layer = float64(params["Dense_0"])
  pixels, labels = images().test
  expected = cross_entropy(dense(layer, pixels.reshape(9, -1) / 255.0), labels).mean()
  metrics = jax.jit(optimizee.metrics)(params, (), optimizee.data)
  np.testing.assert_allclose(metrics["test_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("reconstruction", ["squared_error", "cross_entropy"])
def test_autoencoder_equals_numpy(reconstruction, key):
  """On one image, of which every minibatch is made; and on the test split."""
  dataset = images((1, 1, 7))
  optimizee = optimizees.image_autoencoder(
    dataset, (3, 2), "tanh", reconstruction, initial_scale=0.5, batch_size=2, outer_split="test"
  )
  params, _ = draw(optimizee, key)
  layers = float64(params)

  def losses(pixels):
    x = targets = pixels.reshape(len(pixels), -1) / 255.0
    for index in range(2):
      x = np.tanh(dense(layers[f"Dense_{index}"], x))
    y = sigmoid(dense(layers["Dense_2"], x))
    if reconstruction == "squared_error":
      return np.mean((y - targets) ** 2, axis=1)
    return -np.mean(targets * np.log(y) + (1 - targets) * np.log(1 - y), axis=1)

  loss = jax.jit(optimizee.loss)(params, (), optimizee.data, key)
  np.testing.assert_allclose(loss, losses(dataset.train[0])[0], rtol=1e-5)
  metrics = jax.jit(optimizee.metrics)(params, (), optimizee.data)
  np.testing.assert_allclose(metrics["test_loss"], losses(dataset.test[0]).mean(), rtol=1e-5)


def test_recurrent_network_equals_numpy(key):
  """Elman's; the other cells are flax's as well."""
  module = RecurrentLM(5, "rnn", num_layers=2, hidden_size=3, embedding_size=2, initial_scale=0.4)
  characters = np.random.default_rng(0).integers(0, 5, (2, 4))
  variables = jax.jit(module.init)(key, characters)
  params = float64(variables["params"])
  x = params["Embed_0"]["embedding"][characters]
  for index in range(2):
    layer, h, outputs = params[f"layer_{index}"], np.zeros((2, 3)), []
    for step in range(4):
      h = np.tanh(dense(layer["i"], x[:, step]) + h @ layer["h"]["kernel"])
      outputs.append(h)
    x = np.stack(outputs, axis=1)
  found = jax.jit(module.apply)(variables, characters)
  np.testing.assert_allclose(found, dense(params["output"], x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_cells_have_as_many_gates_as_they_should(cell, gates, key):
  optimizee = optimizees.recurrent_lm(text(), cell, 1, 16, 8, length=4)
  params, _ = jax.eval_shape(optimizee.init, key, optimizee.data)
  kernels = [leaf for leaf in jax.tree.leaves(params["layer_0"]) if leaf.ndim == 2]
  assert sum(leaf.size for leaf in kernels) == gates * (8 + 16) * 16


def numpy_norm(layer, x):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]


def numpy_attention(layer, x):
  q, k, v = (
    np.einsum("nlw,whd->nhld", x, layer[name]["kernel"]) + layer[name]["bias"][:, None]
    for name in ("query", "key", "value")
  )
  scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
  scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  heads = weights / weights.sum(-1, keepdims=True) @ v
  return np.einsum("nhld,hdw->nlw", heads, layer["out"]["kernel"]) + layer["out"]["bias"]


def numpy_gelu(x):
  """The tanh form, which is flax's."""
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_transformer_equals_numpy_and_sees_no_future(key):
  module = TransformerLM(5, num_layers=1, width=4, num_heads=2)
  characters = np.random.default_rng(0).integers(0, 5, (2, 6))
  params = jax.eval_shape(module.init, key, characters)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), params)
  apply = jax.jit(module.apply)
  found = np.asarray(apply({"params": params}, characters))
  numbers, block = float64(params), float64(params)["block_0"]
  x = numbers["characters"]["embedding"][characters] + numbers["positions"]["embedding"]
  x = x + numpy_attention(block["attention"], numpy_norm(block["attention_norm"], x))
  hidden = numpy_gelu(dense(block["in"], numpy_norm(block["mlp_norm"], x)))
  x = x + dense(block["out"], hidden)
  expected = dense(numbers["output"], numpy_norm(numbers["output_norm"], x))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  later = characters.copy()
  later[:, 4] = (later[:, 4] + 1) % 5
  changed = np.asarray(apply({"params": params}, later))
  np.testing.assert_array_equal(changed[:, :4], found[:, :4])
  assert np.all(changed[:, 4:] != found[:, 4:])


def test_language_models_predict_the_next_character(key):
  """A text in which the character decides the next is learned by soft-max regression on it."""
  looped = text()._replace(train=np.tile(np.array([0, 3, 1, 4, 2], np.uint8), 30))
  optimizee = optimizees.recurrent_lm(
    looped, "rnn", hidden_size=5, embedding_size=5, length=7, initial_scale=0.0, outer_split="test"
  )
  params, _ = draw(optimizee, key)
  params = float64(params)
  params["Embed_0"]["embedding"] = 5 * np.eye(5)
  params["layer_0"]["i"]["kernel"] = np.eye(5)
  following = np.eye(5)[[3, 4, 0, 1, 2]]
  params["output"]["kernel"] = 20 * following
  params = jax.tree.map(jnp.float32, params)
  assert float(jax.jit(optimizee.loss)(params, (), optimizee.data, key)) < 1e-6
  assert float(jax.jit(optimizee.outer_loss)(params, (), optimizee.data, key)) > 5
  # With logits of zero each character costs log V, on all of the windows.
  still = jax.tree.map(jnp.zeros_like, params)
  metrics = jax.jit(optimizee.metrics)(still, (), optimizee.data)
  np.testing.assert_allclose(metrics["test_loss"], np.log(5), rtol=1e-6)


# --- Functions.

MINIMA = {
  "sphere": [0, 0],
  "rosenbrock": [1, 1],
  "rastrigin": [0, 0],
  "ackley": [0, 0],
  "styblinski_tang": [-2.903534, -2.903534],
  "griewank": [0, 0],
  "levy": [1, 1],
  "beale": [3, 0.5],
  "himmelblau": [3.584428, -1.848126],
  "booth": [1, 3],
}

# Values in two dimensions at (1.5, -0.5), from the functions' definitions by hand.
VALUES = {
  "sphere": 2.5,
  "rosenbrock": 100 * 2.75**2 + 0.25,
  "rastrigin": 2.5 + 40,
  "ackley": 20 * (1 - np.exp(-0.2 * np.sqrt(1.25))) + np.e - np.exp(-1),
  "styblinski_tang": (1.5**4 - 36 + 7.5 + 0.5**4 - 4 - 2.5) / 2 + 2 * 39.16616570377142,
  "griewank": 2.5 / 4000 + 1 - np.cos(1.5) * np.cos(0.5 / np.sqrt(2)),
  "levy": np.sin(np.pi * 1.125) ** 2
  + 0.125**2 * (1 + 10 * np.sin(np.pi * 1.125 + 1) ** 2)
  + 0.375**2 * (1 + np.sin(2 * np.pi * 0.625) ** 2),
  "beale": (1.5 - 1.5 - 0.75) ** 2 + (2.25 - 1.5 + 0.375) ** 2 + (2.625 - 1.5 - 1.5 * 0.125) ** 2,
  "himmelblau": (2.25 - 0.5 - 11) ** 2 + (1.5 + 0.25 - 7) ** 2,
  "booth": (1.5 - 1 - 7) ** 2 + (3 - 0.5 - 5) ** 2,
}


def test_classical_functions_have_their_values_and_minima(x64):
  assert set(classical._FUNCTIONS) == set(MINIMA) == set(VALUES)

  @jax.jit
  def at(points):
    return {
      name: jax.value_and_grad(f)(points[name]) for name, (f, _) in classical._FUNCTIONS.items()
    }

  for name, (value, grad) in at({name: jnp.array(x, float) for name, x in MINIMA.items()}).items():
    assert abs(value) < (1e-6 if name == "ackley" else 1e-8), name
    np.testing.assert_allclose(grad, 0.0, atol=1e-3, err_msg=name)
  elsewhere = {name: jnp.array([1.5, -0.5]) for name in MINIMA}
  for name, (value, _) in at(elsewhere).items():
    np.testing.assert_allclose(value, VALUES[name], rtol=1e-7, err_msg=name)


def test_classical_functions_are_turned_moved_and_mixed():
  names = ("sphere", "rosenbrock", "booth")
  optimizee = optimizees.classical_functions(names, shift=2.0)

  @jax.jit
  @jax.vmap
  def problem(key):
    params, constants = optimizee.init(key, ())
    grads = jax.grad(optimizee.loss)(params, constants, (), key)
    return params, constants, optimizee.loss(params, constants, (), key), grads

  params, constants, losses, grads = float64(problem(jax.random.split(jax.random.key(0), 600)))
  q, which = constants.rotation, constants.function.astype(int)
  np.testing.assert_allclose(
    q @ np.swapaxes(q, 1, 2), np.broadcast_to(np.eye(2), q.shape), atol=1e-5
  )
  assert abs(np.bincount(which) - 200).max() < 4.5 * np.sqrt(600 * 2 / 9)
  assert abs(constants.shift.std() - 2) < 4.5 * 2 / np.sqrt(2 * 1200)
  x = np.einsum("pij,pj->pi", q, params - constants.shift)
  # Starts fill the box of each function.
  for index, name in enumerate(names):
    low, high = classical._FUNCTIONS[name][1]
    starts = x[which == index]
    assert low - 1e-4 < starts.min() < low * 0.95
    assert high * 0.95 < starts.max() < high + 1e-4
  bowl = which == 0
  np.testing.assert_allclose(losses[bowl], np.sum(x[bowl] ** 2, axis=1), rtol=1e-4)
  np.testing.assert_allclose(
    grads[bowl], 2 * (params - constants.shift)[bowl], rtol=1e-3, atol=1e-3
  )


def test_classical_noise_is_on_the_gradient_alone(key):
  plain, noisy = (optimizees.classical_functions(("ackley",), 3, noise=s) for s in (0.0, 0.5))
  params, constants = draw(plain, key)
  keys = jax.random.split(key, 2000)
  both = [
    jax.jit(jax.vmap(jax.value_and_grad(one.loss), in_axes=(None, None, None, 0)))(
      params, constants, (), keys
    )
    for one in (plain, noisy)
  ]
  (values, grads), (noisy_values, noisy_grads) = both
  np.testing.assert_array_equal(values, noisy_values)
  difference = np.asarray(noisy_grads - grads, np.float64)
  assert abs(difference.mean()) < 4 * 0.5 / np.sqrt(6000)
  assert abs(difference.std() - 0.5) < 4 * 0.5 / np.sqrt(12_000)


def test_logistic_regression_equals_numpy(key):
  optimizee = optimizees.logistic_regression(4, 50, flipped=0.2, l2=0.3)
  params, constants = draw(optimizee, key)
  theta, (x, s) = float64(params), float64(constants)
  expected = np.log1p(np.exp(-s * (x @ theta))).mean() + 0.15 * theta @ theta
  found, grad = jax.jit(jax.value_and_grad(optimizee.loss))(params, constants, (), key)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  expected = -(s * sigmoid(-s * (x @ theta))) @ x / 50 + 0.3 * theta
  np.testing.assert_allclose(grad, expected, rtol=1e-4)


def test_logistic_points_have_the_spectrum_that_is_asked_for(key):
  optimizee = optimizees.logistic_regression(3, 40_000, condition_number=16.0, flipped=0.25)
  _, (points, signs) = draw(optimizee, key)
  eigenvalues = np.linalg.eigvalsh(np.cov(np.asarray(points, np.float64).T))
  np.testing.assert_allclose(eigenvalues, [1 / 16, 1 / 4, 1], rtol=0.05)
  # The best plane is right about three quarters of the signs.
  plane = np.linalg.lstsq(np.asarray(points), np.asarray(signs), rcond=None)[0]
  assert abs(np.mean(np.sign(points @ plane) == signs) - 0.75) < 0.02


def test_minibatches_of_logistic_regression_are_unbiased(key):
  whole = optimizees.logistic_regression(3, 20, l2=0.1)
  parts = optimizees.logistic_regression(3, 20, l2=0.1, batch_size=4)
  params, constants = draw(whole, key)
  expected = jax.jit(whole.loss)(params, constants, (), key)
  losses = jax.jit(jax.vmap(parts.loss, in_axes=(None, None, None, 0)))(
    params, constants, (), jax.random.split(key, 4000)
  )
  assert abs(losses.mean() - expected) < 4 * losses.std() / np.sqrt(4000)


def test_noise_of_quadratics_has_the_covariance_of_the_hessian(key):
  plain = optimizees.conditioned_quadratic(2, 9.0)
  noisy = optimizees.conditioned_quadratic(2, 9.0, noise=0.5)
  params, constants = draw(plain, key)
  value, grad = jax.jit(jax.value_and_grad(plain.loss))(params, constants, (), key)
  values, grads = jax.jit(jax.vmap(jax.value_and_grad(noisy.loss), in_axes=(None, None, None, 0)))(
    params, constants, (), jax.random.split(key, 20_000)
  )
  errors = np.asarray(grads, np.float64) - np.asarray(grad, np.float64)
  w = np.asarray(constants.w, np.float64)
  np.testing.assert_allclose(np.cov(errors.T), 4 * 0.25 * w.T @ w, atol=0.03)
  assert abs(values.mean() - value - 2 * 0.25) < 4 * values.std() / np.sqrt(20_000)


# --- Mistakes.

REFUSED = {
  "skip": (lambda: optimizees.mlp_classifier(images(), skip="dense"), "skip must be one of none"),
  "unequal": (
    lambda: optimizees.mlp_classifier(images(), (3, 4), skip="residual"),
    r"skip='residual' needs equal hidden_sizes, got \(3, 4\)",
  ),
  "reconstruction": (
    lambda: optimizees.image_autoencoder(images(), reconstruction="l1"),
    "reconstruction must be 'squared_error' or 'cross_entropy', got 'l1'",
  ),
  "autoencoder_split": (
    lambda: optimizees.image_autoencoder(images(), split="dev"),
    "split must be one of .* got 'dev'",
  ),
  "cell": (lambda: optimizees.recurrent_lm(text(), "elman"), "cell must be one of rnn, gru, lstm"),
  "length": (lambda: optimizees.recurrent_lm(text(), length=0), "length must be at least 1, got 0"),
  "short": (
    lambda: optimizees.recurrent_lm(text(), length=80),
    r"text.validation must have at least length \+ 1 = 81 characters, got 80",
  ),
  "text_split": (lambda: optimizees.recurrent_lm(text(), split="dev"), "split must be one of"),
  "vocabulary": (
    lambda: optimizees.recurrent_lm(text()._replace(vocabulary=np.arange(3)), length=4),
    "text.train has characters beyond the vocabulary of 3",
  ),
  "int64": (
    lambda: optimizees.transformer_lm(text()._replace(train=np.zeros(99, int))),
    r"text.train must be uint8 \[N\], got int64 \(99,\); datasets.load_text reads a file",
  ),
  "heads": (
    lambda: optimizees.transformer_lm(text(), width=10, num_heads=4, length=4),
    "width must be a multiple of num_heads.* width=12 would work",
  ),
  "function": (lambda: optimizees.classical_functions(("beal",)), "functions must be some of"),
  "none": (lambda: optimizees.classical_functions(()), "functions must be some of"),
  "flat": (
    lambda: optimizees.classical_functions(("ackley", "beale"), 3),
    "beale need dimension=2, got 3",
  ),
  "line": (lambda: optimizees.classical_functions(("ackley",), 1), "at least 2, got 1"),
  "shift": (lambda: optimizees.classical_functions(shift=-1.0), "shift must be finite"),
  "points": (lambda: optimizees.logistic_regression(num_points=0), "num_points must be at least 1"),
  "condition": (
    lambda: optimizees.logistic_regression(condition_number=0.5),
    "condition_number must be finite and at least 1, got 0.5",
  ),
  "flipped": (lambda: optimizees.logistic_regression(flipped=0.6), "flipped must be between 0 and"),
  "l2": (lambda: optimizees.logistic_regression(l2=-1.0), "l2 must be finite and not negative"),
  "noise": (
    lambda: optimizees.conditioned_quadratic(noise=-0.1),
    "noise must be finite and not negative, got -0.1",
  ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_arguments_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_made_twice_they_are_one_trace(key):
  def make(seed):
    return (
      optimizees.recurrent_lm(text(seed=seed), "rnn", 1, 2, 2, length=3, initial_scale=1),
      optimizees.image_autoencoder(images(seed=seed), [2], batch_size=2),
      optimizees.logistic_regression(2, 5, condition_number=4),
      optimizees.classical_functions(["sphere"], shift=1 + seed * 0),
    )

  @jax.jit
  @chex.assert_max_traces(n=1)
  def start(made, key):
    return [one.loss(*one.init(key, one.data), one.data, key) for one in made]

  first, second = start(make(0), key), start(make(1), key)
  assert [float(a) != float(b) for a, b in zip(first, second, strict=True)] == [
    True,
    True,
    False,
    False,
  ]
