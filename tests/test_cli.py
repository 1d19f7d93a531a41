"""The command line: options from factories, one JSON object, helpful errors, Ctrl-C."""

import contextlib
import functools
import inspect
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import pytest
from rich.console import Console

import learned_opt
from learned_opt import (
  artifacts,
  cli,
  datasets,
  estimators,
  evaluate,
  meta_train,
  optimizees,
  optimizers,
  runs,
)
from learned_opt.cli import _commands, _factories, _options, _report, _session

# Programs of the same shapes as in test_runs.py, which the compilation cache knows.
PARTS = [
  *("--optimizee.dimension", "2"),
  *("--learned-optimizer.hidden-size", "4"),
  *("--estimator.unroll-length", "5"),
  *("--estimator.horizon", "10"),
  *("--estimator.meta-batch-size", "2"),
]
TINY = [
  *PARTS,
  *("--num-outer-steps", "8"),
  *("--validate-every", "4"),
  *("--steps-per-dispatch", "2"),
  *("--num-validation-problems", "4"),
  *("--num-test-problems", "4"),
  *("--num-tuning-problems", "2"),
  *("--outer-learning-rate", "1e-2"),
  *("--baselines", "sgd"),
]
RESULT_KEYS = {
  "learning_rate",
  "mean",
  "median",
  "low",
  "high",
  "sum",
  "seconds_per_step",
  "flops_per_step",
  "state_bytes",
}


def call(*argv):
  """The exit code, and what was printed on stdout and stderr."""
  stdout, stderr = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
    code = cli.main([str(word) for word in argv])
  return code, stdout.getvalue(), stderr.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """What ``train --json`` printed, and the folder."""
  out = tmp_path_factory.mktemp("cli") / "run"
  code, stdout, stderr = call("train", *TINY, "--json", "--out", out)
  assert code == 0, stderr
  return stdout, stderr, out


@pytest.fixture
def shipped(trained, tmp_path, monkeypatch):
  """As if the trained optimizer were shipped under the name lstm-tiny."""
  (tmp_path / "lstm-tiny").symlink_to(trained[2] / "optimizer")
  monkeypatch.setattr(artifacts, "_shipped", lambda: tmp_path)
  return "lstm-tiny"


# --- train


def test_train_prints_one_json_object(trained):
  stdout, stderr, out = trained
  assert stdout.count("\n") == 1
  printed = json.loads(stdout)
  assert printed["stopped"] == "finished"
  assert printed["outer_steps"] == 8
  assert printed["out"] == str(out)
  assert set(printed["evaluation"]["results"]) == {"lstm", "sgd"}
  assert all(os.path.exists(path) for path in printed["files"])
  card = learned_opt.load_artifact(printed["optimizer"]).card
  assert card["recipe"]["best_validation_loss"] == printed["best_validation_loss"]
  assert "outer step 4/8, loss" in stderr
  assert "tuning sgd" in stderr


def test_train_records_which_alternatives_were_chosen(trained):
  config = json.loads((trained[2] / "config.json").read_text())
  assert config["description"]["optimizee"]["type"] == "quadratic"
  assert config["description"]["optimizee"]["dimension"] == 2
  assert config["description"]["estimator"]["meta_loss"] == "weighted_sum"
  architecture = config["learned_optimizer"]["config"]
  # The paper's for the quadratics, which nobody asked for.
  assert architecture["preprocessing"] == {"type": "Identity"}
  assert architecture["output_scale"] == 1.0


def test_train_prints_table_paths_and_how_to_load(tmp_path):
  code, stdout, stderr = call("train", *TINY, "--no-plots", "--out", tmp_path / "run")
  assert code == 0, stderr
  assert "quadratic: mean loss over 4 fresh problems" in stdout
  assert f"wrote {tmp_path / 'run' / 'optimizer'}" in stdout
  lines = [line.strip() for line in stdout.splitlines()]
  start = lines.index("import learned_opt")
  scope = {"params": np.zeros(3, np.float32)}
  exec("\n".join(lines[start : start + 3]), scope)
  assert scope["state"].layers[0].h.shape == (4, 3)


