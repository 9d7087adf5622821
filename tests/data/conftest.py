"""What tests of loading share."""

from __future__ import annotations

import pytest

from hf_plr.data.loading import load_splits


@pytest.fixture
def load(caplog):
    """Loads splits; returns the number of rows of each, and what was said."""

    def load_and_listen(path, **arguments):
        caplog.clear()
        with caplog.at_level("INFO", "hf_plr"):
            splits = load_splits(str(path), **arguments)
        return splits, "\n".join(record.getMessage() for record in caplog.records)

    return load_and_listen
