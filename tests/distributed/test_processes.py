"""Several processes as a user runs them: the recipes under `accelerate launch`, by the files in recipes/configs."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from helpers.launching import alone, launch, launch_machines
from helpers.paths import ACCELERATE_CONFIGS, HELPERS, HUBERT_PLR, VIT_PLR
from helpers.spectrograms import MODELS
from helpers.train_in_processes import LORA, N_IMAGES, SOUNDS, train
from torch.distributed.fsdp import StateDictType
from transformers import AutoModel

from hf_plr import PLRTrainingArguments
from hf_plr.utils.distributed import check_sharding

BEST_IN_PROCESSES = HELPERS / "best_in_processes.py"
EVALUATE_IN_PROCESSES = HELPERS / "evaluate_in_processes.py"
DYING_RECIPE = HELPERS / "dying_recipe.py"
INTERRUPTED_PROCESSES = HELPERS / "interrupted_processes.py"
TRAIN_IN_PROCESSES = HELPERS / "train_in_processes.py"
# Of 203 images two processes extract one batch, which is the first one's. SGD, so that rounding stays rounding.
IMAGES = ["--max_samples", 203, "--num_clusters", 12, "--num_train_epochs", 2, "--optim", "sgd"]
IMAGES += ["--learning_rate", 0.01, "--ema_decay", 0.5, "--feature_dtype", "float32", "--disable_tqdm", "true"]
# Of 75 sounds the last batch of 32 has 11, all of them the first process's.
RECORDINGS = ["--max_samples", 75, "--num_clusters", 12, "--num_train_epochs", 2, "--learning_rate", 0]
RECORDINGS += ["--per_device_eval_batch_size", 4, "--save_strategy", "no", "--disable_tqdm", "true"]
BATCH = "--per_device_train_batch_size"


def succeeded(run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 0, run.stderr[-5000:]


def assert_same_files(first: Path, second: Path, *names: str) -> None:
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Where two processes have left their results."""
    out = tmp_path_factory.mktemp("two")
    succeeded(launch(*IMAGES, BATCH, 16, "--output_dir", out, "--overwrite", "--score_every", 1, processes=2))
    return out


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict[str, np.ndarray]:
    """What two processes found that share batches of 8."""
    output = tmp_path_factory.mktemp("shared") / "found.npz"
    succeeded(launch(output, processes=2, script=TRAIN_IN_PROCESSES))
    return dict(np.load(output))


def under(prefix: str, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


# ---- the files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ACCELERATE_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_what_accelerate_reads(path):
    config = load_config_from_file(str(path))  # it refuses unknown keys
    assert config.num_processes >= 2
    assert config.mixed_precision == "no"  # Trainer's own bf16 decides
    assert config.main_process_port == (29500 if config.num_machines > 1 else 0)  # runs of one machine may overlap


def test_processes_that_cannot_talk_to_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # one that accelerate does not know
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **_: None)
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"2 processes were launched, but they cannot talk .* use_cpu=True"):
        PLRTrainingArguments(str(tmp_path))


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ({"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "fsdp_version=1 is not supported: use 2"),
        (
            {"fsdp_plugin": SimpleNamespace(fsdp_version=2, state_dict_type=StateDictType.SHARDED_STATE_DICT)},
            "fsdp_state_dict_type=SHARDED_STATE_DICT, .* would leave no backbone in output_dir: use FULL_STATE_DICT",
        ),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "zero_stage=3 is not supported: use 2"),
    ],
)
def test_weights_that_no_process_has_whole_are_refused(plugins, message):
    with pytest.raises(ValueError, match=message):
        check_sharding(SimpleNamespace(state=SimpleNamespace(**plugins)), torch.nn.Linear(1, 1))


# ---- the same results --------------------------------------------------------------------------------------------


def test_two_processes_leave_the_labels_of_one(two, tmp_path):
    alone(VIT_PLR, [*IMAGES, BATCH, 32, "--output_dir", tmp_path])
    assert_same_files(two, tmp_path, "pseudo_labels.parquet")
    labels = pd.read_parquet(two / "pseudo_labels.parquet")
    assert len(labels) == N_IMAGES
    assert (labels["label"] != labels["previous_label"]).any()
    metrics = json.loads((two / "metrics.json").read_text())
    assert metrics["processes"] == 2
    last = metrics["epoch_scores"][-1]  # this one was scored after every epoch, the others were not
    assert last["epoch"] == 2
    for name, value in metrics["scores"]["after"].items():
        assert last[f"score/{name}"] == value
    weights, expected = (AutoModel.from_pretrained(out).state_dict() for out in (two, tmp_path))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-5, msg=name)