def test_train_resumes(trained, tmp_path):
  out = tmp_path / "run"
  code, _, stderr = call("train", *TINY, "--no-evaluate", "--no-plots", "--out", out)
  assert code == 0, stderr
  code, stdout, stderr = call("train", *TINY, "--resume", "--json", "--no-plots", "--out", out)
  assert code == 0
  assert "continuing at outer step 8" in stderr
  again, first = json.loads(stdout)["evaluation"], json.loads(trained[0])["evaluation"]
  assert again["results"]["lstm"]["mean"] == first["results"]["lstm"]["mean"]


def test_out_has_a_default(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  called = []
  monkeypatch.setattr(_commands, "run_recipe", lambda recipe, out, **options: called.append(out))
  call("train", "--seed", "3", "--name", "mine")
  assert called == [pathlib.Path("runs/mine-quadratic-3")]


# --- evaluate


def test_evaluate_prints_the_promised_object(trained):
  argv = ("--num-problems", 4, "--num-tuning-problems", 2, "--baselines", "sgd", "--json")
  code, stdout, stderr = call("evaluate", trained[2] / "optimizer", *argv)
  assert code == 0, stderr
  assert stdout.count("\n") == 1
  printed = json.loads(stdout)
  assert set(printed) == {"optimizee", "num_steps", "num_problems", "results"}
  # Problems and steps are those on the card, and the seed's default is the run's.
  assert (printed["optimizee"], printed["num_steps"], printed["num_problems"]) == (
    "quadratic",
    10,
    4,
  )
  expected = json.loads(trained[0])["evaluation"]["results"]
  assert list(printed["results"]) == ["lstm", "sgd"]
  for name, result in printed["results"].items():
    assert set(result) == RESULT_KEYS
    assert len(result["mean"]) == 11
    assert result["mean"] == expected[name]["mean"]


def test_evaluate_on_other_problems_writes_a_folder(trained, tmp_path):
  argv = [
    *("evaluate", trained[2] / "optimizer", "--optimizee.dimension", 3, "--num-steps", 3),
    *("--num-problems", 2, "--num-tuning-problems", 2, "--out", tmp_path / "judged", "--baselines"),
  ]
  code, stdout, stderr = call(*argv)
  assert code == 0, stderr
  assert "mean loss over 2 fresh problems" in stdout
  names = {path.name for path in (tmp_path / "judged").iterdir()}
  assert names == {"config.json", "evaluation.json", "learning_curves.png"}
  config = json.loads((tmp_path / "judged" / "config.json").read_text())
  assert config["optimizee"]["dimension"] == 3
  curve = json.loads((tmp_path / "judged" / "evaluation.json").read_text())["results"]["lstm"][
    "mean"
  ]
  assert len(curve) == 4
  code, _, stderr = call(*argv)
  assert code == 2
  assert "exists and is not empty: choose another folder" in stderr


def test_problems_of_evaluate_come_from_the_card_unless_others_are_chosen(trained):
  folder = str(trained[2] / "optimizer")
  _, options = _options.parse(["evaluate", folder])
  assert (options.optimizee, options.optimizee_options.dimension) == ("quadratic", 2)
  _, options = _options.parse(["evaluate", folder, "--optimizee", "mlp_classifier"])
  assert type(options.optimizee_options).__name__ == "mlp_classifier"
  assert options.num_steps == 100


@pytest.mark.parametrize(
  "recipe",
  [
    None,
    {"description": {"optimizee": "in words"}},
    {"description": {"optimizee": {"type": "own"}}},
  ],
)
def test_evaluate_of_a_card_that_names_no_problems_of_the_library(recipe, tmp_path):
  save_zeros(tmp_path / "mine", recipe=recipe)
  _, options = _options.parse(["evaluate", str(tmp_path / "mine")])
  assert (options.optimizee, options.optimizee_options.dimension) == ("quadratic", 10)


def test_name_of_the_optimizer(trained, shipped):
  artifact = learned_opt.load_artifact(trained[2] / "optimizer")
  assert _commands._optimizer_name(shipped, artifact) == "lstm-tiny"
  assert _commands._optimizer_name("somewhere/optimizer", artifact) == "lstm"
  without = artifact._replace(card={**artifact.card, "recipe": None})
  assert _commands._optimizer_name("somewhere/mine", without) == "mine"


# --- inspect


def test_inspect_prints_and_writes_what_it_finds(trained, tmp_path):
  out = tmp_path / "seen"
  argv = ["inspect", trained[2] / "optimizer", "--baselines", "sgd", "--num-tuning-problems", 2]
  code, stdout, stderr = call(*argv, "--json", "--out", out)
  assert code == 0, stderr
  assert stdout.count("\n") == 1
  printed = json.loads(stdout)
  assert printed == json.loads((out / "inspection.json").read_text())
  assert {path.name for path in out.iterdir()} == {
    *("config.json", "inspection.json"),
    *("proposals.png", "counterfactuals.png", "trajectory.png"),
  }
  proposals, counterfactuals = printed["proposals"], printed["counterfactuals"]
  # The problems and the number of steps are those on the card.
  assert (printed["optimizee"], len(proposals["losses"])) == ("quadratic", 11)
  assert counterfactuals["steps"] == [1, 2, 4, 8]
  (coordinate,) = proposals["coordinates"].items()
  assert coordinate == (str(counterfactuals["coordinate"]), counterfactuals["name"])
  rate = printed["learning_rates"]["sgd"]
  assert proposals["optimizers"]["sgd"]["effective_rate"] == pytest.approx([rate] * 10, rel=1e-5)
  largest = np.abs(proposals["gradients"]).max()
  grid = np.linspace(-largest, largest, 61)
  np.testing.assert_allclose(counterfactuals["gradients"], grid, rtol=1e-6, atol=1e-7)
  for updates in counterfactuals["updates"]["sgd"]:
    np.testing.assert_allclose(updates, -rate * grid, rtol=1e-5, atol=1e-7)
  assert np.shape(counterfactuals["updates"]["lstm"]) == (4, 61)
  code, _, stderr = call(*argv, "--out", out)
  assert code == 2
  assert "exists and is not empty: choose another folder" in stderr


def test_doctor_prints_and_writes_what_it_finds(trained, tmp_path):
  out = tmp_path / "examined"
  argv = ["doctor", "--saved", trained[2] / "optimizer", "--optimizee.dimension", 3, "--out", out]
  argv += ["--unroll-lengths", 2, "--horizon", 4, "--methods", "truncated_es"]
  code, stdout, stderr = call(*argv, "--meta-batch-size", 2, "--num-samples", 2)
  assert code == 0, stderr
  found = json.loads((out / "diagnosis.json").read_text())
  assert [(one["estimator"], one["unroll_length"]) for one in found["measurements"]] == [
    ("truncated_es", 2)
  ]
  assert {path.name for path in out.iterdir()} == {"config.json", "diagnosis.json", "diagnosis.png"}
  words = " ".join(stdout.split())
  assert "2 episodes of 4 steps, 2 problems each" in words
  assert "all losses, gradients, states and updates are finite" in words
  assert f"recommended: {found['recommendation']}" in words
  for one in found["measurements"]:
    assert one["estimator"] in words


def test_inspect_takes_what_it_is_given(trained):
  argv = [
    *("inspect", trained[2] / "optimizer", "--baselines", "sgd", "--learning-rates", 0.125),
    *("--coordinate", 1, "--steps", 2, 3, 5, 10, "--max-gradient", 0.5),
  ]
  code, stdout, stderr = call(*argv)
  assert code == 0, stderr
  title, heading, lstm, sgd = stdout.splitlines()
  assert title.strip() == "quadratic: proposed along 10 steps of lstm"
  assert heading.split()[:2] == ["optimizer", "learning"]
  assert lstm.split()[:2] == ["lstm", "-"]
  assert sgd.split() == ["sgd", *["0.125"] * 4, "1", "0.125"]
  assert "coordinate 1: params[1]" in stderr
  assert "tuning" not in stderr


def test_a_mistake_leaves_no_folder_in_the_way(trained, tmp_path):
  argv = ("--coordinate", 2, "--out", tmp_path / "seen")
  code, _, stderr = call("inspect", trained[2] / "optimizer", *argv)
  assert (code, stderr.count("\n")) == (2, 1)
  assert "coordinates must be between 0 and 1, got 2" in stderr
  assert not (tmp_path / "seen").exists()


# --- list and info


def test_list(shipped):
  code, stdout, _ = call("list", "--json")
  assert code == 0
  (row,) = json.loads(stdout)["optimizers"]
  assert row["name"] == "lstm-tiny"
  assert (row["architecture"], row["optimizee"], row["horizon"]) == ("lstm", "quadratic", 10)
  code, stdout, _ = call("list")
  assert code == 0
  assert "lstm-tiny" in stdout


def test_list_of_none(tmp_path, monkeypatch):
  monkeypatch.setattr(artifacts, "_shipped", lambda: tmp_path / "nothing")
  code, stdout, stderr = call("list")
  assert (code, stdout) == (0, "")
  assert "no learned optimizer is shipped" in stderr
  assert json.loads(call("list", "--json")[1]) == {"optimizers": []}


def test_info(shipped, trained):
  card = learned_opt.load_artifact(shipped).card
  code, stdout, _ = call("info", shipped, "--json")
  assert code == 0
  assert json.loads(stdout) == card
  code, stdout, _ = call("info", trained[2] / "optimizer")
  assert code == 0
  for words in (card["meta_params"]["sha256"], "config.hidden_size", "final loss", "sgd"):
    assert words in stdout


def save_zeros(path, **card):
  lstm = optimizers.lstm(hidden_size=2)
  shapes = jax.eval_shape(lstm.init, jax.random.key(0))
  meta_params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  learned_opt.save(path, lstm, meta_params, **card)


def test_info_shows_evaluations_of_other_kinds(tmp_path):
  for name, evaluation in (("none", None), ("other", {"accuracy": {"mean": 0.5}})):
    save_zeros(tmp_path / name, evaluation=evaluation)
  assert "accuracy.mean  0.5" in call("info", tmp_path / "other")[1]
  assert call("info", tmp_path / "none")[0] == 0


# --- Options from factories.


@pytest.mark.parametrize("command", ["train", "evaluate", "inspect", "doctor"])
def test_help_lists_all_there_is_to_choose(command):
  code, stdout, _ = call(command, "--help")
  assert code == 0
  tables = [optimizees.OPTIMIZEES]
  if command == "train":
    tables += [optimizers.ARCHITECTURES, estimators.ESTIMATORS]
  for factory in (factory for table in tables for factory in table):
    assert factory.__name__ in stdout
  assert "--device" in stdout


@pytest.mark.parametrize(
  ("option", "factory"),
  [
    (option, factory)
    for option, table in (
      ("optimizee", optimizees.OPTIMIZEES),
      ("learned-optimizer", optimizers.ARCHITECTURES),
      ("estimator", estimators.ESTIMATORS),
    )
    for factory in table
  ],
)
def test_help_explains_every_parameter(option, factory, monkeypatch):
  monkeypatch.setenv("COLUMNS", "100")  # One column.
  code, stdout, _ = call("train", f"--{option}", factory.__name__, "--help")
  assert code == 0
  for name in inspect.signature(factory).parameters:
    if name != "split":
      flag = f"--{option}.{name.replace('_', '-')}"
      # A parameter that is on is turned off.
      assert flag in stdout or flag.replace(f"{option}.", f"{option}.no-") in stdout
      if name not in ("meta_loss",):
        assert _factories.parameter_help(factory)[name][:60] in " ".join(
          stdout.replace("│", " ").split()
        )


@pytest.mark.parametrize(
  "factory", [*optimizees.OPTIMIZEES, *optimizers.ARCHITECTURES, *estimators.ESTIMATORS]
)
def test_defaults_of_the_options_are_those_of_the_factory(factory):
  config = _factories.derive(factory, "part.", _factories.Choices(), omit=("split",))()
  arguments = config.arguments()
  made = factory(**arguments)
  assert isinstance(
    made,
    learned_opt.Optimizee | learned_opt.LearnedOptimizer | learned_opt.MetaGradientEstimator,
  )
  for name, parameter in inspect.signature(factory).parameters.items():
    if name in arguments and not callable(parameter.default) and name != "dataset":
      assert arguments[name] == parameter.default
  assert json.loads(json.dumps(config.record()))["type"] == factory.__name__


def test_a_new_architecture_needs_no_line_here(monkeypatch):
  def newton(
    damping: float = 0.5, kind: optimizers.Scale | optimizers.Identity = optimizers.Scale()
  ):
    """Nothing.

    Args:
      damping: how much of the step
        is not taken.
      kind: of scale.
    """
    return damping, kind

  monkeypatch.setitem(_options.ARCHITECTURES, "newton", newton)
  argv = [
    *("train", "--learned-optimizer", "newton", "--learned-optimizer.damping", "0.25"),
    *("--learned-optimizer.kind", "scale", "--learned-optimizer.kind.factor=3"),
  ]
  _, options = _options.parse(argv)
  config = options.learned_optimizer_options
  assert newton(**config.arguments()) == (0.25, optimizers.Scale(3.0))
  assert config.record() == {
    "type": "newton",
    "damping": 0.25,
    "kind": {"type": "scale", "factor": 3.0},
  }
  assert options.recipe.name == "newton"
  assert "how much of the step is not taken." in call(*argv, "--help")[1]


def test_chosen_parts_reach_the_library():
  argv = [
    *("train", "--optimizee", "mlp_classifier", "--optimizee.hidden-sizes", "5", "6"),
    *("--optimizee.outer-split", "validation", "--optimizee.activation", "relu"),
    *("--learned-optimizer.preprocessing", "log_and_sign"),
    *("--learned-optimizer.preprocessing.p", "5", "--estimator", "full_unroll"),
    *("--estimator.meta-loss", "final", "--max-meta-grad-norm", "None", "--seed", "7"),
  ]
  _, options = _options.parse(argv)
  recipe = _commands._recipe(options)
  digits = datasets.load("digits")
  for split, made in (
    ("train", recipe.optimizee),
    ("validation", recipe.validation_optimizee),
    ("test", recipe.test_optimizee),
  ):
    expected = optimizees.mlp_classifier(
      digits, (5, 6), "relu", split=split, outer_split="validation"
    )
    # The functions of equal calls are the same objects.
    assert (made.init, made.loss, made.outer_loss) == (
      expected.init,
      expected.loss,
      expected.outer_loss,
    )
  assert recipe.tuning_optimizee is None
  assert (
    recipe.learned_optimizer.config
    == optimizers.lstm(preprocessing=optimizers.LogAndSign(5.0)).config
  )
  assert options.estimator_options.arguments()["meta_loss"] is learned_opt.meta_losses.final
  assert (recipe.max_meta_grad_norm, recipe.seed) == (None, 7)
  assert recipe.optimizee_name == "mlp_classifier on digits"
  assert recipe.description["optimizee"]["hidden_sizes"] == [5, 6]
  # Where the data lie is no part of what the run is.
  assert "data_dir" not in recipe.description["optimizee"]


def test_folders_of_data_reach_the_loader(monkeypatch, tmp_path):
  asked, load = [], datasets.load

  @functools.wraps(load)
  def fake(name, **folders):
    asked.append((name, folders))
    return load("digits")

  monkeypatch.setattr(datasets, "load", fake)
  argv = ["--optimizee.dataset", "mnist", "--optimizee.data-dir", str(tmp_path)]
  _, options = _options.parse(["train", "--optimizee", "mlp_classifier", *argv])
  splits = _options.optimizee_splits(options.optimizee_options)
  assert asked == [("mnist", {"data_dir": tmp_path, "manual_dir": None})]
  # One copy of the images, whatever the split.
  assert splits["train"].data.train[0] is splits["test"].data.train[0]


# --- Errors.


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["train", "--optimizee", "quadratik"], "--optimizee quadratik: did you mean 'quadratic'?"),
    (["train", "--learned-optimizer=lsmt"], "did you mean 'lstm'? There are lstm"),
    (["train", "--estimator", "full-unroll"], "did you mean 'full_unroll'?"),
    (["train", "--learned_optimizer.preprocessing", "scal"], "did you mean 'scale'?"),
    (["train", "--estimator.meta-loss", "finl"], "did you mean 'final'?"),
    (["train", "--schedule", "cosin"], "did you mean 'cosine'?"),
    (
      ["train", "--optimizee", "mlp_classifier", "--optimizee.dataset", "mnits"],
      "did you mean 'mnist'?",
    ),
    (["train", "--sede", "1"], "--seed"),
    (["train", "--seed", "x"], "--seed"),
    (["trian"], "train, evaluate"),
    ([], "Expected one of {train, evaluate"),
    (["evaluate"], "NAME_OR_PATH"),
    (["train", "--estimator.horizon", "7"], "horizon must be a multiple of unroll_length"),
    (["train", "--baselines", "adamm"], "unknown baseline 'adamm': did you mean 'adam'?"),
    (
      ["train", "--device", "gpu:0"],
      "--device gpu:0: there is no such device here; there are: cpu:0",
    ),
    (["train", "--device", "cpu:99"], "there are: cpu:0"),
    (["train", "--device", "cpu:x"], "there are: cpu:0"),
    (["train", "--device", "abacus"], "there are: cpu:0"),
    (["info", "nothing"], "there is no learned optimizer 'nothing'"),
    (["evaluate", "./nothing", "--json"], "there is no learned optimizer './nothing'"),
    (["doctor", "--saved", "nothing"], "there is no learned optimizer 'nothing'"),
    (["inspect", "nothing"], "there is no learned optimizer 'nothing'"),
    (["inspect", "lstm-quadratic", "--coordinate", "10"], "between 0 and 9, got 10"),
    (["inspect", "lstm-quadratic", "--num-steps", "0"], "num_steps must be an integer of at least"),
    (["inspect", "lstm-quadratic", "--steps", "0"], "increasing numbers between 1 and 100"),
    (["inspect", "lstm-quadratic", "--steps", "101"], "increasing numbers between 1 and 100"),
    (["inspect", "lstm-quadratic", "--max-gradient", "0"], "max_gradient must be positive"),
    (["inspect", "lstm-quadratic", "--baselines", "adamm"], "did you mean 'adam'?"),
    (["inspect", "lstm-quadratic", "--learning-rates", "1"], "learning_rates must be 2 positive"),
    (["inspect", "lstm-quadratic", "--out", __file__], "exists and is not empty"),
    (["train", "--out", __file__], "exists and is not empty"),
    (["train", "--out", f"{__file__}/run"], "cannot write to"),
    (["train", "--resume", "--out", "nowhere"], "there is no run to resume"),
  ],
)
def test_mistakes_get_code_2_and_help(argv, message, monkeypatch):
  if not sys.platform.startswith("linux") or jax.default_backend() != "cpu":
    pytest.skip("the devices in the messages are those of a CPU-only Linux machine")
  monkeypatch.setattr(meta_train, "run", None)
  code, stdout, stderr = call(*argv)
  assert (code, stdout) == (2, "")
  assert message in " ".join(stderr.replace("│", " ").split())
  assert "Traceback" not in stderr


