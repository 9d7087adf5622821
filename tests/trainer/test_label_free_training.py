"""Scores without labels in training: what is logged, what `evaluate` says, and that nothing changes by it."""

from __future__ import annotations

import logging

import pytest
import torch
from helpers.runs import StopAt, assert_same_weights, weights
from helpers.tiny import tiny_vit
from transformers import EarlyStoppingCallback

from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.features.centering import CenteredFeatures
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.models.vision import small_vit_processor
from hf_plr.trainer import plr_trainer
from hf_plr.trainer.best_metric import LABEL_SCORES, LABELINGS, OF_CHANGES, OF_SAMPLES, SOFT, check_stage_metric

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


BEST = {"eval_strategy": "epoch", "load_best_model_at_end": True, "num_train_epochs": 3}


@pytest.mark.parametrize("metric", ["plr/agreement_ari", "eval_plr/churn", "plr/kept"])
def test_the_best_checkpoint_by_a_change_is_one_after_the_second_stage(make_trainer, unlabelled, metric):
    trainer = make_trainer({"train_dataset": unlabelled}, **BEST, metric_for_best_model=metric)
    trainer.train()
    name = f"eval_{metric.removeprefix('eval_')}"
    first, *values = [entry.get(name) for entry in evaluations(trainer)]
    assert first is None
    assert trainer.state.best_metric == (min(values) if "churn" in metric else max(values))
    assert trainer.state.best_global_step > 7


