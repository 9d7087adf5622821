"""Every block of bash and Python of README, CONTRIBUTING and tutorials runs, and prints what the page says."""

from __future__ import annotations

from helpers import doc_pages


def test_there_are_pages():
    assert {"README.md", "docs/explanation/continuing.md"} <= {page.name for page in doc_pages.PAGES}
    assert any(page.runs for page in doc_pages.PAGES)


@doc_pages.parametrize(None)
def test_blocks_run(page, tmp_path):
    assert doc_pages.run(page, tmp_path / "page") > 0
