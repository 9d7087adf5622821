"""A cache of the Hub's files, and no Hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

COMMIT = "0" * 40


def cache_repo(cache: Path, monkeypatch: pytest.MonkeyPatch, repo: str, missing: Iterable[str] = ()) -> Path:
    """Go offline with an empty copy of a model's repository in the cache; returns the folder of its files.

    Args:
        cache: folder of the cache.
        monkeypatch: takes everything back.
        repo: id of the repository.
        missing: files that the Hub is known not to have.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    folder = cache / f"models--{repo.replace('/', '--')}"
    for part in ("refs", f"snapshots/{COMMIT}", f".no_exist/{COMMIT}"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for name in missing:
        (folder / ".no_exist" / COMMIT / name).touch()
    return folder / "snapshots" / COMMIT
