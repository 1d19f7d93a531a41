"""Neural style: features and losses against numpy in float64, weights from files, images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import tiny_style, tiny_vgg
from PIL import Image
from test_experiments import FOLDER, import_file

from learned_opt import datasets, optimizees
from learned_opt.optimizees._vgg import activations

SIZE = 6
STYLE_LAYERS = ("conv1_1", "conv2_1")
WEIGHTS = {"content_weight": 0.7, "style_weight": 30.0, "tv_weight": 0.2}


def numpy_activations(arrays, image, pool):
  """Of a network of one convolution a block, by loops over the positions of the kernels."""
  x, found = np.asarray(image, np.float64), {}
  for block in range(1, len(arrays) // 2):
    kernel, bias = arrays[f"conv{block}_1/kernel"], arrays[f"conv{block}_1/bias"]
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    height, width = x.shape[:2]
    out = np.zeros((height, width, len(bias))) + bias
    for row in range(height):
      for column in range(width):
        out[row, column] += np.einsum(
          "rci,rcio->o", padded[row : row + 3, column : column + 3], kernel
        )
    found[f"conv{block}_1"] = np.maximum(out, 0)
    whole = found[f"conv{block}_1"][: height // 2 * 2, : width // 2 * 2]
    x = pool(whole.reshape(height // 2, 2, width // 2, 2, len(bias)), axis=(1, 3))
  return found


def numpy_gram(activation):
  """G_ij = sum_k F_ik F_jk, with the number of positions M."""
  vectors = activation.reshape(-1, activation.shape[-1])
  return np.einsum("ki,kj->ij", vectors, vectors), len(vectors)


def numpy_terms(arrays, theta, crop, style, pool=np.mean):
  """The three terms, as Gatys et al. write them; crop and style are uint8 images of one size."""

  def features(pixels):
    image = (pixels / 255 - arrays["mean"]) / arrays["std"]
    return numpy_activations(arrays, image, pool)

  found = numpy_activations(arrays, theta, pool)
  content = 0.5 * np.sum((found["conv2_1"] - features(crop)["conv2_1"]) ** 2)
  layers = []
  for name in STYLE_LAYERS:
    (gram, m), (target, _) = numpy_gram(found[name]), numpy_gram(features(style)[name])
    layers.append(np.sum((gram - target) ** 2) / (4 * gram.shape[0] ** 2 * m**2))
  tv = sum(
    np.sum((theta[row, column] - theta[row + down, column + right]) ** 2)
    for down, right in ((1, 0), (0, 1))
    for row in range(SIZE - down)
    for column in range(SIZE - right)
  )
  return {
    "content_loss": WEIGHTS["content_weight"] * content,
    "style_loss": WEIGHTS["style_weight"] * np.mean(layers),
    "tv_loss": WEIGHTS["tv_weight"] * tv,
  }


def pixels(seed, size=SIZE):
  return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def in_float64(optimizee):
  def cast(leaf):
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

  return jax.tree.map(cast, optimizee)


def as_pixels(optimizee, theta):
  _, mean, std = optimizee.data.features
  return 255 * (np.asarray(theta) * np.asarray(std) + np.asarray(mean))


def draw(optimizee, key):
  return jax.jit(optimizee.init)(key, optimizee.data)


def metrics_of(optimizee, theta, constants):
  return jax.jit(optimizee.metrics)(theta, constants, optimizee.data)


# --- The features.


@pytest.mark.parametrize(("pooling", "pool"), [("average", np.mean), ("max", np.max)])
def test_features_equal_numpy(pooling, pool):
  """Odd sizes too, of which pooling drops the last row."""
  arrays = tiny_vgg((4, 5, 3))
  features = optimizees.VGGFeatures.from_arrays(arrays)
  image = np.random.default_rng(2).normal(size=(7, 6, 3)).astype(np.float32)
  wanted = ("conv1_1", "conv2_1", "conv3_1")
  found = jax.jit(activations, static_argnums=(2, 3))(features, image, wanted, pooling)
  expected = numpy_activations(arrays, image, pool)
  assert set(found) == set(expected)
  for name in wanted:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_layers_are_in_the_networks_order_and_no_more_than_needed(key):
  """The tenth convolution of a block comes after its second."""
  rng = np.random.default_rng(0)
  arrays = {"mean": np.zeros(3), "std": np.ones(3)}
  for index in range(1, 12):
    arrays[f"conv1_{index}/kernel"] = rng.normal(size=(3, 3, 3, 3))
    arrays[f"conv1_{index}/bias"] = np.zeros(3)
  features = optimizees.VGGFeatures.from_arrays(arrays)
  optimizee = tiny_style(features=features, content_layer="conv1_10", style_layers=["conv1_2"])
  assert set(optimizee.data.features.layers) == {f"conv1_{index}" for index in range(1, 11)}
  jaxpr = jax.make_jaxpr(optimizee.loss)(*draw(optimizee, key), optimizee.data, key)
  assert str(jaxpr).count("conv_general_dilated") == 10


# --- The loss.


@pytest.mark.parametrize(("pooling", "pool"), [("average", np.mean), ("max", np.max)])
def test_loss_equals_numpy_and_its_gradient_finite_differences(pooling, pool, key, x64):
  """One crop and one style of the size of the problem, so that all is known."""
  arrays = {name: np.asarray(a, np.float32) for name, a in tiny_vgg().items()}
  crop, style = pixels(3), pixels(4)
  features = optimizees.VGGFeatures.from_arrays(arrays)
  options = {"contents": [crop], "styles": [style], "pooling": pooling, **WEIGHTS}
  optimizee = in_float64(tiny_style(features=features, **options))
  theta, constants = draw(optimizee, key)
  value, grad = jax.jit(jax.value_and_grad(optimizee.loss))(theta, constants, optimizee.data, key)
  metrics = metrics_of(optimizee, theta, constants)
  theta = np.asarray(theta)
  terms = functools.partial(numpy_terms, arrays, crop=crop, style=style, pool=pool)
  expected = terms(theta)
  assert set(metrics) == set(expected)
  for name, term in expected.items():
    # The style's Gram matrices are computed once, in float32.
    np.testing.assert_allclose(metrics[name], term, rtol=1e-5)
    assert term > 0.003 * float(value)
  np.testing.assert_allclose(value, sum(expected.values()), rtol=1e-5)
  for index in ((0, 0, 0), (2, 3, 1), (5, 5, 2)):
    step = np.zeros_like(theta)
    step[index] = 1e-6
    change = sum(terms(theta + step).values()) - sum(terms(theta - step).values())
    np.testing.assert_allclose(grad[index], change / 2e-6, rtol=1e-4)


def test_content_loss_is_zero_where_the_content_starts(key):
  crop = pixels(3)
  optimizee = tiny_style(contents=[crop], start="content")
  theta, constants = draw(optimizee, key)
  np.testing.assert_allclose(as_pixels(optimizee, theta), crop, atol=1e-4)
  metrics = metrics_of(optimizee, theta, constants)
  np.testing.assert_allclose(metrics["content_loss"], 0.0, atol=1e-9)
  assert metrics["style_loss"] > 1e-3


def test_style_loss_is_zero_at_the_style(key):
  picture = pixels(5)
  optimizee = tiny_style(contents=[picture], styles=[picture], start="content")
  metrics = metrics_of(optimizee, *draw(optimizee, key))
  np.testing.assert_allclose(metrics["style_loss"], 0.0, atol=1e-6)
  assert metrics["tv_loss"] > 1e-3


def ramp(height, width):
  """The same picture in any resolution, up to rounding and its borders."""
  row, column = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
  row, column = np.meshgrid(row, column, indexing="ij")
  return np.rint(np.stack([200 * row, 200 * column, 250 - 200 * row], axis=-1)).astype(np.uint8)


def test_styles_are_resized_to_the_shorter_side():
  shapes = ((6, 6), (24, 24), (3, 3), (24, 48))
  grams = tiny_style(styles=[ramp(*shape) for shape in shapes]).data.grams
  wide = tiny_style(styles=[ramp(6, 12)]).data.grams
  assert {name: gram.shape for name, gram in grams.items()} == {
    "conv1_1": (4, 4, 4),
    "conv2_1": (4, 5, 5),
  }
  for name in STYLE_LAYERS:
    exact, shrunk, grown, shrunk_wide = grams[name]
    scale = np.abs(exact).max()
    np.testing.assert_allclose(shrunk, exact, atol=0.05 * scale)
    np.testing.assert_allclose(grown, exact, atol=0.2 * scale)
    np.testing.assert_allclose(shrunk_wide, wide[name][0], atol=0.05 * scale)
    assert np.abs(shrunk_wide - exact).max() > 0.1 * scale


# --- What a problem is.


def test_crops_come_from_everywhere_in_every_image_and_from_nowhere_else():
  """Pixels tell their image, row and column; images of two shapes."""
  rows, columns = np.mgrid[:8, :12]
  wide = np.stack([rows, columns, np.full((8, 12), 100)], axis=-1).astype(np.uint8)
  tall = np.stack([columns.T, rows.T, np.full((12, 8), 200)], axis=-1).astype(np.uint8)
  optimizee = tiny_style(contents=[wide, tall], styles=[pixels(0)], start="content")
  keys = jax.random.split(jax.random.key(3), 2000)
  theta, _ = jax.jit(jax.vmap(optimizee.init, in_axes=(0, None)))(keys, optimizee.data)
  crops = np.rint(as_pixels(optimizee, theta)).astype(int)
  corner_rows, corner_columns, images = crops[:, 0, 0].T
  offsets = np.arange(SIZE)
  assert np.all(crops[..., 0] == corner_rows[:, None, None] + offsets[:, None])
  assert np.all(crops[..., 1] == corner_columns[:, None, None] + offsets)
  assert abs(np.mean(images == 100) - 0.5) < 4 * 0.5 / np.sqrt(2000)
  for image, highest in ((100, (2, 6)), (200, (6, 2))):
    chosen = images == image
    corners = list(zip(corner_rows[chosen], corner_columns[chosen], strict=True))
    counts = np.unique(corners, axis=0, return_counts=True)[1]
    assert len(counts) == np.prod(np.add(highest, 1))
    assert np.max(corners, axis=0).tolist() == list(highest)
    expected = len(corners) / len(counts)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_noise_has_unit_variance_and_styles_are_drawn_evenly():
  optimizee = tiny_style()
  keys = jax.random.split(jax.random.key(4), 1000)
  theta, constants = jax.jit(jax.vmap(optimizee.init, in_axes=(0, None)))(keys, optimizee.data)
  theta = np.asarray(theta, np.float64)
  assert abs(theta.mean()) < 4 / np.sqrt(theta.size)
  assert abs((theta**2).mean() - 1) < 4 * np.sqrt(2 / theta.size)
  assert abs(np.mean(constants.style) - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_each_problem_has_the_style_it_has_drawn(key):
  styles = [pixels(6), pixels(7)]
  both = tiny_style(contents=[pixels(3)], styles=styles)
  theta, constants = draw(both, key)
  for index, style in enumerate(styles):
    one = tiny_style(contents=[pixels(3)], styles=[style])
    alone = metrics_of(one, theta, constants._replace(style=jnp.array(0)))
    chosen = metrics_of(both, theta, constants._replace(style=jnp.array(index)))
    np.testing.assert_allclose(chosen["style_loss"], alone["style_loss"], rtol=1e-5)


def test_other_images_of_equal_shapes_are_one_set_of_functions():
  first, second = (tiny_style(styles=[pixels(seed)]) for seed in (6, 7))
  assert jax.tree.structure(first) == jax.tree.structure(second)


BAD = {
  "features": ({"features": tiny_vgg()}, TypeError, "must be VGGFeatures, .*load_vgg.* got dict"),
  "weight": ({"style_weight": -1.0}, ValueError, "style_weight must be finite and not .* got -1.0"),
  "nan": ({"tv_weight": float("nan")}, ValueError, "tv_weight must be finite .* got nan"),
  "pooling": ({"pooling": "mean"}, ValueError, "pooling must be one of .*'average'.* got 'mean'"),
  "start": ({"start": "style"}, ValueError, "start must be one of .*'noise'.* got 'style'"),
  "no_layers": ({"style_layers": ()}, ValueError, r"style_layers must be different .* got \(\)"),
  "twice": ({"style_layers": ["conv1_1"] * 2}, ValueError, "style_layers must be different"),
  "layer": (
    {"content_layer": "conv2_2"},
    ValueError,
    r"layers of features, got \['conv2_2'\]; there are conv1_1, conv2_1",
  ),
  "size": ({"size": 1}, ValueError, "size must be at least 2, so that conv2_1 has .* got 1"),
  "no_contents": ({"contents": []}, ValueError, "contents must hold at least one image, got none"),
  "small": (
    {"contents": [pixels(0), pixels(0)[:5]]},
    ValueError,
    r"contents\[1\] must be at least 6 pixels high and wide, got 5 x 6",
  ),
  "float": (
    {"styles": [pixels(0) / 255]},
    ValueError,
    r"styles\[0\] must be uint8 .* got float64 \(6, 6, 3\)",
  ),
  "one_image": (
    {"contents": pixels(0)},
    ValueError,
    r"contents\[0\] must be .* got uint8 \(6, 3\)",
  ),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=BAD)
def test_it_refuses(options, error, message):
  with pytest.raises(error, match=message):
    tiny_style(**options)


# --- Weights from files.


def without(name):
  return lambda arrays: {key: array for key, array in arrays.items() if key != name}


def with_array(name, array):
  return lambda arrays: {**arrays, name: array}


def test_weights_of_any_precision_are_read_as_float32(tmp_path):
  arrays = {name: array.astype(np.float16) for name, array in tiny_vgg().items()}
  np.savez(tmp_path / "vgg.npz", allow_pickle=False, **arrays)
  features = optimizees.load_vgg(tmp_path / "vgg.npz")
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(features))
  for name, (kernel, bias) in features.layers.items():
    np.testing.assert_array_equal(kernel, arrays[f"{name}/kernel"].astype(np.float32))
    np.testing.assert_array_equal(bias, arrays[f"{name}/bias"].astype(np.float32))
  np.testing.assert_array_equal(features.std, arrays["std"].astype(np.float32))


SPOILT = {
  "no_mean": (without("mean"), r"missing \['mean'\], unknown none, layers"),
  "no_bias": (without("conv2_1/bias"), r"missing \['conv2_1/bias'\]"),
  "unknown": (with_array("fc6/kernel", np.zeros(2)), r"missing none, unknown \['fc6/kernel'\]"),
  "no_layers": (
    lambda arrays: {name: arrays[name] for name in ("mean", "std")},
    r"the weights must be mean, std, .* of each layer: missing none, unknown none, layers none",
  ),
  "gap": (
    lambda arrays: {name.replace("conv2_1", "conv2_2"): a for name, a in arrays.items()},
    "conv2_2 has no predecessor: the layers are conv1_1, conv2_2",
  ),
  "no_first": (
    lambda arrays: {name: a for name, a in arrays.items() if "conv1" not in name},
    "conv2_1 has no predecessor",
  ),
  "torch_order": (
    lambda arrays: {
      name: a.transpose(3, 2, 0, 1) if "kernel" in name else a for name, a in arrays.items()
    },
    r"conv1_1/kernel must have the shape \(3, 3, 3, 3\), got \(4, 3, 3, 3\)",
  ),
  "inputs": (
    with_array("conv2_1/kernel", np.zeros((3, 3, 3, 5))),
    r"conv2_1/kernel must have the shape \(3, 3, 4, 5\), got \(3, 3, 3, 5\)",
  ),
  "scalar": (with_array("conv1_1/kernel", np.float32(1)), r"conv1_1/kernel must have the shape"),
  "bias_shape": (with_array("conv1_1/bias", np.zeros(3)), r"bias must have the shape \(4,\)"),
  "mean_shape": (with_array("mean", np.zeros(1)), r"mean must have the shape \(3,\), got \(1,\)"),
  "text": (with_array("mean", np.array(["a"] * 3)), "mean must be real numbers, got <U1"),
  "complex": (
    with_array("mean", np.zeros(3, complex)),
    "mean must be real numbers, got complex128",
  ),
  "nan": (with_array("conv1_1/bias", np.full(4, np.nan)), "conv1_1/bias must be finite"),
  "overflow": (with_array("conv1_1/bias", np.full(4, 1e60)), "bias must be finite in float32"),
  "std": (with_array("std", np.zeros(3)), r"std must be positive, got \[0. 0. 0.\]"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_weights_are_checked(spoil, message, tmp_path):
  np.savez(tmp_path / "vgg.npz", allow_pickle=False, **spoil(tiny_vgg()))
  with pytest.raises(ValueError, match=rf"vgg.npz: (.*\b)?{message}"):
    optimizees.load_vgg(tmp_path / "vgg.npz")


def test_files_that_are_no_arrays_are_refused(tmp_path):
  (tmp_path / "text.npz").write_text("no archive")
  np.save(tmp_path / "array.npy", np.zeros(3))
  np.savez(tmp_path / "pickle.npz", allow_pickle=True, mean=np.array([{}], object))
  whole = tmp_path / "whole.npz"
  np.savez(whole, allow_pickle=False, **tiny_vgg())
  (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:-100])
  for name in ("text.npz", "array.npy", "pickle.npz", "cut.npz"):
    with pytest.raises(ValueError, match=rf"{name} is no readable .npz file of plain arrays"):
      optimizees.load_vgg(tmp_path / name)
  with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
    optimizees.load_vgg(tmp_path / "nowhere.npz")


# --- The real network.


def test_features_of_vgg16(shared, key):
  """The shapes; about a third of the units of a trained network answer to a photo."""
  features = optimizees.load_vgg(shared / "data/vgg16/vgg16_conv1_1-conv4_3_f16.npz")
  photos = datasets.load_images(shared / "data/images/kodak_half")
  assert len(photos) == 24
  assert {photo.shape for photo in photos.values()} == {(240, 368, 3), (368, 240, 3)}
  styles = list(datasets.load_images(shared / "data/styles").values())
  optimizee = optimizees.neural_style(
    features, list(photos.values()), styles[:1], size=16, start="content"
  )
  assert list(optimizee.data.features.layers)[-1] == "conv4_1"
  assert {name: gram.shape[1] for name, gram in optimizee.data.grams.items()} == {
    "conv1_1": 64,
    "conv2_1": 128,
    "conv3_1": 256,
    "conv4_1": 512,
  }
  theta, constants = draw(optimizee, key)
  assert constants.content.shape == (4, 4, 256)
  assert 0.05 < np.mean(np.asarray(constants.content) > 0) < 0.6
  metrics = metrics_of(optimizee, theta, constants)
  assert metrics["content_loss"] < 1e-6 < 1e-3 < metrics["style_loss"]


# --- Folders of images.


def test_images_are_read_in_the_order_of_their_paths(tmp_path):
  (tmp_path / "b").mkdir()
  colour, grey = pixels(0), pixels(1)[..., 0]
  Image.fromarray(colour).save(tmp_path / "b" / "colour.PNG")
  Image.fromarray(grey).save(tmp_path / "a.png")
  Image.fromarray(np.dstack([colour, grey])).save(tmp_path / "c.png")
  (tmp_path / "notes.txt").write_text("no image")
  images = datasets.load_images(tmp_path)
  assert list(images) == ["a.png", "b/colour.PNG", "c.png"]
  for image, expected in zip(
    images.values(), (np.stack([grey] * 3, axis=-1), colour, colour), strict=True
  ):
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_folders_without_images_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
    datasets.load_images(tmp_path / "nowhere")
  (tmp_path / "image.txt").write_text("no image")
  with pytest.raises(FileNotFoundError, match=r"holds no images: files .jpeg, .jpg, .png, .webp"):
    datasets.load_images(tmp_path)
  (tmp_path / "broken.png").write_text("no image")
  with pytest.raises(ValueError, match=r"broken.png cannot be read .*UnidentifiedImageError"):
    datasets.load_images(tmp_path)


def test_without_pillow_the_error_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ImportError, match=r"pillow: pip install 'learned_opt\[data\]'"):
    datasets.load_images(tmp_path)


# --- The experiment's files.


def test_experiment_needs_files_and_says_which(tmp_path):
  neural_art = import_file(FOLDER / "neural_art.py")
  with pytest.raises(SystemExit, match=r"--size cpu needs --vgg.* --contents and --styles"):
    neural_art.main(size="cpu", vgg=tmp_path / "vgg.npz", out=tmp_path / "run")
  for folder, number in (("photos", 12), ("paintings", 4), ("few", 3)):
    (tmp_path / folder).mkdir()
    for index in range(number):
      Image.fromarray(pixels(index)).save(tmp_path / folder / f"{index:02d}.png")
  np.savez(tmp_path / "vgg.npz", allow_pickle=False, **tiny_vgg())
  inputs = neural_art.load(tmp_path / "vgg.npz", tmp_path / "photos", tmp_path / "paintings")
  seeds = {"train": [0, 1, 2, 3, 4, 5, 6, 10, 11], "validation": [7], "test": [8, 9]}
  for split, expected in seeds.items():
    np.testing.assert_array_equal(inputs.photos[split], [pixels(seed) for seed in expected])
  assert list(inputs.paintings) == ["00.png", "01.png", "02.png", "03.png"]
  with pytest.raises(SystemExit, match=r"at least 10 photos and .* 4 paintings, got 12 and 3"):
    neural_art.load(tmp_path / "vgg.npz", tmp_path / "photos", tmp_path / "few")