def test_errors_are_one_line_unless_a_traceback_is_wanted():
  argv = ("train", "--estimator.horizon", "7")
  assert call(*argv)[2].count("\n") == 1
  with pytest.raises(ValueError, match="multiple of unroll_length"):
    cli.main([*argv, "--traceback"])


def test_warnings_are_one_line(capsys):
  with warnings.catch_warnings(), _session.errors_in_one_line():
    warnings.simplefilter("always")
    warnings.warn("the best\n lies at the edge", stacklevel=1)
    warnings.warn("old", DeprecationWarning, stacklevel=1)
  assert capsys.readouterr().err.splitlines() == [
    "learned-opt: warning: the best lies at the edge",
    "learned-opt: DeprecationWarning: old",
  ]


def test_missing_extras_are_named(monkeypatch):
  monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
  code, _, stderr = call("list")
  assert code == 2
  assert "needs tyro and rich: pip install 'learned_opt[cli]'" in stderr


def test_what_libraries_print_is_kept_out_of_the_json(trained, monkeypatch):
  @functools.wraps(evaluate.evaluate)
  def loud(*arguments, **options):
    print("Downloading ...")
    return evaluate.Evaluation("quadratic", 1, 1, {})

  monkeypatch.setattr(evaluate, "evaluate", loud)
  code, stdout, stderr = call("evaluate", trained[2] / "optimizer", "--json")
  assert code == 0
  assert json.loads(stdout)["results"] == {}
  assert "Downloading" in stderr


