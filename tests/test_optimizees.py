"""Optimizees: the contract of each, then the paper's problems against numpy and statistics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import OPTIMIZEES, images

import learned_opt
from learned_opt import ImageDataset, Optimizee, optimizees
from learned_opt.base import check_optimizee, check_params

ALL = pytest.mark.parametrize("case", OPTIMIZEES.values(), ids=OPTIMIZEES)


@jax.jit
def draw(optimizee, key):
  return optimizee.init(key, optimizee.data)


@jax.jit
def loss_of(optimizee, params, constants, key):
  return optimizee.loss(params, constants, optimizee.data, key)


# --- The contract of every optimizee.


@ALL
def test_it_is_a_pytree_whose_leaves_are_its_arrays(case):
  optimizee = case.make()
  leaves, treedef = jax.tree.flatten(optimizee)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  again = treedef.unflatten(leaves)
  assert (again.init, again.loss) == (optimizee.init, optimizee.loss)
  assert jax.tree.structure(case.make()) == treedef


@ALL
def test_a_problem_is_a_function_of_its_key(case, key):
  optimizee = case.make()
  params, constants = draw(optimizee, key)
  check_params(params)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == case.num_coordinates
  chex.assert_trees_all_equal((params, constants), draw(optimizee, key))
  other = draw(optimizee, jax.random.key(1))
  assert not all(
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves((params, constants)), jax.tree.leaves(other), strict=True)
  )
  if case.always_the_same_start:
    return
  other, _ = other
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
    assert not np.any(np.asarray(a) == np.asarray(b))


@ALL
def test_loss_is_a_finite_scalar_and_its_noise_is_the_keys(case, key):
  optimizee = case.make()
  params, constants = draw(optimizee, key)
  params = jax.tree.map(lambda leaf: leaf + 0.1, params)
  values = [float(loss_of(optimizee, params, constants, jax.random.key(k))) for k in (0, 0, 1)]
  assert np.all(np.isfinite(values))
  assert values[0] == values[1]
  assert (values[0] != values[2]) == case.stochastic


@ALL
def test_under_vmap_it_equals_a_loop(case, key):
  optimizee = case.make()

  def value_and_grad(key):
    params, constants = optimizee.init(key, optimizee.data)
    return jax.value_and_grad(optimizee.loss)(params, constants, optimizee.data, key)

  @jax.jit
  def both(keys):
    return jax.vmap(value_and_grad)(keys), jax.lax.map(value_and_grad, keys)

  together, one_by_one = both(jax.random.split(key, 3))
  chex.assert_trees_all_close(together, one_by_one, rtol=1e-4, atol=1e-6)


@ALL
def test_metrics_are_scalars(case, key):
  optimizee = case.make()
  assert (optimizee.metrics is not None) == case.has_metrics
  if optimizee.metrics is not None:
    params, constants = draw(optimizee, key)
    metrics = jax.jit(optimizee.metrics)(params, constants, optimizee.data)
    assert {name: value.shape for name, value in metrics.items()} == dict.fromkeys(metrics, ())
    chex.assert_tree_all_finite(metrics)


@ALL
def test_it_passes_the_check_that_users_run(case, key):
  assert check_optimizee(case.make(), key) is None


# --- Users' own optimizees.


def test_from_functions_hands_over_params_data_and_key(key):
  data = {"x": jnp.arange(3.0)}
  optimizee = Optimizee.from_functions(
    lambda key: jax.random.normal(key, (3,)),
    lambda params, data, key: jnp.sum(params * data["x"]) + jax.random.uniform(key),
    data=data,
  )
  params, constants = optimizee.init(key, optimizee.data)
  np.testing.assert_array_equal(params, jax.random.normal(key, (3,)))
  assert constants == ()
  loss = optimizee.loss(params, constants, optimizee.data, key)
  expected = params[1] + 2 * params[2] + jax.random.uniform(key)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert [leaf.shape for leaf in jax.tree.leaves(optimizee)] == [(3,)]


def test_from_functions_twice_is_one_trace(key):
  def init(key):
    return jnp.ones(2)

  def loss(params, key):
    return jnp.sum(params)

  @jax.jit
  @chex.assert_max_traces(n=1)
  def start(optimizee, key):
    return optimizee.loss(*optimizee.init(key, optimizee.data), optimizee.data, key)

  values = [start(Optimizee.from_functions(init, loss), key) for _ in range(2)]
  np.testing.assert_array_equal(values, [2.0, 2.0])


def test_from_functions_refuses_what_is_no_function():
  with pytest.raises(TypeError, match="loss must be a function, got float"):
    Optimizee.from_functions(jnp.zeros, 3.0)
  with pytest.raises(TypeError, match="init must be a function, got int"):
    Optimizee.from_functions(0, jnp.sum)


def of_loss(loss, start=1.0):
  return Optimizee.from_functions(lambda key: {"w": jnp.full(2, start)}, loss)


BAD_OPTIMIZEES = {
  "type": (lambda: jnp.sum, TypeError, "must be a learned_opt.Optimizee, got"),
  "vector": (
    lambda: of_loss(lambda params, key: params["w"]),
    TypeError,
    r"floating point scalar, got shape \(2,\)",
  ),
  "integer_loss": (lambda: of_loss(lambda params, key: jnp.array(1)), TypeError, "dtype int32"),
  "integer_params": (
    lambda: of_loss(lambda params, key: jnp.sum(params["w"]) * 1.0, start=1),
    TypeError,
    r"the optimizee's params\['w'\] has dtype int32",
  ),
  "nan_loss": (
    lambda: of_loss(lambda params, key: jnp.sum(params["w"]) * jnp.nan),
    FloatingPointError,
    "loss is nan where the problem starts",
  ),
  "nan_gradient": (
    lambda: of_loss(lambda params, key: jnp.sum(jnp.sqrt(0.0 * params["w"]))),
    FloatingPointError,
    r"gradient .* not finite at params\['w'\]",
  ),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD_OPTIMIZEES.values(), ids=BAD_OPTIMIZEES)
def test_check_optimizee_refuses(make, error, message, key):
  with pytest.raises(error, match=message):
    check_optimizee(make(), key)


# --- Quadratics.


def test_quadratic_equals_numpy(key, x64):
  optimizee = optimizees.quadratic(7)
  theta, constants = draw(optimizee, key)
  theta = theta + jnp.arange(7.0)
  value, grad = jax.jit(jax.value_and_grad(optimizee.loss))(theta, constants, (), key)
  w, y = np.asarray(constants.w), np.asarray(constants.y)
  residual = w @ np.asarray(theta) - y
  np.testing.assert_allclose(value, residual @ residual, rtol=1e-12)
  np.testing.assert_allclose(grad, 2 * w.T @ residual, rtol=1e-12)


def test_gradient_scale_scales_the_gradient_only(key, x64):
  plain, scaled = optimizees.quadratic(5), optimizees.quadratic(5, gradient_scale=1 / 128)
  theta, constants = draw(plain, key)
  (value, grad), (same_value, small_grad) = (
    jax.jit(jax.value_and_grad(optimizee.loss))(theta, constants, (), key)
    for optimizee in (plain, scaled)
  )
  np.testing.assert_allclose(same_value, value, rtol=1e-12)
  np.testing.assert_allclose(small_grad, grad / 128, rtol=1e-12)


def many_quadratics(number=20_000, factory=optimizees.quadratic, **options):
  """theta, W, y and f(theta_0) of many problems."""
  optimizee = factory(**options)

  @jax.jit
  @jax.vmap
  def one(key):
    theta, constants = optimizee.init(key, ())
    return theta, constants.w, constants.y, optimizee.loss(theta, constants, (), key)

  return [np.asarray(x, np.float64) for x in one(jax.random.split(jax.random.key(2), number))]


def check_mean(samples, expected, num_errors=4):
  """Whether the mean is as expected, within that many standard errors."""
  samples = np.ravel(samples)
  error = samples.std() / np.sqrt(samples.size)
  assert abs(samples.mean() - expected) < num_errors * error


def test_uniform_quadratics_are_those_of_the_papers_curves():
  theta, w, y, losses = many_quadratics()
  for values in (w, y):
    assert values.min() >= 0
    assert values.max() < 1
    check_mean(values, 1 / 2)
    check_mean((values - 1 / 2) ** 2, 1 / 12)
  check_mean(theta, 0.0)
  check_mean(theta**2, 0.01**2)
  # E|y|^2 = 10 / 3, and E|W theta_0|^2 = 100 * 0.01^2 / 3.
  check_mean(losses, 10 / 3 + 0.01 / 3)


def test_gaussian_quadratics_are_those_of_the_papers_text():
  theta, w, y, losses = many_quadratics(distribution="gaussian", initial_scale=0.1)
  for values in (w, y):
    check_mean(values, 0.0)
    check_mean(values**2, 1.0)
    check_mean(values**4, 3.0)
  check_mean(theta**2, 0.1**2)
  check_mean(losses, 10 + 100 * 0.1**2)


def test_quadratic_constants_and_start_are_independent():
  theta, w, y, _ = many_quadratics(5000, dimension=1, distribution="gaussian", initial_scale=1.0)
  theta, w, y = np.ravel(theta), np.ravel(w), np.ravel(y)
  for a, b in ((theta, w), (theta, y), (w, y)):
    check_mean(a * b, 0.0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"dimension": 0}, "dimension must be at least 1, got 0"),
    ({"distribution": "normal"}, "'uniform' or 'gaussian', got 'normal'"),
    ({"gradient_scale": 0.0}, "gradient_scale must be positive and finite, got 0.0"),
    ({"gradient_scale": float("inf")}, "gradient_scale must be positive and finite, got inf"),
    ({"initial_scale": -1.0}, "initial_scale must be finite and not negative, got -1.0"),
    ({"initial_scale": float("nan")}, "initial_scale must be finite and not negative, got nan"),
  ],
  ids=["dimension", "distribution", "zero", "infinite", "negative", "nan"],
)
def test_quadratic_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    optimizees.quadratic(**options)


def conditioned_quadratics(number, **options):
  return many_quadratics(number, optimizees.conditioned_quadratic, **options)


def test_conditioned_quadratics_have_their_condition_number_and_spectrum():
  _, w, _, _ = conditioned_quadratics(1000, dimension=4, condition_number=1e4)
  hessians = 2 * np.swapaxes(w, 1, 2) @ w
  eigenvalues = np.linalg.eigvalsh(hessians)
  np.testing.assert_allclose(eigenvalues[:, -1], 2.0, rtol=1e-5)
  np.testing.assert_allclose(eigenvalues[:, -1] / eigenvalues[:, 0], 1e4, rtol=1e-2)
  # Those in between: the mean of log 2 and log 2e-4, and the variance of the log-uniform.
  exponents = np.log(2 / eigenvalues[:, 1:3]) / np.log(1e4)
  check_mean(exponents, 1 / 2)
  check_mean((exponents - 1 / 2) ** 2, 1 / 12)


def test_conditioned_quadratics_have_no_preferred_direction():
  """The steepest direction q is uniform on the sphere: E q_i^2 = 1 / n, E q_i^4 = 3 / n(n + 2)."""
  _, w, _, _ = conditioned_quadratics(4000, dimension=3, condition_number=100.0)
  check_mean(np.linalg.det(w) > 0, 1 / 2)
  for q in (w[:, 0], 10 * w[:, 1]):
    np.testing.assert_allclose(np.sum(q**2, axis=1), 1.0, rtol=1e-5)
    for i in range(3):
      check_mean(q[:, i], 0.0)
      check_mean(q[:, i] ** 2, 1 / 3)
      check_mean(q[:, i] ** 4, 3 / 15)


def test_the_minimum_of_conditioned_quadratics_is_zero_at_a_standard_gaussian_point():
  theta, w, y, losses = conditioned_quadratics(4000, dimension=3, condition_number=10.0)
  minimum = np.linalg.solve(w, y[..., None])[..., 0]
  check_mean(minimum, 0.0)
  check_mean(minimum**2, 1.0)
  check_mean(theta**2, 0.01**2)
  residual = np.einsum("pij,pj->pi", w, theta) - y
  np.testing.assert_allclose(losses, np.sum(residual**2, axis=1), rtol=1e-5)


def test_a_conditioned_quadratic_in_two_dimensions_has_nothing_in_between(key):
  _, constants = draw(optimizees.conditioned_quadratic(2, 1.0), key)
  np.testing.assert_allclose(constants.w @ constants.w.T, np.eye(2), atol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"dimension": 1}, "dimension must be at least 2, got 1"),
    ({"condition_number": 0.5}, "condition_number must be finite and at least 1, got 0.5"),
    ({"condition_number": float("inf")}, "condition_number must be finite and at least 1, got inf"),
    ({"initial_scale": -1.0}, "initial_scale must be finite and not negative, got -1.0"),
  ],
  ids=["dimension", "below_one", "infinite", "negative"],
)
def test_conditioned_quadratic_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    optimizees.conditioned_quadratic(**options)


# --- MLP classifiers.

ACTIVATIONS = {
  "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
  "tanh": np.tanh,
  "relu": lambda x: np.maximum(x, 0),
  "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
}


def numpy_losses(params, image_array, labels, activation):
  """The cross-entropy of each image, in float64; and what the MLP takes it for."""
  # The library scales pixels in float32.
  x = (image_array.reshape(len(image_array), -1) / np.float32(255)).astype(np.float64)
  layers = [params[f"Dense_{k}"] for k in range(len(params))]
  for index, layer in enumerate(layers):
    x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
    x = ACTIVATIONS[activation](x) if index < len(layers) - 1 else x
  log_sum = np.log(np.sum(np.exp(x), axis=1))
  return log_sum - x[np.arange(len(labels)), labels], np.argmax(x, axis=1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_equals_numpy(activation, key):
  """On one image, of which every minibatch is made; and on the whole test split."""
  dataset = images((1, 1, 40), seed=3)._replace(train=images((4, 4, 4)).train)
  optimizee = optimizees.mlp_classifier(
    dataset, (5, 3), activation, initial_scale=0.5, split="validation"
  )
  params, constants = draw(optimizee, key)
  loss = loss_of(optimizee, params, constants, key)
  expected, _ = numpy_losses(params, *dataset.validation, activation)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
  metrics = jax.jit(optimizee.metrics)(params, constants, optimizee.data)
  expected, labels = numpy_losses(params, *dataset.test, activation)
  np.testing.assert_allclose(metrics["test_loss"], expected.mean(), rtol=1e-5)
  accuracy = np.mean(labels == dataset.test[1])
  assert 0 < accuracy < 1
  np.testing.assert_allclose(metrics["test_accuracy"], accuracy, rtol=1e-6)


@pytest.mark.parametrize(
  ("split", "outer_split"),
  [("train", None), ("train", "validation"), ("validation", "train"), ("train", "test")],
)
def test_mlp_splits_are_honoured(split, outer_split, key):
  """One image a split: the loss on a split is that of its image."""
  dataset = images((1, 1, 1), num_classes=1)._replace(
    train=(images((1, 1, 1), seed=5).train[0], np.array([2], np.int32)),
    validation=(images((1, 1, 1), seed=6).train[0], np.array([1], np.int32)),
  )
  optimizee = optimizees.mlp_classifier(
    dataset, initial_scale=1.0, batch_size=3, split=split, outer_split=outer_split
  )
  params, _ = draw(optimizee, key)
  expected, _ = numpy_losses(params, *getattr(dataset, split), "sigmoid")
  np.testing.assert_allclose(loss_of(optimizee, params, (), key), expected[0], rtol=1e-5)
  if outer_split is None:
    assert optimizee.outer_loss is None
  else:
    outer, _ = numpy_losses(params, *getattr(dataset, outer_split), "sigmoid")
    value = jax.jit(optimizee.outer_loss)(params, (), optimizee.data, key)
    np.testing.assert_allclose(value, outer[0], rtol=1e-5)
    assert abs(outer[0] - expected[0]) > 1e-3


def test_mlp_minibatches_are_drawn_uniformly_with_replacement(key):
  """Two images in batches of two: both, or one of them twice, with chances 1/2, 1/4, 1/4."""
  dataset = images((2, 1, 1))
  optimizee = optimizees.mlp_classifier(dataset, initial_scale=1.0, batch_size=2)
  params, _ = draw(optimizee, key)
  (first, second), _ = numpy_losses(params, *dataset.train, "sigmoid")
  assert abs(first - second) > 0.1
  number = 4000
  one = jax.jit(jax.vmap(lambda key: optimizee.loss(params, (), optimizee.data, key)))
  losses = np.asarray(one(jax.random.split(key, number)))
  for value, chance in ((first, 0.25), (second, 0.25), ((first + second) / 2, 0.5)):
    found = np.isclose(losses, value, rtol=1e-4).mean()
    assert abs(found - chance) < 4 * np.sqrt(chance * (1 - chance) / number)


def test_mlp_start_is_gaussian_biases_too(key):
  optimizee = optimizees.mlp_classifier(images(shape=(8, 8, 1)), (100, 100), initial_scale=0.3)
  params, _ = draw(optimizee, key)
  for layer in params.values():
    for leaf in layer.values():
      values = np.asarray(leaf, np.float64)
      check_mean(values, 0.0)
      assert abs(np.mean(values**2) - 0.09) < 4 * 0.09 * np.sqrt(2 / values.size)
  check_mean(params["Dense_1"]["kernel"] ** 4, 3 * 0.3**4)


@pytest.mark.parametrize(
  ("hidden_sizes", "number"), [((20,), 15_910), ((40,), 31_810), ((20, 20), 16_330)]
)
def test_mlp_has_the_papers_number_of_params(hidden_sizes, number, key):
  dataset = images((10, 1, 1), shape=(28, 28, 1), num_classes=10)
  optimizee = optimizees.mlp_classifier(dataset, hidden_sizes)
  params, _ = jax.eval_shape(optimizee.init, key, optimizee.data)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == number


def test_mlp_keeps_images_as_uint8():
  dataset = images()
  optimizee = optimizees.mlp_classifier(dataset)
  for name in ImageDataset._fields:
    kept, labels = getattr(optimizee.data, name)
    assert kept.dtype == jnp.uint8
    np.testing.assert_array_equal(kept, getattr(dataset, name)[0])
    np.testing.assert_array_equal(labels, getattr(dataset, name)[1])
  assert dataset.num_classes == 4


def test_mlp_of_another_data_set_of_equal_shape_is_one_trace(key):
  @jax.jit
  @chex.assert_max_traces(n=1)
  def start(optimizee, key):
    params, constants = optimizee.init(key, optimizee.data)
    return optimizee.loss(params, constants, optimizee.data, key)

  made = [optimizees.mlp_classifier(images(seed=seed), [3], initial_scale=1) for seed in range(2)]
  values = [float(start(optimizee, key)) for optimizee in made]
  assert values[0] != values[1]


IMAGES = images()
BAD_MLPS = {
  "hidden_sizes": ({"hidden_sizes": (3, 0)}, "hidden_sizes must be at least 1, got 0"),
  "batch_size": ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
  "activation": ({"activation": "gelu"}, "one of sigmoid, tanh, relu, elu, got 'gelu'"),
  "initial_scale": ({"initial_scale": float("nan")}, "initial_scale must be finite"),
  "split": ({"split": "training"}, r"split must be one of .*'train'.* got 'training'"),
  "outer_split": ({"outer_split": "dev"}, "outer_split must be one of .* got 'dev'"),
  "float_images": (
    {"dataset": IMAGES._replace(train=(IMAGES.train[0] / 255.0, IMAGES.train[1]))},
    r"dataset.train: images must be uint8 .* got float64 \(30, 6, 5, 1\)",
  ),
  "flat_images": (
    {"dataset": IMAGES._replace(test=(IMAGES.test[0][..., 0], IMAGES.test[1]))},
    r"dataset.test: images must be uint8 .* got uint8 \(9, 6, 5\)",
  ),
  "no_images": (
    {"dataset": IMAGES._replace(validation=(IMAGES.test[0][:0], IMAGES.test[1][:0]))},
    "dataset.validation: images must be .* N > 0",
  ),
  "float_labels": (
    {"dataset": IMAGES._replace(test=(IMAGES.test[0], IMAGES.test[1] * 1.0))},
    r"dataset.test: labels must be integers \[9\], got float64",
  ),
  "too_few_labels": (
    {"dataset": IMAGES._replace(test=(IMAGES.test[0], IMAGES.test[1][1:]))},
    r"dataset.test: labels must be integers \[9\], got int32 \(8,\)",
  ),
}


@pytest.mark.parametrize(("options", "message"), BAD_MLPS.values(), ids=BAD_MLPS)
def test_mlp_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    optimizees.mlp_classifier(**{"dataset": IMAGES, **options})


def test_optimizees_that_a_command_can_name_are_public():
  for factory in optimizees.OPTIMIZEES:
    assert getattr(learned_opt.optimizees, factory.__name__) is factory
