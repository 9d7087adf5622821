"""Logical shards over 1, 2 and 4 processes: real training, and what it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.launching import environment_of, launch
from helpers.paths import HELPERS
from helpers.train_in_shards import N_SHARDS, PER_STEP, RUNS

SCRIPT = HELPERS / "train_in_shards.py"


def train(processes: int, folder: Path) -> dict[str, np.ndarray]:
    output = folder / f"{processes}.npz"
    run = launch(output, processes=processes, script=SCRIPT)
    assert run.returncode == 0, run.stderr[-5000:]
    return dict(np.load(output))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, np.ndarray]:
    assert "WORLD_SIZE" not in environment_of(SCRIPT)
    return train(1, tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_trains_on_the_same_samples_and_labels(alone, processes, tmp_path):
    shared = train(processes, tmp_path)
    for name in RUNS:
        found, expected = (
            {key.removeprefix(f"{name}: "): value for key, value in each.items() if key.startswith(f"{name}: ")}
            for each in (shared, alone)
        )
        assert found.keys() == expected.keys()
        for key in ("index", "label", "previous_label", "steps", "sizes", "tree"):
            np.testing.assert_array_equal(found[key], expected[key], err_msg=f"{name}: {key}")
        np.testing.assert_allclose(found["confidence"], expected["confidence"], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(found["metrics"], expected["metrics"], rtol=1e-3, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(found["heights"], expected["heights"], atol=1e-3, err_msg=name)
        assert len(found["held"]) == processes  # and each less than half more than its share
        assert found["held"].sum() == len(found["index"]) == expected["held"][0]
        assert found["held"].max() < 1.5 * len(found["index"]) / processes
        assert found["steps"].shape[1] == PER_STEP
        assert "report" not in found or found["report"].all()
    assert N_SHARDS == 4
    assert (shared["hdbscan: label"] == -1).any()
