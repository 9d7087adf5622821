"""Several processes that share the features score them as one does: real processes under `accelerate launch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.launching import launch
from helpers.paths import HELPERS

from hf_plr.evaluation.scores import SCORES

SCRIPT = HELPERS / "score_in_processes.py"


def score(processes: int, folder: Path) -> dict[str, Any]:
    output = folder / f"{processes}.json"
    run = launch(output, processes=processes, script=SCRIPT)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Any]:
    return score(1, tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_scores(alone, processes, tmp_path):
    for name in ("test split", "cross-validated", "few labels", "evaluator"):
        assert alone[name]["values"].keys() == SCORES.keys()
        assert all(0.1 < value < 1.0 for value in alone[name]["values"].values())
        assert alone[name]["intervals"].keys() == SCORES.keys() - {"nmi"}
    assert alone["one class"]["values"] == {}
    assert alone["predictions"].keys() == alone["predicted segments"].keys() == SCORES.keys()
    assert alone["segments"]["values"].keys() == SCORES.keys()
    assert alone["segments"]["intervals"].keys() == SCORES.keys() - {"nmi", "clustering_accuracy"}
    shared = score(processes, tmp_path)
    assert shared.pop("same everywhere")
    gathered, errors = shared.pop("gathered"), shared.pop("errors")
    for name in shared:
        assert shared[name] == alone[name], name
    assert 0 < gathered <= 701  # tested samples, or some for the probe: no process holds the gallery of 3,001
    n_parts_with_rows = min(processes, 2)
    assert errors == [f"features of {n_parts_with_rows} samples are NaN or infinite, the first is sample 0"] * processes
