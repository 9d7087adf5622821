"""The notebooks run from their first cell to their last, in a small size."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from helpers.doc_pages import load_preparations
from helpers.paths import REPOSITORY
from nbclient import NotebookClient

EXAMPLES = REPOSITORY / "examples"
# What makes a run small, by notebook: words of its cells and those in their place.
SMALL = {
    "first_run.ipynb": {"EPOCHS = 30": "EPOCHS = 2", "data = digits()": "data = digits().select(range(300))"},
    "inspection_images.ipynb": {},
}


def run_notebook(name: str, folder: Path):
    """Run a notebook in a folder; returns it with its outputs."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    for old, new in SMALL[name].items():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        assert len(cells) == 1, old
        cells[0].source = cells[0].source.replace(old, new)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def read_output(notebook) -> str:
    """Everything that the cells printed or show as text."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def count_pictures(notebook) -> int:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_every_notebook_is_run_here():
    assert {path.name for path in EXAMPLES.rglob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_notebooks_are_stored_without_output(name):
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
def test_the_first_run_runs(tmp_path):
    notebook = run_notebook("first_run.ipynb", tmp_path)
    assert (tmp_path / "out" / "first_run" / "report.html").exists()
    assert "random weights: accuracy" in read_output(notebook)
    assert "trained: accuracy" in read_output(notebook)
    assert count_pictures(notebook) == 2


@pytest.mark.slow
def test_inspection_images_runs(tmp_path):
    load_preparations()["drawn_inspection_run"](tmp_path)
    notebook = run_notebook("inspection_images.ipynb", tmp_path)
    assert "203 photos, " in read_output(notebook)
    assert "of 60 photos are new" in read_output(notebook)
    assert count_pictures(notebook) == 4
