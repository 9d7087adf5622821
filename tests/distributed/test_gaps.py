"""Finer labelings in which some samples have no target: the loss of several processes is that of one."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.gaps_in_processes import RUNS, train
from helpers.launching import launch
from helpers.paths import HELPERS


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict[str, np.ndarray]:
    output = tmp_path_factory.mktemp("gaps") / "found.npz"
    run = launch(output, processes=2, script=HELPERS / "gaps_in_processes.py")
    assert run.returncode == 0, run.stderr[-5000:]
    return dict(np.load(output))


@pytest.mark.parametrize("name", RUNS)
def test_each_labeling_is_divided_by_the_targets_of_all_processes(shared, name):
    whole = train(use_cpu=True, **RUNS[name])
    assert (whole["gaps"] > 0.1).all()
    losses = shared[f"{name}: losses"]
    np.testing.assert_allclose(losses[:4], whole["losses"][:4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses, whole["losses"], rtol=1e-3)  # rounding grows from step to step
