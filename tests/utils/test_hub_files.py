"""Files of the Hub that may not be there."""

from __future__ import annotations

import pytest
from helpers.hub_cache import cache_repo
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from hf_plr.utils.hub_files import download_if_there


def test_without_the_hub_the_cache_tells_what_is_there(tmp_path, monkeypatch):
    snapshot = cache_repo(tmp_path, monkeypatch, "alice/run", missing=["metrics.json"])
    (snapshot / "tree.json").write_text("{}")
    assert download_if_there("alice/run", "tree.json") == str(snapshot / "tree.json")
    assert download_if_there("alice/run", "metrics.json") is None  # so the Hub said
    for repo, name in (("alice/run", "names.json"), ("alice/other", "tree.json")):
        message = f"{repo} is not a folder here, the Hub cannot be reached, and {name} of {repo} is not in the cache"
        with pytest.raises(ValueError, match=message):
            download_if_there(repo, name)
    with pytest.raises(HFValidationError):
        download_if_there("/no/such/folder", "tree.json")


def test_a_repository_without_the_file_gives_none(monkeypatch):
    def answer(repo, name):
        raise EntryNotFoundError(f"404: {repo} has no {name}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", answer)
    assert download_if_there("alice/run", "tree.json") is None
