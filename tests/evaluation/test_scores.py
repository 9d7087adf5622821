"""Scores against hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest

from hf_plr.evaluation.scores import clustering_accuracy, score_features


def blobs(n, spread, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return np.eye(3)[labels] * 5 + rng.normal(scale=spread, size=(n, 3)), labels


def test_clustering_accuracy_matches_clusters_to_classes_one_to_one():
    assert clustering_accuracy(np.array([0, 0, 1, 1]), np.array([7, 7, 3, 3])) == 1.0
    assert clustering_accuracy(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0])) == 0.5
    assert clustering_accuracy(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 2])) == pytest.approx(5 / 6)


def test_separate_classes_score_one_and_mixed_ones_less():
    features, labels = blobs(90, 0.05)
    assert score_features(features, labels) == {
        "knn_accuracy": 1.0,
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
