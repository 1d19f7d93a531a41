"""Command-line options from the library's factories: their signatures and docstrings.

A factory that is added to OPTIMIZEES, ARCHITECTURES or ESTIMATORS has its options here without
another line. Which factory is meant is an option as well (``--optimizee quadratic``), and decides
which further ones there are (``--optimizee.dimension 10``). So the options are derived in the
light of what stands on the command line, and `--help` shows those that apply.
"""

import dataclasses
import difflib
import inspect
import itertools
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
from tyro.conf import arg

from learned_opt import datasets
from learned_opt.base import ImageDataset, MetaLoss, TextDataset
from learned_opt.meta_losses import META_LOSSES

# The types of values that can be typed; parameters of other types stay at their defaults.
_PLAIN = (int, float, bool, str, type(None), pathlib.Path)


class Field(NamedTuple):
  """One field of a derived dataclass, as tyro reads it."""

  name: str
  type: Any
  default: Any


class Option(NamedTuple):
  """How one parameter of a factory is typed, and read.

  Attributes:
    fields: of the derived dataclass.
    argument: ``config -> value`` for the factory; it may load data.
    record: ``config -> JSON value`` for config.json.
  """

  fields: list[Field]
  argument: Callable[[Any], Any]
  record: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class FactoryConfig:
  """The base of the derived dataclasses: one factory with the arguments that were typed."""

  factory: ClassVar[Callable[..., Any]]
  options: ClassVar[Mapping[str, Option]]

  def arguments(self) -> dict[str, Any]:
    """What to call the factory with."""
    return {name: option.argument(self) for name, option in self.options.items()}

  def record(self) -> dict[str, Any]:
    """The factory's name and arguments as JSON values."""
    values = {name: option.record(self) for name, option in self.options.items()}
    return {"type": type(self).factory.__name__, **values}


class Choices:
  """What was chosen: on the command line, or else by a table of defaults.

  Args:
    argv: the command line.
    defaults: values by dotted option names, such as ``{"optimizee.dimension": 5}``, which go
      before those of the signatures.
  """

  def __init__(self, argv: Sequence[str] = (), defaults: Mapping[str, Any] | None = None):
    self._typed = dict(_typed_values(argv))
    self._defaults = {_as_option(name): value for name, value in (defaults or {}).items()}

  def default(self, name: str, fallback: Any) -> Any:
    """The default of an option."""
    return self._defaults.get(_as_option(name), fallback)

  def select(self, name: str, names: Iterable[str], fallback: str) -> str:
    """The name that is chosen by an option.

    Raises:
      ValueError: if there is no such name; the nearest is named.
    """
    names, option = tuple(names), _as_option(name)
    chosen = self._typed[option] if option in self._typed else self.default(name, fallback)
    if chosen not in names:
      near = difflib.get_close_matches(chosen.lower(), names, n=1)
      hint = f"did you mean {near[0]!r}? " if near else ""
      raise ValueError(f"--{option} {chosen}: {hint}There are {', '.join(names)}.")
    return chosen


def derive(
  factory: Callable[..., Any], prefix: str, choices: Choices, omit: Sequence[str] = ()
) -> type[FactoryConfig]:
  """The dataclass of a factory's options.

  Args:
    factory: a function or dataclass with annotations, and a docstring with ``Args:`` or
      ``Attributes:``.
    prefix: of the options' dotted names, such as ``optimizee.``.
    choices: what decides between alternatives.
    omit: parameters that are no options.

  Returns:
    A frozen dataclass for tyro.

  Example:
    >>> from learned_opt import optimizees
    >>> from learned_opt.cli._factories import Choices, derive
    >>> config = derive(optimizees.quadratic, "optimizee.", Choices())(dimension=3)
    >>> config.arguments()["dimension"], config.record()["type"]
    (3, 'quadratic')
  """
  help_texts = parameter_help(factory)
  options = {
    name: option
    for name, parameter in inspect.signature(factory, eval_str=True).parameters.items()
    if name not in omit
    if (option := _option(parameter, prefix + name, help_texts.get(name, ""), choices))
  }
  fields = [field for option in options.values() for field in option.fields]
  return dataclasses.make_dataclass(
    factory.__name__,
    [(f.name, f.type, dataclasses.field(default=f.default)) for f in fields],
    bases=(FactoryConfig,),
    namespace={"factory": staticmethod(factory), "options": options},
    frozen=True,
  )


