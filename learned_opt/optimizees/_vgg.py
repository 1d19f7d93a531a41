"""The convolutional features of VGG networks (Simonyan and Zisserman, 2015), from a file."""

import os
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Self

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from learned_opt.optimizees._convolution import xla_convolve

Pooling = Literal["average", "max"]


class ConvWeights(NamedTuple):
  """One convolution: ``kernel`` is ``[3, 3, inputs, outputs]``, ``bias`` ``[outputs]``."""

  kernel: jax.Array
  bias: jax.Array


class VGGFeatures(NamedTuple):
  """The convolutions of a VGG network up to some layer; arrays are float32.

  ``conv3_2`` is the second convolution of the third block. Each is 3x3 with zero padding and
  followed by ReLU; between blocks the height and width are halved. The first reads an RGB image
  in [0, 1], minus the mean, over the standard deviation.

  Attributes:
    layers: the convolutions by name.
    mean: ``[3]``, of the red, green and blue of the images that the network was trained on.
    std: ``[3]``, their standard deviation.
  """

  layers: dict[str, ConvWeights]
  mean: jax.Array
  std: jax.Array

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, chex.Array]) -> Self:
    """Checks arrays in the form of `load_vgg`'s file, and casts them to float32.

    Args:
      arrays: by name, as `load_vgg` describes them.

    Returns:
      The features.

    Raises:
      ValueError: if a name, shape, dtype or value is not as described.

    Example:
      >>> import numpy as np
      >>> from learned_opt.optimizees import VGGFeatures
      >>> arrays = {
      ...   "conv1_1/kernel": np.ones((3, 3, 3, 4), np.float16),
      ...   "conv1_1/bias": np.zeros(4, np.float16),
      ...   "mean": np.full(3, 0.5),
      ...   "std": np.full(3, 0.25),
      ... }
      >>> VGGFeatures.from_arrays(arrays).layers["conv1_1"].kernel.dtype
      dtype('float32')
    """
    names = _check_names(arrays)
    _check_values(arrays)
    _check_shapes(arrays, names)
    kept = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}
    layers = {name: ConvWeights(kept[f"{name}/kernel"], kept[f"{name}/bias"]) for name in names}
    return cls(layers, kept["mean"], kept["std"])


def load_vgg(path: str | os.PathLike[str]) -> VGGFeatures:
  """Reads the convolutions of a VGG network from an .npz file.

  The file holds, in any order, ``mean`` and ``std``, both ``[3]``, and for each convolution
  ``conv<block>_<index>/kernel``, ``[3, 3, inputs, outputs]`` (height, width, then channels: the
  transpose (2, 3, 1, 0) of PyTorch's), and ``conv<block>_<index>/bias``, ``[outputs]``. It may end
  after any convolution. Floating point numbers of any precision will do. From torchvision:

      weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
      network = torchvision.models.vgg16(weights=weights).features
      arrays = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
      block, index = 1, 1
      for layer in network:
        if isinstance(layer, torch.nn.MaxPool2d):
          block, index = block + 1, 1
        elif isinstance(layer, torch.nn.Conv2d):
          name = f"conv{block}_{index}"
          arrays[f"{name}/kernel"] = layer.weight.detach().numpy().transpose(2, 3, 1, 0)
          arrays[f"{name}/bias"] = layer.bias.detach().numpy()
          index += 1
      numpy.savez("vgg16.npz", **arrays)

  Args:
    path: the file; nothing in it is ever run.

  Returns:
    The features.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no .npz file of plain arrays, or holds others than described.

  Example:
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from learned_opt import optimizees
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "vgg.npz"
    >>> layer = {"conv1_1/kernel": np.zeros((3, 3, 3, 8)), "conv1_1/bias": np.zeros(8)}
    >>> np.savez(path, **layer, mean=np.zeros(3), std=np.ones(3))
    >>> sorted(optimizees.load_vgg(path).layers)
    ['conv1_1']
  """
  with open(path, "rb") as file:
    arrays = _read(file, os.fspath(path))
  try:
    return VGGFeatures.from_arrays(arrays)
  except ValueError as error:
    raise ValueError(f"{os.fspath(path)}: {error}") from error


def layers_in_order(names: Iterable[str]) -> list[str]:
  """The names of convolutions in the order in which they are applied."""
  return sorted(names, key=_position)


def block_of(name: str) -> int:
  """The block of a layer, from 1."""
  return _position(name)[0]


