"""Convolutional classifiers and subsets of labels, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import images

from learned_opt import ImageDataset, optimizees
from learned_opt.optimizees.conv import ConvNet


def draw(optimizee, key):
  return jax.jit(optimizee.init)(key, optimizee.data)


# --- The network.


def numpy_conv(x, kernel, bias):
  """5x5, stride 1, zero padding that keeps the size; x is [N, H, W, C]."""
  padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
  height, width = x.shape[1:3]
  out = np.zeros((*x.shape[:3], kernel.shape[-1])) + bias
  for row in range(5):
    for column in range(5):
      window = padded[:, row : row + height, column : column + width]
      out += window @ kernel[row, column]
  return out


def numpy_norm(x, offset):
  axes = tuple(range(x.ndim - 1))
  return (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-3) + offset


def numpy_max_pool(x):
  """2x2, stride 2; what sticks out at the end counts as nothing."""
  height, width = (-(-size // 2) * 2 for size in x.shape[1:3])
  padded = np.full((x.shape[0], height, width, x.shape[3]), -np.inf)
  padded[:, : x.shape[1], : x.shape[2]] = x
  return padded.reshape(x.shape[0], height // 2, 2, width // 2, 2, -1).max((2, 4))


def numpy_logits(params, pixels, num_convolutions):
  x = pixels / 255.0
  for index in range(num_convolutions):
    layer = params[f"conv_{index}"]
    x = numpy_norm(
      numpy_conv(x, layer["kernel"], layer["bias"]), params[f"conv_norm_{index}"]["offset"]
    )
    x = numpy_max_pool(np.maximum(x, 0))
  x = x.reshape(len(x), -1) @ params["hidden"]["kernel"] + params["hidden"]["bias"]
  x = np.maximum(numpy_norm(x, params["hidden_norm"]["offset"]), 0)
  return x @ params["output"]["kernel"] + params["output"]["bias"]


def numpy_cross_entropy(logits, labels):
  log_sum = np.log(np.sum(np.exp(logits), axis=1))
  return log_sum - logits[np.arange(len(labels)), labels]


def test_conv_net_equals_numpy(key):
  pixels = images((9, 1, 1), shape=(7, 5, 2)).train[0]
  module = ConvNet((3, 4), hidden_size=6, num_classes=5, initial_scale=0.3)
  variables = jax.jit(module.init)(key, jnp.asarray(pixels))
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
  found = jax.jit(module.apply)(variables, jnp.asarray(pixels))
  np.testing.assert_allclose(found, numpy_logits(params, pixels, 2), rtol=1e-4, atol=1e-4)


def test_conv_classifier_is_the_papers(key):
  """Three convolutions of 16 channels on CIFAR-10's 32 x 32 pixels."""
  optimizee = optimizees.conv_classifier(images((10, 10, 10), (32, 32, 3), num_classes=10))
  params, _ = draw(optimizee, key)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_682
  assert params["hidden"]["kernel"].shape == (256, 32)
  for leaf in jax.tree.leaves(params):
    assert 0.0 < float(jnp.std(leaf)) < 0.02


def test_metrics_are_over_all_of_the_test_split_batch_by_batch(key, monkeypatch):
  monkeypatch.setattr("learned_opt.optimizees._batches._METRICS_BATCH", 4)
  dataset = images((4, 4, 10))
  optimizee = optimizees.conv_classifier(dataset, (2,), 3, initial_scale=0.5)
  params, _ = draw(optimizee, key)
  metrics = jax.jit(optimizee.metrics)(params, (), optimizee.data)
  numbers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  pixels, labels = dataset.test
  # Each batch is normalised by its own statistics; the last one has two images.
  logits = np.concatenate([numpy_logits(numbers, pixels[k : k + 4], 1) for k in (0, 4, 8)])
  expected = numpy_cross_entropy(logits, labels).mean()
  np.testing.assert_allclose(metrics["test_loss"], expected, rtol=1e-4)
  accuracy = np.mean(logits.argmax(axis=1) == labels)
  np.testing.assert_allclose(metrics["test_accuracy"], accuracy, rtol=1e-6)


# --- Subsets of labels.


def unequal_images():
  """Five labels, of which 1, 2, ..., 5 images are there; each image is all of one grey."""

  def split(offset):
    labels = np.repeat(np.arange(5), np.arange(1, 6)).astype(np.int32)
    labels = np.random.default_rng(offset).permutation(labels)
    greys = np.arange(15, dtype=np.uint8) * 16 + offset
    return np.broadcast_to(greys[:, None, None, None], (15, 2, 2, 1)).copy(), labels

  return ImageDataset(split(0), split(1), split(2))