def alternatives(
  name: str,
  factories: Mapping[str, Callable[..., Any]],
  help_text: str,
  choices: Choices,
  fallback: str,
  omit: Sequence[str] = (),
) -> list[Field]:
  """Two fields: the option that chooses a factory, and the options of the one that is chosen."""
  chosen = choices.select(name, factories, fallback)
  config = derive(factories[chosen], f"{name}.", choices, omit)
  last = name.rpartition(".")[2]
  choice = Literal[tuple(factories)]  # pyright: ignore[reportInvalidTypeForm]
  return [
    Field(last, Annotated[choice, arg(help=help_text)], chosen),
    Field(f"{last}_options", Annotated[config, arg(name=_as_option(last))], config()),
  ]


def parameter_help(factory: Callable[..., Any]) -> dict[str, str]:
  """The texts on the parameters in a Google docstring, each in one line.

  Example:
    >>> from learned_opt.cli._factories import parameter_help
    >>> from learned_opt.optimizers import Scale
    >>> parameter_help(Scale)
    {'factor': 'the constant.'}
  """
  section = re.search(
    r"^(?:Args|Attributes):\n((?:[ ]+.*\n|\n)*)", (inspect.getdoc(factory) or "") + "\n", re.M
  )
  if section is None:
    return {}
  entries = re.split(r"^[ ]{2}(\w+): ", section[1], flags=re.M)[1:]
  return {
    name: " ".join(re.sub(r'["`]', "", text).split())
    for name, text in zip(entries[::2], entries[1::2], strict=True)
  }


