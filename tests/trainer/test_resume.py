"""Checkpoints that are incomplete, and runs that something goes wrong with."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.runs import FallingScore, StopAt, assert_same_run
from transformers import AutoModel, TrainerCallback

from hf_plr import PLRTrainer
from hf_plr.trainer.callbacks import TrainingStopped
from hf_plr.trainer.checkpoints.finding import (
    FILE_LIST,
    CheckpointError,
    find_defect,
    last_complete_checkpoint,
    list_checkpoints,
)
from hf_plr.trainer.checkpoints.run_state import STATE_FILE, load_state, name_part, save_part, save_state
from hf_plr.trainer.checkpoints.writing import ASIDE, _write_file_list


@pytest.fixture(scope="module")
def whole(tmp_path_factory, some_digits):
    """A run without interruption."""
    trainer = tiny.image_trainer(tmp_path_factory.mktemp("whole"), some_digits)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def after_two_epochs(tmp_path_factory, some_digits):
    """The folder of a run that was stopped after two of three epochs."""
    out = tmp_path_factory.mktemp("interrupted")
    tiny.image_trainer(out, some_digits, {"callbacks": [StopAt(14)]}).train()
    return out


# ---- incomplete checkpoints ------------------------------------------------------------------------------------------


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
def test_an_incomplete_checkpoint_is_passed_over(
    make_trainer, whole, after_two_epochs, tmp_path, caplog, damage, message
):
    shutil.copytree(after_two_epochs, tmp_path / "out")
    damage(tmp_path / "out" / "checkpoint-14")
    with pytest.raises(CheckpointError, match=f"checkpoint-14 is incomplete: {message}"):
        make_trainer().train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-14"))
    resumed = make_trainer()
    with caplog.at_level(logging.WARNING):
        resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-14 is incomplete and passed over" in caplog.text
    assert_same_run(whole, resumed)


def test_without_a_whole_checkpoint_it_says_so(make_trainer, tmp_path):
    with pytest.raises(CheckpointError, match="out holds no complete checkpoint"):
        make_trainer().train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="the checkpoint nowhere does not exist"):
        make_trainer().train(resume_from_checkpoint="nowhere")


def test_a_checkpoint_without_the_optimizer_is_refused(make_trainer, tmp_path, monkeypatch):
    make_trainer({"callbacks": [StopAt(7)]}, save_only_model=True).train()
    trainer = make_trainer()
    monkeypatch.setattr(trainer, "check_samples", None)
    with pytest.raises(CheckpointError, match=r"checkpoint-7 has no optimizer.pt, .* by save_only_model=True: start a"):
        trainer.train(resume_from_checkpoint=True)


def test_the_best_checkpoint_is_named_where_it_is_in_the_end(make_trainer, all_digits, tmp_path):
    trainer = make_trainer(
        {"eval_dataset": all_digits.select(range(60)), "compute_metrics": FallingScore()},
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert trainer.state.best_global_step == 7 < trainer.state.global_step
    for name, value in AutoModel.from_pretrained(best).state_dict().items():
        assert torch.equal(trainer.backbone.state_dict()[name], value), name
    assert best.parent == tmp_path / "out"
    assert find_defect(best) is None
    states = [json.loads((path / "trainer_state.json").read_text()) for path in list_checkpoints(tmp_path / "out")]
    assert all(ASIDE not in state["best_model_checkpoint"] for state in states)


@pytest.mark.parametrize("is_taken", [False, True])
def test_the_best_checkpoint_of_a_folder_that_was_moved_is_in_its_new_place(
    make_trainer, all_digits, tmp_path, is_taken
):
    arguments = {
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "num_train_epochs": 3,
    }
    scored = {"eval_dataset": all_digits.select(range(60)), "compute_metrics": FallingScore()}
    make_trainer({**scored, "callbacks": [StopAt(14)]}, **arguments).train()
    old, new = tmp_path / "out", tmp_path / "moved"
    old.rename(new)
    best = AutoModel.from_pretrained(new / "checkpoint-7").state_dict()
    if is_taken:  # by another run
        make_trainer(scored, **arguments, seed=1).train()
    trainer = make_trainer(scored, **arguments, output_dir=str(new))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.best_model_checkpoint == str(new / "checkpoint-7")
    for name, value in best.items():
        assert torch.equal(trainer.backbone.state_dict()[name], value), name


def test_the_best_checkpoint_is_kept_however_its_folder_is_spelled(make_trainer, all_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "score"}
    scored = {"eval_dataset": all_digits.select(range(60)), "compute_metrics": FallingScore()}
    make_trainer({**scored, "callbacks": [StopAt(14)]}, **arguments, output_dir="out", num_train_epochs=4).train()
    trainer = make_trainer(scored, **arguments, output_dir="out", num_train_epochs=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-14"))
    assert trainer.state.best_model_checkpoint == "out/checkpoint-7"
    assert [path.name for path in list_checkpoints("out")] == ["checkpoint-28", "checkpoint-7"]


def test_a_best_checkpoint_that_is_gone_is_told(make_trainer, all_digits, tmp_path, caplog):
    arguments = {"eval_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "score"}
    scored = {"eval_dataset": all_digits.select(range(60)), "compute_metrics": FallingScore()}
    make_trainer({**scored, "callbacks": [StopAt(14)]}, **arguments).train()
    shutil.rmtree(tmp_path / "out" / "checkpoint-7")
    trainer = make_trainer(scored, **arguments)
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-7, cannot be kept for the end: it is not there" in caplog.text
    assert trainer.state.best_model_checkpoint is None


def test_a_checkpoint_of_an_older_run_goes_first_whatever_its_step(make_trainer, tmp_path):
    old = tmp_path / "out" / "checkpoint-1000"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    make_trainer(save_total_limit=1).train()
    assert [path.name for path in list_checkpoints(tmp_path / "out")] == ["checkpoint-21"]


def test_checkpoints_of_an_earlier_run_are_warned_of(make_trainer, tmp_path, caplog):
    out = tmp_path / "out"
    make_trainer(num_train_epochs=2).train()
    assert "earlier run" not in caplog.text
    make_trainer(num_train_epochs=1).train()
    assert f"{out} holds checkpoint-14 and 1 more of an earlier run, which this one leaves there" in caplog.text
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-14", "checkpoint-7"]
    os.utime(out / "checkpoint-14", (0, 0))
    caplog.clear()
    make_trainer(num_train_epochs=2).train(resume_from_checkpoint=True)
    assert caplog.text.count("checkpoint-14 is resumed, as the last by number of steps, but checkpoint-7 was") == 1
    caplog.clear()
    make_trainer(num_train_epochs=1).train(resume_from_checkpoint=str(out / "checkpoint-7"))
    assert "began anew" not in caplog.text
    lose_the_optimizer(out / "checkpoint-14")  # written after checkpoint-7, which is resumed
    os.utime(out / "checkpoint-7", (0, 0))
    make_trainer(num_train_epochs=1).train(resume_from_checkpoint=True)
    assert "checkpoint-14 is incomplete and passed over" in caplog.text
    assert "began anew" not in caplog.text


def test_a_resumption_that_is_refused_leaves_no_losses_behind(make_trainer, whole, after_two_epochs, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(after_two_epochs / "checkpoint-14", damaged)
    state, settings = load_state(damaged)
    save_state(damaged, {name: value for name, value in state.items() if name != "labels"}, settings)
    sizes = json.loads((damaged / FILE_LIST).read_text())
    sizes[STATE_FILE] = (damaged / STATE_FILE).stat().st_size
    (damaged / FILE_LIST).write_text(json.dumps(sizes))
    trainer = make_trainer()
    with pytest.raises(ValueError, match="'labels'"):
        trainer.train(resume_from_checkpoint=str(damaged))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert losses[0] == next(entry["loss"] for entry in whole.state.log_history if "loss" in entry)


def test_parts_of_processes_are_read_by_their_own_and_missed(tmp_path):
    save_state(tmp_path, {"prototypes": np.ones(3)}, {"processes": 2}, parts=2)
    for process in range(2):
        save_part(tmp_path, {"labels": np.full(4, process)}, process, 2)
    _write_file_list(tmp_path)
    for process in range(2):
        state, settings = load_state(tmp_path, process, 2)
        assert state["labels"].tolist() == [process] * 4
        assert state.keys() == {"prototypes", "labels"}
        assert settings == {"processes": 2}
    assert load_state(tmp_path, 0, 4)[0].keys() == {"prototypes"}  # that there are four is refused by the settings
    assert find_defect(tmp_path) is None
    (tmp_path / name_part(1, 2)).unlink()
    assert find_defect(tmp_path) == "plr_state-00002-of-00002.safetensors is missing"
    load_state(tmp_path, 0, 2)
    with pytest.raises(
        ValueError, match=r"has no plr_state-00002-of-00002\.safetensors, with the labels of one of the 2"
    ):
        load_state(tmp_path, 1, 2)


def test_a_checkpoint_without_the_part_of_a_process_is_an_error(tmp_path, some_digits, monkeypatch):
    """As where machines share no folder: what others have written is not there."""

    def save_without_others(self, directory):
        save(self, directory)
        save_part(directory, {"labels": np.zeros(3)}, 0, 2)
        for process in there:
            save_part(directory, {"labels": np.zeros(3)}, process, 2)

    save = PLRTrainer._save_run_state
    monkeypatch.setattr(PLRTrainer, "_save_run_state", save_without_others)
    trainer = tiny.image_trainer(tmp_path / "out", some_digits, num_train_epochs=1)
    there = [1]
    trainer.train()
    assert find_defect(list_checkpoints(tmp_path / "out")[0]) is None
    there = []
    with pytest.raises(CheckpointError, match=r"00002-of-00002.safetensors is missing, .* all machines share"):
        tiny.image_trainer(tmp_path / "other", some_digits, num_train_epochs=1).train()
    assert list_checkpoints(tmp_path / "other") == []


def test_shards_resume_bit_for_bit(tmp_path, some_digits):
    settings = {"label_shards": 4, "per_device_eval_batch_size": 32, "refinement": "auto", "feature_source": "epoch"}
    whole = tiny.image_trainer(tmp_path / "whole", some_digits, **settings)
    whole.train()
    tiny.image_trainer(tmp_path / "out", some_digits, {"callbacks": [StopAt(10)]}, **settings).train()  # in an epoch
    unsharded = tiny.image_trainer(tmp_path / "out", some_digits, **{**settings, "label_shards": 1})
    with pytest.raises(ValueError, match="label_shards was 4 and is None"):
        unsharded.train(resume_from_checkpoint=True)
    resumed = tiny.image_trainer(tmp_path / "out", some_digits, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    assert list((tmp_path / "out").glob("checkpoint-*/plr_state-*")) == []  # one process has one file


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_was_saved(make_trainer, whole, tmp_path):
    class FullDisk(TrainerCallback):
        """No file may grow beyond 20 kB: writing fails with an error of the system, as on a full disk."""

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 14:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint-14 could not be written: .*checkpoint-7 is complete"):
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
    assert last_complete_checkpoint(tmp_path / "out")[0] == tmp_path / "out" / "checkpoint-7"


def test_the_mean_loss_of_a_resumed_run_is_of_its_own_steps(make_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 13, "num_train_epochs": 2, "logging_strategy": "epoch"}
    whole = make_trainer(**settings)
    mean = whole.train().training_loss
    resumed = make_trainer(**settings)
    last = resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-13")).training_loss
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert mean == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert last < 2 * max(losses)  # of one step, not of seven


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
    refresh_units = trainer._refresh_units
    weights = trainer.backbone.encoder.layer_norm.weight
    first = []

    def damaged(round_, layer):
        if round_ == 1:
            first.append(trainer.frame_units.labels.copy())
            kept = weights.detach().clone()
            with torch.no_grad():
                weights.fill_(float("nan"))
            try:
                refresh_units(round_, layer)
            finally:
                with torch.no_grad():
                    weights.copy_(kept)
                np.testing.assert_array_equal(trainer.frame_units.labels, first[0])
        else:
            refresh_units(round_, layer)

    monkeypatch.setattr(trainer, "_refresh_units", damaged)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "This epoch keeps the labels of the last one" in caplog.text
    assert trainer.frame_units.round == 2


def test_nan_weights_are_not_saved(make_trainer, tmp_path):
    class Diverge(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 10:
                with torch.no_grad():
                    next(model.parameters()).fill_(float("nan"))

    with pytest.raises(ValueError, match=r"step 14: weights are NaN.*checkpoint-7 is complete"):
        make_trainer({"callbacks": [Diverge()]}).train()
    assert [path.name for path in list_checkpoints(tmp_path / "out")] == ["checkpoint-7"]


class TerminateIn(TrainerCallback):
    """SIGTERM in a step, counted from 1."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_without_a_checkpoint_promises_none(make_trainer):
    with pytest.raises(TrainingStopped) as stopped:
        make_trainer({"callbacks": [TerminateIn(3)]}, save_strategy="no").train()
    assert str(stopped.value).startswith("Stopped by SIGTERM at step 3 of 21, without a checkpoint")
    assert "resume" not in str(stopped.value)


