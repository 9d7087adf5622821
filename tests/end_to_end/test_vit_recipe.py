"""The recipe for images as a user runs it, once under `accelerate launch`."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import Image
from helpers.launching import call, launch
from helpers.media_folders import draw, record
from helpers.paths import HUBERT_PLR, SHARED_DATA, VIT_PLR

TINY = ["--num_train_epochs", "2", "--num_clusters", "12", "--max_samples", "150", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def parquet_folder(tmp_path_factory, all_digits) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    all_digits.select(range(400)).to_parquet(folder / "train.parquet")
    all_digits.select(range(400, 500)).to_parquet(folder / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory, all_digits) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(60):
        (folder / "all").mkdir(exist_ok=True)
        all_digits[i]["image"].save(folder / "all" / f"{i:03}.png")
    return folder


def test_without_arguments_but_smaller(tmp_path):
    run = launch(*TINY, "--cpu_threads", 1, cwd=tmp_path)  # as `call` does: sums of two threads round otherwise
    assert run.returncode == 0, run.stderr
    out = tmp_path / "out" / "digits"
    for words in ("kNN accuracy", "before", "after", "scores only", "Results in out/digits", "Next:"):
        assert words in run.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["scores"].keys() == {"before", "after"}
    assert len(metrics["epochs"]) == 2
    labels = pd.read_parquet(out / "pseudo_labels.parquet")
    assert labels["index"].is_monotonic_increasing
    assert len(labels) == 150
    assert labels["index"].max() > 1000  # rows of the data, not of the part that was drawn
    again = call(*TINY, cwd=tmp_path)  # the demo replaces its own folder
    assert again.returncode == 0, again.stderr
    assert json.loads((out / "metrics.json").read_text())["scores"] == metrics["scores"]


def test_parquet_config_finished_run_and_resume(parquet_folder, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"dataset_name: {parquet_folder}\nlearning_rate: 1e-3\nnum_train_epochs: 1\nrefinement: joint\n")
    out = tmp_path / "out"
    common = ["--config", config, "--output_dir", out, "--num_clusters", 10, "--disable_tqdm", "true"]
    run = call(*common)
    assert run.returncode == 0, run.stderr
    assert "the test split" in run.stdout
    settings = json.loads((out / "metrics.json").read_text())["settings"]
    assert settings["refinement"] == "joint"
    refused = call(*common)
    assert refused.returncode == 1
    assert f"error: {out} holds a finished run: --overwrite replaces it" in refused.stderr
    assert "Traceback" not in refused.stderr
    onwards = call(*common, "--num_train_epochs", 2, "--resume_from_checkpoint")
    assert onwards.returncode == 0, onwards.stderr
    assert [e["epoch"] for e in json.loads((out / "metrics.json").read_text())["epochs"]] == [0, 1.0]


def test_image_folder_without_labels_gives_everything_but_scores(image_folder, tmp_path):
    arguments = ["--dataset_name", image_folder, "--output_dir", tmp_path / "out", "--num_train_epochs", 1]
    run = call(*arguments, "--num_clusters", 6, "--disable_tqdm", "true")
    assert run.returncode == 0, run.stderr
    assert "No label column" in run.stdout
    assert (tmp_path / "out" / "README.md").exists()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"] == {}


def test_unknown_arguments_and_values_are_refused(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("num_cluster: 5\nlearning_rate: 0.1\n")
    run = call("--config", config)
    assert run.returncode == 2
    assert "unknown argument: num_cluster" in run.stderr
    run = call("--num_cluster", "5")
    assert run.returncode == 2
    assert "unrecognized arguments: --num_cluster 5" in run.stderr
    assert len(run.stderr) < 400
    run = call("--refinement_weight", "1.5", cwd=tmp_path)
    assert run.returncode == 2
    assert "refinement_weight=1.5 is outside [0, 1]" in run.stderr
    run = call("--dataset_name", tmp_path)
    assert run.returncode == 2
    assert "--output_dir is needed with --dataset_name" in run.stderr


def test_data_that_is_not_there_is_named(tmp_path, all_digits):
    out = ["--output_dir", tmp_path / "out", "--disable_tqdm", "true"]
    run = call("--dataset_name", tmp_path / "nowhere", *out)
    assert run.returncode == 1
    assert "neither a folder or file here nor a data set on the Hub" in run.stderr
    (tmp_path / "empty").mkdir()
    run = call("--dataset_name", tmp_path / "empty", *out)
    assert run.returncode == 1
    assert "holds no images, no recordings and no parquet files" in run.stderr
    run = call("--num_clusters", "5000", cwd=tmp_path)
    assert run.returncode == 1
    assert "num_clusters=5000 but the data set has 1797 samples" in run.stderr
    damaged = all_digits.select(range(50)).cast_column("image", Image(decode=False)).to_list()
    damaged[7]["image"]["bytes"] = damaged[7]["image"]["bytes"][:30]
    (tmp_path / "damaged").mkdir()
    frame = all_digits.select(range(50)).cast_column("image", Image(decode=False))
    frame = type(frame).from_list(damaged, features=frame.features).cast_column("image", Image())
    frame.to_parquet(tmp_path / "damaged" / "train.parquet")
    run = call("--dataset_name", tmp_path / "damaged", *out)
    assert run.returncode == 1
    assert "image 7 cannot be read" in run.stderr
    assert "--skip_unreadable" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("script", "make", "held"), [(VIT_PLR, record, "recordings"), (HUBERT_PLR, draw, "images")])
def test_data_for_the_other_recipe_are_said_to_be_so(tmp_path, script, make, held):
    folder = make(tmp_path / "data", *(f"{i}.{'wav' if make is record else 'png'}" for i in range(6)))
    common = ["--dataset_name", folder, "--output_dir", tmp_path / "out"]
    run = call(*common, "--model_name_or_path", tmp_path / "not_looked_at", script=script)
    assert run.returncode == 1
    assert f"error: {folder} holds {held}: use hf-plr train {'audio' if make is record else 'image'}\n" in run.stderr


def test_help_is_short_and_complete():
    run = call("--help")
    assert run.returncode == 0
    for argument in ("--dataset_name", "--num_clusters", "--num_train_epochs", "--learning_rate", "--refinement"):
        assert argument in run.stdout
    assert "--deepspeed" not in run.stdout
    assert "--deepspeed" in call("--help_all").stdout


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED_DATA / "cifar-5").exists(), reason="needs images of five CIFAR-10 classes")
def test_photos_from_a_pretrained_backbone(tmp_path):
    run = call(
        *("--dataset_name", SHARED_DATA / "cifar-5", "--model_name_or_path", SHARED_DATA / "dinov2-small-saliency"),
        *("--output_dir", tmp_path / "out", "--max_samples", 64, "--num_train_epochs", 1, "--num_clusters", 6),
        *("--label_column", "label", "--augmentation", "photo", "--disable_tqdm", "true", "--bf16", "--max_steps", 2),
        *("--train_split", "test"),
    )
    assert run.returncode == 0, run.stderr
    from transformers import AutoModel

    _, report = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
