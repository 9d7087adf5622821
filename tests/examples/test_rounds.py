"""Two rounds of the method as jobs, as the examples of the shell and of Ray run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import tiny
from helpers.paths import REPOSITORY

from hf_plr.models.vision import small_vit_processor

TRAINING = ["--use_cpu", "true", "--disable_tqdm", "true", "--report", "no", "--per_device_train_batch_size", "32"]
N = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # some twenty programs, one after another


@pytest.fixture
def start(tmp_path, all_digits):
    """Images with an index in two parquet files, and a backbone."""
    (tmp_path / "images").mkdir()
    table = all_digits.select(range(N)).flatten_indices().data.table
    table = table.append_column("index", pa.array(range(N)))
    for part in range(2):
        pq.write_table(table.slice(part * 60, 60), tmp_path / "images" / f"train-{part}.parquet")
    tiny.tiny_vit().save_pretrained(tmp_path / "model")
    small_vit_processor(16).save_pretrained(tmp_path / "model")
    return str(tmp_path / "images"), str(tmp_path / "model")


def run(*command: str) -> str:
    """Run a program that finds this checkout's `hf-plr`; returns what it printed."""
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    search = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": os.pathsep.join(search)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def read(folder: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True)


def check_rounds(out: Path) -> None:
    """Each round trained on its labels, and the second one on refined labels and from the weights of the first."""
    refined, clusters = read(out / "refined" / "1"), [read(out / "clusters" / str(i)) for i in range(2)]
    assert refined["index"].tolist() == clusters[0]["index"].tolist() == list(range(N))
    np.testing.assert_array_equal(refined["previous_label"], clusters[0]["label"])
    np.testing.assert_array_equal(refined["current_label"], clusters[1]["label"])
    for number, labels in enumerate((clusters[0], refined)):
        trained = out / "trained" / str(number)
        np.testing.assert_array_equal(pd.read_parquet(trained / "pseudo_labels.parquet")["label"], labels["label"])
        assert json.loads((trained / "metrics.json").read_text())["epochs"]
    features = [np.stack(read(out / "features" / str(i))["feature"]) for i in range(2)]
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_by_a_shell(start, tmp_path):
    out = tmp_path / "out"
    command = [str(REPOSITORY / "examples" / "jobs_with_shell" / "run.sh"), *start, str(out), "2", "2", *TRAINING]
    run(*command)
    check_rounds(out)
    (out / "features" / "1" / "shard-00001-of-00002.parquet").unlink()  # as if it had been interrupted there
    before = (out / "trained" / "1" / "model.safetensors").stat().st_mtime_ns
    run(*command)
    check_rounds(out)
    assert (out / "trained" / "1" / "model.safetensors").stat().st_mtime_ns == before


def test_by_ray(start, tmp_path):
    pytest.importorskip("ray")
    images, model = start
    script = str(REPOSITORY / "examples" / "jobs_with_ray" / "run.py")
    out = tmp_path / "out"
    words = run(sys.executable, script, "--images", images, "--model", model, "--output", str(out), *TRAINING)
    assert "features of 2 files by" in words
    check_rounds(out)
