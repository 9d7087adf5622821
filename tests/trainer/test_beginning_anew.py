"""A trainer whose `train` is called again without resuming begins anew, from the weights that it has."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny
from helpers.runs import StopAt

from hf_plr import PLRTrainer, UnitTrainer
from hf_plr.clustering import KMeans
from hf_plr.refinement import NOISE


def labels_of(trainer):
    return [labeling.pseudo_labels.labels for labeling in trainer.labelings]


@pytest.mark.parametrize("arguments", [{}, {"refinement": "auto"}, {"refinement": "nested", "num_clusters": 4}])
def test_a_second_training_is_that_of_a_new_trainer(make_trainer, tmp_path, some_digits, arguments):
    arguments = {"num_train_epochs": 1, "feature_source": "epoch", **arguments}
    trainer = make_trainer(**arguments)
    trainer.train()
    trainer.save_model(str(tmp_path / "first"))
    trainer.train()
    other = tiny.image_trainer(tmp_path / "other", some_digits, {"model": str(tmp_path / "first")}, **arguments)
    other.from_scratch = trainer.from_scratch
    other.cluster_space._candidates = trainer.cluster_space._candidates  # of the weights that both began with
    other.train()
    first, expected = trainer.state.log_history[0], other.state.log_history[0]
    assert "plr/agreement_ari" not in first
    timeless = {name for name in expected if "seconds" not in name}
    assert {name: first[name] for name in timeless} == {name: expected[name] for name in timeless}
    for labels, others in zip(labels_of(trainer), labels_of(other), strict=True):
        assert np.array_equal(labels, others)
    assert (trainer.pseudo_labels.previous_labels == NOISE).all()
    assert [each.stage.refiner.next_number for each in trainer.labelings] == [
        each.stage.refiner.next_number for each in other.labelings
    ]


def test_a_trial_finds_the_space_again(make_trainer, monkeypatch):
    found = []
    name = "hf_plr.features.cluster_space.find_stable_shrinkage"
    monkeypatch.setattr(name, lambda *args: found.append(1.0 + len(found)) or found[-1])
    trainer = make_trainer(num_train_epochs=1)
    for shrinkage in (1.0, 2.0):
        trainer.train()
        assert trainer.cluster_space.shrinkage == shrinkage


def test_a_clusterer_of_ones_own_goes_back_to_the_centers_that_it_was_given_with(make_trainer):
    given = KMeans(5)
    trainer = make_trainer({"clusterer": given}, num_train_epochs=1)
    trainer.train()
    assert given.state_dict()
    trainer.begin_labels()
    assert not given.state_dict()


def test_a_training_that_resumes_goes_on(make_trainer):
    trainer = make_trainer({"callbacks": [StopAt(7)]}, num_train_epochs=2)
    trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert "plr/agreement_ari" in [entry for entry in trainer.state.log_history if "plr/clusters" in entry][1]


def test_a_run_that_continues_another_continues_it_again(make_trainer, tmp_path, some_digits):
    before = make_trainer(num_train_epochs=1)
    before.train()
    before.save_model()
    before.save_labels(str(tmp_path / "out"))
    trainer = tiny.image_trainer(
        tmp_path / "next", some_digits, {"model": None}, num_train_epochs=1, continue_from=str(tmp_path / "out")
    )
    for _ in range(2):
        trainer.train()
        assert np.array_equal(trainer.pseudo_labels.previous_labels, before.pseudo_labels.labels)


def test_units_begin_anew(make_sound_trainer):
    trainer = make_sound_trainer(num_train_epochs=1)
    trainer.train()
    units = trainer.frame_units.labels.copy()
    trainer.train()
    assert "plr/agreement_ari" not in trainer.state.log_history[0]
    assert np.array_equal(trainer.frame_units.labels, units)  # of MFCC, which no weights change


@pytest.mark.parametrize("kind", [PLRTrainer, UnitTrainer])
def test_a_copy_of_a_refiner_is_what_it_returns_to(kind, make_trainer, make_sound_trainer):
    trainer = make_trainer(num_train_epochs=1) if kind is PLRTrainer else make_sound_trainer(num_train_epochs=1)
    trainer.train()
    stage = trainer.labelings[0].stage if kind is PLRTrainer else trainer.stage
    refiner = stage.refiner
    stage.begin_anew()
    assert stage.refiner is refiner
    assert refiner.next_number == 0
    assert not refiner.history
