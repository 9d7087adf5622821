"""Damaged files of centroids, and those of another backbone, are refused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.damaged import check_damaged

from hf_plr.units.encoder import CENTROIDS_FILE, UnitEncoder

pytestmark = pytest.mark.timeout(300)


def test_published_centroids(tmp_path):
    encoder = UnitEncoder(np.random.default_rng(0).random((7, 5), np.float32), np.arange(7) * 3 - 1, 1)
    encoder.save(tmp_path)

    def read():
        found = UnitEncoder.load(tmp_path)
        assert (found.centroids.ndim, found.centroids.dtype) == (2, np.float32)
        assert np.isfinite(found.centroids).all()
        assert (found.units.shape, found.units.dtype) == ((len(found.centroids),), np.int64)
        assert found.units.min() >= -1
        assert found.layer >= 0

    check_damaged(tmp_path / CENTROIDS_FILE, read)


def test_centroids_of_another_backbone_are_refused(make_sound_trainer):
    trainer = make_sound_trainer()
    for encoder in (UnitEncoder(np.zeros((4, 31), np.float32), np.arange(4), 1),
                    UnitEncoder(np.zeros((4, 32), np.float32), np.arange(4), 3)):  # fmt: skip
        with pytest.raises(ValueError, match="they belong to another backbone"):
            next(encoder.encode(trainer.extractor, trainer.train_dataset))