# --- Ctrl-C.


def interrupt_at(step, monkeypatch):
  def report(self, progress):
    if progress.outer_step == step:
      raise KeyboardInterrupt

  monkeypatch.setattr(_report.Reporter, "__call__", report)


def test_ctrl_c_says_where_the_best_so_far_is(tmp_path, monkeypatch):
  interrupt_at(6, monkeypatch)
  out = tmp_path / "run"
  code, stdout, stderr = call("train", *TINY, "--no-plots", "--json", "--out", out)
  assert code == 130
  printed = json.loads(stdout)
  assert (printed["stopped"], printed["evaluation"]) == ("interrupted", None)
  assert (
    f"interrupted at outer step 6: the best so far, of outer step 4 is in {out / 'optimizer'}; "
    "--resume continues" in stderr
  )
  assert learned_opt.load_artifact(out / "optimizer").card["recipe"]["best_step"] == 4


def test_ctrl_c_before_a_validation_says_so(tmp_path, monkeypatch):
  interrupt_at(2, monkeypatch)
  code, _, stderr = call("train", *TINY, "--no-plots", "--out", tmp_path / "run")
  assert code == 130
  assert "the latest meta-params, which were never validated, is in" in stderr


def test_ctrl_c_before_the_training(tmp_path, monkeypatch):
  def interrupted(*arguments, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(meta_train, "_dispatch", interrupted)
  code, _, stderr = call("train", *TINY, "--no-plots", "--out", tmp_path / "run")
  assert code == 130
  assert "there is nothing to save" in stderr
  monkeypatch.setattr(runs, "train", interrupted)
  code, _, stderr = call("train", *TINY, "--out", tmp_path / "other")
  assert (code, stderr) == (130, "learned-opt: interrupted\n")


def test_a_real_ctrl_c(tmp_path, repo_root):
  # A shell starts background jobs deaf to Ctrl-C, and with them the tests.
  program = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from learned_opt.__main__ import main; sys.exit(main())"
  )
  endless = [*TINY, "--num-outer-steps", "10000000", "--schedule", "constant", "--json"]
  process = subprocess.Popen(
    [sys.executable, "-c", program, "train", *endless, "--out", str(tmp_path / "run")],
    cwd=repo_root,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "optimizer" / "card.json").exists():
      assert process.poll() is None, process.communicate()[1]
      assert time.monotonic() < deadline
      time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
  finally:
    process.kill()
  assert process.returncode == 130, stderr
  assert json.loads(stdout)["stopped"] == "interrupted"
  assert "stopping after this dispatch" in stderr
  learned_opt.load(json.loads(stdout)["optimizer"])


