"""The README's snippets run, at a fraction of their size, and its links lead somewhere."""

import re

import pytest

# What is made smaller, and by what; each must occur, so that the README and this table agree.
SMALLER = {
  "num_outer_steps=400,": "num_outer_steps=2, validate_every=1, num_validation_problems=2,",
  "horizon=100": "horizon=20",
  "num_outer_steps=20,\n  validate_every=10,": "num_outer_steps=1, validate_every=1,",
  "meta_batch_size=16": "meta_batch_size=2",
  "num_steps=100,": "num_steps=20, num_tuning_problems=2,",
  "num_problems=256": "num_problems=4",
  "steps=(20, 100)": "steps=(10, 20)",
  '"nag", "adam"': '"adam"',
}


@pytest.fixture(scope="module")
def readme(repo_root):
  return (repo_root / "README.md").read_text()


def test_snippets_run(readme, tmp_path, monkeypatch, capsys):
  code = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.DOTALL))
  for text, smaller in SMALLER.items():
    assert text in code
    code = code.replace(text, smaller)
  monkeypatch.chdir(tmp_path)
  scope = {}
  exec(compile(code, "README.md", "exec"), scope)
  theta = scope["theta"]
  assert scope["loss_fn"](theta) < 0.1 * scope["loss_fn"](0.0 * theta)
  assert (tmp_path / "my-optimizer" / "card.json").is_file()
  printed = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in printed] == ["mine", "sgd", "adam"]


def test_links_exist(readme, repo_root):
  targets = [t for t in re.findall(r"\]\(([^)]+)\)", readme) if not t.startswith("http")]
  assert targets
  assert [t for t in targets if not (repo_root / t.split("#")[0]).exists()] == []


def test_two_commands_are_targets_of_the_makefile(readme, repo_root):
  makefile = (repo_root / "Makefile").read_text()
  commands = re.findall(r"^make (\w+)", readme, re.MULTILINE)
  assert commands[:2] == ["demo", "test"]
  assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)
