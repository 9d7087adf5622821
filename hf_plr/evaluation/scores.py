"""Scores of features against true labels, which are used for nothing else."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

N_NEIGHBORS = 5
MAX_SAMPLES = 10_000  # for what takes long: the linear probe and cross-validation
SCORES = {
    "knn_accuracy": "kNN accuracy (5 neighbours)",
    "linear_probe_accuracy": "Linear probe accuracy",
    "nmi": "NMI of k-means",
    "clustering_accuracy": "Clustering accuracy",
}


def score_features(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """How well features separate the true classes.

    kNN and linear probe are trained on the features (the probe on 10,000 of them at most) and tested on the test
    features; where there are none, up to 10,000 features are cross-validated in five stratified folds. NMI and
    clustering accuracy compare k-means, with as many clusters as there are classes, with the classes of the samples
    that were tested.

    Features are taken relative to the mean of `features` and scaled to unit length first.

    Args:
        features: shape (N, D).
        labels: true classes, shape (N,), -1 = unknown (left out).
        test_features: shape (M, D), or None.
        test_labels: shape (M,), or None.
        seed: seed of k-means, of the folds, and of the samples of 10,000.

    Returns:
        The scores by the names in `SCORES`, each in [0, 1]; a score that the data cannot give (fewer than two classes,
        or a class with one member only) is left out.
    """
    center = features.mean(axis=0)
    features, labels = _known(_embed(features, center), labels)
    knn = KNeighborsClassifier(N_NEIGHBORS)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))
    scores: dict[str, float] = {}
    if test_features is None or test_labels is None:
        features, labels = _sample(features, labels, seed)
        seen, seen_labels = features, labels
        smallest = np.unique(labels, return_counts=True)[1].min() if len(labels) else 0
        if len(np.unique(labels)) > 1 and smallest > 1:
            folds = StratifiedKFold(min(5, smallest), shuffle=True, random_state=seed)
            scores["knn_accuracy"] = float(cross_val_score(knn, features, labels, cv=folds).mean())
            scores["linear_probe_accuracy"] = float(cross_val_score(probe, features, labels, cv=folds).mean())
    else:
        seen, seen_labels = _known(_embed(test_features, center), test_labels)
        if len(np.unique(labels)) > 1 and len(seen):
            scores["knn_accuracy"] = float(knn.fit(features, labels).score(seen, seen_labels))
            probe.fit(*_sample(features, labels, seed))
            scores["linear_probe_accuracy"] = float(probe.score(seen, seen_labels))
    n_classes = len(np.unique(seen_labels))
    if n_classes > 1:
        found = KMeans(n_classes, n_init=10, random_state=seed).fit_predict(seen)
        scores["nmi"] = float(normalized_mutual_info_score(seen_labels, found))
        scores["clustering_accuracy"] = clustering_accuracy(seen_labels, found)
    return scores


def clustering_accuracy(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Share of samples in the cluster that is matched to their class, one to one (Hungarian method), in [0, 1]."""
    table = contingency_matrix(labels, clusters)
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / len(labels))


def _sample(features: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if len(features) <= MAX_SAMPLES:
        return features, labels
    chosen = np.random.default_rng(seed).choice(len(features), MAX_SAMPLES, replace=False)
    return features[chosen], labels[chosen]


def _embed(features: np.ndarray, center: np.ndarray) -> np.ndarray:
    shifted = features - center
    return shifted / np.maximum(np.linalg.norm(shifted, axis=1, keepdims=True), 1e-12)


def _known(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = np.asarray(labels)
    return features[labels != -1], labels[labels != -1]