# --- Progress and tables.


def progress(outer_step, seconds, losses):
  history = meta_train.History(
    meta_loss=[5.0] * outer_step,
    validation_step=list(range(1, len(losses) + 1)),
    validation_loss=list(losses),
  )
  state = meta_train.MetaTrainState(*[None] * len(meta_train.MetaTrainState._fields))
  best = min(losses, default=np.inf)
  state = state._replace(best_loss=best, best_step=list(losses).index(best) + 1 if losses else 0)
  return meta_train.Progress(state, history, outer_step, 100, seconds, bool(losses))


def test_progress_tells_rate_losses_and_time_left(capsys):
  with _report.Reporter() as reporter:
    reporter(progress(10, 30.0, []))
    reporter(progress(20, 35.0, [0.5, 0.75]))
    reporter.say("tuning adam")
  assert capsys.readouterr().err.splitlines() == [
    "outer step 20/100, loss 0.75, best 0.5 at 1, 2 steps/s, 0:40 left",
    "tuning adam",
  ]


def test_pace_is_measured_anew_for_each_run(capsys):
  with _report.Reporter() as reporter:
    reporter(progress(50, 30.0, [0.5]))
    reporter(progress(100, 40.0, [0.5]))
    # The next run, which validates its start.
    reporter(progress(0, 1.0, [0.5]))
    reporter(progress(20, 60.0, [0.5]))
    reporter(progress(40, 70.0, [0.5]))
  paces = [line.split(", ", 3)[-1] for line in capsys.readouterr().err.splitlines()]
  assert paces == [
    "compiled and begun in 0:30",
    "5 steps/s, 0:00 left",
    "compiled and begun in 0:01",
    "compiled and begun in 1:00",
    "2 steps/s, 0:30 left",
  ]


