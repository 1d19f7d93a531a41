"""Comparisons: equal to an evaluation, taken from the disk where they are finished."""

import json
import shutil

import jax
import numpy as np
import pytest
from cases import meta_params_of, tiny_lstm

import learned_opt
from learned_opt import cli, comparisons, evaluate, optimizees, runs
from learned_opt.comparisons import Comparison, compare

OPTIMIZEE = optimizees.quadratic(dimension=2)


def comparison(**changes):
  options = {"num_steps": 3, "num_problems": 2, "num_tuning_problems": 2, "baselines": ("sgd",)}
  return Comparison("small", OPTIMIZEE, **{**options, **changes})


@pytest.fixture(scope="module")
def optimizer(tmp_path_factory):
  lstm = tiny_lstm()
  return learned_opt.save(tmp_path_factory.mktemp("optimizer") / "it", lstm, meta_params_of(lstm))


def test_is_the_evaluation_of_the_saved_optimizer(optimizer, tmp_path):
  found = compare(comparison(seed=3), {"mine": optimizer}, tmp_path, plots=False)
  artifact = learned_opt.load_artifact(optimizer)
  candidate = evaluate.Candidate.from_learned(
    "mine", artifact.learned_optimizer, artifact.meta_params
  )
  expected = evaluate.evaluate(
    OPTIMIZEE,
    [candidate],
    num_steps=3,
    num_problems=2,
    key=runs.split_seed(3)[1],
    baselines=["sgd"],
    num_tuning_problems=2,
  )
  assert found.optimizee == "small"
  assert list(found.results) == ["mine", "sgd"]
  for name, result in expected.results.items():
    np.testing.assert_array_equal(found.results[name].mean, result.mean)
    assert found.results[name].learning_rate == result.learning_rate


def test_takes_a_finished_one_from_the_disk(optimizer, tmp_path, monkeypatch):
  made = compare(comparison(), {"mine": optimizer}, tmp_path)
  figure = tmp_path / "small" / "learning_curves.png"
  figure.unlink()
  monkeypatch.setattr(comparisons, "evaluate", lambda *args, **options: pytest.fail("made anew"))
  found = compare(comparison(), {"mine": optimizer}, tmp_path, resume=True)
  assert found.to_json() == made.to_json()
  assert figure.exists()


def test_diverged_curves_survive_the_disk(optimizer, tmp_path):
  artifact = learned_opt.load_artifact(optimizer)
  wild = jax.tree.map(lambda leaf: np.full_like(leaf, 3e38), artifact.meta_params)
  path = learned_opt.save(tmp_path / "wild", artifact.learned_optimizer, wild)
  made = compare(comparison(), {"wild": path}, tmp_path, plots=False)
  found = compare(comparison(), {"wild": path}, tmp_path, resume=True, plots=False)
  assert made.results["wild"].num_diverged == found.results["wild"].num_diverged == 2
  for one in (made, found):
    assert one.results["wild"].mean[-1] == one.results["wild"].sum == np.inf


def test_begins_anew_what_was_interrupted(optimizer, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(comparisons, "evaluate", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      compare(comparison(), {"mine": optimizer}, tmp_path, plots=False)
  with pytest.raises(FileExistsError, match="small exists and is not empty"):
    compare(comparison(), {"mine": optimizer}, tmp_path, plots=False)
  found = compare(comparison(), {"mine": optimizer}, tmp_path, resume=True, plots=False)
  assert set(found.results) == {"mine", "sgd"}


def test_knows_the_weights_that_were_compared(optimizer, tmp_path):
  compare(comparison(), {"mine": optimizer}, tmp_path, plots=False)
  other = tmp_path / "other"
  shutil.copytree(optimizer, other)
  assert compare(comparison(), {"mine": other}, tmp_path, resume=True, plots=False)
  lstm = tiny_lstm()
  learned_opt.save(other, lstm, meta_params_of(lstm, seed=1), overwrite=True)
  with pytest.raises(ValueError, match=r"optimizers\.mine was .* and is "):
    compare(comparison(), {"mine": other}, tmp_path, resume=True, plots=False)
  with pytest.raises(ValueError, match="num_steps was 3 and is 4"):
    compare(comparison(num_steps=4), {"mine": optimizer}, tmp_path, resume=True, plots=False)


def test_adds_optimizers_to_a_finished_one(optimizer, tmp_path, monkeypatch):
  """As if they had been there from the beginning; nothing else is run again."""
  other = tmp_path / "other"
  lstm = tiny_lstm()
  learned_opt.save(other, lstm, meta_params_of(lstm, seed=1))
  both = {"other": other, "mine": optimizer}
  whole = compare(comparison(), both, tmp_path / "whole", plots=False)
  compare(comparison(), {"mine": optimizer}, tmp_path, plots=False)

  def interrupted(*args, **options):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(comparisons, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
      compare(comparison(), both, tmp_path, resume=True, plots=False)
  words = []
  added = compare(comparison(), both, tmp_path, resume=True, plots=False, on_progress=words.append)
  assert words == ["testing other", "measuring costs"]
  assert list(added.results) == list(whole.results) == ["other", "mine", "sgd"]
  for name, result in whole.results.items():
    np.testing.assert_array_equal(added.results[name].mean, result.mean)
  with pytest.raises(ValueError, match=r"optimizers\.other was .* and is not there"):
    compare(comparison(), {"mine": optimizer}, tmp_path, resume=True, plots=False)
  with pytest.raises(ValueError, match=r"not be called as baselines are, got \['sgd'\]"):
    compare(comparison(), {**both, "sgd": optimizer}, tmp_path, resume=True, plots=False)


def test_says_what_is_wrong(optimizer, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no learned optimizer 'lstm-quadratik'.*quadratic"):
    compare(comparison(), {"mine": "lstm-quadratik"}, tmp_path, plots=False)
  assert not list(tmp_path.iterdir())
  compare(comparison(), {"mine": optimizer}, tmp_path, plots=False)
  outcome = tmp_path / "small" / "evaluation.json"
  outcome.write_text(json.dumps({"results": {"mine": {}}}))
  with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
    compare(comparison(), {"mine": optimizer}, tmp_path, resume=True, plots=False)


def test_prints_a_table_for_each(optimizer, tmp_path, capsys):
  second = Comparison("second", OPTIMIZEE, num_steps=2, num_problems=2, baselines=())
  evaluations = cli.compare([comparison(), second], {"mine": optimizer}, tmp_path, plots=False)
  printed = capsys.readouterr().out
  assert [one.num_steps for one in evaluations] == [3, 2]
  assert "small: mean loss" in printed
  assert "second: mean loss" in printed
  assert f"wrote {tmp_path / 'second' / 'evaluation.json'}" in printed
