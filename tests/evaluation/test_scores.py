"""Scores against hand-worked cases."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_plr.evaluation import scores
from hf_plr.evaluation.clusters import score_clusters
from hf_plr.evaluation.scores import assess_features, score_features


def blobs(n, spread, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return np.eye(3)[labels] * 5 + rng.normal(scale=spread, size=(n, 3)), labels


def test_clustering_accuracy_matches_clusters_to_classes_one_to_one():
    assert score_clusters(np.array([7, 7, 3, 3]), np.array([0, 0, 1, 1]))["accuracy"] == 1.0
    assert score_clusters(np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1]))["accuracy"] == 0.5
    clusters, labels = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 2])
    assert score_clusters(clusters, labels)["accuracy"] == pytest.approx(5 / 6)


def test_separate_classes_score_one_and_mixed_ones_less():
    features, labels = blobs(90, 0.05)
    assert score_features(features, labels) == {
        "knn_accuracy": 1.0,
        "weighted_knn_accuracy": 1.0,
        "linear_probe_accuracy": 1.0,
        "nmi": pytest.approx(1.0),
        "clustering_accuracy": 1.0,
    }
    features, labels = blobs(90, 8.0)
    assert all(score < 0.9 for score in score_features(features, labels).values())


def test_a_test_split_is_scored_with_the_rest_as_gallery():
    features, labels = blobs(90, 0.05)
    found = score_features(features, labels, features[:30], (labels[:30] + 1) % 3)
    assert found["clustering_accuracy"] == 1.0  # names of classes mean nothing to clusters
    assert found["knn_accuracy"] == 0.0


def test_unknown_labels_are_left_out_and_impossible_scores_too():
    features, labels = blobs(90, 0.05)
    partly = np.where(np.arange(90) < 60, labels, -1)
    features[60:] = np.nan_to_num(np.random.default_rng(1).normal(size=(30, 3)))
    assert score_features(features, partly)["knn_accuracy"] == 1.0
    assert score_features(features, np.zeros(90, dtype=int)) == {}
    assert score_features(features, np.full(90, -1)) == {}


def test_a_few_known_labels_give_scores_with_wide_intervals():
    features, labels = blobs(300, 2.5)
    few = np.full(300, -1)
    few[:40] = labels[:40]
    few[299] = 9  # a class of one: it cannot be cross-validated, and does not keep the others from it
    found, full = assess_features(features, few), assess_features(features, labels)
    assert found.values.keys() == full.values.keys()
    for name in ("knn_accuracy", "weighted_knn_accuracy", "linear_probe_accuracy"):
        low, high = found.intervals[name]
        assert low <= found.values[name] <= high
        assert high - low > 1.5 * np.diff(full.intervals[name])[0]
    assert found.intervals.keys() == found.values.keys() - {"nmi"}


def test_intervals_are_of_the_test_samples_with_a_known_label():
    features, labels = blobs(200, 2.5)
    partly = np.where(np.arange(100) < 60, labels[:100], -1)
    found = assess_features(features[100:], labels[100:], features[:100], partly)
    again = assess_features(features[100:], labels[100:], features[:60], labels[:60])
    assert found == again
    many = assess_features(features, labels, np.tile(features, (50, 1)), np.tile(labels, 50))
    assert many.intervals == {}  # 10,000 samples


def test_scores_are_those_of_scikit_learn():
    features, labels = blobs(203, 4.0)
    center = features.mean(axis=0)
    unit = (features - center) / np.linalg.norm(features - center, axis=1, keepdims=True)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    knn = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))
    found = KMeans(3, n_init=10, random_state=0).fit_predict(unit)
    table = contingency_matrix(labels, found)
    assert score_features(features, labels) == pytest.approx(
        {
            "knn_accuracy": cross_val_score(KNeighborsClassifier(5), unit, labels, cv=folds).mean(),
            "weighted_knn_accuracy": cross_val_score(knn, unit, labels, cv=folds).mean(),
            "linear_probe_accuracy": cross_val_score(probe, unit, labels, cv=folds).mean(),
            "nmi": normalized_mutual_info_score(labels, found),
            "clustering_accuracy": table[linear_sum_assignment(-table)].sum() / 203,
        }
    )


def test_scores_of_a_test_split_are_those_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(scores, "MAX_SAMPLES", 150)
    features, labels = blobs(500, 4.0)
    unit = features - features[:300].mean(axis=0)
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    drawn = np.sort(np.random.default_rng(0).choice(300, 150, replace=False))  # for the probe alone
    found = score_features(features[:300], labels[:300], features[300:], labels[300:])
    for name, classifier, trained in (
        ("knn_accuracy", KNeighborsClassifier(5), np.arange(300)),
        (
            "weighted_knn_accuracy",
            KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)),
            np.arange(300),
        ),
        ("linear_probe_accuracy", make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1)), drawn),
    ):
        expected = classifier.fit(unit[trained], labels[trained]).score(unit[300:], labels[300:])
        assert found[name] == pytest.approx(expected), name
    as_tensors = score_features(torch.tensor(features[:300]), labels[:300], torch.tensor(features[300:]), labels[300:])
    assert as_tensors == found


def test_of_several_starts_of_k_means_the_best_counts():
    """Nine tight groups, which one start seldom finds all."""
    rng = np.random.default_rng(0)
    labels = np.arange(270) % 9
    features = rng.normal(size=(9, 2))[labels] + 0.01 * rng.normal(size=(270, 2))
    ours = scores._cluster(torch.tensor(features, dtype=torch.float32), 9, 0, None)
    inertia = sum(((features[ours == each] - features[ours == each].mean(axis=0)) ** 2).sum() for each in range(9))
    assert inertia == pytest.approx(KMeans(9, n_init=50, random_state=0).fit(features).inertia_, rel=1e-3)


def test_features_that_are_not_finite_are_refused():
    features, labels = blobs(90, 0.05)
    broken = features.copy()
    broken[7, 0] = np.nan
    with pytest.raises(ValueError, match="features of 1 samples are NaN or infinite, the first is sample 7"):
        score_features(broken, labels)
    with pytest.raises(ValueError, match="test features of 1 samples are NaN or infinite"):
        score_features(features, labels, broken, labels)


def test_classes_may_have_any_numbers():
    features, labels = blobs(90, 4.0)
    assert score_features(features, labels * 7 - 100) == score_features(features, labels)


# ---- segments of recordings --------------------------------------------------------------------------------------


def segments_of(n_recordings, spread, seed=0, n_classes=3, longest=8):
    """Segments that lie around a place of their recording, which lies around that of its class."""
    rng = np.random.default_rng(seed)
    classes = np.arange(n_recordings) % n_classes
    places = spread * rng.normal(size=(n_recordings, 12)) + 5 * np.eye(12)[classes]
    groups = np.repeat(np.arange(n_recordings) * 7, rng.integers(1, longest, n_recordings))
    order = rng.permutation(len(groups))  # as in a store, where the length decides
    groups = groups[order]
    features = places[groups // 7] + 0.01 * rng.normal(size=(len(groups), 12))
    return features.astype(np.float32), classes[groups // 7], groups


def test_segments_of_the_same_recording_do_not_vote_for_each_other():
    features, labels, groups = segments_of(60, 100.0)  # classes do not matter
    leaking, found = score_features(features, labels), score_features(features, labels, groups=groups)
    assert leaking["knn_accuracy"] > 0.7
    for name in ("knn_accuracy", "weighted_knn_accuracy", "linear_probe_accuracy"):
        assert found[name] < 0.5, name


def test_a_recording_has_the_class_of_most_of_its_segments():
    samples = scores._Samples(torch.zeros(7, 2), np.array([4, 4, 4, 4, 9, 9, 9]), np.array([3, 3, 3, 8, 5, 5, 8 + 1]))
    predicted = np.array([9, 4, 4, 9, 9, 4, 9])  # recording 3 by two of three, 8 not, 5 by a tie for the smaller, 9
    assert scores._judge(predicted, samples).tolist() == [True, False, False, True]
    features, labels, groups = segments_of(60, 1.0)
    test_features, test_labels, test_groups = segments_of(40, 1.0, seed=1)
    found = assess_features(features, labels, test_features, test_labels, groups=groups, test_groups=test_groups)
    assert found.values["knn_accuracy"] * 40 == pytest.approx(round(found.values["knn_accuracy"] * 40))
    assert "clustering_accuracy" in found.values
    assert sorted(found.intervals) == ["knn_accuracy", "linear_probe_accuracy", "weighted_knn_accuracy"]


def test_whole_recordings_score_as_samples_do():
    features, labels = blobs(203, 4.0)
    numbers = np.random.default_rng(0).permutation(203)
    alone, grouped = score_features(features, labels), score_features(features, labels, groups=np.arange(203))
    assert grouped == alone
    assert score_features(features, labels, groups=numbers)["nmi"] == alone["nmi"]


def test_a_class_of_a_single_recording_is_left_out():
    features, labels, groups = segments_of(9, 1.0)
    only = groups == groups[labels == 2][0]
    kept = (labels < 2) | only
    found = score_features(features[kept], labels[kept], groups=groups[kept])
    assert 0.0 <= found["knn_accuracy"] <= 1.0
    alone = (labels == 0) | only
    assert "knn_accuracy" not in score_features(features[alone], labels[alone], groups=groups[alone])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(89, int)}, r"labels must be 90 integers, not int64 of shape \(89,\)"),
        ({"labels": np.zeros(91, int)}, r"labels must be 90 integers, not int64 of shape \(91,\)"),
        ({"labels": np.full(90, "cat")}, r"labels must be 90 integers, not <U3 of shape \(90,\)"),
        ({"labels": np.zeros(90)}, "labels must be 90 integers, not float64"),
        ({"groups": np.zeros(30, int)}, r"groups must be 90 integers, not int64 of shape \(30,\)"),
        ({"test_features": np.ones((4, 3))}, "test_features and test_labels: give both or none"),
        ({"test_labels": np.ones(4, int)}, "test_features and test_labels: give both or none"),
        ({"test_groups": np.ones(4, int)}, "test_groups have no effect without test_features"),
        ({"test_features": np.ones((4, 3)), "test_labels": [0, 1]}, "test_labels must be 4 integers, not int64"),
        (
            {"test_features": np.ones((4, 3)), "test_labels": [0, 1, 0, 1], "test_groups": [0, 1]},
            "test_groups must be 4 integers, not int64",
        ),
        ({"test_features": np.ones((4, 2)), "test_labels": [0, 1, 0, 1]}, "features have 3 columns, test features 2"),
    ],
)
def test_input_that_does_not_fit_is_named(change, message):
    features, labels = blobs(90, 1.0)
    with pytest.raises(ValueError, match=message):
        assess_features(**{"features": features, "labels": labels, **change})


def test_features_that_float32_cannot_hold_are_refused():
    large, labels = np.full((6, 4), 1e20, np.float32), np.arange(6) % 2
    with pytest.raises(ValueError, match="features of 6 samples are too large for float32"):
        score_features(large, labels)
    with pytest.raises(ValueError, match="test features of 6 samples are too large for float32"):
        score_features(np.ones((6, 4)), labels, large, labels)


def test_k_means_begins_ten_times_and_the_best_one_counts(monkeypatch):
    class Counted(scores.KMeans):
        seeds: ClassVar[list[int]] = []

        def fit(self, features):
            super().fit(features)
            self.seeds.append(self.seed)
            self.inertia_ = 1.0 if self.seed == 27 else 2.0
            self.labels_ = np.full(len(features), self.seed)
            return self

    monkeypatch.setattr(scores, "KMeans", Counted)
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    assert (scores._cluster(features, 3, 2, None) == 27).all()
    assert Counted.seeds == list(range(20, 30))


def test_at_most_ten_thousand_samples_are_cross_validated(monkeypatch):
    seen = []
    monkeypatch.setattr(scores, "_cross_validate", lambda samples, seed: seen.append(len(samples.labels)) or {})
    monkeypatch.setattr(scores, "_cluster", lambda *_: None)
    score_features(np.random.default_rng(0).normal(size=(10_050, 2)), np.arange(10_050) % 2)
    assert seen == [10_000]