def test_a_problem_draws_its_labels_from_those_that_are_allowed():
  optimizee = optimizees.mlp_classifier(unequal_images(), num_labels=2, labels=(0, 2, 4))
  _, labels = jax.jit(jax.vmap(optimizee.init, in_axes=(0, None)))(
    jax.random.split(jax.random.key(0), 600), optimizee.data
  )
  pairs, counts = np.unique(np.sort(labels, axis=1), axis=0, return_counts=True)
  assert pairs.tolist() == [[0, 2], [0, 4], [2, 4]]
  assert abs(counts - 200).max() < 4 * np.sqrt(600 * 2 / 9)


@pytest.mark.parametrize("split", ["train", "test"])
def test_minibatches_have_the_problems_labels_only_and_all_their_images(split, key):
  dataset = unequal_images()
  optimizee = optimizees.mlp_classifier(
    dataset, (3,), initial_scale=0.5, batch_size=1, split=split, num_labels=2, labels=(1, 4)
  )
  params, labels = draw(optimizee, key)
  numbers = jax.tree.map(np.asarray, params)
  keys = jax.random.split(jax.random.key(1), 2000)
  losses = jax.jit(jax.vmap(optimizee.loss, in_axes=(None, None, None, 0)))(
    params, labels, optimizee.data, keys
  )
  pixels, true_labels = getattr(dataset, split)
  chosen = [k for k in range(15) if true_labels[k] in (1, 4)]
  # The first of the problem's labels is the first logit.
  targets = np.array([labels.tolist().index(true_labels[k]) for k in chosen])
  x = pixels[chosen].reshape(len(chosen), -1) / 255.0
  hidden = 1 / (1 + np.exp(-(x @ numbers["Dense_0"]["kernel"] + numbers["Dense_0"]["bias"])))
  logits = hidden @ numbers["Dense_1"]["kernel"] + numbers["Dense_1"]["bias"]
  assert logits.shape[1] == 2
  expected = numpy_cross_entropy(logits, targets)
  gaps = np.abs(np.asarray(losses)[:, None] - expected)
  assert gaps.min(axis=1).max() < 1e-5
  counts = np.bincount(gaps.argmin(axis=1), minlength=len(chosen))
  # Images are drawn alike, though label 4 has more of them than label 1.
  assert abs(counts - 2000 / 7).max() < 4.5 * np.sqrt(2000 / 7)


def test_metrics_see_the_problems_labels_only(key):
  dataset = unequal_images()
  optimizee = optimizees.mlp_classifier(dataset, (3,), initial_scale=0.5, labels=(3, 1))
  params, labels = draw(optimizee, key)
  assert sorted(labels.tolist()) == [1, 3]
  metrics = jax.jit(optimizee.metrics)(params, labels, optimizee.data)
  # With logits that do not depend on the image, the loss is that of the labels' shares.
  still = jax.tree.map(jnp.zeros_like, params)
  still["Dense_1"]["bias"] = jnp.array([0.0, 2.0])
  metrics = jax.jit(optimizee.metrics)(still, labels, optimizee.data)
  second = {1: 2 / 6, 3: 4 / 6}[int(labels[1])]
  np.testing.assert_allclose(metrics["test_accuracy"], second, rtol=1e-6)
  np.testing.assert_allclose(metrics["test_loss"], np.log1p(np.exp(2)) - 2 * second, rtol=1e-5)


BAD_LABELS = {
  "too_many": ({"num_labels": 6}, "num_labels must be between 1 and 5, got 6"),
  "none": ({"num_labels": 0}, "num_labels must be between 1 and 5, got 0"),
  "more_than_the_pool": ({"num_labels": 3, "labels": (1, 2)}, "between 1 and 2, got 3"),
  "unknown": ({"labels": (1, 7)}, "labels must be different ones of 0, ..., 4"),
  "twice": ({"labels": (1, 1)}, "labels must be different ones"),
  "empty": ({"labels": ()}, "labels must be different ones"),
}


@pytest.mark.parametrize(("options", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
@pytest.mark.parametrize("factory", [optimizees.mlp_classifier, optimizees.conv_classifier])
def test_bad_labels_are_refused(factory, options, message):
  with pytest.raises(ValueError, match=message):
    factory(unequal_images(), **options)


def test_a_label_without_images_is_refused():
  dataset = unequal_images()
  pixels, labels = dataset.test
  dataset = dataset._replace(test=(pixels, np.where(labels == 2, 1, labels)))
  with pytest.raises(ValueError, match=r"dataset\.test has no image of label 2"):
    optimizees.mlp_classifier(dataset, num_labels=2)
  optimizees.mlp_classifier(dataset, labels=(0, 1))


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match="channels and hidden_size must be at least 1, got 0"):
    optimizees.conv_classifier(images(), channels=(2, 0))
  with pytest.raises(ValueError, match="initial_scale must be finite"):
    optimizees.conv_classifier(images(), initial_scale=-1.0)
