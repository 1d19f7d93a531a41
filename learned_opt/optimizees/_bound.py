"""Functions with some arguments given."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Bound:
  """As `functools.partial`, but equal for equal functions: no second compilation for it."""

  function: Callable[..., Any]
  first: Any
  second: Any = None

  def __call__(self, *rest):
    """The function of what is given and the rest."""
    if self.second is None:
      return self.function(self.first, *rest)
    return self.function(self.first, self.second, *rest)
