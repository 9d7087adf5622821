"""Continued runs in two processes, whose labels are shared or sharded, are those of one process."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers.launching import call, launch

from hf_plr.report.run_history import RunHistory

pytestmark = pytest.mark.slow

SGD = ["--optim", "sgd", "--learning_rate", 3e-4]  # large rates let the rounding of other sums grow
COMMON = ["--num_train_epochs", 2, "--num_clusters", 12, "--report", "no", "--disable_tqdm", "true"]


@pytest.mark.parametrize(
    "shards", [[], ["--label_shards", 2, "--per_device_eval_batch_size", 16]], ids=["all", "shards"]
)
def test_two_processes_continue_as_one_does(tmp_path, shards):
    first = tmp_path / "first"
    run = call(*COMMON, "--max_samples", 150, "--output_dir", first)
    assert run.returncode == 0, run.stderr
    arguments = [*COMMON, *SGD, *shards, "--max_samples", 240, "--continue_from", first]
    for processes in (1, 2):
        out, batch = tmp_path / f"out-{processes}", 64 // processes
        run = launch(*arguments, "--output_dir", out, "--per_device_train_batch_size", batch, processes=processes)
        assert run.returncode == 0, run.stderr[-5000:]
        assert run.stdout.count(f"continues {first}: ") == 1
    tables = [pd.read_parquet(tmp_path / f"out-{processes}" / "pseudo_labels.parquet") for processes in (1, 2)]
    np.testing.assert_array_equal(tables[0]["digest"], tables[1]["digest"])
    np.testing.assert_array_equal(tables[0]["label"], tables[1]["label"])
    np.testing.assert_array_equal(tables[0]["previous_label"], tables[1]["previous_label"])
    one, two = (RunHistory.read(tmp_path / f"out-{processes}") for processes in (1, 2))
    assert one.next_number == two.next_number
    assert one.runs[0] == two.runs[0]
    assert one.runs[1].data.known > 10
    same = {"id": "", "name": "", "written": ""}
    assert dataclasses.replace(one.runs[1], **same) == dataclasses.replace(two.runs[1], **same)
