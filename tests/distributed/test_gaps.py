"""Finer labelings in which some samples have no target: the loss of all parts of a batch is that of the whole."""

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
def test_samples_without_a_target_count_alike_in_all_processes(shared, name):
    whole = train(use_cpu=True, **RUNS[name])
    assert (whole["gaps"] > 0.1).all()
    np.testing.assert_allclose(shared[f"{name}: losses"], whole["losses"], rtol=1e-3)
    if name == "in two views":  # which are compared with the others of their step alone
        return
    added_up = train(use_cpu=True, gradient_accumulation_steps=2, **RUNS[name])
    np.testing.assert_allclose(added_up["losses"], whole["losses"], rtol=1e-3)