@pytest.mark.parametrize("settings", [{}, {"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 2}])
def test_a_schedule_by_a_change_begins_after_the_second_stage(make_trainer, unlabelled, monkeypatch, settings):
    arguments = {**BEST, "load_best_model_at_end": False, **settings, "metric_for_best_model": "plr/churn"}
    trainer = make_trainer({"train_dataset": unlabelled}, **arguments, lr_scheduler_type="reduce_lr_on_plateau")
    seen = []
    step = torch.optim.lr_scheduler.ReduceLROnPlateau.step
    monkeypatch.setattr(
        torch.optim.lr_scheduler.ReduceLROnPlateau, "step", lambda self, value: seen.append(value) or step(self, value)
    )
    trainer.train()
    assert seen == [entry["eval_plr/churn"] for entry in evaluations(trainer) if "eval_plr/churn" in entry]
    assert 0 < len(seen) < len(evaluations(trainer))


def test_metrics_of_ones_own_may_have_any_name(make_trainer, some_digits):
    others = {"eval_dataset": some_digits.select(range(40)), "compute_metrics": lambda prediction: {"plr/own": 1.0}}
    trainer = make_trainer(others, **BEST, metric_for_best_model="plr/own")
    check_stage_metric(trainer)
    trainer.compute_metrics = None
    with pytest.raises(ValueError, match="no stage gives it"):
        check_stage_metric(trainer)


def test_a_label_score_of_a_subclass_is_its_own(unlabelled, tmp_path):
    class Own(PLRTrainer):
        def label_free_scores(self):
            return super().label_free_scores() | {"score/pseudo_label_nmi": 0.5}

    settings = {**BEST, "save_strategy": "epoch", "metric_for_best_model": "plr/score/pseudo_label_nmi"}
    arguments = PLRTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **settings)
    trainer = Own(tiny_vit(), arguments, unlabelled, small_vit_processor(16))
    check_stage_metric(trainer)


@pytest.mark.parametrize(
    ("metric", "settings", "message"),
    [
        ("plr/silhouettes", {}, "no stage gives it; those that need no labels are clusters, .*silhouette"),
        ("plr/score/pseudo_label_nmi", {}, "it needs true labels, and there are none. Take plr/silhouette"),
        ("plr/soft_share", {}, "refinement makes no soft targets"),
        ("plr/labelings_ari", {}, "there is one labeling"),
    ],
)
def test_a_metric_that_no_stage_gives_is_refused_at_the_start(make_trainer, unlabelled, metric, settings, message):
    trainer = make_trainer({"train_dataset": unlabelled}, **BEST, metric_for_best_model=metric, **settings)
    with pytest.raises(ValueError, match=f"metric_for_best_model='{metric}': {message}"):
        trainer.train()
    assert not trainer.has_begun


def test_every_metric_that_is_taken_is_in_the_log(make_trainer, unlabelled, some_digits):
    for data, settings in ((some_digits, {"refinement": "soft", "num_labelings": 2}), (unlabelled, {})):
        trainer = make_trainer({"train_dataset": data}, num_train_epochs=2, **settings)
        trainer.train()
        given = {f"plr/{name}" for name in trainer.label_free_scores()}
        for metric in (*OF_SAMPLES, *OF_CHANGES, *LABEL_SCORES, SOFT, LABELINGS):
            trainer.args.eval_strategy, trainer.args.metric_for_best_model = "epoch", f"plr/{metric}"
            if f"plr/{metric}" in given:
                check_stage_metric(trainer)
                given.discard(f"plr/{metric}")
            else:
                with pytest.raises(ValueError, match="metric_for_best_model"):
                    check_stage_metric(trainer)
        assert given == set()


def test_a_subclass_may_have_metrics_of_its_own(make_trainer, unlabelled):
    class Own(PLRTrainer):
        def label_free_scores(self):
            return super().label_free_scores() | {"mine": -float(self.state.global_step)}

    arguments = PLRTrainingArguments(
        make_trainer().args.output_dir, num_clusters=12, **BEST, metric_for_best_model="plr/mine", use_cpu=True
    )
    trainer = Own(tiny_vit(), arguments, unlabelled, small_vit_processor(16))
    trainer.train()
    assert trainer.state.best_global_step == trainer.state.max_steps // 3


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


def drop(log, logs):
    return log({name: value for name, value in logs.items() if not name.startswith(("plr/", "score/"))})


def rename(log, logs):
    return log({name.replace("/", "."): value for name, value in logs.items()})


def keep_few(log, logs):
    return log({name: value for name, value in logs.items() if name != "plr/churn"})


def log_nothing(log, logs):
    return None


@pytest.mark.parametrize("change", [drop, rename, keep_few, log_nothing])
def test_metrics_of_stages_are_kept_whatever_a_subclass_logs(make_trainer, some_digits, monkeypatch, capsys, change):
    arguments = {"num_train_epochs": 3, "score_every": 1}
    plain = make_trainer(**arguments)
    plain.train()
    lines = [line.rpartition(",")[0] for line in capsys.readouterr().out.splitlines() if " stage:" in line]

    def changed(trainer):
        log = trainer.log
        monkeypatch.setattr(trainer, "log", lambda logs, *_: change(log, dict(logs)))
        return trainer

    stopped = changed(make_trainer({"callbacks": [StopAt(10)]}, **arguments))
    stopped.train()
    resumed = changed(make_trainer(**arguments))
    resumed.train(resume_from_checkpoint=True)
    printed = [line.rpartition(",")[0] for line in capsys.readouterr().out.splitlines() if " stage:" in line]
    assert printed == ([] if change is log_nothing else lines)
    of_plain, of_changed = plain.summary(), resumed.summary()
    assert [entry.keys() for entry in of_plain.stages] == [entry.keys() for entry in of_changed.stages]
    assert of_changed.cluster_facts() == of_plain.cluster_facts()
    assert resumed.label_free_scores() == plain.label_free_scores()
    assert of_changed.epoch_scores == of_plain.epoch_scores
    assert len(of_plain.epoch_scores) == 3


def test_an_evaluation_set_with_labels_has_both_kinds_of_scores(make_trainer, some_digits):
    trainer = make_trainer({"eval_dataset": some_digits.select(range(50))}, num_train_epochs=1, eval_strategy="epoch")
    trainer.train()
    (entry,) = evaluations(trainer)
    assert "eval_knn_accuracy" in entry
    assert "eval_plr/effective_rank" in entry
    assert not any("plr/" in name for name in trainer.evaluate(some_digits, metric_key_prefix="test"))


def test_without_an_evaluation_set_there_are_label_free_scores_alone(make_trainer, unlabelled):
    trainer = make_trainer({"train_dataset": unlabelled, "eval_dataset": {}}, num_train_epochs=1)
    trainer.train()
    for scores in (trainer.evaluate(), trainer.evaluate({})):
        assert "eval_plr/silhouette" in scores
        assert all(name == "epoch" or name.startswith("eval_plr/") for name in scores)
    assert not any("plr/" in name for name in trainer.predict(unlabelled.select(range(9))).metrics)


def test_scores_of_an_evaluation_that_fails_are_in_no_prediction(make_trainer, some_digits):
    trainer = make_trainer(num_train_epochs=1)
    trainer.train()
    with pytest.raises(ValueError, match="the data set is empty"):
        trainer.evaluate(some_digits.select([]))
    assert not any("plr/" in name for name in trainer.predict(some_digits.select(range(9))).metrics)


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