def test_sigterm_saves_at_the_end_of_an_epoch_that_is_not_the_best(make_trainer, some_digits, tmp_path, monkeypatch):
    scores = iter([0.5, 0.4])
    monkeypatch.setattr("hf_plr.trainer.base_trainer.score_against_gallery", lambda *_: {"mine": next(scores)})
    best = {"save_strategy": "best", "eval_strategy": "epoch", "metric_for_best_model": "mine"}
    parts = {"callbacks": [TerminateIn(14)], "eval_dataset": some_digits.select(range(8))}
    with pytest.raises(TrainingStopped, match=r"resumes from .*checkpoint-14\."):
        make_trainer(parts, greater_is_better=True, **best).train()
    assert [path.name for path in list_checkpoints(tmp_path / "out")] == ["checkpoint-14", "checkpoint-7"]


def test_sigterm_saves_and_stops(make_trainer, whole, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingStopped, match="at step 10 of 21") as stopped:
        make_trainer({"callbacks": [TerminateIn(10)]}).train()
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert last_complete_checkpoint(tmp_path / "out")[0] == tmp_path / "out" / "checkpoint-10"
    resumed = make_trainer()
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_jit_checkpoints_of_trainer_are_refused(make_trainer):
    with pytest.raises(ValueError, match="enable_jit_checkpoint=True is not supported: SIGTERM saves"):
        make_trainer(enable_jit_checkpoint=True)
