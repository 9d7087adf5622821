"""Labels that were made beforehand, in two processes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers.launching import launch

N = 1797  # digits

pytestmark = pytest.mark.slow


def test_two_processes_train_on_given_labels(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 40, N) * 2
    labels = np.where(labels < 0, -1, labels)
    confidence = rng.random(N, np.float32)
    frame = pd.DataFrame({"index": np.arange(N), "label": labels, "confidence": confidence})
    frame.drop(index=[3, 1790]).sample(frac=1, random_state=0).to_parquet(tmp_path / "labels.parquet")
    out = tmp_path / "out"
    arguments = ["--labels", tmp_path / "labels.parquet", "--max_steps", 3, "--per_device_train_batch_size", 16]
    arguments += ["--confidence_power", 1, "--min_confidence", 0.1, "--report", "no", "--disable_tqdm", "true"]
    run = launch(*arguments, "--output_dir", out, processes=2)
    assert run.returncode == 0, run.stderr[-5000:]
    written = pd.read_parquet(out / "pseudo_labels.parquet")
    is_missing = np.isin(np.arange(N), [3, 1790])
    np.testing.assert_array_equal(written["label"], np.where(is_missing, -1, labels))
    np.testing.assert_array_equal(written["confidence"], np.where(is_missing, 0, confidence))
