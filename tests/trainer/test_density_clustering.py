"""The Trainer with density clustering, which leaves samples out."""

from __future__ import annotations

import numpy as np
import pytest

from hf_plr import ReciprocalDBSCAN


def test_density_clustering_trains_and_leaves_noise_out(make_trainer):
    trainer = make_trainer({"clusterer": ReciprocalDBSCAN(eps=0.5, k1=8, k2=3)}, num_train_epochs=2)
    trainer.train()
    labels = trainer.pseudo_labels
    assert 2 <= labels.n_clusters < 100
    assert 0 < (labels.raw_labels == -1).mean() < 1
    np.testing.assert_array_equal(labels.targets == -1, labels.labels == -1)


def test_nothing_but_noise_is_an_error_that_says_what_to_change(make_trainer):
    trainer = make_trainer({"clusterer": ReciprocalDBSCAN(eps=0.0, k1=8)}, num_train_epochs=1, cluster_space="centered")
    with pytest.raises(ValueError, match="all 203 samples are noise"):
        trainer.train()


@pytest.mark.parametrize(
    ("name", "settings"), [("dbscan", '{"eps": 0.5, "k1": 8, "k2": 3}'), ("hdbscan", None), ("agglomerative", None)]
)
def test_clusterers_by_name(make_trainer, name, settings):
    trainer = make_trainer(clusterer=name, clusterer_kwargs=settings, num_train_epochs=1, save_strategy="no")
    trainer.train()
    assert trainer.pseudo_labels.n_clusters >= 2


def test_settings_of_a_clusterer_are_checked_before_any_work(make_trainer):
    with pytest.raises(ValueError, match="dbscan has no argument 'epsilon'"):
        make_trainer(clusterer="dbscan", clusterer_kwargs={"epsilon": 0.5})
    with pytest.raises(ValueError, match="clusterer_kwargs='eps=1' is not JSON"):
        make_trainer(clusterer="dbscan", clusterer_kwargs="eps=1")
    with pytest.raises(ValueError, match="must be a JSON object"):
        make_trainer(clusterer="dbscan", clusterer_kwargs="[1]")


def test_an_epoch_may_have_a_number_of_steps(make_trainer):
    trainer = make_trainer(num_train_epochs=2, steps_per_epoch=9, gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.state.global_step == 18
    assert trainer.pseudo_labels.epoch == 1
    with pytest.raises(ValueError, match="steps_per_epoch=0"):
        make_trainer(steps_per_epoch=0)
