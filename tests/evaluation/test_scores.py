"""Scores against hand-worked cases."""

from __future__ import annotations

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
