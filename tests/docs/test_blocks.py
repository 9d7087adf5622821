"""Every block of bash and Python of every page runs, in order, and prints what the page says."""

from __future__ import annotations

import importlib.util

import pytest
from helpers.doc_blocks import read_page, run_page
from helpers.paths import REPOSITORY, TESTS

FILES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES = [read_page(path.read_text(encoding="utf-8"), str(path.relative_to(REPOSITORY))) for path in FILES]


def load_preparations():
    spec = importlib.util.spec_from_file_location("preparations", TESTS / "docs" / "preparations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == "preparations" and not name.startswith("_")
    }


def test_there_are_pages():
    assert {"README.md", "docs/explanation/continuing.md"} <= {page.name for page in PAGES}
    assert any(page.runs for page in PAGES)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=pytest.mark.slow if page.slow else ())
        for page in PAGES
        if page.runs or page.preparations
    ],
)
def test_blocks_run(page, tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    assert run_page(page, folder, load_preparations()) > 0