def test_progress_on_a_terminal_is_a_bar():
  screen = io.StringIO()
  with _report.Reporter() as reporter:
    reporter._console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    reporter(progress(10, 30.0, []))
    reporter(progress(20, 35.0, [0.5, 0.75]))
    reporter.say("stopping")
  shown = screen.getvalue()
  assert "meta-loss 5, compiled and begun in 0:30" in shown
  assert "20/100" in shown
  assert "loss 0.75, best 0.5 at 1, 2 steps/s, 0:40 left" in shown
  assert shown.endswith("stopping\n")


def test_table_has_the_best_first_and_shows_what_diverged(capsys):
  def result(last, learning_rate, num_diverged):
    curve = np.array([3.0, 2.0, last])
    cost = evaluate.Cost(1e-6, None, 8)
    metrics = {"test_accuracy": evaluate.Interval(*[np.array(0.5)] * 3)}
    return evaluate.Result(
      learning_rate, curve, curve, curve, curve, 5.0, num_diverged, metrics, cost, None
    )

  results = {
    "lstm": result(1.0, None, 0),
    "adam": result(np.inf, 0.5, 3),
    "sgd": result(0.5, 2.0, 0),
  }
  _report.print_evaluation(evaluate.Evaluation("bowl", 2, 7, results))
  _, heading, *rows = capsys.readouterr().out.splitlines()
  assert [row.split()[0] for row in rows] == ["sgd", "lstm", "adam"]
  assert " ".join(heading.split()) == (
    "optimizer learning rate step 1 step 2 95 % at 2 sum test accuracy µs/step kFLOP/step "
    "state bytes diverged"
  )
  assert " ".join(rows[2].split()) == "adam 0.5 2 inf inf to inf 5 0.5 1 - 8 3"


