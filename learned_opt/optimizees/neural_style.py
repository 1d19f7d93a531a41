"""Neural style: an image with the content of one and the style of another (paper, section 3.4)."""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.base import Metrics, Optimizee
from learned_opt.optimizees._vgg import (
  Pooling,
  VGGFeatures,
  activations,
  block_of,
  layers_in_order,
)

Start = Literal["noise", "content"]


class NeuralStyleData(NamedTuple):
  """What all problems share.

  Attributes:
    features: the network, up to the deepest layer of the loss.
    contents: uint8 ``[N, H, W, 3]``, the content images, filled up to one size.
    sizes: int32 ``[N, 2]``, the height and width of each of them.
    grams: by layer, float32 ``[S, channels, channels]``, the Gram matrix of each style image, over
      the number of its positions.
  """

  features: VGGFeatures
  contents: jax.Array
  sizes: jax.Array
  grams: dict[str, jax.Array]


class NeuralStyleConstants(NamedTuple):
  """The constants of one problem.

  Attributes:
    content: ``[height, width, channels]``, the features of the crop.
    style: int32 scalar, which style image.
  """

  content: jax.Array
  style: jax.Array


class _Options(NamedTuple):
  """The arguments of `neural_style` that are no arrays."""

  size: int
  content_weight: float
  style_weight: float
  tv_weight: float
  content_layer: str
  style_layers: tuple[str, ...]
  pooling: Pooling
  start: Start

  @property
  def layers(self) -> tuple[str, ...]:
    return tuple(layers_in_order({self.content_layer, *self.style_layers}))