def flatten_record(record: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  """A record as defaults for `Choices`.

  Example:
    >>> from learned_opt.cli._factories import flatten_record
    >>> flatten_record({"type": "lstm", "preprocessing": {"type": "scale", "factor": 2.0}}, "x")
    {'x': 'lstm', 'x.preprocessing': 'scale', 'x.preprocessing.factor': 2.0}
  """
  flat = {prefix: record["type"]}
  for name, value in record.items():
    if isinstance(value, Mapping):
      flat |= flatten_record(value, f"{prefix}.{name}")
    elif name != "type":
      flat[f"{prefix}.{name}"] = tuple(value) if isinstance(value, list) else value
  return flat


def _option(
  parameter: inspect.Parameter, path: str, help_text: str, choices: Choices
) -> Option | None:
  name, hint = parameter.name, parameter.annotation
  if hint is ImageDataset:
    return _dataset_option(name, path, help_text, choices)
  if hint is TextDataset:
    return _text_option(name, help_text)
  if hint == MetaLoss:
    return _meta_loss_option(parameter, path, choices)
  if _is_union_of_dataclasses(hint):
    return _union_option(parameter, path, help_text, choices)
  hint = _plain_part(hint)
  if not _is_plain(hint):
    return None
  default = choices.default(path, parameter.default)
  if default is inspect.Parameter.empty:
    default = dataclasses.MISSING
  elif typing.get_origin(hint) is Literal:
    # tyro would say so as well, but not which one is the nearest.
    default = choices.select(path, typing.get_args(hint), default)
  field = Field(name, Annotated[hint, arg(help=help_text)], default)
  return Option([field], *[lambda config: getattr(config, name)] * 2)


def _dataset_option(name: str, path: str, help_text: str, choices: Choices) -> Option:
  help_texts = parameter_help(datasets.load)
  known = Literal[datasets.names()]  # pyright: ignore[reportInvalidTypeForm]
  default = choices.select(path, datasets.names(), "digits")

  def argument(config: FactoryConfig) -> ImageDataset:
    where = {folder: getattr(config, folder) for folder in ("data_dir", "manual_dir")}
    dataset = datasets.load(getattr(config, name), **where)
    # On the device once, however many splits are used.
    return jax.device_put(dataset)

  folders = [
    Field(folder, Annotated[pathlib.Path | None, arg(help=help_texts[folder])], None)
    for folder in ("data_dir", "manual_dir")
  ]
  fields = [Field(name, Annotated[known, arg(help=help_text)], default), *folders]
  # Where the files lie says nothing of the run.
  return Option(fields, argument, lambda config: getattr(config, name))


def _text_option(name: str, help_text: str) -> Option:
  more = f"{help_text} By default a made-up language, which needs no file."
  field = Field(name, Annotated[pathlib.Path | None, arg(help=more)], None)

  def argument(config: FactoryConfig) -> TextDataset:
    path = getattr(config, name)
    return datasets.markov_text() if path is None else datasets.load_text(path)

  def record(config: FactoryConfig) -> str | None:
    path = getattr(config, name)
    return None if path is None else path.name  # Where the file lies says nothing of the run.

  return Option([field], argument, record)


def _meta_loss_option(parameter: inspect.Parameter, path: str, choices: Choices) -> Option:
  name = parameter.name
  # The default may have been made by a function, as that of weighted_sum is.
  fallback = getattr(parameter.default, "__qualname__", "").partition(".")[0]
  known = Literal[tuple(META_LOSSES)]  # pyright: ignore[reportInvalidTypeForm]
  help_text = "how the losses along an unroll become one number."
  default = choices.select(path, META_LOSSES, fallback)
  return Option(
    [Field(name, Annotated[known, arg(help=help_text)], default)],
    lambda config: META_LOSSES[getattr(config, name)],
    lambda config: getattr(config, name),
  )


def _union_option(
  parameter: inspect.Parameter, path: str, help_text: str, choices: Choices
) -> Option:
  name = parameter.name
  members = {
    _snake_case(member.__name__): member for member in typing.get_args(parameter.annotation)
  }
  fallback = _snake_case(type(parameter.default).__name__)
  fields = alternatives(path, members, help_text, choices, fallback)

  def options_of(config: FactoryConfig) -> FactoryConfig:
    return getattr(config, f"{name}_options")

  def argument(config: FactoryConfig) -> Any:
    options = options_of(config)
    return type(options).factory(**options.arguments())

  def record(config: FactoryConfig) -> dict[str, Any]:
    return {**options_of(config).record(), "type": getattr(config, name)}

  return Option(fields, argument, record)


def _is_union_of_dataclasses(hint: Any) -> bool:
  return isinstance(hint, types.UnionType) and all(
    dataclasses.is_dataclass(member) for member in typing.get_args(hint)
  )


def _plain_part(hint: Any) -> Any:
  """Of alternatives, those that can be typed, if there is more to type than None."""
  if not isinstance(hint, types.UnionType):
    return hint
  plain = [member for member in typing.get_args(hint) if _is_plain(member)]
  return typing.Union[tuple(plain)] if set(plain) - {type(None)} else hint  # noqa: UP007


def _is_plain(hint: Any) -> bool:
  origin, members = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return True
  if origin in (tuple, list, Sequence, typing.Union, types.UnionType):
    return all(member is Ellipsis or _is_plain(member) for member in members)
  return hint in _PLAIN


def _typed_values(argv: Sequence[str]) -> Iterable[tuple[str, str]]:
  """Options with the word that follows; those without a value give a wrong one, never asked for."""
  for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
    if word.startswith("--"):
      name, equals, value = word[2:].partition("=")
      yield _as_option(name), value if equals else following


def _as_option(name: str) -> str:
  return name.replace("_", "-")


def _snake_case(name: str) -> str:
  """The name of a class as an option's value.

  >>> _snake_case("LogAndSign")
  'log_and_sign'
  """
  return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