# --- The session, and the functions for scripts.


def test_device_is_where_the_block_computes():
  with _session.on_device("cpu:0"):
    assert jax.numpy.zeros(()).devices() == {jax.devices("cpu")[0]}
  with _session.on_device(None):
    assert jax.config.jax_default_device is None


def test_compilation_cache_is_the_users_unless_it_is_set(monkeypatch, tmp_path):
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before = {name: getattr(jax.config, name) for name in names}
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(_session.sys, "platform", "linux")
  try:
    _session.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    _session.use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "learned_opt" / "jax")
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.1
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


@pytest.mark.parametrize(
  ("platform", "expected"),
  [("darwin", "Library/Caches/learned_opt"), ("win32", "AppData/Local/learned_opt")],
)
def test_cache_folder_by_system(platform, expected, monkeypatch):
  monkeypatch.setattr(_session.sys, "platform", platform)
  monkeypatch.delenv("LOCALAPPDATA", raising=False)
  assert _session.cache_folder() == pathlib.Path.home() / expected


def test_the_cache_can_be_turned_off(monkeypatch):
  used = []
  monkeypatch.setattr(_session, "use_compilation_cache", lambda: used.append(True))
  monkeypatch.setattr(_commands, "run_recipe", lambda *arguments, **options: None)
  call("train", "--no-compilation-cache")
  assert not used
  call("train")
  assert used


def test_scripts_print_what_the_command_prints(trained, tmp_path, capsys):
  out = trained[2]
  _, options = _options.parse(["train", *TINY])
  recipe = _commands._recipe(options)
  with pytest.raises(SystemExit) as exit_request:
    cli.run_recipe(recipe, out)
  assert exit_request.value.code == 2
  assert "--resume" in capsys.readouterr().err
  run = cli.run_recipe(recipe, out, resume=True, plots=False)
  assert "to use it:" in capsys.readouterr().out
  evaluation = cli.evaluate_recipe(recipe, out, num_steps=20, plots=False)
  assert "step 20" in capsys.readouterr().out
  np.testing.assert_array_equal(
    evaluation.results["lstm"].mean[:10], run.evaluation.results["lstm"].mean[:10]
  )
