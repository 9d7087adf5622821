"""Text files that are complete or as they were before."""

from __future__ import annotations

from pathlib import Path

from hf_plr.utils.files import replacing


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
        OSError: if it cannot be written; what was there stays.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
