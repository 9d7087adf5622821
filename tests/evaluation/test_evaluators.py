"""Evaluators that are passed in: objects and plain functions."""

from __future__ import annotations

import json

import pytest

from hf_plr.evaluation.evaluators import Evaluator, FeatureEvaluator, FunctionEvaluator
from hf_plr.evaluation.intervals import Scored
from hf_plr.evaluation.scores import score_features
from hf_plr.report.terminal_summary import format_summary


def spread(trainer):
    """A score that needs no labels."""
    return {"spread": float(trainer.extract_features().std())}


def test_by_default_features_are_scored_where_there_are_labels(make_trainer, some_digits):
    assert isinstance(make_trainer().evaluator, FeatureEvaluator)
    without = make_trainer({"train_dataset": some_digits.remove_columns("label")})
    assert without.evaluator is None
    assert without.score("before") == {}


def test_metrics_that_are_never_computed_are_warned_of(make_trainer, some_digits, caplog):
    words = "compute_metrics is never called: there is no label column"
    make_trainer({"compute_metrics": lambda prediction: {}})
    make_trainer({"train_dataset": some_digits.remove_columns("label")})
    assert words not in caplog.text
    make_trainer({"train_dataset": some_digits.remove_columns("label"), "compute_metrics": lambda prediction: {}})
    assert words in caplog.text


def test_a_function_scores_without_labels_and_is_told_everywhere(make_trainer, some_digits, tmp_path):
    trainer = make_trainer(
        {"train_dataset": some_digits.remove_columns("label"), "evaluator": spread},
        num_train_epochs=1,
        score_every=1,
    )
    assert isinstance(trainer.evaluator, FunctionEvaluator)
    before = trainer.score("before")["spread"]
    trainer.train()
    after = trainer.score("after")["spread"]
    assert after != before
    (logged,) = [entry["score/spread"] for entry in trainer.state.log_history if "score/spread" in entry]
    assert logged == pytest.approx(after)
    words = format_summary(trainer.summary(), 1.0, ("command", "words"))
    assert f"{before:>8.3f}{after:>8.3f}" in words
    assert "(by spread)" in words
    trainer.publisher.write_metrics(1.0)
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]
    assert scores == {"before": {"spread": before}, "after": {"spread": after}}


def test_an_evaluator_gives_intervals_titles_and_true_labels(make_trainer):
    class Fixed(Evaluator):
        def __init__(self):
            self.titles = {"one": "The one"}

        def __call__(self, trainer):
            return Scored({"one": 0.5, "untitled": 1.0}, {"one": (0.4, 0.6)})

        def true_labels(self, trainer):
            return trainer.train_dataset.true_labels() % 2

    trainer = make_trainer({"evaluator": Fixed()}, num_train_epochs=1)
    trainer.train()
    trainer.score("after")
    assert trainer.intervals["after"] == {"one": (0.4, 0.6)}
    assert trainer.summary().score_rows(with_intervals=True) == [("The one", "0.500 (0.40 to 0.60)")]
    assert trainer.score_labels()["purity"] > 0.5  # of two classes, even and odd


def test_what_cannot_be_called_is_refused(make_trainer):
    with pytest.raises(TypeError, match="evaluator='knn' is not callable: give an Evaluator or a function"):
        make_trainer({"evaluator": "knn"})


BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch"}


@pytest.mark.parametrize("metric", [None, "knn_accuracy", "eval_nmi"])
def test_the_best_model_by_scores_needs_labels_where_it_is_evaluated(make_trainer, some_digits, metric):
    settings = {**BEST, "metric_for_best_model": metric}
    unlabelled = some_digits.remove_columns("label")
    with pytest.raises(ValueError, match="needs a label column"):
        make_trainer({"train_dataset": unlabelled, "eval_dataset": some_digits}, **settings)
    with pytest.raises(ValueError, match="needs an eval_dataset with labels"):
        make_trainer(**settings)
    with pytest.raises(ValueError, match="needs the column 'label' in eval_dataset"):
        make_trainer({"eval_dataset": unlabelled}, **settings)
    with pytest.raises(ValueError, match=r"several evaluation sets: name one of first_.*, second_"):
        make_trainer({"eval_dataset": {"first": some_digits, "second": some_digits}}, **settings)
    make_trainer({"eval_dataset": some_digits}, **settings)
    make_trainer({"eval_dataset": {"first": some_digits}}, **BEST, metric_for_best_model="first_knn_accuracy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric_for_best_model": "loss"}, "metric_for_best_model='loss': no evaluation gives it"),
        ({"metric_for_best_model": "eval_loss", **BEST}, "with metric_for_best_model='eval_loss': no evaluation gives"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "default of lr_scheduler_type='reduce_lr_on_plateau': no eval"),
        ({"metric_for_best_model": "knn_acuracy"}, "one of knn_accuracy, "),
    ],
)
def test_a_score_that_no_evaluation_gives_is_refused_at_the_start(make_trainer, some_digits, settings, message):
    settings = {"eval_strategy": "epoch", **settings}
    with pytest.raises(ValueError, match=message):
        make_trainer({"eval_dataset": some_digits}, **settings)
    with pytest.raises(ValueError, match=message):
        make_trainer({"train_dataset": some_digits.remove_columns("label")}, **settings)
    make_trainer({"eval_dataset": some_digits, "compute_metrics": lambda prediction: {"loss": 0.0}}, **settings)


def test_scores_of_classes_are_not_offered_where_an_evaluator_of_ones_own_scores(make_trainer, some_digits):
    others = {"train_dataset": some_digits.remove_columns("label"), "evaluator": lambda trainer: {"mAP": 1.0}}
    message = "no evaluation gives it. Take .* such as plr/silhouette; scores that score_every logs pick no checkpoint$"
    with pytest.raises(ValueError, match=message):
        make_trainer(others, eval_strategy="epoch", metric_for_best_model="mAP")


def test_all_labelled_samples_are_the_gallery_of_an_evaluation_set(make_trainer, some_digits, monkeypatch):
    monkeypatch.setattr("hf_plr.evaluation.evaluators.GALLERY_SAMPLES", 60)
    labels = [label if row % 4 == 1 else -1 for row, label in enumerate(some_digits["label"])]  # 51 of 203
    few = some_digits.remove_columns("label").add_column("label", labels)
    trainer = make_trainer({"train_dataset": few, "eval_dataset": some_digits})
    seen = []

    def score(features, labels, *others, **settings):
        seen.append(labels)
        return score_features(features, labels, *others, **settings)

    monkeypatch.setattr("hf_plr.evaluation.evaluators.score_features", score)
    assert "eval_knn_accuracy" in trainer.evaluate()
    assert seen[0].tolist() == [label for label in labels if label >= 0]


def test_what_is_scored_is_told_anew_each_time(make_trainer, some_digits):
    trainer = make_trainer({"eval_dataset": some_digits.select(range(40))})
    trainer.score("before")
    assert trainer.evaluator.describe("images") == "the test split"
    trainer.eval_dataset = None
    trainer.score("after")
    assert trainer.evaluator.describe("images") == "the training images, cross-validated"
