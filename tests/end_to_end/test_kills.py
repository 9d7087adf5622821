"""Runs that are killed or stopped, as processes of their own, end as if they had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.launching import call, run_script
from helpers.paths import HELPERS, VIT_PLR

from hf_plr.trainer.checkpoints.finding import last_complete_checkpoint, list_checkpoints


@pytest.mark.slow
def test_killed_at_twenty_moments_and_by_a_worker_that_dies(tmp_path):
    run = run_script(tmp_path, 20, script=HELPERS / "killed_runs.py")
    assert run.returncode == 0, run.stdout + run.stderr
    kills = json.loads((tmp_path / "kills.json").read_text())
    assert len(kills) == 20
    moments = {moment for moment, _ in kills}
    assert moments == {"any", "stage", "save"}
    assert "DataLoader worker" in (tmp_path / "worker-died.txt").read_text()
    names = ["whole.npz", "worker.npz", *sorted(path.name for path in tmp_path.glob("killed-*.npz"))]
    assert len(names) > 2
    whole, *killed = (dict(np.load(tmp_path / name)) for name in names)
    for result in killed:
        assert result.keys() == whole.keys()
        for name, value in whole.items():
            np.testing.assert_array_equal(result[name], value, err_msg=name)
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_the_recipe_says_how_it_was_stopped_and_goes_on(tmp_path):
    arguments = ["--max_samples", "400", "--num_train_epochs", "40", "--num_clusters", "12", "--disable_tqdm", "true"]
    command = [sys.executable, str(VIT_PLR), *arguments, "--output_dir", str(tmp_path / "out"), "--save_steps", "5"]
    stopped = subprocess.Popen(
        [*command, "--save_strategy", "steps"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list_checkpoints(tmp_path / "out") and stopped.poll() is None:
        time.sleep(0.05)
    stopped.terminate()
    _, errors = stopped.communicate(timeout=300)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "--resume_from_checkpoint resumes from" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "metrics.json").exists()
    refused = call(*arguments, "--output_dir", tmp_path / "out")
    assert "holds an unfinished run: --resume_from_checkpoint resumes it" in refused.stderr
    other = call(*arguments, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "--seed", 7)
    assert "seed was 42 and is 7" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.slow
def test_a_continued_run_is_killed_and_resumed_without_the_run_before(tmp_path):
    common = ["--num_clusters", "12", "--disable_tqdm", "true", "--report", "no", "--cpu_threads", "1"]
    run = call(*common, "--max_samples", "150", "--num_train_epochs", "1", "--output_dir", tmp_path / "first")
    assert run.returncode == 0, run.stderr
    shutil.copytree(tmp_path / "first", tmp_path / "before")
    arguments = [
        *common,
        "--max_samples",
        "300",
        "--num_train_epochs",
        "6",
        "--continue_from",
        str(tmp_path / "before"),
    ]
    saved = ["--save_strategy", "steps", "--save_steps", "2"]
    whole = call(*arguments, *saved, "--output_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert f"Continues {tmp_path / 'before'}: " in whole.stdout
    command = [sys.executable, str(VIT_PLR), *arguments, *saved, "--output_dir", str(tmp_path / "killed")]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list_checkpoints(tmp_path / "killed") and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.communicate(timeout=300)
    assert not (tmp_path / "killed" / "run_history.json").exists()
    shutil.rmtree(tmp_path / "before")
    anew = call(*arguments, *saved, "--output_dir", tmp_path / "anew")
    assert anew.returncode == 1
    assert f"error: continue_from={str(tmp_path / 'before')!r} is not a folder" in anew.stderr
    resumed = call(*arguments, *saved, "--output_dir", tmp_path / "killed", "--resume_from_checkpoint")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("model.safetensors", "pseudo_labels.parquet", "prototypes.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    one, other = (json.loads((tmp_path / name / "run_history.json").read_text()) for name in ("whole", "killed"))
    assert one["next_number"] == other["next_number"]
    assert one["runs"][1]["events"] == other["runs"][1]["events"]
    assert one["from_scratch"] == other["from_scratch"] is True


@pytest.mark.slow
def test_sigterm_to_the_group_of_processes_saves(tmp_path):
    arguments = ["--max_samples", "400", "--num_train_epochs", "40", "--num_clusters", "12", "--image_cache_gib", "0"]
    arguments += ["--dataloader_num_workers", "2", "--save_strategy", "steps", "--save_steps", "5"]
    command = [sys.executable, str(VIT_PLR), *arguments, "--output_dir", str(tmp_path / "out")]
    stopped = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list_checkpoints(tmp_path / "out") and stopped.poll() is None:
        time.sleep(0.05)
    os.killpg(stopped.pid, signal.SIGTERM)  # as scancel, systemd and timeout do
    _, errors = stopped.communicate(timeout=300)
    assert stopped.returncode == 128 + signal.SIGTERM, errors
    assert "Stopped by SIGTERM at step" in errors
    assert last_complete_checkpoint(tmp_path / "out")[0] is not None
