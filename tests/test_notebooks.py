"""The notebooks run at smoke size, are paired with their text form, and carry no outputs."""

import pathlib

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ALL = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
  assert "quickstart" in {path.stem for path in NOTEBOOKS}


@ALL
def test_text_form_holds_the_same_cells(path):
  def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]

  assert cells(nbformat.read(path, as_version=4)) == cells(jupytext.read(path.with_suffix(".py")))


@ALL
def test_runs_at_smoke_size(path, tmp_path, monkeypatch):
  monkeypatch.setenv("LEARNED_OPT_SMOKE", "1")
  monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
  notebook = nbformat.read(path, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute()
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  images = [o for o in outputs if "image/png" in o.get("data", {})]
  assert len(images) >= 3
  assert (tmp_path / "my-optimizer" / "card.json").is_file()
