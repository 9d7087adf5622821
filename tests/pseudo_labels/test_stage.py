"""The stage's labels and metrics, against the same computed sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import adjusted_rand_score

from hf_plr.clustering import as_clusterer
from hf_plr.features.centering import CenteredFeatures
from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.metrics import compute_stage_metrics
from hf_plr.pseudo_labels.soft_targets import SoftTargetTable
from hf_plr.pseudo_labels.stage import RefinementStage
from hf_plr.refinement import PseudoLabelRefiner


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


def stage_of(labelings, refiner=None, **settings):
    refiner = refiner or PseudoLabelRefiner(noise="drop")
    return RefinementStage(as_clusterer(Given(labelings)), refiner, 1, Accelerator(cpu=True), **settings)


def run(stage, n):
    """Two epochs of a stage on n samples: the labels of both, and the metrics of the second."""
    features = CenteredFeatures(torch.zeros(n, 1), torch.zeros(1), slice(0, n))
    epochs = []
    for epoch in range(2):
        clusters = stage.cluster(features.rows, epoch)
        epochs.append(stage.refine(clusters, epoch, features.part, previous=epochs[-1] if epochs else None))
    return epochs, compute_stage_metrics(*epochs, features.part, stage.accelerator)


@pytest.mark.parametrize("min_confidence", [0.0, 0.7])
def test_metrics_and_targets_are_those_of_the_samples(min_confidence):
    first, second = drawn_labels()
    stage = stage_of([first, second], min_confidence=min_confidence)
    (before, now), metrics = run(stage, len(first))

    assert now.previous_labels is before.labels
    np.testing.assert_array_equal(now.raw_labels, second)
    trained = (now.labels >= 0) & (now.confidence >= min_confidence)
    assert 0 < trained.sum() < len(first)
    ids = np.unique(now.labels[trained])
    np.testing.assert_array_equal(now.targets, np.where(trained, np.searchsorted(ids, now.labels), -1))
    assert now.n_clusters == len(ids) == metrics["clusters"]
    assert metrics["clusters_raw"] == 12
    assert metrics["noise_share"] == (now.labels == -1).mean()
    assert metrics["left_out_share"] == (now.targets == -1).mean()
    assert metrics["mean_confidence"] == pytest.approx(now.confidence.mean(dtype=np.float64), rel=1e-6)
    assert metrics["agreement_ari"] == pytest.approx(adjusted_rand_score(before.labels, now.labels), abs=1e-12)


def test_labels_take_four_bytes_and_ids_of_any_size_are_kept():
    first, second = drawn_labels()
    stage = stage_of([first.astype(np.uint8) + 1, np.where(second < 0, -1, second + 2**40)])
    epochs, _ = run(stage, len(first))
    for epoch, now in enumerate(epochs):
        kept = (now.labels, now.previous_labels, now.targets)
        assert {array.dtype for array in kept} == {np.dtype(np.int32)}
        assert now.confidence.dtype == np.float32
        assert now.raw_labels.dtype == (np.int32, np.int64)[epoch]
    np.testing.assert_array_equal(now.raw_labels[second >= 0], second[second >= 0] + 2**40)


def dense_soft_targets(previous, current, weight=0.7):
    """Soft targets from the definition, sample by sample: a blend with the normalised intersection over union."""
    n_before, n_now = previous.max() + 1, current.max() + 1
    was, is_now = (labels[:, None] == np.arange(n) for labels, n in ((previous, n_before), (current, n_now)))
    both = (was[:, :, None] & is_now[:, None, :]).sum(axis=0)
    union = was.sum(axis=0)[:, None] + is_now.sum(axis=0)[None] - both
    projection = both / union
    projection /= projection.sum(axis=1, keepdims=True)
    past = np.where((previous >= 0)[:, None], projection[previous], 0.0)
    expected = weight * is_now + (1 - weight) * past
    expected[previous < 0] = is_now[previous < 0]
    expected[current < 0] = past[current < 0]
    return expected


def test_soft_targets_are_a_blend_with_the_projection_and_take_noise_back_in():
    first, second = drawn_labels()
    stage = stage_of([first, second], PseudoLabelRefiner.from_preset("soft"))
    (before, now), metrics = run(stage, len(first))
    assert before.soft_targets is None
    expected = dense_soft_targets(first, second)
    np.testing.assert_allclose(now.soft_targets.rows(np.arange(len(first))), expected, atol=1e-7)
    some = np.array([7, 3, 7, 3999])
    np.testing.assert_allclose(now.soft_targets.rows(some), expected[some], atol=1e-7)
    table = SoftTargetTable([now.soft_targets] * 2, [0, 100], torch.device("cpu"))  # of two labelings, both this one
    columns, shares = table.rows(torch.from_numpy(some))
    for labeling, start in enumerate((0, 100)):
        rows = torch.zeros(len(some), expected.shape[1])
        rows.scatter_add_(1, torch.where(shares > 0, columns - start, 0)[:, labeling], shares[:, labeling])
        np.testing.assert_allclose(rows.numpy(), expected[some], atol=1e-6)
    taken_back = (second < 0) & (first >= 0)
    assert taken_back.any()
    np.testing.assert_array_equal(now.targets[taken_back], expected[taken_back].argmax(axis=1))
    np.testing.assert_array_equal(now.targets[~taken_back], second[~taken_back])
    taught = np.flatnonzero(now.targets >= 0)
    assert metrics["soft_share"] == pytest.approx(1.0 - expected[taught, now.targets[taught]].mean())


def test_confidence_of_soft_labels_is_the_share_on_the_own_cluster():
    """Also where most of a cluster's column comes from members of another: a few that a large one left behind."""
    first = np.repeat([0, 1], [40, 160])
    second = np.where(np.arange(200) < 2, 0, 1)
    stage = stage_of([first, second], PseudoLabelRefiner.from_preset("soft"))
    (_, now), _ = run(stage, len(first))
    expected = dense_soft_targets(first, second)
    np.testing.assert_allclose(now.confidence, expected[np.arange(200), second], rtol=1e-6)


def test_joint_soft_labels_are_no_targets():
    with pytest.raises(ValueError, match="assignment='soft' needs space='projected'"):
        stage_of([], PseudoLabelRefiner(space="joint", assignment="soft"))


def test_soft_targets_stay_small_where_every_cluster_projects_onto_every_other():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 200, (2, 100_000))
    stage = stage_of([first, second], PseudoLabelRefiner.from_preset("soft"))
    (_, now), _ = run(stage, len(first))
    rows = now.soft_targets.cells.rows()
    state = {name: value for name, value in now.state_dict().items() if name.startswith("soft.")}
    assert sum(value.nbytes for value in state.values()) < (rows.data.nbytes + rows.indices.nbytes) / 50


def test_soft_targets_come_back_from_a_state():
    first, second = drawn_labels()
    stage = stage_of([first, second], PseudoLabelRefiner.from_preset("soft"), min_confidence=0.8)
    (_, now), _ = run(stage, len(first))
    other = PseudoLabels.from_state(now.state_dict())
    everything = np.arange(len(first))
    expected = now.soft_targets.rows(everything)
    np.testing.assert_array_equal(other.soft_targets.rows(everything), expected)
