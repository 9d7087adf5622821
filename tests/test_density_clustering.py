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
    trainer = make_trainer({"clusterer": ReciprocalDBSCAN(eps=0.0, k1=8)}, num_train_epochs=1)
    with pytest.raises(ValueError, match="all 203 samples are noise"):
        trainer.train()
