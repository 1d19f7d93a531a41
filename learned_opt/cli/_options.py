"""The options of the sub-commands, and how a command line is read."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import (
  FlagCreatePairsOff,
  OmitArgPrefixes,
  OmitSubcommandPrefixes,
  Positional,
  arg,
  subcommand,
)

from learned_opt import (
  artifacts,
  benchmark_suite,
  benchmarks,
  datasets,
  doctor,
  estimators,
  optimizees,
  optimizers,
  runs,
)
from learned_opt import evaluate as evaluation
from learned_opt.base import ImageDataset, Optimizee
from learned_opt.cli._factories import (
  Choices,
  FactoryConfig,
  Field,
  alternatives,
  derive,
  flatten_record,
  parameter_help,
)

PROGRAM = "learned-opt"

_SAVED = (
  "the name of a shipped optimizer, or the path of a saved one, with its meta-params; by default "
  "those of the architecture are drawn."
)


def _by_name(factories: Sequence[Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
  return {factory.__name__: factory for factory in factories}


OPTIMIZEES = _by_name(optimizees.OPTIMIZEES)
ARCHITECTURES = _by_name(optimizers.ARCHITECTURES)
ESTIMATORS = _by_name(estimators.ESTIMATORS)

_DEFAULTS: dict[str, Any] = {
  "num_outer_steps": 1000,
  "outer_learning_rate": 3e-3,
  "schedule": "cosine",
  "num_steps": 100,
  "num_problems": 128,
}

# Where other values suit a problem: what is chosen, and the values then.
_SPECIAL_DEFAULTS: tuple[tuple[dict[str, str], dict[str, Any]], ...] = (
  # As in the paper, which has neither on quadratics.
  (
    {"optimizee": "quadratic", "learned_optimizer": "lstm"},
    {"learned_optimizer.preprocessing": "identity", "learned_optimizer.output_scale": 1.0},
  ),
  # Quadratics differ much from one another, and many of them cost little more than one.
  (
    {"optimizee": "quadratic"},
    {
      "estimator.meta_batch_size": 128,
      "num_validation_problems": 256,
      "num_tuning_problems": 128,
      "num_test_problems": 1000,
      "num_problems": 1000,
    },
  ),
)


_Json = Annotated[bool, arg(help="print one JSON object on stdout and nothing else.")]
_Traceback = Annotated[bool, arg(help="show where in the code an error came from.")]


@dataclasses.dataclass(frozen=True)
class Output:
  """What holds for every command."""

  json: _Json = False
  traceback: _Traceback = False


@dataclasses.dataclass(frozen=True)
class Session:
  """What holds for every command that computes."""

  device: Annotated[
    str | None, arg(help="where to compute: cpu, gpu or tpu, or one of several, such as gpu:1.")
  ] = None
  num_devices: Annotated[
    int | None,
    arg(
      help="how many GPUs, or cores of the CPU, share the work; by default all, at most 8 cores. "
      "The results are the same to rounding."
    ),
  ] = None
  compilation_cache: Annotated[
    bool, arg(help="keep compiled programs in the user's cache folder, for the next time.")
  ] = True
  json: _Json = False
  traceback: _Traceback = False


@dataclasses.dataclass(frozen=True)
class ListOptions:
  """The options of ``list``."""

  session: Annotated[Output, OmitArgPrefixes] = Output()


_NameOrPath = Annotated[
  Positional[str],
  arg(
    help="a shipped optimizer, the folder of one that was saved, or a file of published weights.",
    metavar="NAME_OR_PATH",
  ),
]


@dataclasses.dataclass(frozen=True)
class InfoOptions:
  """The options of ``info``."""

  name_or_path: _NameOrPath
  session: Annotated[Output, OmitArgPrefixes] = Output()


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
  """The options of ``convert``."""

  source: Annotated[
    Positional[str],
    arg(help="a file of published weights, such as Celo's theta.state.", metavar="IN"),
  ]
  out: Annotated[Positional[pathlib.Path], arg(help="the folder, which is made.", metavar="OUT")]
  config: Annotated[
    tuple[str, ...],
    arg(
      help="arguments of the architecture that the file does not tell, where they differ from the "
      "defaults: output_scale=1e-2",
      metavar="NAME=VALUE",
    ),
  ] = ()
  overwrite: Annotated[bool, arg(help="replace the learned optimizer that is there.")] = False
  session: Annotated[Output, OmitArgPrefixes] = Output()


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
  """The options of ``benchmark``."""

  name_or_path: _NameOrPath
  size: Annotated[
    Literal[tuple(benchmark_suite.SIZES)],  # pyright: ignore[reportInvalidTypeForm]
    arg(help="of the suite: how many steps and problems."),
  ] = "cpu"
  tasks: Annotated[
    tuple[str, ...], arg(help=f"which of {', '.join(benchmark_suite.TASKS)}; by default all.")
  ] = ()
  baselines: Annotated[
    pathlib.Path | None,
    arg(
      help="the folder of tuned baselines that python -m learned_opt.benchmark_suite has made; by "
      "default those that are shipped."
    ),
  ] = None
  data_dir: Annotated[pathlib.Path | None, arg(help=parameter_help(datasets.load)["data_dir"])] = (
    None
  )
  manual_dir: Annotated[
    pathlib.Path | None, arg(help=parameter_help(datasets.load)["manual_dir"])
  ] = None
  text: Annotated[pathlib.Path | None, arg(help="the file of tiny shakespeare.")] = None
  out: Annotated[
    pathlib.Path | None, arg(help="a folder for the result and its figure, which is made.")
  ] = None
  plots: Annotated[bool, arg(help="draw the figure in that folder, which needs matplotlib.")] = True
  session: Annotated[Session, OmitArgPrefixes] = Session()


_Rounds = Annotated[int, arg(help="repetitions of each, in turn with one another.")]
_MaxGigabytes = Annotated[
  float | None,
  arg(help="do not run what needs more memory; by default what the system has left."),
]


@dataclasses.dataclass(frozen=True)
class BenchSession(Output):
  """What holds for every benchmark. Its processes start JAX, and this one does not."""

  device: Annotated[
    str | None, arg(help="where to compute: cpu, gpu or tpu, or one of several, such as gpu:1.")
  ] = None
  markdown: Annotated[bool, arg(help="print the table as Markdown.")] = False


@dataclasses.dataclass(frozen=True)
class MetaGradientOptions:
  """The options of ``bench meta-gradient``."""

  cases: Annotated[
    tuple[str, ...],
    arg(
      help=f"what is meta-trained: {', '.join(benchmarks.CASES)}, elementwise-NxT with N "
      "coordinates and unrolls of T steps, or all, which is all named ones but that of 1e7."
    ),
  ] = ("mnist", "quadratic")
  paths: Annotated[
    tuple[str, ...],
    arg(help=f"how the gradient is computed; the reference is {benchmarks.path_names()[0]}."),
  ] = benchmarks.path_names()
  rounds: _Rounds = 5
  max_gigabytes: _MaxGigabytes = None
  session: Annotated[BenchSession, OmitArgPrefixes] = BenchSession()


@dataclasses.dataclass(frozen=True)
class UpdateOptions:
  """The options of ``bench update``."""

  sizes: Annotated[tuple[int, ...], arg(help="numbers of parameters.")] = (
    100_000,
    1_000_000,
    10_000_000,
  )
  optimizers: Annotated[
    tuple[str, ...],
    arg(
      help=f"which are measured: {', '.join(benchmarks.UPDATE_OPTIMIZERS)}; all but the first "
      "update matrices of 1,000 x 1,000."
    ),
  ] = benchmarks.UPDATE_OPTIMIZERS[:1]
  paths: Annotated[
    tuple[str, ...],
    arg(help=f"how the LSTM's update is computed; the reference is {benchmarks.UPDATE_PATHS[0]}."),
  ] = benchmarks.UPDATE_PATHS
  rounds: _Rounds = 5
  max_gigabytes: _MaxGigabytes = None
  session: Annotated[BenchSession, OmitArgPrefixes] = BenchSession()


@dataclasses.dataclass(frozen=True)
class PESOptions:
  """The options of ``bench pes``."""

  paths: Annotated[
    tuple[str, ...],
    arg(help=f"how outer steps are taken; the reference is {benchmarks.PES_PATHS[0]}."),
  ] = benchmarks.PES_PATHS
  rounds: _Rounds = 5
  max_gigabytes: _MaxGigabytes = None
  session: Annotated[BenchSession, OmitArgPrefixes] = BenchSession()


@dataclasses.dataclass(frozen=True)
class ProductsOptions:
  """The options of ``bench products``."""

  paths: Annotated[
    tuple[str, ...],
    arg(help=f"the dtypes of the operands; the reference is {benchmarks.PRODUCT_PATHS[0]}."),
  ] = benchmarks.PRODUCT_PATHS
  rounds: _Rounds = 5
  session: Annotated[BenchSession, OmitArgPrefixes] = BenchSession()


@dataclasses.dataclass(frozen=True)
class StartUpOptions:
  """The options of ``bench start-up``."""

  case: Annotated[str, arg(help="whose first outer step is taken; see bench meta-gradient.")] = (
    "mnist"
  )
  rounds: _Rounds = 5
  session: Annotated[BenchSession, OmitArgPrefixes] = BenchSession()


@dataclasses.dataclass(frozen=True)
class BenchOptions:
  """The options of ``bench``: which benchmark, and its own."""

  benchmark: Annotated[
    Annotated[
      MetaGradientOptions,
      subcommand(
        "meta-gradient",
        description="Outer steps: a meta-gradient and a meta-Adam update, path by path.",
      ),
    ]
    | Annotated[
      UpdateOptions,
      subcommand("update", description="One update of many parameters by an LSTM, and by Adam."),
    ]
    | Annotated[
      PESOptions,
      subcommand(
        "pes",
        description="Outer steps of evolution strategies, in one program and fed by the host.",
      ),
    ]
    | Annotated[
      ProductsOptions,
      subcommand(
        "products", description="Matrix products of narrow operands, beside those of float32."
      ),
    ]
    | Annotated[
      StartUpOptions,
      subcommand("start-up", description="Imports and the first outer step of a fresh process."),
    ],
    OmitSubcommandPrefixes,
    OmitArgPrefixes,
  ]

  @property
  def session(self) -> BenchSession:
    """What holds for every benchmark."""
    return self.benchmark.session


def parse(argv: Sequence[str]) -> tuple[str, Any]:
  """Reads a command line.

  Args:
    argv: the words after the program's name.

  Returns:
    The name of the sub-command, and its options.

  Raises:
    ValueError: if an option that chooses a factory names none that there is.
    SystemExit: after ``--help``, with code 0, and with code 2 if the words make no sense.

  Example:
    >>> from learned_opt.cli._options import parse
    >>> argv = ["train", "--optimizee", "quadratic", "--optimizee.dimension", "3"]
    >>> command, options = parse(argv)
    >>> command, options.optimizee_options.dimension
    ('train', 3)
  """
  types = {
    "train": _train_options(_choices(argv, {})),
    "evaluate": _evaluate_options(_choices(argv, _defaults_of_card(argv))),
    "inspect": _inspect_options(_choices(argv, _defaults_of_card(argv))),
    "doctor": _doctor_options(_choices(argv, {})),
    "list": ListOptions,
    "info": InfoOptions,
    "convert": ConvertOptions,
    "benchmark": BenchmarkOptions,
    "bench": BenchOptions,
  }
  descriptions = {
    "train": "Meta-train a learned optimizer, save it and compare it with tuned baselines.",
    "evaluate": "Judge a learned optimizer beside tuned baselines, on fresh problems.",
    "inspect": "Look at what a learned optimizer does, step by step, beside tuned baselines.",
    "doctor": "Compare meta-gradient estimators on a problem, and find what is not finite.",
    "list": "Show the learned optimizers that are shipped with the library.",
    "info": "Show what a learned optimizer is, how it was made and how good it is.",
    "convert": "Save weights that others published as a learned optimizer of this library.",
    "benchmark": "Judge a learned optimizer on the suite: many tasks, beside tuned baselines.",
    "bench": "Measure what meta-gradients, updates and the start of a process cost here.",
  }
  members = tuple(
    Annotated[one, subcommand(name, description=descriptions[name])] for name, one in types.items()
  )
  options: Any = tyro.cli(
    Union[members],  # pyright: ignore[reportArgumentType, reportCallIssue] # noqa: UP007
    prog=PROGRAM,
    description="Learned optimizers: make them, judge them, look at them. The options of a command "
    "follow its name: learned-opt train --help",
    args=list(argv),
    # Options that are off have no twin that turns them off, and those that are on no other.
    config=(FlagCreatePairsOff,),
  )
  return next(name for name, one in types.items() if type(options) is one), options


def optimizee_splits(config: FactoryConfig) -> dict[str, Optimizee]:
  """The optimizee on the train, validation and test split, if it has splits."""
  factory: Callable[..., Optimizee] = type(config).factory
  arguments = config.arguments()
  if "split" not in inspect.signature(factory).parameters:
    the_only = factory(**arguments)
    return dict.fromkeys(ImageDataset._fields, the_only)
  return {split: factory(**arguments, split=split) for split in ImageDataset._fields}


def optimizee_name(config: FactoryConfig) -> str:
  """What tables and plots call the problems."""
  dataset = getattr(config, "dataset", None)
  name = type(config).factory.__name__
  return f"{name} on {dataset}" if dataset else name


def _train_options(choices: Choices) -> type:
  fields = [
    *_alternatives("optimizee", OPTIMIZEES, "the problems to train on.", choices),
    *_alternatives("learned_optimizer", ARCHITECTURES, "the architecture.", choices),
    *_alternatives("estimator", ESTIMATORS, "of the meta-gradient.", choices),
    _path("out", "the folder of the run; by default runs/NAME-OPTIMIZEE-SEED."),
    _flag("resume", False, "continue the run in that folder, from its last validation."),
    _flag("evaluate", True, "compare with tuned baselines at the end."),
    _flag("plots", True, "draw the figures, which needs matplotlib."),
    _group("recipe", derive(runs.Recipe, "", choices, omit=("optimizee", "optimizee_name"))),
    _group("session", Session),
  ]
  return _dataclass("TrainOptions", fields)


def _evaluate_options(choices: Choices) -> type:
  types = {
    "num_steps": (int, 100),
    "num_problems": (int, 128),
    "num_tuning_problems": (int, 32),
    "baselines": (tuple[str, ...], tuple(evaluation.BASELINES)),
    "objective": (runs.Recipe.__annotations__["objective"], "final"),
    "seed": (int, 0),
  }
  return _options_on_problems("EvaluateOptions", types, {}, choices)


def _inspect_options(choices: Choices) -> type:
  types = {
    "num_steps": (int, 100),
    "coordinate": (int | None, None),
    "steps": (tuple[int, ...], ()),
    "max_gradient": (float | None, None),
    "baselines": (tuple[str, ...], ("adam", "sgd")),
    "learning_rates": (tuple[float, ...], ()),
    "num_tuning_problems": (int, 8),
    "seed": (int, 0),
  }
  help_texts = {
    "num_steps": "T, the updates of the learned optimizer that are applied to one problem.",
    "coordinate": "whose updates are shown: its flat index, counted leaf after leaf; by default "
    "one is drawn, of those whose gradient is not zero where the problem starts.",
    "steps": "where its update is shown as a function of its gradient; by default powers of two "
    "up to 32.",
    "max_gradient": "how large these gradients are; by default as large as the true ones.",
    "learning_rates": "of the baselines; by default they are tuned.",
    "num_tuning_problems": "on how many problems.",
  }
  return _options_on_problems("InspectOptions", types, help_texts, choices)


def _doctor_options(choices: Choices) -> type:
  types = {
    "unroll_lengths": (tuple[int, ...], (5, 10, 20, 50, 100)),
    "horizon": (int | None, None),
    "methods": (tuple[str, ...], tuple(doctor.METHODS)),
    "meta_batch_size": (int, 8),
    "num_samples": (int, 16),
    "sigma": (float, 0.01),
    "seed": (int, 0),
  }
  help_texts = parameter_help(doctor.examine)
  help_texts["seed"] = parameter_help(runs.Recipe)["seed"]
  fields = [
    Field("saved", Annotated[str | None, arg(help=_SAVED)], None),
    *_alternatives("optimizee", OPTIMIZEES, "the problems.", choices),
    *_alternatives("learned_optimizer", ARCHITECTURES, "the architecture.", choices),
    *(
      Field(name, Annotated[hint, arg(help=help_texts[name])], fallback)
      for name, (hint, fallback) in types.items()
    ),
    _path("out", "a folder for the result and its figure, which is made."),
    _flag("plots", True, "draw the figure in that folder, which needs matplotlib."),
    _group("session", Session),
  ]
  return _dataclass("DoctorOptions", fields)


def _options_on_problems(
  name: str,
  types: Mapping[str, tuple[Any, Any]],
  help_texts: Mapping[str, str],
  choices: Choices,
) -> type:
  """The options of a command that runs a saved optimizer on problems.

  Args:
    name: of the class.
    types: by option, its type and its default.
    help_texts: of options that do not mean what they mean for `evaluate`.
    choices: what decides between alternatives.
  """
  help_texts = {
    **parameter_help(evaluation.evaluate),
    **{option: parameter_help(runs.Recipe)[option] for option in ("seed", "objective")},
    **help_texts,
  }
  fields = [
    Field("name_or_path", _NameOrPath, dataclasses.MISSING),
    *_alternatives(
      "optimizee",
      OPTIMIZEES,
      "the problems; by default those that it was trained on, if its card names them.",
      choices,
    ),
    *(
      Field(
        option,
        Annotated[hint, arg(help=help_texts[option])],
        choices.default(option, fallback),
      )
      for option, (hint, fallback) in types.items()
    ),
    _path("out", "a folder for the result and its figures, which is made."),
    _flag("plots", True, "draw the figures in that folder, which needs matplotlib."),
    _group("session", Session),
  ]
  return _dataclass(name, fields)


def _choices(argv: Sequence[str], card: Mapping[str, Any]) -> Choices:
  """What is chosen, with the defaults that go with it."""
  first = Choices(argv, card)
  chosen = {
    name: first.select(name, table, next(iter(table)))
    for name, table in (("optimizee", OPTIMIZEES), ("learned_optimizer", ARCHITECTURES))
  }
  defaults = {**_DEFAULTS, "name": chosen["learned_optimizer"]}
  for conditions, values in _SPECIAL_DEFAULTS:
    if conditions.items() <= chosen.items():
      defaults |= values
  same_problems = chosen["optimizee"] == card.get("optimizee")
  return Choices(argv, {**defaults, **card} if same_problems else defaults)


def _defaults_of_card(argv: Sequence[str]) -> dict[str, Any]:
  """The problems on which the optimizer of ``evaluate`` or ``inspect NAME_OR_PATH`` was trained."""
  if len(argv) < 2 or argv[0] not in ("evaluate", "inspect") or argv[1].startswith("-"):
    return {}
  try:
    recipe = artifacts.load_artifact(argv[1]).card["recipe"] or {}
  except (OSError, ValueError):
    return {}  # The command itself will say what is wrong.
  record = (recipe.get("description") or {}).get("optimizee")
  if not isinstance(record, dict) or record.get("type") not in OPTIMIZEES:
    return {}
  steps = recipe.get("evaluation_steps") or recipe.get("horizon")
  return flatten_record(record, "optimizee") | ({"num_steps": steps} if steps else {})


def _alternatives(
  name: str, table: Mapping[str, Callable[..., Any]], help_text: str, choices: Choices
) -> list[Field]:
  more = f"{help_text} Each has options of its own: choose it, and ask for --help."
  return alternatives(name, table, more, choices, next(iter(table)), omit=("split",))


def _path(name: str, help_text: str) -> Field:
  return Field(name, Annotated[pathlib.Path | None, arg(help=help_text)], None)


def _flag(name: str, default: bool, help_text: str) -> Field:
  return Field(name, Annotated[bool, arg(help=help_text)], default)


def _group(name: str, options: type) -> Field:
  return Field(name, Annotated[options, OmitArgPrefixes], options())


def _dataclass(name: str, fields: Sequence[Field]) -> type:
  return dataclasses.make_dataclass(
    name,
    [(f.name, f.type, dataclasses.field(default=f.default)) for f in fields],
    frozen=True,
  )