def test_two_processes_train_layers_by_their_rates_as_one_does(tmp_path):
    arguments = [*IMAGES, "--layer_decay", 0.5, "--freeze_layers", 1, "--activation_checkpointing", "true"]
    arguments += ["--ema_decay", 0, "--save_strategy", "no", "--report", "no"]
    succeeded(launch(*arguments, BATCH, 16, "--output_dir", tmp_path / "two", processes=2))
    alone(VIT_PLR, [*arguments, BATCH, 32, "--output_dir", tmp_path / "one"])
    assert_same_files(tmp_path / "one", tmp_path / "two", "pseudo_labels.parquet")
    weights, expected = (AutoModel.from_pretrained(tmp_path / out).state_dict() for out in ("two", "one"))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-5, msg=name)
        if name.startswith(("embeddings.", "layers.0.")):
            assert torch.equal(weights[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("segments", [[], ["--segment_seconds", 0.3, "--segment_overlap", 0.1]], ids=["whole", "cut"])
@pytest.mark.parametrize("objective", ["utterance", "frames"])
def test_two_processes_leave_the_labels_of_one_for_sounds(tmp_path, objective, segments):
    arguments = [*RECORDINGS, "--objective", objective, *segments]
    if objective == "frames":
        arguments += ["--relabel_every", 1, "--frame_scaling", "recording" if segments else "global"]
    succeeded(launch(*arguments, BATCH, 16, "--output_dir", tmp_path / "two", processes=2, script=HUBERT_PLR))
    alone(HUBERT_PLR, [*arguments, BATCH, 32, "--output_dir", tmp_path / "one"])
    files = {"utterance": ["pseudo_labels.parquet"], "frames": ["units.parquet", "centroids.safetensors"]}[objective]
    assert_same_files(tmp_path / "one", tmp_path / "two", *files)
    if objective == "frames":
        units = pd.read_parquet(tmp_path / "two" / "units.parquet")["units"]
        assert len(np.unique(np.concatenate(list(units)))) > 6


@pytest.mark.slow
def test_two_machines_leave_the_files_of_two_processes(two, tmp_path):
    for run in launch_machines(*IMAGES, BATCH, 16, "--output_dir", tmp_path, machines=2, processes=2):
        succeeded(run)
    assert_same_files(two, tmp_path, "pseudo_labels.parquet", "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "sounds"])
def test_batches_that_are_shared_out_or_added_up_train_as_one(shared, kind):
    more = SOUNDS if kind == "sounds" else {}
    whole = train(kind, 8, use_cpu=True, **more)
    assert (whole["labels"] != whole["previous_labels"]).any()
    more = {**more, "pair_weight": 0.0}  # which is of the batch that goes through the model at once
    single = train(kind, 8, use_cpu=True, **more)
    added_up = train(kind, 1, gradient_accumulation_steps=8, use_cpu=True, **more)
    for found, expected in ((under(f"{kind}: ", shared), whole), (added_up, single)):
        np.testing.assert_array_equal(found["labels"], expected["labels"])
        np.testing.assert_array_equal(found["previous_labels"], expected["previous_labels"])
        np.testing.assert_allclose(found["losses"][:6], expected["losses"][:6], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-3)  # rounding grows from step to step


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "sounds"])
def test_adapters_are_trained_by_two_processes_as_by_one(shared, kind):
    whole, found = train(kind, 8, use_cpu=True, **LORA[kind]), under(f"{kind}, lora: ", shared)
    np.testing.assert_array_equal(found["labels"], whole["labels"])
    np.testing.assert_allclose(found["losses"][:6], whole["losses"][:6], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["losses"], whole["losses"], rtol=1e-3)
    still = train(kind, 8, use_cpu=True, **{**LORA[kind], "learning_rate": 0})
    assert not np.array_equal(whole["features"], still["features"])


@pytest.mark.slow
def test_models_of_spectrograms_train_in_two_processes_as_in_one(tmp_path):
    succeeded(launch(tmp_path / "found.npz", *MODELS, processes=2, script=TRAIN_IN_PROCESSES))
    found = dict(np.load(tmp_path / "found.npz"))
    for kind in MODELS:
        whole = train(kind, 8, use_cpu=True, **SOUNDS)
        np.testing.assert_array_equal(found[f"{kind}: labels"], whole["labels"])
        np.testing.assert_allclose(found[f"{kind}: losses"][:6], whole["losses"][:6], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_each_process_holds_its_own_features_alone(shared):
    seen = shared["images: seen"]  # by process and epoch: rows given to k-means, tensors of all rows
    assert seen[:, :, 0].tolist() == [[128] * 3, [75] * 3]  # four batches of 32, and three
    assert (seen[:, :, 1] == 0).all()
    assert shared["threads"].tolist() == [1, 1]


@pytest.mark.slow
def test_workers_of_loaders_change_nothing(shared):
    without, with_workers = under("images: ", shared), under("images, workers: ", shared)
    for name in ("labels", "losses", "features"):
        np.testing.assert_array_equal(with_workers[name], without[name])


@pytest.mark.slow
def test_weights_that_are_shared_out_train_as_copies_do(shared, tmp_path):
    succeeded(launch(tmp_path / "found.npz", processes=2, script=TRAIN_IN_PROCESSES, config="fsdp2.yaml"))
    found = dict(np.load(tmp_path / "found.npz"))
    for kind in ("images", "sounds"):
        np.testing.assert_array_equal(found[f"{kind}: labels"], shared[f"{kind}: labels"])
        np.testing.assert_allclose(found[f"{kind}: losses"], shared[f"{kind}: losses"], rtol=1e-5, atol=1e-5)
        assert found[f"{kind}: sharded"].all()


# ---- a process that dies -----------------------------------------------------------------------------------------


def assert_ended(run: subprocess.CompletedProcess[str], killed: int, folder: Path) -> None:
    """A launch whose process `killed` was killed ended, said why, and left nothing running."""
    assert run.returncode != 0
    assert "killed at " in run.stdout
    cause = run.stderr.split("Root Cause")[1]
    assert f"rank      : {killed} " in cause
    assert "SIGKILL" in cause
    # Workers of its loaders look after it every few seconds; what never ends stops the whole run of tests.
    while any(str(folder) in str(process.info) for process in psutil.process_iter(["cmdline"])):
        time.sleep(0.5)
    assert (folder / "checkpoint-7" / "plr_state.safetensors").exists()


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_ends_and_goes_on(two, tmp_path):
    arguments = [*IMAGES, BATCH, 16, "--output_dir", tmp_path]
    # The second process in the tenth step, which is in the second epoch, while the first waits for its gradients.
    run = launch(1, "step", 9, *arguments, "--dataloader_num_workers", 1, processes=2, script=DYING_RECIPE)
    assert_ended(run, 1, tmp_path)
    # Then the first one in the stage before that epoch, while the second waits for its features.
    run = launch(0, "stage", 0, *arguments, "--resume_from_checkpoint", processes=2, script=DYING_RECIPE)
    assert_ended(run, 0, tmp_path)
    succeeded(launch(*arguments, "--resume_from_checkpoint", processes=2))
    assert_same_files(two, tmp_path, "pseudo_labels.parquet", "model.safetensors", "plr_state.safetensors")


@pytest.mark.slow
def test_sigterm_in_one_of_two_processes_stops_both_and_they_go_on(tmp_path):
    run = launch(tmp_path, processes=2, script=INTERRUPTED_PROCESSES)
    assert run.returncode == 0, run.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    # The signal comes in steps 7, 10, 6 and 9; processes read each other's answers one step later.
    expected = ["checkpoint-8", "checkpoint-11", "checkpoint-7", "checkpoint-10"]
    assert [entry["checkpoint"] for entry in report] == expected
    assert list((tmp_path / "0-part").glob("checkpoint-*/plr_state-*")) == []
    of_samples = sorted({path.name for path in (tmp_path / "3-part").glob("checkpoint-*/plr_state-*")})
    assert of_samples == [f"plr_state-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for entry in report:
        assert entry["stopped"] == [143, 143]
        assert entry["differences"] == []


def test_every_process_ends_with_the_best_checkpoint(tmp_path):
    succeeded(launch(tmp_path, processes=2, script=BEST_IN_PROCESSES))
    found = json.loads((tmp_path / "found.json").read_text())
    assert [is_loaded for _, is_loaded in found] == [True, True]
    assert len({best for best, _ in found}) == 1
    assert Path(found[0][0]).parent == tmp_path / "out"


def test_processes_that_evaluate_first_train_one_model(tmp_path):
    succeeded(launch(tmp_path, processes=2, script=EVALUATE_IN_PROCESSES))
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"evaluate", "predict", "frames"}
    for name, trainings in found.items():
        for first, second in (trainings[:2], trainings[2:]):
            assert first == second, name
            assert first[0], name
        assert trainings[0] != trainings[2], name
