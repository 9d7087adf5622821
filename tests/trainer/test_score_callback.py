"""Scores during training: what is logged, and that the run does not notice."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from helpers.runs import StopAt, assert_same_run
from transformers import TrainerCallback

from hf_plr.evaluation.clusters import CLUSTER_SCORES, score_clusters
from hf_plr.evaluation.scores import SCORES


def generators():
    """The states of all global random generators."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


class RandomStates(TrainerCallback):
    """Notes the random generators at every step, and the modes of all modules where an epoch has been scored."""

    def __init__(self):
        self.states, self.modes = [], []

    def on_step_end(self, args, state, control, **kwargs):
        self.states.append(generators())

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        if any(name.startswith("score/knn") for name in logs):
            self.modes.append([module.training for module in model.modules()])


def feature_scores(trainer):
    """The logged scores of features, which are taken out of the log."""
    log = trainer.state.log_history
    found = [entry for entry in log if "score/knn_accuracy" in entry or "score/mAP" in entry]
    trainer.state.log_history = [entry for entry in log if entry not in found]
    return found


def assert_same_generators(one, other):
    assert len(one.states) == len(other.states) > 0
    assert one.states == other.states


def both(make, tmp_path, parts=None, **arguments):
    """A run that is scored after every epoch and one that is not, with what they noted."""
    runs = []
    for every in (1, 0):
        noted = RandomStates()
        out = str(tmp_path / f"every {every}")
        trainer = make(trainer={"callbacks": [noted], **(parts or {})}, output_dir=out, score_every=every, **arguments)
        trainer.train()
        runs += [trainer, noted]
    return runs


@pytest.mark.parametrize("arguments", [{}, {"ema_decay": 0.5, "image_cache_gib": 0.0}], ids=["plain", "ema"])
def test_a_scored_run_is_the_run_that_is_not(make_trainer, all_digits, tmp_path, arguments):
    parts = {"eval_dataset": all_digits.select(range(1_700, 1_760))} if arguments else {}
    scored, noted, plain, unscored = both(make_trainer, tmp_path, parts, **arguments)
    entries = feature_scores(scored)
    assert_same_run(plain, scored)  # the losses in the log are among it
    assert_same_generators(noted, unscored)
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    names = {f"score/{name}" for name in SCORES}
    for entry in entries:
        assert names <= entry.keys()
        for name in names - {"score/nmi"}:
            assert entry[f"{name}_low"] <= entry[name] <= entry[f"{name}_high"]
    last = {name: entries[-1][f"score/{name}"] for name in SCORES}
    assert scored.score("after") == last == plain.score("after")
    assert scored.scores.keys() == {"after"}


def test_every_module_gets_its_mode_back(make_trainer):
    noted = RandomStates()
    trainer = make_trainer({"callbacks": [noted]}, score_every=1, num_train_epochs=2)
    trainer.train()
    assert noted.modes == [[True] * len(list(trainer.model.modules()))] * 2
    trainer.model.train()
    frozen = list(trainer.model.modules())[5]
    frozen.eval()
    before = [module.training for module in trainer.model.modules()]
    states = generators()
    assert trainer.score("now")
    assert [module.training for module in trainer.model.modules()] == before
    assert not all(before)
    assert generators() == states


def test_a_resumed_run_is_scored_as_the_uninterrupted_one(make_trainer, tmp_path):
    whole = make_trainer(score_every=2, num_train_epochs=4, output_dir=str(tmp_path / "whole"))
    whole.train()
    settings = {"num_train_epochs": 4, "output_dir": str(tmp_path / "torn")}
    make_trainer({"callbacks": [StopAt(11)]}, score_every=2, **settings).train()  # in the second epoch
    resumed = make_trainer(score_every=2, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    assert [entry["epoch"] for entry in feature_scores(resumed)] == [2, 4]
    other = make_trainer(score_every=1, **settings)  # how often a run is scored is no part of what it is
    other.train(resume_from_checkpoint=str(tmp_path / "torn" / "checkpoint-28"))


def test_pseudo_labels_are_scored_at_every_stage(make_trainer, some_digits):
    labels = [label * 7 - 20 if position % 4 else None for position, label in enumerate(some_digits["label"])]
    features = some_digits.features | {"label": Value("int64")}
    partly = Dataset.from_dict({"label": labels, "image": some_digits["image"]}, features=Features(features))
    trainer = make_trainer({"train_dataset": partly})
    trainer.train()
    stages = [entry for entry in trainer.state.log_history if "plr/seconds" in entry]
    truth = np.array([-1 if label is None else (label + 20) // 7 for label in labels])
    expected = score_clusters(trainer.pseudo_labels.labels, truth)
    assert {name: stages[-1][f"score/pseudo_label_{name}"] for name in CLUSTER_SCORES} == expected
    assert all(f"score/pseudo_label_{name}" in entry for entry in stages for name in CLUSTER_SCORES)


def test_without_labels_nothing_is_scored_and_that_is_said(make_trainer, some_digits, caplog):
    trainer = make_trainer({"train_dataset": some_digits.remove_columns("label")}, score_every=1, num_train_epochs=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "score_every=1, but there is no label column" in caplog.text
    assert not any(name.startswith("score/") for entry in trainer.state.log_history for name in entry)
    with pytest.raises(ValueError, match="score_every=-1 must be at least 0"):
        make_trainer(score_every=-1)


def test_units_of_frames_too(make_sound_trainer, tmp_path):
    scored, noted, plain, unscored = both(make_sound_trainer, tmp_path, num_train_epochs=2)
    assert [entry["epoch"] for entry in feature_scores(scored)] == [1, 2]
    assert_same_run(plain, scored)
    assert_same_generators(noted, unscored)
