"""Several processes that share the features cluster them as one does: real processes under `accelerate launch`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.launching import launch
from helpers.paths import HELPERS

from hf_plr.refinement import PRESETS

SCRIPT = HELPERS / "cluster_in_shards.py"


def cluster(processes: int, folder: Path) -> dict[str, np.ndarray]:
    output = folder / f"{processes}.npz"
    run = launch(output, processes=processes, script=SCRIPT)
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(np.load(output))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, np.ndarray]:
    return cluster(1, tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(alone, processes, tmp_path):
    shared = cluster(processes, tmp_path)
    assert len(np.unique(alone["dbscan.labels"])) > 2
    assert len(np.unique(alone["refilled.labels"])) == 40
    assert 0 < alone["stage.agreement_ari"] < 1
    assert (alone["stage.targets.2"] == -1).any()
    for name in alone:
        if name.endswith("errors"):
            continue
        if name.endswith("inertia"):
            np.testing.assert_allclose(shared[name], alone[name], rtol=1e-12)
        else:
            np.testing.assert_array_equal(shared[name], alone[name], err_msg=name)
    of_presets = {name: int(value) for name, value in shared.items() if name.endswith(".different")}
    assert of_presets == {f"{name}.different": 0 for name in PRESETS}  # where each process holds its own labels
    assert len(shared["nan_errors"]) == processes
    assert set(shared["nan_errors"]) == {"features of 1 samples are NaN or infinite, the first is sample 0"}
    assert shared["main_errors"][0].startswith("ZeroDivisionError")
    assert all(error.startswith("MainProcessError: failed on the main process") for error in shared["main_errors"][1:])
