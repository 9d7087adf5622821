"""Labels of frames over several processes: one file on each machine, and checkpoints of a part a process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from helpers.launching import environment_of
from helpers.paths import HELPERS, REPOSITORY
from helpers.processes import run_group

SCRIPT = HELPERS / "frames_in_processes.py"


def run(folder: Path, processes: int, machines: int) -> list[dict]:
    """What each process found. Processes are shared out over machines, which all are this one."""
    environment = environment_of(SCRIPT) | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run_group([sys.executable, str(SCRIPT), str(folder)], environment, processes, REPOSITORY, 800, machines)
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "machines"), [(2, 1), (2, 2), (3, 1), (3, 3)])
def test_each_machine_has_the_labels_once_and_they_go_on(tmp_path, processes, machines):
    reports = run(tmp_path, processes, machines)
    for number, report in enumerate(reports):
        shared = report["shared"]
        assert shared["same"] == [True, True]
        assert shared["in_file"] == [True, True]
        assert shared["names"] == []
        assert shared["first"] == [5, 5] if machines == 1 or number == 0 else [-1, -1]
        assert shared["fault"].startswith("the labels of all frames could not be allocated in")
    for report in (each["resumed"] for each in reports if "resumed" in each):
        assert report["parts"] == [f"plr_state-0000{number}-of-00002.safetensors" for number in (1, 2)]
        assert report["differences"] == []
        assert report["names"] == []
        assert 0 < report["own"][0] < report["own"][1]
    assert os.listdir(tmp_path / "labels") == []