def neural_style(
  features: VGGFeatures,
  contents: Sequence[chex.Array],
  styles: Sequence[chex.Array],
  size: int = 64,
  content_weight: float = 1e-3,
  style_weight: float = 1e3,
  tv_weight: float = 1e-2,
  content_layer: str = "conv3_3",
  style_layers: Sequence[str] = ("conv1_1", "conv2_1", "conv3_1", "conv4_1"),
  pooling: Pooling = "average",
  start: Start = "noise",
) -> Optimizee:
  """f(theta) = alpha L_content + beta L_style + gamma L_tv, for a crop of one image, and a style.

  theta is the image itself. With the features F_l of a VGG network at theta, those P of a random
  crop of a random content image, and A_l of a random style image, at layers of N_l channels and
  M_l positions:

      L_content = 1/2 sum (F_c - P_c)^2,  L_style = mean_l E_l,
      E_l = 1 / (4 N_l^2) sum (F_l F_l^T / M_l - A_l A_l^T / M'_l)^2

  and L_tv is the sum of the squared differences of neighbouring pixels. Where the style image is
  as large as theta (M = M'), E_l is that of Gatys et al. L_content and L_tv grow with the number
  of pixels and L_style does not: multiply `style_weight` by as much to keep the balance.

  theta has the scale in which the network reads images: zero is the mean colour of its training
  images, and a unit their standard deviation, about 57 grey levels. Adam's best rate is about 0.35,
  so that an LSTM without output scale, as in the paper's experiment, has the right order of steps.

  The paper names Gatys et al., and neither weights nor layers. The defaults were chosen for VGG16
  at 64 x 64. With the weights, the terms of a good image are of about one size; by their common
  factor, gradients at the start are about 0.3 and the best rate of gradient descent about 1, well
  inside of what `LogAndSign` and the baselines' grids resolve. The style layers are Gatys' up to
  the fourth block, where a unit sees 60 pixels already. The content layer, conv3_3, sees 40;
  Gatys' conv4_2 has 8 x 8 positions at this size, too few to say where things are. Pooling by the
  average and the start from white noise are Gatys'.

  Source: Andrychowicz et al. (2016), section 3.4; Gatys, Ecker and Bethge (2015), equations 1 to 7.

  Args:
    features: the network; see `load_vgg`.
    contents: uint8 ``[height, width, 3]`` each, N images of any sizes. For another split, make an
      optimizee of other images.
    styles: uint8 ``[height, width, 3]`` each, S images of any sizes. Each is resized so that its
      shorter side is `size`.
    size: height and width of theta in pixels.
    content_weight: alpha.
    style_weight: beta.
    tv_weight: gamma.
    content_layer: c, as ``"conv3_3"``.
    style_layers: l; all count the same.
    pooling: between the blocks of the network.
    start: theta_0, ``"noise"`` of unit variance or the ``"content"``, the crop itself.

  Returns:
    The optimizee; its params are a float32 ``[size, size, 3]`` image, and its metrics the three
    terms of the loss with their weights, ``content_loss``, ``style_loss`` and ``tv_loss``.

  Raises:
    TypeError: if `features` are no `VGGFeatures`.
    ValueError: if an argument is out of its range, a layer is not in `features`, an image is no
      uint8 RGB image, or a content image is smaller than a crop.

  Example:
    >>> import jax
    >>> import numpy as np
    >>> from learned_opt import optimizees
    >>> rng = np.random.default_rng(0)
    >>> features = optimizees.VGGFeatures.from_arrays(
    ...   {
    ...     "conv1_1/kernel": rng.normal(size=(3, 3, 3, 4)),
    ...     "conv1_1/bias": np.zeros(4),
    ...     "mean": np.full(3, 0.5),
    ...     "std": np.full(3, 0.25),
    ...   }
    ... )
    >>> photos = rng.integers(0, 256, (5, 12, 9, 3), np.uint8)
    >>> painting = rng.integers(0, 256, (7, 11, 3), np.uint8)
    >>> layers = {"content_layer": "conv1_1", "style_layers": ["conv1_1"]}
    >>> optimizee = optimizees.neural_style(features, photos, [painting], size=8, **layers)
    >>> theta, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> theta.shape, constants.content.shape
    ((8, 8, 3), (8, 8, 4))
  """
  options = _Options(
    size=size,
    content_weight=float(content_weight),
    style_weight=float(style_weight),
    tv_weight=float(tv_weight),
    content_layer=content_layer,
    style_layers=tuple(style_layers),
    pooling=pooling,
    start=start,
  )
  _check_options(options, features)
  contents = _check_images("contents", contents, size)
  styles = _check_images("styles", styles, 1)
  features = _up_to(features, options.layers[-1])
  grams = [_style_grams(features, jnp.asarray(style), options) for style in styles]
  data = NeuralStyleData(
    features,
    jnp.asarray(_fill_up(contents)),
    jnp.asarray([image.shape[:2] for image in contents], jnp.int32),
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *grams),
  )
  return Optimizee(data=data, **_functions(options))


# Cached so that equal arguments give the same functions, and hence no second compilation.
@functools.cache
def _functions(options: _Options):
  """The functions of an `Optimizee`."""

  def init(key, data: NeuralStyleData):
    image_key, corner_key, style_key, start_key = jax.random.split(key, 4)
    image = jax.random.randint(image_key, (), 0, len(data.contents))
    corner = jax.random.randint(corner_key, (2,), 0, data.sizes[image] - options.size + 1)
    crop = jax.lax.dynamic_slice(
      data.contents, (image, corner[0], corner[1], 0), (1, options.size, options.size, 3)
    )
    x = _standardize(data.features, crop[0])
    content = activations(data.features, x, [options.content_layer], options.pooling)
    style = jax.random.randint(style_key, (), 0, len(jax.tree.leaves(data.grams)[0]))
    if options.start == "noise":
      x = jax.random.normal(start_key, x.shape, x.dtype)
    return x, NeuralStyleConstants(content[options.content_layer], style)

  def terms(params, constants: NeuralStyleConstants, data: NeuralStyleData) -> Metrics:
    found = activations(data.features, params, options.layers, options.pooling)
    content = jnp.sum((found[options.content_layer] - constants.content) ** 2) / 2
    layers = [
      jnp.mean((_gram(found[name]) - data.grams[name][constants.style]) ** 2) / 4
      for name in options.style_layers
    ]
    tv = jnp.sum(jnp.diff(params, axis=0) ** 2) + jnp.sum(jnp.diff(params, axis=1) ** 2)
    return {
      "content_loss": options.content_weight * content,
      "style_loss": options.style_weight * jnp.mean(jnp.stack(layers)),
      "tv_loss": options.tv_weight * tv,
    }

  def loss(params, constants, data, key):
    del key
    return sum(terms(params, constants, data).values())

  return {"init": init, "loss": loss, "metrics": terms}


