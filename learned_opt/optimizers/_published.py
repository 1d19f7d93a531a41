"""Meta-params of the published code as ours: one function an architecture.

A published tree is a dictionary whose keys are the paths, ``"nn|~|w0"``, and whose values are
arrays, as `flatten_tree` makes it of nested dictionaries.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Tree = Mapping[str, np.ndarray]


def flatten_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
  """Nested dictionaries as one, paths joined by ``|``.

  >>> flatten_tree({"nn": {"~": {"w0": 1.0}}})
  {'nn|~|w0': array(1.)}
  """
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(flatten_tree(value, f"{prefix}{key}|"))
    else:
      flat[prefix + key] = np.asarray(value)
  return flat


def adafac_mlp(tree: Tree) -> dict[str, Any]:
  """Of ``AdafacMLPLOpt`` with concatenated weights."""
  return {
    "decays": {
      "momenta": tree["momentum_decays"],
      "squares": tree["rms_decays"],
      "factored": tree["adafactor_decays"],
    },
    "network": _layers(tree, "nn|~|w{}", "nn|~|b{}"),
  }


def mlp(tree: Tree) -> dict[str, Any]:
  """Of ``MLPLOpt``."""
  return _layers(tree, "mlp/~/linear_{}|w", "mlp/~/linear_{}|b")


def celo2(tree: Tree) -> dict[str, Any]:
  """Of ``Celo2Transformation``; the outputs that it does not read are left out."""
  return _networks(tree, num_outputs=1)


def celo(tree: Tree) -> dict[str, Any]:
  """Of ``Celo`` with one network."""
  stack = _networks(tree, num_outputs=2)
  if any(leaf.shape[0] != 1 for leaf in jax.tree.leaves(stack)):
    raise ValueError("Celo with a bank of several networks is not supported, only with one")
  return {"network": jax.tree.map(lambda leaf: leaf[0], stack), "scheduler": _scheduler(tree)}


def celo_adam(tree: Tree) -> dict[str, Any]:
  """Of ``Celo`` with the update rule of Adam."""
  return {"scheduler": _scheduler(tree)}


def velo(tree: Tree) -> dict[str, Any]:
  """Of ``HyperV2``."""
  controls = {"controls": _linear(tree, "rnn_params|rnn_to_controls")}
  return {"bank": _networks(tree, num_outputs=2), "scheduler": {**_scheduler(tree), **controls}}


def _scheduler(tree: Tree) -> dict[str, Any]:
  # Of three layers before the LSTM the first has no effect.
  parts = {"mix": "linear_1", "input": "linear_2", "lstm": "rnn/linear", "rate": "step_size"}
  weights = {ours: _linear(tree, f"rnn_params|{theirs}") for ours, theirs in parts.items()}
  for name in ("mix", "input"):
    # Some have a last input that says whether the validation loss is meant, zero where it is not.
    kernel = weights[name]["kernel"]
    weights[name]["kernel"] = kernel[: len(kernel) - len(kernel) % 2]
  start = {"c": tree["lstm_init_state|cell"][0], "h": tree["lstm_init_state|hidden"][0]}
  return {"start": start, **weights}


def _linear(tree: Tree, name: str) -> dict[str, np.ndarray]:
  return {"kernel": tree[f"{name}|w"], "bias": tree[f"{name}|b"]}


def _networks(tree: Tree, num_outputs: int) -> dict[str, dict[str, np.ndarray]]:
  """One network, or a stack of them, with the outputs that are read."""
  stem = "ff_mod_stack|~|"
  network = _layers(concatenate_groups(tree, stem), stem + "w{}", stem + "b{}")
  return {
    **network,
    "output": {k: leaf[..., :num_outputs] for k, leaf in network["output"].items()},
  }


def concatenate_groups(tree: Tree, prefix: str = "ff_mod_stack|~|") -> Tree:
  """The first layer's kernels of each group of features, ``w0__0``, ..., as one, ``w0``."""
  number = sum(key.startswith(f"{prefix}w0__") for key in tree)
  kernels = [tree[f"{prefix}w0__{index}"] for index in range(number)]
  return {**tree, f"{prefix}w0": np.concatenate(kernels, axis=-2)}


