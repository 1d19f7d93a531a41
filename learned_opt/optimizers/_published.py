"""Meta-params of the published code as ours: one function an architecture.

A published tree is a dictionary whose keys are the paths, ``"nn|~|w0"``, and whose values are
arrays, as `flatten_tree` makes it of nested dictionaries.
"""

from collections.abc import Callable, Mapping
from typing import Any

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
}
