"""Labels of frames over several processes: one file on each machine, and checkpoints of a part a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.utils.other import get_free_port
from helpers.launching import environment_of
from helpers.paths import HELPERS, REPOSITORY

SCRIPT = HELPERS / "frames_in_processes.py"


def run(folder: Path, processes: int, machines: int) -> list[dict]:
    """What each process found. Processes are shared out over machines, which all are this one."""
    per_machine = processes // machines
    environment = environment_of(SCRIPT) | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(get_free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(per_machine),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    started = []
    for process in range(processes):
        own = {"RANK": str(process), "LOCAL_RANK": str(process % per_machine)}
        with (folder / f"{process}.log").open("wb") as log:
            command = [sys.executable, str(SCRIPT), str(folder)]
            started.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment | own, stdout=log, stderr=log))
    codes = [each.wait(timeout=800) for each in started]
    assert codes == [0] * processes, "\n".join((folder / f"{i}.log").read_text()[-2000:] for i in range(processes))
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
