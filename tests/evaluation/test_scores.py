"""Scores against hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

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
    scores = score_features(features, labels, features[:30], (labels[:30] + 1) % 3)
    assert scores["clustering_accuracy"] == 1.0  # names of classes mean nothing to clusters
    assert scores["knn_accuracy"] == 0.0


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


def test_classes_may_have_any_numbers():
    features, labels = blobs(90, 4.0)
    assert score_features(features, labels * 7 - 100) == score_features(features, labels)