def _layers(tree: Tree, kernel: str, bias: str) -> dict[str, dict[str, np.ndarray]]:
  """Layers 0, 1, ... as `init_mlp` names them; kernel and bias are patterns of their paths."""
  number = 0
  while bias.format(number) in tree:
    number += 1
  names = [*(f"layer_{index}" for index in range(number - 1)), "output"]
  return {
    name: {"kernel": tree[kernel.format(i)], "bias": tree[bias.format(i)]}
    for i, name in enumerate(names)
  }


# For each architecture: ``flat tree -> meta_params``.
FROM_PUBLISHED: dict[str, Callable[[Tree], dict[str, Any]]] = {
  "adafac_mlp": adafac_mlp,
  "celo": celo,
  "celo2": celo2,
  "celo_adam": celo_adam,
  "mlp": mlp,
  "velo": velo,
}

# The paths that the trees of each architecture have, no others.
_SCHEDULER_PATHS = (
  r"lstm_init_state\|(hidden|cell)|rnn_params\|(linear(_[12])?|rnn/linear|step_size)\|[wb]"
)
_STACK_PATHS = r"ff_mod_stack\|~\|(w0__\d+|[wb]\d)"
_HYPER_PATHS = rf"{_SCHEDULER_PATHS}|{_STACK_PATHS}|rnn_params\|rnn_to_controls\|[wb]"
_PATHS = {
  "adafac_mlp": r"(momentum|rms|adafactor)_decays|nn\|~\|[wb]\d",
  "mlp": r"mlp/~/linear_\d\|[wb]",
  "celo2": _STACK_PATHS,
  "celo_adam": _SCHEDULER_PATHS,
  "celo": _HYPER_PATHS,
  "velo": _HYPER_PATHS,
}
# What Celo's schedule sees; VeLO's sees more.
_NUM_SCHEDULE_INPUTS = 18


def from_published(tree: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
  """Recognises a published tree and converts it.

  Args:
    tree: nested dictionaries of arrays.

  Returns:
    The name of the architecture, of its configuration what the shapes tell, and the meta-params in
    float32.

  Raises:
    ValueError: if no architecture has such a tree.
  """
  flat = flatten_tree(tree)
  name = _recognise(flat)
  try:
    meta_params = FROM_PUBLISHED[name](flat)
  except (KeyError, IndexError, ValueError) as error:
    raise ValueError(f"the tree looks like {name}'s, but cannot be converted: {error}") from error
  meta_params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), meta_params)
  return name, _sizes(meta_params), meta_params


def _recognise(tree: Tree) -> str:
  fitting = [
    name
    for name, paths in _PATHS.items()
    if name in FROM_PUBLISHED and tree and all(re.fullmatch(paths, path) for path in tree)
  ]
  kernel = tree.get("rnn_params|linear_1|w", np.zeros((0, 0)))
  if "celo" in fitting and len(kernel) > _NUM_SCHEDULE_INPUTS + 1:
    return "velo"
  if not fitting:
    shown = ", ".join([*tree][:3])
    raise ValueError(
      f"no known architecture has the arrays {shown}, ...; known are the published trees of "
      f"{', '.join(FROM_PUBLISHED)}"
    )
  return fitting[0]


def _sizes(meta_params: Mapping[str, Any]) -> dict[str, int]:
  sizes = {}
  network = meta_params.get("network", meta_params.get("bank", meta_params))
  if "output" in network:
    sizes["num_layers"] = len(network) - 1
    sizes["hidden_size"] = network["output"]["kernel"].shape[-2]
  if "bank" in meta_params:
    sizes["bank_size"] = len(meta_params["bank"]["output"]["bias"])
  if "scheduler" in meta_params:
    sizes["lstm_size"] = meta_params["scheduler"]["start"]["h"].size
  return sizes
