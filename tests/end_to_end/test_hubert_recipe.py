"""The recipe for sounds as a user runs it, once under `accelerate launch`."""

from __future__ import annotations

import functools
import json

import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers.launching import call, launch
from helpers.paths import HUBERT_PLR, SHARED_DATA

TINY = ["--num_clusters", "12", "--disable_tqdm", "true", "--per_device_train_batch_size", "32"]
hubert = functools.partial(call, script=HUBERT_PLR)


@pytest.mark.parametrize(
    ("objective", "run_recipe"),
    [
        ("utterance", hubert),
        pytest.param("frames", functools.partial(launch, script=HUBERT_PLR), marks=pytest.mark.slow),
    ],
    ids=["utterance", "frames"],
)
def test_without_arguments_it_runs_on_its_own_sounds(tmp_path, objective, run_recipe):
    shorter = ["--max_samples", 120, "--num_train_epochs", 2, "--cpu_threads", 1, *TINY]
    rounds = ["--relabel_every", 1] if objective == "frames" else []
    run_recipe = {"utterance": call, "frames": launch}[objective]
    run = run_recipe("--objective", objective, *shorter, *rounds, cwd=tmp_path, script=HUBERT_PLR)
    assert run.returncode == 0, run.stderr
    assert "Trained on 120 recordings without labels" in run.stdout
    assert "centroids.safetensors" in run.stdout or objective == "utterance"
    out = tmp_path / "out" / "sounds"
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["scores"]) == {"before", "after"}
    assert metrics["settings"]["num_clusters"] == "12"
    expected = {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "metrics.json"}
    labels = {"utterance": {"pseudo_labels.parquet"}, "frames": {"units.parquet", "centroids.safetensors"}}
    assert expected | labels[objective] <= {path.name for path in out.iterdir()}
    rows = pd.read_parquet(out / ("pseudo_labels.parquet" if objective == "utterance" else "units.parquet"))["index"]
    assert len(rows) == 120
    assert rows.is_monotonic_increasing
    assert rows.max() > 700  # rows of all 800 sounds


def test_a_folder_of_files_then_a_start_from_what_came_out(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("birds", "frogs"):
        (tmp_path / "files" / name).mkdir(parents=True)
        for i in range(20):
            pitch = (300 if name == "frogs" else 1500) * rng.uniform(0.8, 1.2)
            seconds = np.arange(int(16_000 * rng.uniform(0.2, 0.6))) / 16_000
            wave = np.sin(2 * np.pi * pitch * seconds)
            ending = ("wav", "flac", "ogg")[i % 3]
            soundfile.write(tmp_path / "files" / name / f"{i}.{ending}", wave, 16_000)
    first = ["--dataset_name", tmp_path / "files", "--num_train_epochs", 1, *TINY]
    run = hubert(*first, "--objective", "frames", "--output_dir", tmp_path / "frames")
    assert run.returncode == 0, run.stderr
    assert "hf-plr units --model" in run.stdout
    run = hubert(*first, "--output_dir", tmp_path / "frames", "--resume_from_checkpoint")
    assert "trainer was 'UnitTrainer' and is 'PLRTrainer'" in run.stderr
    run = hubert(*first, "--model_name_or_path", tmp_path / "frames", "--output_dir", tmp_path / "utterance")
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "utterance" / "preprocessor_config.json").read_text())["sampling_rate"] == 16_000
    files = pd.read_parquet(tmp_path / "utterance" / "pseudo_labels.parquet")["file"]
    assert set(files) == {str(path.relative_to(tmp_path / "files")) for path in (tmp_path / "files").glob("*/*")}
    assert pd.read_parquet(tmp_path / "frames" / "units.parquet")["file"].tolist() == files.tolist()


def test_what_is_missing_or_wrong_is_told_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["--dataset_name", tmp_path / "empty"], "--output_dir is needed with --dataset_name"),
        (["--dataset_name", tmp_path / "empty", "--output_dir", tmp_path / "out"], "holds no images, no recordings"),
        (["--relabel_every", 2], "relabel_every=2 has no effect on labels of recordings"),
        (["--objective", "frames", "--clusterer", "dbscan"], "clusterer='dbscan' has no effect on units of frames"),
    ):
        run = hubert(*arguments)
        assert run.returncode != 0
        assert message in run.stderr
        assert "Traceback" not in run.stderr


def test_help_is_about_sounds():
    run = hubert("--help")
    assert run.returncode == 0
    assert "--relabel_every" in run.stdout
    assert "--image_cache_dir" not in run.stdout


def test_spoken_digits(tmp_path):
    folder = SHARED_DATA / "fsdd"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    run = hubert(
        *["--dataset_name", folder, "--label_column", "digit", "--output_dir", tmp_path, "--max_samples", 300],
        *["--num_train_epochs", 2, *TINY],
    )
    assert run.returncode == 0, run.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["samples"] == 300
    assert metrics["scores"]["after"]["knn_accuracy"] > 0.15  # on all 300 of the test split
