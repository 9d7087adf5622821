"""Confidence at work: samples whose label is doubtful count less, or are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.runs import weights

PLAIN = {"cluster_space": "centered", "pair_weight": 0.0}  # clusters that change enough to doubt them


def test_samples_that_are_all_doubtful_are_not_called_noise(make_trainer):
    with pytest.raises(ValueError, match=r"epoch .: no sample in a cluster has a confidence of at least"):
        make_trainer(min_confidence=1.0, refinement="consensus", num_labelings=1).train()


def test_doubtful_members_are_left_out_of_the_epoch_but_keep_their_labels(make_trainer):
    trainer = make_trainer(min_confidence=0.75, refinement="joint", num_train_epochs=2, **PLAIN)
    trainer.train()
    now = trainer.pseudo_labels
    doubtful = (now.labels >= 0) & (now.confidence < 0.75)
    assert doubtful.any()
    assert (now.targets[doubtful] == -1).all()
    trained = (now.labels >= 0) & ~doubtful
    assert set(now.targets[trained]) == set(range(now.n_clusters))
    assert len(set(zip(now.labels[trained], now.targets[trained], strict=True))) == now.n_clusters
    logged = [entry["plr/left_out_share"] for entry in trainer.state.log_history if "plr/left_out_share" in entry]
    assert logged[0] == 0.0  # the first epoch has nothing to doubt by
    assert logged[1] == pytest.approx((now.targets == -1).mean())


def test_weights_follow_confidence_and_average_to_one(make_trainer):
    trainer = make_trainer(confidence_power=2.0, num_train_epochs=2)
    trainer.train()
    now = trainer.pseudo_labels
    found = trainer.labelings[0].loss_weights()
    member = now.targets >= 0
    assert found[member].mean() == pytest.approx(1.0, rel=1e-5)
    assert found.std() > 0
    np.testing.assert_allclose(found, now.confidence**2 / (now.confidence[member] ** 2).mean(), rtol=1e-5)
    plain = make_trainer(num_train_epochs=1)
    plain.train()
    assert plain.labelings[0].loss_weights() is None


def test_doubtful_soft_targets_are_left_out_too(make_trainer):
    trainer = make_trainer(min_confidence=0.9, refinement="soft", num_train_epochs=2)
    trainer.train()
    now = trainer.pseudo_labels
    doubtful = now.confidence < np.float32(0.9)
    assert doubtful.any()
    assert not doubtful.all()
    np.testing.assert_array_equal(now.targets == -1, doubtful)
    taught = now.soft_targets.rows(np.arange(len(now.labels))).sum(axis=1)
    assert (taught[doubtful] == 0.0).all()
    assert (taught[~doubtful] > 0.9).all()  # what lies on clusters without a sure member is left out
    assert set(now.targets[~doubtful]) == set(range(now.n_clusters))
    logged = [entry["plr/left_out_share"] for entry in trainer.state.log_history if "plr/left_out_share" in entry]
    assert logged[1] == pytest.approx(doubtful.mean())


@pytest.mark.parametrize("refinement", ["slr", "rlcc"])
def test_it_changes_what_is_learned(make_trainer, refinement):
    learned = []
    for arguments in ({"confidence_power": 1.0, "min_confidence": 0.3}, {}):
        trainer = make_trainer(refinement=refinement, num_train_epochs=2, save_strategy="no", **arguments)
        trainer.train()
        learned.append(weights(trainer))
    assert any(not torch.equal(value, learned[1][name]) for name, value in learned[0].items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_confidence": 1.5}, r"min_confidence=1.5 is outside \[0, 1\]"),
        ({"confidence_power": -1.0}, "confidence_power=-1.0 must be at least 0"),
    ],
)
def test_values_outside_their_range_are_named(make_trainer, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**arguments)
