"""`UnitTrainer`: HuBERT's objective on refined units."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from helpers.runs import StopAt, assert_same_weights, weights
from transformers import AutoModel, TrainerCallback

from hf_plr import PLRTrainingArguments, UnitTrainer
from hf_plr.cli import main
from hf_plr.clustering import KMeans
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.trainer.best_metric import LABEL_SCORES_OF_FRAMES, OF_FRAMES
from hf_plr.units.encoder import UnitEncoder
from hf_plr.units.frames import Frames


def figures(trainer, name):
    return [entry[f"plr/{name}"] for entry in trainer.state.log_history if f"plr/{name}" in entry]


def test_it_predicts_units_better_and_every_parameter_changes(make_sound_trainer):
    trainer = make_sound_trainer(num_train_epochs=6, relabel_every=3, learning_rate=3e-3)
    before = weights(trainer)
    trainer.train()
    unused = {"units"}  # embeddings of numbers that no unit had
    assert {name for name, value in weights(trainer).items() if torch.equal(value, before[name])} <= unused
    moved = (trainer.model.units != before["units"]).any(dim=1)
    assert 12 <= moved.sum() <= 24
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[2] < losses[0]
    assert figures(trainer, "round") == [0, 1]
    assert figures(trainer, "units") == [12, 12]


def test_the_first_round_clusters_mfcc_and_the_next_the_layer(make_sound_trainer, monkeypatch):
    sources = []
    run = UnitTrainer._refresh_units

    def noted(self, round_, layer):
        sources.append(Frames(self.extractor, self.train_dataset, layer).source)
        return run(self, round_, layer)

    monkeypatch.setattr(UnitTrainer, "_refresh_units", noted)
    make_sound_trainer().train()
    assert sources == ["MFCC", "layer 2", "layer 2"]
    sources.clear()
    make_sound_trainer(first_units="layer", unit_layer=1, num_train_epochs=1).train()
    assert sources == ["layer 1"]


def test_gradient_checkpointing_changes_nothing(make_sound_trainer):
    trained = []
    for checkpointing in (False, True):
        trainer = make_sound_trainer(num_train_epochs=1, save_strategy="no", gradient_checkpointing=checkpointing)
        trainer.train()
        layer = trainer.backbone.encoder.layers[0]
        assert layer.gradient_checkpointing is checkpointing
        trained.append(weights(trainer))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, msg=name)


def test_frames_in_a_stream_are_those_of_all_at_once(make_sound_trainer):
    trainer = make_sound_trainer(frame_scaling="none")
    frames = Frames(trainer.extractor, trainer.train_dataset, 1)
    assert frames.counts.sum() == sum(len(rows) for rows in frames.stream(torch.arange(83)))
    rows = torch.cat(list(frames.stream(torch.arange(83))))
    trainer.stage.fit_frames = 10**9
    trainer.stage.fit(frames, 0)
    clusters = trainer.stage.assign(frames, 0)
    whole = KMeans(12, spherical=False, seed=42).fit(rows)
    np.testing.assert_array_equal(clusters, whole.labels_)
    assert isinstance(clusters, np.memmap)
    assert clusters.dtype == np.int16


def test_fitting_on_a_share_takes_no_more_frames_than_asked_for(make_sound_trainer, monkeypatch):
    fitted = []
    fit = KMeans.fit_predict_shard

    def noted(self, rows, accelerator):
        fitted.append(len(rows))
        return fit(self, rows, accelerator)

    monkeypatch.setattr(KMeans, "fit_predict_shard", noted)
    make_sound_trainer(fit_frames=500, num_train_epochs=1).train()
    assert 500 <= fitted[0] < 560  # up to the end of the recording in which the 500th is


@pytest.mark.parametrize(
    ("stop_at", "refinement", "workers", "ema_decay"),
    [(3, "slr", 0, 0.9), (4, "joint", 2, 0.9), (4, "slr", 0, 0.0), (3, "none", 2, 0.0)],
)
def test_resume_is_bit_exact(make_sound_trainer, tmp_path, stop_at, refinement, workers, ema_decay):
    arguments = {"refinement": refinement, "dataloader_num_workers": workers, "ema_decay": ema_decay}
    arguments["feature_dir"] = str(tmp_path / "labels")
    whole = make_sound_trainer(output_dir=str(tmp_path / "whole"), **arguments)
    whole.train()
    stopped = {"callbacks": [StopAt(stop_at)]}
    make_sound_trainer(trainer=stopped, output_dir=str(tmp_path / "part"), **arguments).train()
    resumed = make_sound_trainer(output_dir=str(tmp_path / "part"), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{stop_at}"))
    assert_same_weights(weights(whole), weights(resumed))
    assert_same_weights(whole.backbone.state_dict(), resumed.backbone.state_dict())  # of the EMA teacher, if any
    np.testing.assert_array_equal(whole.frame_units.labels, resumed.frame_units.labels)
    whole.save_labels(tmp_path / "whole")
    resumed.save_labels(tmp_path / "part")
    for name in ("centroids.safetensors", "units.parquet"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()
    assert list((tmp_path / "labels").iterdir()) == []  # files without names


def test_published_units_are_those_of_the_run(make_sound_trainer, some_sounds, tmp_path, capsys):
    trainer = make_sound_trainer()
    trainer.train()
    trainer.save_model()
    trainer.save_labels(trainer.args.output_dir)
    published = pd.read_parquet(tmp_path / "out" / "units.parquet")
    assert published["index"].tolist() == list(range(83))
    model, report = AutoModel.from_pretrained(trainer.args.output_dir, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == "HubertModel"

    (tmp_path / "new").mkdir()
    some_sounds.to_parquet(tmp_path / "new" / "train.parquet")
    command = ["units", "--model", trainer.args.output_dir, "--dataset", str(tmp_path / "new"), "--batch_size", "8"]
    assert main([*command, "--output", str(tmp_path / "units.parquet")]) == 0
    assert "83 recordings" in capsys.readouterr().out
    found = pd.read_parquet(tmp_path / "units.parquet")
    assert found["index"].tolist() == list(range(83))
    assert all(np.array_equal(one, other) for one, other in zip(found["units"], published["units"], strict=True))
    # The run's numbers: most frames have the unit that the last refinement gave them.
    order = np.argsort(trainer.train_dataset.rows)
    refined = np.split(trainer._published_units.labels, trainer._bounds[1:-1])
    refined = np.concatenate([refined[i] for i in order])
    assert (np.concatenate(list(found["units"])) == refined).mean() > 0.9

    assert main([*command, "--output", str(tmp_path / "units.parquet")]) == 2
    assert "give --overwrite to replace it" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "units.csv")]) == 2
    assert "units are written as .parquet" in capsys.readouterr().err


class SaveLabels(TrainerCallback):
    """Saves the labels twice after an epoch, in the middle of training."""

    def __init__(self, epoch, folder):
        self.epoch, self.folder, self.trainer = epoch, folder, None

    def on_epoch_end(self, args, state, control, **kwargs):
        if round(state.epoch) == self.epoch:
            for name in ("first", "second"):
                (self.folder / name).mkdir()
                self.trainer.save_labels(self.folder / name)


def test_labels_that_are_saved_in_the_middle_of_a_run_leave_it_as_it_is(make_sound_trainer, tmp_path):
    arguments = {"num_train_epochs": 4, "relabel_every": 2, "save_strategy": "no"}
    alone = make_sound_trainer(output_dir=str(tmp_path / "alone"), **arguments)
    alone.train()
    saving = SaveLabels(3, tmp_path)
    trainer = make_sound_trainer(trainer={"callbacks": [saving]}, output_dir=str(tmp_path / "saving"), **arguments)
    saving.trainer = trainer
    trainer.train()
    assert figures(trainer, "round") == figures(alone, "round") == [0, 1]
    assert trainer.frame_units.round == 1
    assert_same_weights(weights(alone), weights(trainer))
    np.testing.assert_array_equal(alone.frame_units.labels, trainer.frame_units.labels)
    for name in ("centroids.safetensors", "units.parquet"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()

    alone.save_labels(tmp_path / "alone")
    trainer.save_labels(tmp_path / "saving")
    assert trainer.frame_units.round == 1
    assert figures(trainer, "round") == [0, 1, 2]  # of what is published, in the report of the run
    for name in ("centroids.safetensors", "units.parquet"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "saving" / name).read_bytes()
    state, expected = trainer.label_state(), alone.label_state()
    assert all(np.array_equal(value, expected[name]) for name, value in state.items())


def test_a_model_without_centroids_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no centroids\.safetensors: give the output folder of `hf-plr"):
        UnitEncoder.load(tmp_path)
    with pytest.raises(ValueError, match=r"the Hub cannot be reached, and centroids\.safetensors of no/where"):
        UnitEncoder.load("no/where")
    with pytest.raises(ValueError, match=r"/no/where is not a folder here, and the Hub has no centroids\.safetensors"):
        UnitEncoder.load("/no/where")


def test_a_refiner_that_makes_more_units_than_there_is_room_for_is_refused(make_sound_trainer):
    every_cell = PseudoLabelRefiner.from_preset("joint", min_cluster_size=1)
    trainer = make_sound_trainer(trainer={"refiner": every_cell})
    with pytest.raises(ValueError, match=r"the refiner made unit \d+, but with num_clusters=12 numbers are below 24"):
        trainer.train()


def test_scoring_leaves_the_model_as_it_was(make_sound_trainer):
    trainer = make_sound_trainer(num_train_epochs=1)
    scores = trainer.score("before")
    assert set(scores) == {
        "knn_accuracy",
        "weighted_knn_accuracy",
        "linear_probe_accuracy",
        "nmi",
        "clustering_accuracy",
    }
    trainer.train()
    assert all(0.0 <= trainer.state.log_history[0][f"plr/{name}"] <= 1.0 for name in ("pnmi", "cluster_purity"))
    assert isinstance(trainer.extractor, FeatureExtractor)
    assert (
        trainer.evaluate(eval_dataset=None if trainer.eval_dataset else trainer.train_dataset)["eval_knn_accuracy"] > 0
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"augmentation": "waveform"}, "augmentation='waveform': units belong to frames"),
        ({"refinement": "rlcc"}, "refinement='rlcc' gives soft targets"),
        ({"refinement": "nested"}, "refinement='nested' trains on several levels, frames on one"),
        ({"unit_layer": 3}, "unit_layer=3 is outside 0 to 2"),
        ({"num_clusters": 10**6}, "num_clusters=1000000 but the recordings have"),
        ({"num_clusters": 50, "fit_frames": 49}, "fit_frames=49 is below num_clusters=50"),
        ({"num_clusters": None, "fit_frames": 99}, "fit_frames=99 is below num_clusters=100"),
        ({"relabel_every": 0}, "relabel_every=0 must be at least 1"),
        ({"mask_probability": 0.0}, r"mask_probability=0.0 is outside \(0, 1\]"),
        ({"first_units": "fbank"}, "first_units='fbank' is unknown: use one of mfcc, layer"),
        ({"unmasked_weight": -1.0}, "unmasked_weight=-1.0 must be at least 0"),
        ({"unit_temperature": 0.0}, "unit_temperature=0.0 must be above 0"),
    ],
)
def test_what_does_not_fit_is_named(make_sound_trainer, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_sound_trainer(**arguments)


def test_recordings_in_which_no_frame_can_be_hidden_are_refused(make_sound_trainer):
    waveforms = [np.random.default_rng(i).normal(0, 0.1, 250) for i in range(8)]
    clicks = Dataset.from_dict({"audio": [{"array": waveform, "sampling_rate": 8000} for waveform in waveforms]})
    arguments = {"trainer": {"train_dataset": clicks}, "num_clusters": 4, "num_train_epochs": 1}
    with pytest.raises(ValueError, match="each of the 8 recordings is of a single frame, and none can be hidden"):
        make_sound_trainer(**arguments)
    trainer = make_sound_trainer(**arguments, unmasked_weight=1.0)
    assert trainer.train().training_loss > 0


def test_its_arguments_are_needed(tmp_path, some_sounds, tiny_hubert):
    with pytest.raises(TypeError, match="args must be UnitTrainingArguments, not PLRTrainingArguments"):
        UnitTrainer(tiny_hubert(), PLRTrainingArguments(str(tmp_path)), some_sounds)


@pytest.mark.parametrize(
    ("refiner", "message"),
    [
        (
            PseudoLabelRefiner(n_levels=3),
            "the refiner has n_levels=3, but frames are trained on one level",
        ),
        (
            PseudoLabelRefiner.from_preset("soft"),
            "the refiner gives soft targets, which frames do not take",
        ),
    ],
)
def test_a_refiner_whose_result_frames_do_not_take_is_refused(make_sound_trainer, refiner, message):
    with pytest.raises(ValueError, match=message):
        make_sound_trainer(trainer={"refiner": refiner})


def test_a_refiner_that_is_passed_in_is_told_of(make_sound_trainer):
    own = make_sound_trainer(trainer={"refiner": PseudoLabelRefiner(weight=0.7)})
    assert "refinement by a refiner of your own; a loss of" in own.describe_clusters()
    assert own.run_settings()["refinement"] == "by a refiner of your own"
    assert "refinement slr; a loss of" in make_sound_trainer().describe_clusters()


def test_the_best_model_by_metrics_of_rounds(make_sound_trainer):
    best = {"eval_strategy": "epoch", "load_best_model_at_end": True}
    with pytest.raises(ValueError, match="'plr/churn': no stage gives it; those that need no labels are round, units"):
        make_sound_trainer(**best, metric_for_best_model="plr/churn").train()
    trainer = make_sound_trainer(**best, metric_for_best_model="plr/agreement_ari")
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_plr/units" in entry]
    assert ["eval_plr/agreement_ari" in entry for entry in entries] == [False, True, True]
    assert trainer.state.best_metric == max(entry["eval_plr/agreement_ari"] for entry in entries[1:])
    for entry in entries:
        names = {name.removeprefix("eval_plr/") for name in entry} - {"epoch", "step"}
        assert names <= {*OF_FRAMES, "agreement_ari", *LABEL_SCORES_OF_FRAMES}
    assert set(LABEL_SCORES_OF_FRAMES) <= {name.removeprefix("eval_plr/") for name in entries[0]}
