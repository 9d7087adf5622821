"""The pages of the documentation as tests: one for each page that runs anything."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.doc_blocks import Page, read_page, run_page
from helpers.paths import REPOSITORY, TESTS

ELSEWHERE = ("how_to", "explanation")  # folders with a test file of their own, so that two workers share the pages
FILES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES = [read_page(path.read_text(encoding="utf-8"), str(path.relative_to(REPOSITORY))) for path in FILES]


def parametrize(folder: str | None) -> pytest.MarkDecorator:
    """Parametrize a test by the pages of a folder of docs/; None for all pages outside of `ELSEWHERE`."""
    chosen = [page for page in PAGES if folder == next((n for n in ELSEWHERE if f"docs/{n}/" in page.name), None)]
    marks = {True: [pytest.mark.slow], False: []}
    return pytest.mark.parametrize(
        "page",
        [pytest.param(page, id=page.name, marks=marks[page.slow]) for page in chosen if page.runs or page.preparations],
    )


def run(page: Page, folder: Path) -> int:
    """Run the blocks of a page in a new folder; returns how many ran."""
    folder.mkdir()
    return run_page(page, folder, load_preparations())


def load_preparations() -> dict[str, Callable[[Path], None]]:
    """Load the functions of tests/docs/preparations.py, by name."""
    spec = importlib.util.spec_from_file_location("preparations", TESTS / "docs" / "preparations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == "preparations" and not name.startswith("_")
    }
