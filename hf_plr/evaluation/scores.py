"""Scores of features against true labels, which have no other use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_plr.evaluation.clusters import find_matched, score_clusters
from hf_plr.evaluation.intervals import Scored, bootstrap_interval
from hf_plr.evaluation.neighbors import make_weighted_knn, normalize_rows

N_NEIGHBORS = 5
MAX_SAMPLES = 10_000  # for the linear probe and cross-validation, which are slow
SCORES = {
    "knn_accuracy": "kNN accuracy (5 neighbours)",
    "weighted_knn_accuracy": "Weighted kNN (20)",
    "linear_probe_accuracy": "Linear probe accuracy",
    "nmi": "NMI of k-means",
    "clustering_accuracy": "Clustering accuracy",
}
CLASSIFIERS: dict[str, Callable[[int], Any]] = {  # by the number of samples to fit
    "knn_accuracy": lambda n: KNeighborsClassifier(min(N_NEIGHBORS, n)),
    "weighted_knn_accuracy": make_weighted_knn,
    "linear_probe_accuracy": lambda n: make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1)),
}


def score_features(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Score the separation of true classes by features: `assess_features` without its intervals."""
    return assess_features(features, labels, test_features, test_labels, seed).values


def assess_features(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    seed: int = 0,
) -> Scored:
    """Score the separation of true classes by features, with confidence intervals.

    Both kNN (the majority of 5, and 20 weighted votes) and the linear probe are trained on the features, the probe on
    10,000 of them at most, and tested on the test features. Without test features, up to 10,000 features are
    cross-validated in up to five stratified folds. Classes with a single member are then left out. NMI and clustering
    accuracy compare k-means, with as many clusters as there are classes, with the classes of the tested samples.

    Features are centered on the mean of `features`, as in training, and scaled to unit length first.

    The accuracies have intervals. NMI has none: resampling repeats samples, which shifts it upwards.

    Args:
        features: shape (N, D).
        labels: true classes, shape (N,), -1 = unknown (left out); a few known ones suffice.
        test_features: shape (M, D), or None.
        test_labels: shape (M,), -1 = unknown (left out), or None.
        seed: seed of k-means, of the folds, of the samples of 10,000, and of the resampling.

    Returns:
        Scores by the names in `SCORES`, each in [0, 1]. Scores that need more classes or members are left out.
    """
    center = features.mean(axis=0)
    features, labels = _select_known(normalize_rows(features - center), labels)
    if test_features is None or test_labels is None:
        features, labels = _draw_sample(features, labels, seed)
        tested_features, tested_labels = features, labels
        is_correct = _cross_validate(features, labels, seed)
    else:
        tested_features, tested_labels = _select_known(normalize_rows(test_features - center), test_labels)
        is_correct = _test(features, labels, tested_features, tested_labels, seed)
    values = {name: float(np.mean([part.mean() for part in parts])) for name, parts in is_correct.items()}
    outcomes = {name: np.concatenate(parts) for name, parts in is_correct.items()}
    n_classes = len(np.unique(tested_labels))
    if n_classes > 1:
        clusters = KMeans(n_classes, n_init=10, random_state=seed).fit_predict(tested_features)
        _, codes = np.unique(tested_labels, return_inverse=True)
        agreement = score_clusters(clusters, codes)
        values |= {"nmi": agreement["nmi"], "clustering_accuracy": agreement["accuracy"]}
        outcomes["clustering_accuracy"] = find_matched(clusters, codes)
    all_intervals = {name: bootstrap_interval(outcome, seed) for name, outcome in outcomes.items()}
    return Scored(values, {name: interval for name, interval in all_intervals.items() if interval is not None})


def _cross_validate(features: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, list[np.ndarray]]:
    """Cross-validate the classifiers; returns by name, fold by fold, True for each correct sample."""
    classes, sizes = np.unique(labels, return_counts=True)
    is_kept = np.isin(labels, classes[sizes > 1])
    features, labels = features[is_kept], labels[is_kept]
    if (sizes > 1).sum() < 2:
        return {}
    folds = StratifiedKFold(min(5, sizes[sizes > 1].min()), shuffle=True, random_state=seed)
    parts = list(folds.split(features, labels))
    n_trained = min(len(trained) for trained, _ in parts)
    is_correct = {}
    for name, classifier in CLASSIFIERS.items():
        correct = cross_val_predict(classifier(n_trained), features, labels, cv=parts) == labels
        is_correct[name] = [correct[tested] for _, tested in parts]
    return is_correct


def _test(
    features: np.ndarray, labels: np.ndarray, tested_features: np.ndarray, tested_labels: np.ndarray, seed: int
) -> dict[str, list[np.ndarray]]:
    """Test the classifiers on the test samples; returns by name True for each correct sample, as one fold."""
    if len(np.unique(labels)) < 2 or len(tested_features) == 0:
        return {}
    is_correct = {}
    for name, classifier in CLASSIFIERS.items():
        is_slow = name == "linear_probe_accuracy"
        training_set = _draw_sample(features, labels, seed) if is_slow else (features, labels)
        is_correct[name] = [classifier(len(features)).fit(*training_set).predict(tested_features) == tested_labels]
    return is_correct


def _draw_sample(features: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if len(features) <= MAX_SAMPLES:
        return features, labels
    chosen = np.random.default_rng(seed).choice(len(features), MAX_SAMPLES, replace=False)
    return features[chosen], labels[chosen]


def _select_known(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = np.asarray(labels)
    return features[labels != -1], labels[labels != -1]
