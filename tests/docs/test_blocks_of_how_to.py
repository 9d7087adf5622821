"""Every block of bash and Python of docs/how_to runs, in order, and prints what the page says."""

from __future__ import annotations

from helpers import doc_pages


@doc_pages.parametrize("how_to")
def test_blocks_run(page, tmp_path):
    assert doc_pages.run(page, tmp_path / "page") > 0
