"""Runs that are interrupted, in every way that a machine knows, end as if they had not been."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.launching import launch, run_script
from helpers.paths import HELPERS, VIT_PLR
from helpers.runs import StopAt, assert_same_run
from transformers import TrainerCallback

from hf_plr import PLRTrainer, PseudoLabelRefiner
from hf_plr.trainer.checkpointing import ASIDE, FILE_LIST, CheckpointError, checkpoints_in, flaw, last_whole
from hf_plr.trainer.stop_signal import TrainingStopped


@pytest.mark.parametrize("preset", ["slr", "joint", "soft", "rlcc", "none"])
def test_every_preset_resumes_bit_for_bit(make_trainer, tmp_path, preset):
    whole = make_trainer(output_dir=str(tmp_path / "whole"), refinement=preset)
    whole.train()
    make_trainer({"callbacks": [StopAt(14)]}, output_dir=str(tmp_path / "part"), refinement=preset).train()
    resumed = make_trainer(output_dir=str(tmp_path / "part"), refinement=preset)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    ("stop_at", "accumulation", "workers", "persistent"),
    [(7, 1, 0, False), (10, 1, 0, False), (5, 2, 0, False), (6, 2, 2, False), (10, 1, 2, False), (10, 1, 2, True)],
)
def test_at_a_boundary_and_in_mid_epoch(make_trainer, tmp_path, stop_at, accumulation, workers, persistent):
    arguments = {
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": persistent,
    }
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **arguments)
    whole.train()
    make_trainer({"callbacks": [StopAt(stop_at)]}, output_dir=str(tmp_path / "part"), **arguments).train()
    resumed = make_trainer(output_dir=str(tmp_path / "part"), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{stop_at}"))
    assert_same_run(whole, resumed)


def test_losses_of_an_epoch_are_added_up_over_the_interruption(make_trainer, tmp_path):
    arguments = {"logging_strategy": "steps", "logging_steps": 4}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **arguments)
    whole.train()
    make_trainer({"callbacks": [StopAt(10)]}, output_dir=str(tmp_path / "part"), **arguments).train()
    resumed = make_trainer(output_dir=str(tmp_path / "part"), **arguments)
    resumed.train(resume_from_checkpoint=True)
    steps = [entry["step"] for entry in resumed.state.log_history if "loss" in entry]
    assert steps == [4, 8, 12, 16, 20]
    assert_same_run(whole, resumed)


# ---- other settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1}, "seed was 42 and is 1"),
        ({"refinement": "joint"}, "refinement was 'slr' and is 'joint'"),
        ({"refinement_weight": 0.7}, "refinement_weight was None and is 0.7"),
        ({"num_clusters": 13}, "num_clusters was 12 and is 13"),
        ({"ema_decay": 0.9}, "ema_decay was 0.0 and is 0.9"),
        ({"per_device_train_batch_size": 16}, "per_device_train_batch_size was 32 and is 16"),
        ({"learning_rate": 1e-4}, "learning_rate was 0.001 and is 0.0001"),
        ({"clusterer": "dbscan"}, "clusterer was 'kmeans' and is 'dbscan'"),
    ],
)
def test_other_settings_are_refused_by_name(make_trainer, first_checkpoint, arguments, message):
    with pytest.raises(ValueError, match="written with other settings") as raised:
        make_trainer(**arguments).train(resume_from_checkpoint=first_checkpoint)
    assert message in str(raised.value)
    assert "Resume with the settings that the run was started with" in str(raised.value)


def test_other_data_and_an_own_refiner_are_refused(make_trainer, some_digits, first_checkpoint):
    fewer = {"train_dataset": some_digits.select(range(100))}
    with pytest.raises(ValueError, match="samples was 203 and is 100"):
        make_trainer(fewer).train(resume_from_checkpoint=first_checkpoint)
    in_another_order = {"train_dataset": some_digits.select(range(202, -1, -1))}
    with pytest.raises(ValueError, match=r"data was '[0-9a-f]{16}' and is"):
        make_trainer(in_another_order).train(resume_from_checkpoint=first_checkpoint)
    own = {"refiner": PseudoLabelRefiner.from_preset("slr", linkage="ward")}
    with pytest.raises(ValueError, match=r"refiner was .*'linkage': 'average'.* and is .*'linkage': 'ward'"):
        make_trainer(own).train(resume_from_checkpoint=first_checkpoint)


def test_another_kind_of_run_is_refused(make_sound_trainer, tmp_path):
    make_sound_trainer(num_train_epochs=1).train()
    with pytest.raises(ValueError, match="trainer was 'UnitTrainer' and is 'PLRTrainer'"):
        make_sound_trainer(PLRTrainer, num_train_epochs=1).train(resume_from_checkpoint=True)


def test_another_number_of_processes_is_refused(make_trainer, first_checkpoint, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 4)
    with pytest.raises(ValueError, match="processes was 1 and is 4"):
        trainer.train(resume_from_checkpoint=first_checkpoint)


def test_a_longer_run_goes_on_with_a_warning(make_trainer, first_checkpoint, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(num_train_epochs=2)
        trainer.train(resume_from_checkpoint=first_checkpoint)
    assert trainer.state.global_step == 14
    assert "num_train_epochs was 3.0 and is 2" in caplog.text.replace("was 3 ", "was 3.0 ")


@pytest.fixture
def first_checkpoint(make_trainer, tmp_path):
    make_trainer({"callbacks": [StopAt(7)]}, output_dir=str(tmp_path / "first")).train()
    return str(tmp_path / "first" / "checkpoint-7")


# ---- torn checkpoints ------------------------------------------------------------------------------------------------


def damage_nothing_but_the_list(checkpoint):
    (checkpoint / FILE_LIST).unlink()


def cut_the_weights(checkpoint):
    os.truncate(checkpoint / "model.safetensors", 1000)


def lose_the_optimizer(checkpoint):
    (checkpoint / "optimizer.pt").unlink()


def garble_the_list(checkpoint):
    (checkpoint / FILE_LIST).write_bytes(b"\xff{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing_but_the_list, "it has no plr_files.json"),
        (cut_the_weights, r"model.safetensors has 1000 bytes, not \d+"),
        (lose_the_optimizer, "optimizer.pt is missing"),
        (garble_the_list, "its plr_files.json cannot be read"),
    ],
)
def test_a_torn_checkpoint_is_passed_over(make_trainer, tmp_path, caplog, damage, message):
    whole = make_trainer(output_dir=str(tmp_path / "whole"))
    whole.train()
    make_trainer({"callbacks": [StopAt(14)]}).train()
    damage(tmp_path / "out" / "checkpoint-14")
    with pytest.raises(CheckpointError, match=f"checkpoint-14 is torn: {message}"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-14"))
    resumed = make_trainer()
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-14 is torn and passed over" in caplog.text
    assert_same_run(whole, resumed)


def test_without_a_whole_checkpoint_it_says_so(make_trainer, tmp_path):
    with pytest.raises(CheckpointError, match="out holds no whole checkpoint"):
        make_trainer().train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="the checkpoint nowhere does not exist"):
        make_trainer().train(resume_from_checkpoint="nowhere")


def test_the_best_checkpoint_is_named_where_it_is_in_the_end(make_trainer, all_digits, tmp_path):
    trainer = make_trainer(
        {"eval_dataset": all_digits.select(range(60))}, eval_strategy="epoch", load_best_model_at_end=True
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == tmp_path / "out"
    assert flaw(best) is None
    states = [json.loads((path / "trainer_state.json").read_text()) for path in checkpoints_in(tmp_path / "out")]
    assert all(ASIDE not in state["best_model_checkpoint"] for state in states)


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_was_saved(make_trainer, tmp_path):
    class FullDisk(TrainerCallback):
        """No file may grow beyond 20 kB: writing fails with an error of the system, as on a full disk."""

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 14:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    whole = make_trainer(output_dir=str(tmp_path / "whole"))
    whole.train()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint-14 could not be written: .*checkpoint-7 is whole"):
            make_trainer({"callbacks": [FullDisk()]}).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["checkpoint-7", "report.html", "report.json"]
    resumed = make_trainer()
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def with_nan_features(trainer, epoch):
    extract = trainer.extract_shard

    def damaged():
        features = extract()
        if trainer._epoch == epoch:
            features[17] = float("nan")
        return features

    trainer.extract_shard = damaged
    return trainer


def test_nan_features_stop_the_run_and_name_sample_and_epoch(make_trainer, tmp_path):
    with pytest.raises(ValueError, match=r"epoch 1: the features of 1 of 203 samples .*\(samples 17\)"):
        with_nan_features(make_trainer(), epoch=1).train()
    assert last_whole(tmp_path / "out")[0] == tmp_path / "out" / "checkpoint-7"


def test_an_epoch_of_nan_features_can_keep_the_labels(make_trainer, caplog):
    trainer = with_nan_features(make_trainer(on_nan="skip_epoch"), epoch=1)
    seen = []

    class Look(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            seen.append((trainer.pseudo_labels.epoch, trainer.pseudo_labels.labels.copy()))

    trainer.add_callback(Look())
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "This epoch keeps the labels of the last one" in caplog.text
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    np.testing.assert_array_equal(seen[0][1], seen[1][1])
    assert (seen[1][1] != seen[2][1]).any()
    with pytest.raises(ValueError, match="epoch 0: the features"):  # there are no labels to keep
        with_nan_features(make_trainer(on_nan="skip_epoch"), epoch=0).train()


def test_a_round_of_nan_frames_can_keep_the_units(make_sound_trainer, monkeypatch, caplog):
    trainer = make_sound_trainer(on_nan="skip_epoch")
    relabel = trainer._relabel
    weights = trainer.backbone.encoder.layer_norm.weight
    first = []

    def damaged(round_, layer):
        if round_ == 1:
            first.append(trainer.frame_units.labels.copy())
            kept = weights.detach().clone()
            with torch.no_grad():
                weights.fill_(float("nan"))
            try:
                relabel(round_, layer)
            finally:
                with torch.no_grad():
                    weights.copy_(kept)
                np.testing.assert_array_equal(trainer.frame_units.labels, first[0])
        else:
            relabel(round_, layer)

    monkeypatch.setattr(trainer, "_relabel", damaged)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "This round keeps the units of the last one" in caplog.text
    assert trainer.frame_units.round == 2


def test_nan_weights_are_not_saved(make_trainer, tmp_path):
    class Diverge(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 10:
                with torch.no_grad():
                    next(model.parameters()).fill_(float("nan"))

    with pytest.raises(ValueError, match=r"step 14: weights are NaN.*checkpoint-7 is whole"):
        make_trainer({"callbacks": [Diverge()]}).train()
    assert [path.name for path in checkpoints_in(tmp_path / "out")] == ["checkpoint-7"]


def test_sigterm_saves_and_stops(make_trainer, tmp_path):
    class Terminate(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 9:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    whole = make_trainer(output_dir=str(tmp_path / "whole"))
    whole.train()
    with pytest.raises(TrainingStopped, match="at step 10 of 21") as stopped:
        make_trainer({"callbacks": [Terminate()]}).train()
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert last_whole(tmp_path / "out")[0] == tmp_path / "out" / "checkpoint-10"
    resumed = make_trainer()
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_jit_checkpoints_of_trainer_are_refused(make_trainer):
    with pytest.raises(ValueError, match="enable_jit_checkpoint=True is not needed"):
        make_trainer(enable_jit_checkpoint=True)


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
def test_sigterm_in_one_of_two_processes_stops_both_and_they_go_on(tmp_path):
    run = launch(tmp_path, processes=2, script=HELPERS / "interrupted_processes.py")
    assert run.returncode == 0, run.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["checkpoint"] for entry in report] == ["checkpoint-7", "checkpoint-10", "checkpoint-6"]
    for entry in report:
        assert entry["stopped"] == [143, 143]
        assert entry["differences"] == []


@pytest.mark.slow
def test_the_recipe_says_how_it_was_stopped_and_goes_on(tmp_path):
    arguments = ["--max_samples", "400", "--num_train_epochs", "40", "--num_clusters", "12", "--disable_tqdm", "true"]
    command = [sys.executable, str(VIT_PLR), *arguments, "--output_dir", str(tmp_path / "out"), "--save_steps", "5"]
    stopped = subprocess.Popen(
        [*command, "--save_strategy", "steps"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not checkpoints_in(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped.terminate()
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "--resume_from_checkpoint goes on from there" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "metrics.json").exists()
    refused = run_script(*arguments, "--output_dir", tmp_path / "out")
    assert "holds an unfinished run: --resume_from_checkpoint goes on" in refused.stderr
    other = run_script(*arguments, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "--seed", 7)
    assert "seed was 42 and is 7" in other.stderr
    assert "Traceback" not in other.stderr
