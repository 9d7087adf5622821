"""The stage's labels and figures, against the same computed sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import adjusted_rand_score

from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.stage import RefinementStage


class Given:
    """A clusterer that gives labels which were drawn before, one vector after the other."""

    def __init__(self, labelings):
        self.labelings = iter(labelings)

    def fit_predict(self, features):
        return next(self.labelings)


def drawn_labels(n=4000, n_clusters=12, seed=0):
    """Two labelings, of which the second differs in a tenth of the samples; a twentieth is noise."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, n_clusters, n)
    second = np.where(rng.random(n) < 0.1, rng.integers(0, n_clusters, n), first)
    for labels in (first, second):
        labels[rng.random(n) < 0.05] = -1
    return first, second


def stage_of(labelings, **settings):
    return RefinementStage(Given(labelings), PseudoLabelRefiner(noise="drop"), 1, Accelerator(cpu=True), **settings)


@pytest.mark.parametrize("min_confidence", [0.0, 0.7])
def test_figures_and_targets_are_those_of_the_samples(min_confidence):
    first, second = drawn_labels()
    stage = stage_of([first, second], min_confidence=min_confidence)
    features = torch.zeros(len(first), 1)
    stage.run(features, 0)
    before = stage.current.labels
    figures = stage.run(features, 1)
    now = stage.current

    assert now.previous_labels is before
    np.testing.assert_array_equal(now.raw_labels, second)
    trained = (now.labels >= 0) & (now.confidence >= min_confidence)
    assert 0 < trained.sum() < len(first)
    ids = np.unique(now.labels[trained])
    np.testing.assert_array_equal(now.targets, np.where(trained, np.searchsorted(ids, now.labels), -1))
    assert now.n_clusters == len(ids) == figures["clusters"]
    assert figures["clusters_raw"] == 12
    assert figures["noise_share"] == (now.labels == -1).mean()
    assert figures["left_out_share"] == (now.targets == -1).mean()
    assert figures["mean_confidence"] == pytest.approx(now.confidence.mean(dtype=np.float64), rel=1e-6)
    assert figures["agreement_ari"] == pytest.approx(adjusted_rand_score(before, now.labels), abs=1e-12)


def test_labels_take_four_bytes_and_ids_of_any_size_are_kept():
    first, second = drawn_labels()
    stage = stage_of([first.astype(np.uint8) + 1, np.where(second < 0, -1, second + 2**40)])
    for epoch in range(2):
        stage.run(torch.zeros(len(first), 1), epoch)
        now = stage.current
        kept = (now.labels, now.previous_labels, now.targets)
        assert {array.dtype for array in kept} == {np.dtype(np.int32)}
        assert now.confidence.dtype == np.float32
        assert now.raw_labels.dtype == (np.int32, np.int64)[epoch]
    np.testing.assert_array_equal(now.raw_labels[second >= 0], second[second >= 0] + 2**40)
