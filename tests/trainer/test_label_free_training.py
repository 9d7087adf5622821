"""Scores without labels in training: what is logged, what `evaluate` says, and that nothing changes by it."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers.runs import StopAt, assert_same_weights, weights
from transformers import EarlyStoppingCallback

from hf_plr.features.centering import CenteredFeatures
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.trainer import plr_trainer

EVERY_STAGE = ("effective_rank", "silhouette", "size_entropy", "largest_share", "mean_confidence", "noise_share")
FROM_THE_SECOND = ("agreement_ari", "churn", "kept", "split", "merged", "reshaped", "born", "died")


@pytest.fixture
def unlabelled(some_digits):
    return some_digits.remove_columns("label")


def stages(trainer):
    return [entry for entry in trainer.state.log_history if "plr/seconds" in entry]


def evaluations(trainer):
    return [entry for entry in trainer.state.log_history if "eval_plr/silhouette" in entry]


@pytest.fixture
def passes(monkeypatch):
    """How many samples were extracted, call by call."""
    calls = []
    extract = FeatureExtractor.extract

    def counted(self, store, positions, *args, **kwargs):
        calls.append(len(positions))
        return extract(self, store, positions, *args, **kwargs)

    monkeypatch.setattr(FeatureExtractor, "extract", counted)
    return calls


def test_every_stage_logs_scores_without_labels(make_trainer):
    trainer = make_trainer(num_train_epochs=3)
    trainer.train()
    first, second, third = stages(trainer)
    for name in EVERY_STAGE:
        assert f"plr/{name}" in first
    for name in FROM_THE_SECOND:
        assert f"plr/{name}" not in first
        assert f"plr/{name}" in second
        assert f"plr/{name}" in third
    labels = trainer.pseudo_labels
    assert third["plr/churn"] == pytest.approx((labels.labels != labels.previous_labels).mean())
    assert 1.0 <= third["plr/effective_rank"] <= 32.0


def test_evaluation_takes_no_pass_of_its_own_and_changes_nothing(make_trainer, unlabelled, passes):
    make_trainer({"train_dataset": unlabelled}).check_samples(extract=False)  # so that both know of all samples
    plain = make_trainer({"train_dataset": unlabelled}, num_train_epochs=3)
    plain.train()
    without = list(passes)
    passes.clear()
    trainer = make_trainer({"train_dataset": unlabelled}, num_train_epochs=3, eval_strategy="epoch")
    trainer.train()
    assert len(passes) == len(without) + 1  # the last evaluation, after which there is no stage
    assert_same_weights(weights(plain), weights(trainer))
    assert (plain.pseudo_labels.labels == trainer.pseudo_labels.labels).all()
    found = evaluations(trainer)
    assert len(found) == 3
    for entry, stage in zip(found, stages(trainer)[1:], strict=False):  # the next stage sees the same weights
        assert entry["eval_plr/effective_rank"] == stage["plr/effective_rank"]
    for entry, stage in zip(found, stages(trainer), strict=True):  # but the labels are those of this epoch
        assert entry["eval_plr/clusters"] == stage["plr/clusters"]


def test_features_of_the_last_epoch_are_not_taken_from_training_by_an_evaluation(make_trainer, unlabelled):
    arguments = {"num_train_epochs": 3, "feature_source": "epoch"}
    plain = make_trainer({"train_dataset": unlabelled}, **arguments)
    plain.train()
    trainer = make_trainer({"train_dataset": unlabelled}, **arguments, eval_strategy="epoch")
    trainer.train()
    assert_same_weights(weights(plain), weights(trainer))
    assert len(evaluations(trainer)) == 3


def test_the_best_checkpoint_without_any_label(make_trainer, unlabelled):
    trainer = make_trainer(
        {"train_dataset": unlabelled},
        num_train_epochs=3,
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="plr/effective_rank",
    )
    trainer.train()
    ranks = [entry["eval_plr/effective_rank"] for entry in evaluations(trainer)]
    assert trainer.state.best_metric == max(ranks)
    assert trainer.label_free_scores()["effective_rank"] == pytest.approx(max(ranks), rel=1e-4)


def test_early_stopping_by_a_score_that_should_be_low(make_trainer, unlabelled):
    trainer = make_trainer(
        {
            "train_dataset": unlabelled,
            "callbacks": [EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=2.0)],
        },
        num_train_epochs=9,
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_plr/noise_share",
    )
    assert trainer.args.greater_is_better is False
    trainer.train()
    assert len(evaluations(trainer)) == 2  # nothing is better than the first by 2


def test_an_evaluation_set_with_labels_has_both_kinds_of_scores(make_trainer, some_digits):
    trainer = make_trainer({"eval_dataset": some_digits.select(range(50))}, num_train_epochs=1, eval_strategy="epoch")
    trainer.train()
    (entry,) = evaluations(trainer)
    assert "eval_knn_accuracy" in entry
    assert "eval_plr/effective_rank" in entry
    assert not any("plr/" in name for name in trainer.evaluate(some_digits, metric_key_prefix="test"))


def test_only_the_first_of_several_evaluation_sets_has_them(make_trainer, some_digits):
    sets = {"a": some_digits.select(range(40)), "b": some_digits.select(range(40, 80))}
    trainer = make_trainer({"eval_dataset": sets}, num_train_epochs=1, eval_strategy="epoch")
    trainer.train()
    (entry,) = evaluations(trainer)
    assert "eval_a_knn_accuracy" in entry


def test_before_training_there_is_nothing_to_say(make_trainer, unlabelled):
    assert make_trainer({"train_dataset": unlabelled}).evaluate() == {}


def test_a_resumed_run_evaluates_as_the_whole_one(make_trainer, unlabelled, tmp_path):
    arguments = {"num_train_epochs": 3, "eval_strategy": "epoch", "output_dir": str(tmp_path / "whole")}
    whole = make_trainer({"train_dataset": unlabelled}, **arguments)
    whole.train()
    arguments["output_dir"] = str(tmp_path / "cut")
    cut = make_trainer({"train_dataset": unlabelled, "callbacks": [StopAt(10)]}, **arguments)
    cut.train()
    resumed = make_trainer({"train_dataset": unlabelled}, **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights(whole), weights(resumed))
    assert len(evaluations(whole)) == 3
    for one, other in zip(evaluations(whole), evaluations(resumed), strict=True):
        assert {name: value for name, value in one.items() if "seconds" not in name} == {
            name: value for name, value in other.items() if "seconds" not in name
        }


def test_a_collapse_is_warned_of(make_trainer, unlabelled, monkeypatch, caplog):
    def collapsed(features, accelerator=None, out=None):
        rows = torch.nn.functional.normalize(torch.ones_like(features) + 1e-3 * features, dim=1)
        return CenteredFeatures(rows, features.mean(dim=0), slice(0, len(rows)))

    trainer = make_trainer({"train_dataset": unlabelled}, num_train_epochs=1)
    trainer.train()
    with caplog.at_level(logging.WARNING, "hf_plr"):
        trainer.prepare_epoch(1)
        assert "collapsing" not in caplog.text
        monkeypatch.setattr(plr_trainer, "center_features", collapsed)
        trainer.prepare_epoch(2)
    assert "may be collapsing" in caplog.text
