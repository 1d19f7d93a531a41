"""Every experiment runs at smoke size, and has its row."""

import importlib.util
import json
import pathlib
import re

import pytest

import learned_opt
from learned_opt import optimizees
from learned_opt.families import families

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "experiments"
EXPERIMENTS = sorted(FOLDER.glob("*.py"))
ALL = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)


def import_file(path):
  spec = importlib.util.spec_from_file_location(f"experiments_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_there_are_experiments():
  assert {"quadratic", "mnist"} <= {path.stem for path in EXPERIMENTS}


@ALL
def test_runs_at_smoke_size(path, tmp_path, capsys):
  out = tmp_path / "run"
  import_file(path).main(size="smoke", out=out)
  written = [file.name for file in out.rglob("*")]
  num_evaluations = written.count("evaluation.json")
  assert num_evaluations == written.count("learning_curves.png") > 0
  optimizers = sorted(out.rglob("optimizer"))
  # One of each run, and one of each search and of each curriculum.
  assert len(optimizers) == sum(
    written.count(f"{name}.json") for name in ("history", "search", "curriculum")
  )
  for optimizer in optimizers:
    assert learned_opt.load_artifact(optimizer).card["recipe"]["seed"] == 0
  assert "adam" in capsys.readouterr().out


def test_learned_muon_evolves_its_adaptive_variant(tmp_path, monkeypatch):
  """On quadratics alone: the test of the plain variant runs the other families."""
  learned_muon, out = import_file(FOLDER / "learned_muon.py"), tmp_path / "run"
  quadratics = families(optimizees.quadratic(2))
  monkeypatch.setattr(learned_muon, "_families", lambda size, split: quadratics)
  learned_muon.main(size="smoke", variant="adaptive", out=out)
  card = learned_opt.load_artifact(out / "optimizer").card
  assert card["meta_params"]["number"] == 11
  assert card["recipe"]["description"]["command"].endswith(
    "--variant adaptive --size smoke --seed 0"
  )
  assert [row["name"] for row in card["evaluation"]["rows"]] == ["adaptive-muon", "adam"]
  results = json.loads((out / "full-images" / "evaluation.json").read_text())["results"]
  assert set(results) == {"adaptive-muon", "adam"}


@ALL
def test_docstring_gives_command_and_expected_number(path):
  docstring = import_file(path).__doc__
  assert f"python experiments/{path.name}" in docstring
  assert re.search(r"Expected: .*\d", docstring)


@ALL
def test_has_a_row(path):
  rows = (FOLDER / "README.md").read_text().splitlines()
  assert any(f"python experiments/{path.name}" in row for row in rows if row.startswith("|"))


def test_rnnprop_takes_a_saved_optimizer_to_chosen_problems(tmp_path):
  rnnprop = import_file(FOLDER / "rnnprop.py")
  with pytest.raises(SystemExit, match=r"unknown problems \['rely'\]: there are relu"):
    rnnprop.main(size="smoke", out=tmp_path / "typo", problems=("rely",))
  assert not (tmp_path / "typo").exists()
  rnnprop.main(size="smoke", out=tmp_path, optimizer="rnnprop-mnist", problems=("relu",))
  assert [path.name for path in tmp_path.iterdir()] == ["relu"]
  assert (tmp_path / "relu" / "evaluation.json").is_file()


def test_mnist_takes_saved_optimizers_to_more_steps(tmp_path):
  mnist = import_file(FOLDER / "mnist.py")
  mnist.main(size="smoke", out=tmp_path, optimizers=("lstm-mnist", "rnnprop-mnist"))
  assert [path.name for path in tmp_path.iterdir()] == ["60-steps"]
  assert (tmp_path / "60-steps" / "evaluation.json").is_file()


def test_cifar_compares_saved_optimizers(tmp_path):
  cifar = import_file(FOLDER / "cifar.py")
  cifar.main(size="smoke", out=tmp_path, optimizers=("lstm-cifar",))
  evaluation = json.loads((tmp_path / "5-labels" / "evaluation.json").read_text())
  assert set(evaluation["results"]) == {"lstm-cifar", "adam"}
  assert not list(tmp_path.rglob("optimizer"))