def _standardize(features: VGGFeatures, image: jax.Array) -> jax.Array:
  """uint8 ``[H, W, 3]`` as the network reads it."""
  mean, std = (jnp.expand_dims(x, (0, 1)) for x in (features.mean, features.std))
  return (image.astype(jnp.float32) / 255 - mean) / std


def _gram(activation: jax.Array) -> jax.Array:
  """The mean over the positions of f f^T: ``[channels, channels]``."""
  vectors = activation.reshape(-1, activation.shape[-1])
  return vectors.T @ vectors / vectors.shape[0]


@functools.partial(jax.jit, static_argnames="options")
def _style_grams(
  features: VGGFeatures, style: jax.Array, options: _Options
) -> dict[str, jax.Array]:
  """Of the image whose shorter side is resized to that of the problems."""
  height, width = style.shape[:2]
  shape = [round(options.size * side / min(height, width)) for side in (height, width)]
  image = jax.image.resize(_standardize(features, style), (*shape, 3), "linear")
  found = activations(features, image, options.style_layers, options.pooling)
  return {name: _gram(found[name]) for name in options.style_layers}


def _fill_up(images: Sequence[np.ndarray]) -> np.ndarray:
  """Stacks images of different sizes, with zeros at the bottom and at the right."""
  height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
  stack = np.zeros((len(images), height, width, 3), np.uint8)
  for filled, image in zip(stack, images, strict=True):
    filled[: image.shape[0], : image.shape[1]] = image
  return stack


def _up_to(features: VGGFeatures, last: str) -> VGGFeatures:
  names = layers_in_order(features.layers)
  kept = names[: names.index(last) + 1]
  return features._replace(layers={name: features.layers[name] for name in kept})


def _check_images(argument: str, images: Sequence[chex.Array], min_side: int) -> list[np.ndarray]:
  arrays = [np.asarray(image) for image in images]
  if not arrays:
    raise ValueError(f"{argument} must hold at least one image, got none")
  for index, image in enumerate(arrays):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
      raise ValueError(
        f"{argument}[{index}] must be uint8 [height, width, 3], got {image.dtype} {image.shape}"
      )
    if min(image.shape[:2]) < min_side:
      raise ValueError(
        f"{argument}[{index}] must be at least {min_side} pixels high and wide, got "
        f"{image.shape[0]} x {image.shape[1]}"
      )
  return arrays


def _check_options(options: _Options, features: VGGFeatures) -> None:
  if not isinstance(features, VGGFeatures):
    raise TypeError(
      f"features must be VGGFeatures, as load_vgg gives them, got {type(features).__name__}"
    )
  for name in ("content_weight", "style_weight", "tv_weight"):
    weight = getattr(options, name)
    if not (math.isfinite(weight) and weight >= 0):
      raise ValueError(f"{name} must be finite and not negative, got {weight}")
  for name, known in (("pooling", get_args(Pooling)), ("start", get_args(Start))):
    if getattr(options, name) not in known:
      raise ValueError(f"{name} must be one of {known}, got {getattr(options, name)!r}")
  if not options.style_layers or len(set(options.style_layers)) < len(options.style_layers):
    raise ValueError(f"style_layers must be different layers, got {options.style_layers}")
  unknown = {options.content_layer, *options.style_layers} - set(features.layers)
  if unknown:
    raise ValueError(
      f"content_layer and style_layers must be layers of features, got {sorted(unknown)}; there "
      f"are {', '.join(layers_in_order(features.layers))}"
    )
  smallest = 2 ** (block_of(options.layers[-1]) - 1)
  if options.size < smallest:
    raise ValueError(
      f"size must be at least {smallest}, so that {options.layers[-1]} has a position, "
      f"got {options.size}"
    )