def activations(
  features: VGGFeatures, image: jax.Array, wanted: Collection[str], pooling: Pooling
) -> dict[str, jax.Array]:
  """What some of the layers give, after their ReLU, for one image.

  The weights are constants: nothing is differentiated with respect to them.

  Args:
    features: the network.
    image: ``[height, width, 3]``, with zero mean and unit variance in the sense of the network.
    wanted: names of layers.
    pooling: between the blocks.

  Returns:
    By name, ``[height / 2^(block - 1), width / 2^(block - 1), channels]``, rounded down.
  """
  pool = nn.avg_pool if pooling == "average" else nn.max_pool
  x, block, found = image[None], 1, {}
  for name in layers_in_order(features.layers):
    if block_of(name) > block:
      x, block = pool(x, (2, 2), strides=(2, 2)), block + 1
    kernel, bias = jax.lax.stop_gradient(features.layers[name])
    x = nn.relu(_convolve(x, kernel) + jnp.expand_dims(bias, (0, 1, 2)))
    if name in wanted:
      found[name] = x[0]
    if len(found) == len(wanted):
      break
  return found


# XLA's, also on CPUs: with kernels that all problems share and no derivative with respect to them,
# it is faster there than products of patches. Autodiff's form of the derivative, in which XLA
# transposes the kernel, takes several times as long on a CPU.
@jax.custom_vjp
def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """``[N, height, width, channels]``."""
  return xla_convolve(x, kernel)


def _convolve_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _convolve(x, kernel), kernel


def _convolve_bwd(kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
  return _convolve(cotangent, kernel[::-1, ::-1].swapaxes(2, 3)), None


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _position(name: str) -> tuple[int, int]:
  """The block and the index of a layer, both from 1."""
  block, index = name.removeprefix("conv").split("_")
  return int(block), int(index)


def _read(file, path: str) -> dict[str, np.ndarray]:
  try:
    with np.load(file, allow_pickle=False) as archive:
      return {name: archive[name] for name in archive.files}
  # A single array of an .npy file is no context manager; numpy and zipfile raise the others.
  except (TypeError, AttributeError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
    raise ValueError(
      f"{path} is no readable .npz file of plain arrays, as learned_opt.optimizees.load_vgg "
      f"describes it ({type(error).__name__}: {error})"
    ) from error


def _check_names(arrays: Mapping[str, chex.Array]) -> list[str]:
  """Returns the names of the layers, in order."""
  layers = {name.rpartition("/")[0] for name in arrays} - {""}
  odd = [name for name in layers if not re.fullmatch(r"conv[1-9]\d*_[1-9]\d*", name)]
  names = layers_in_order(layers - set(odd))
  expected = {f"{name}/{part}" for name in names for part in ConvWeights._fields} | {"mean", "std"}
  missing, unknown = sorted(expected - set(arrays)), sorted(set(arrays) - expected)
  if missing or unknown or not names:
    raise ValueError(
      f"the weights must be mean, std, and conv<block>_<index>/kernel and /bias of each layer: "
      f"missing {missing or 'none'}, unknown {unknown or 'none'}, layers {names or 'none'}"
    )
  previous = (0, 0)
  for name in names:
    block, index = _position(name)
    if (block, index) not in ((previous[0] + 1, 1), (previous[0], previous[1] + 1)):
      raise ValueError(f"{name} has no predecessor: the layers are {', '.join(names)}")
    previous = block, index
  return names


def _check_values(arrays: Mapping[str, chex.Array]) -> None:
  for name, array in arrays.items():
    if not np.issubdtype(np.asarray(array).dtype, np.number) or np.iscomplexobj(array):
      raise ValueError(f"{name} must be real numbers, got {np.asarray(array).dtype}")
    if not np.all(np.abs(array) <= np.finfo(np.float32).max):
      raise ValueError(f"{name} must be finite in float32")
  if not np.all(np.asarray(arrays["std"]) > 0):
    raise ValueError(f"std must be positive, got {np.asarray(arrays['std'])}")


def _check_shapes(arrays: Mapping[str, chex.Array], names: Sequence[str]) -> None:
  inputs, expected = 3, {"mean": (3,), "std": (3,)}
  for name in names:
    outputs = np.shape(arrays[f"{name}/kernel"])[-1:] or (0,)
    expected |= {f"{name}/kernel": (3, 3, inputs, *outputs), f"{name}/bias": outputs}
    (inputs,) = outputs
  for name, shape in expected.items():
    if np.shape(arrays[name]) != shape:
      raise ValueError(f"{name} must have the shape {shape}, got {np.shape(arrays[name])}")
