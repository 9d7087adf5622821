"""Evaluation during training and by itself: what is scored, and which checkpoint is the best."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.runs import assert_same_weights, weights

from hf_plr.hub.push import read_trained_epochs


def test_evaluation_during_training_and_the_best_checkpoint(make_trainer, all_digits):
    trainer = make_trainer(
        {"eval_dataset": all_digits.select(range(1500, 1600))},
        eval_strategy="epoch",
        load_best_model_at_end=True,
        num_train_epochs=3,
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_knn_accuracy" in entry]
    assert len(entries) == 3
    assert {"eval_nmi", "eval_linear_probe_accuracy", "eval_clustering_accuracy"} <= entries[0].keys()
    assert trainer.state.best_metric == max(entry["eval_knn_accuracy"] for entry in entries)
    best = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint)
    assert_same_weights(weights(trainer), best.state_dict())


def test_weights_of_an_earlier_epoch_are_called_so(make_trainer, all_digits, tmp_path):
    scores = iter([0.9, 0.1, 0.2])
    trainer = make_trainer(
        {"eval_dataset": all_digits.select(range(1500, 1520)), "compute_metrics": lambda _: {"mine": next(scores)}},
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="mine",
        num_train_epochs=3,
    )
    assert trainer.summary().epochs_of_weights == 0
    trainer.train()
    assert (trainer.summary().epochs, trainer.summary().epochs_of_weights) == (3.0, 1.0)
    trainer.create_model_card()
    assert (
        "21 steps; the weights are those of epoch 1, the best by `mine`" in (tmp_path / "out" / "README.md").read_text()
    )
    trainer.write_report()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["run"]["weights_epoch"] == 1.0
    trainer.publisher.write_metrics(0.0)
    assert read_trained_epochs(tmp_path / "out") == 1.0


def test_a_card_that_is_written_again_leaves_the_scores(make_trainer, tmp_path):
    trainer = make_trainer(num_train_epochs=1)
    trainer.score("before")
    trainer.train()
    trainer.score("after")
    trainer.create_model_card()
    metrics = (tmp_path / "out" / "metrics.json").read_bytes()
    again = make_trainer(num_train_epochs=1)
    again.train(resume_from_checkpoint=True)  # nothing is left to train
    again.create_model_card(license="mit")
    assert (tmp_path / "out" / "metrics.json").read_bytes() == metrics
    again.score("after")
    again.create_model_card(license="mit")
    assert json.loads((tmp_path / "out" / "metrics.json").read_bytes())["scores"].keys() == {"after"}


def test_the_epoch_is_that_of_the_weights_where_a_better_step_was_not_saved(make_trainer, all_digits):
    scores = iter([0.1, 0.3, 0.9, 0.2])
    trainer = make_trainer(
        {"eval_dataset": all_digits.select(range(1500, 1520)), "compute_metrics": lambda _: {"mine": next(scores)}},
        eval_strategy="steps",
        eval_steps=7,
        save_strategy="steps",
        save_steps=14,
        load_best_model_at_end=True,
        metric_for_best_model="mine",
        num_train_epochs=4,
    )
    trainer.train()
    assert trainer.state.best_global_step == 21
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-14")
    best = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint)
    assert_same_weights(weights(trainer), best.state_dict())
    assert trainer.summary().epochs_of_weights == 2.0


def test_streams_are_evaluated_and_predicted(make_trainer, all_digits):
    trainer = make_trainer(num_train_epochs=1)
    held_out = all_digits.select(range(1500, 1530))
    stream = held_out.to_iterable_dataset()
    of_stream, of_data = (trainer.evaluate(data)["eval_knn_accuracy"] for data in (stream, held_out))
    assert of_stream == of_data
    np.testing.assert_array_equal(trainer.predict(stream).predictions, trainer.predict(held_out).predictions)


def test_evaluation_drops_no_sample_where_training_drops_the_last_batch(make_trainer, some_digits):
    trainer = make_trainer(dataloader_drop_last=True, per_device_eval_batch_size=16)
    assert len(trainer.predict(some_digits.select(range(24))).predictions) == 24
    assert trainer.args.dataloader_drop_last is True


def test_own_metrics_get_features_and_labels(make_trainer, all_digits):
    seen = {}

    def metrics(prediction):
        seen["shapes"] = prediction.predictions.shape, prediction.label_ids.shape
        return {"mine": 0.5}

    held_out = all_digits.select(range(1500, 1577))
    trainer = make_trainer({"eval_dataset": held_out, "compute_metrics": metrics})
    assert trainer.evaluate()["eval_mine"] == 0.5
    assert seen["shapes"] == ((77, 32), (77,))
    assert trainer.predict(held_out).predictions.shape == (77, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held_out: held_out.rename_column("image", "img"), "image_column='image' is not in the data set"),
        (lambda held_out: held_out.select([]), "the data set is empty"),
    ],
)
def test_evaluation_sets_that_cannot_be_read_are_named_before_training(make_trainer, all_digits, change, message):
    changed = change(all_digits.select(range(1500, 1520)))
    with pytest.raises(ValueError, match=f"eval_dataset: .*{message}"):
        make_trainer({"eval_dataset": changed})
    with pytest.raises(ValueError, match=rf"eval_dataset\['b'\]: .*{message}"):
        make_trainer({"eval_dataset": {"a": all_digits.select(range(1500, 1520)), "b": changed}})


def test_evaluation_sets_without_the_labels_that_score_are_told(make_trainer, all_digits, caplog):
    held_out = all_digits.select(range(1500, 1520))
    make_trainer({"eval_dataset": held_out})
    assert "is not scored by labels" not in caplog.text
    make_trainer({"eval_dataset": held_out.rename_column("label", "digit")})
    assert (
        "eval_dataset has no column 'label', by which the training samples are scored: it is not scored by labels. It "
        "has 'image', 'digit'."
    ) in caplog.text


def test_an_own_metric_of_several_sets_is_named_with_its_set(make_trainer, all_digits, caplog):
    sets = {"a": all_digits.select(range(1500, 1520)), "b": all_digits.select(range(1520, 1540))}
    given = {"eval_dataset": sets, "compute_metrics": lambda _: {"mine": 0.5}}
    arguments = {"eval_strategy": "epoch", "load_best_model_at_end": True, "num_train_epochs": 1}
    make_trainer(given, metric_for_best_model="mine", **arguments)  # a subclass may add it to the scores
    assert "compute_metrics gives a_mine, b_mine, one for each evaluation set" in caplog.text
    caplog.clear()
    trainer = make_trainer(given, metric_for_best_model="b_mine", **arguments)
    trainer.train()
    assert "compute_metrics gives" not in caplog.text
    assert trainer.state.best_metric == 0.5
