"""Scores of features against true labels, which are used for nothing else."""

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
MAX_SAMPLES = 10_000  # for what takes long: the linear probe and cross-validation
SCORES = {
    "knn_accuracy": "kNN accuracy (5 neighbours)",
    "weighted_knn_accuracy": "Weighted kNN (20)",
    "linear_probe_accuracy": "Linear probe accuracy",
    "nmi": "NMI of k-means",
    "clustering_accuracy": "Clustering accuracy",
}
CLASSIFIERS: dict[str, Callable[[int], Any]] = {  # made for the number of samples that they will be fitted on
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
    """How well features separate the true classes; `assess_features` without its intervals."""
    return assess_features(features, labels, test_features, test_labels, seed).values


def assess_features(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    seed: int = 0,
) -> Scored:
    """How well features separate the true classes.

    Both kNN (the majority of 5, and 20 weighted votes) and the linear probe are trained on the features (the probe on
    10,000 of them at most) and tested on the test features; where there are none, up to 10,000 features are
    cross-validated in up to five stratified folds, without those whose class has no other member. NMI and clustering
    accuracy compare k-means, with as many clusters as there are classes, with the classes of the samples that were
    tested.

    Features are taken relative to the mean of `features`, as training compares them, and scaled to unit length first.

    Intervals are given for the accuracies. NMI has none: resampling repeats samples, which shifts it upwards.

    Args:
        features: shape (N, D).
        labels: true classes, shape (N,), -1 = unknown (left out); a few known ones do.
        test_features: shape (M, D), or None.
        test_labels: shape (M,), -1 = unknown (left out), or None.
        seed: seed of k-means, of the folds, of the samples of 10,000, and of the resampling.

    Returns:
        The scores by the names in `SCORES`, each in [0, 1]; a score that the data cannot give (fewer than two classes,
        or none with two members) is left out.
    """
    center = features.mean(axis=0)
    features, labels = _known(normalize_rows(features - center), labels)
    if test_features is None or test_labels is None:
        features, labels = _sample(features, labels, seed)
        seen, seen_labels = features, labels
        right = _cross_validated(features, labels, seed)
    else:
        seen, seen_labels = _known(normalize_rows(test_features - center), test_labels)
        right = _tested(features, labels, seen, seen_labels, seed)
    values = {name: float(np.mean([part.mean() for part in parts])) for name, parts in right.items()}
    outcomes = {name: np.concatenate(parts) for name, parts in right.items()}
    n_classes = len(np.unique(seen_labels))
    if n_classes > 1:
        found = KMeans(n_classes, n_init=10, random_state=seed).fit_predict(seen)
        _, codes = np.unique(seen_labels, return_inverse=True)
        agreement = score_clusters(found, codes)
        values |= {"nmi": agreement["nmi"], "clustering_accuracy": agreement["accuracy"]}
        outcomes["clustering_accuracy"] = find_matched(found, codes)
    found_intervals = {name: bootstrap_interval(outcome, seed) for name, outcome in outcomes.items()}
    return Scored(values, {name: found for name, found in found_intervals.items() if found is not None})


def _cross_validated(features: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, list[np.ndarray]]:
    """Whether each sample is recognised, fold by fold."""
    classes, sizes = np.unique(labels, return_counts=True)
    kept = np.isin(labels, classes[sizes > 1])
    features, labels = features[kept], labels[kept]
    if (sizes > 1).sum() < 2:
        return {}
    folds = StratifiedKFold(min(5, sizes[sizes > 1].min()), shuffle=True, random_state=seed)
    parts = list(folds.split(features, labels))
    n_seen = min(len(seen) for seen, _ in parts)
    right = {}
    for name, classifier in CLASSIFIERS.items():
        correct = cross_val_predict(classifier(n_seen), features, labels, cv=parts) == labels
        right[name] = [correct[tested] for _, tested in parts]
    return right


def _tested(
    features: np.ndarray, labels: np.ndarray, seen: np.ndarray, seen_labels: np.ndarray, seed: int
) -> dict[str, list[np.ndarray]]:
    """Whether each test sample is recognised."""
    if len(np.unique(labels)) < 2 or len(seen) == 0:
        return {}
    right = {}
    for name, classifier in CLASSIFIERS.items():
        few = name == "linear_probe_accuracy"
        fitted_on = _sample(features, labels, seed) if few else (features, labels)
        right[name] = [classifier(len(features)).fit(*fitted_on).predict(seen) == seen_labels]
    return right


def clustering_accuracy(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Share of samples in the cluster that is matched to their class, one to one (Hungarian method), in [0, 1].

    Unlike for `score_clusters`, -1 is a class and a cluster like others, and names may be anything that sorts.
    """
    codes = (np.unique(names, return_inverse=True)[1] for names in (clusters, labels))
    return score_clusters(*codes)["accuracy"]


def _sample(features: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if len(features) <= MAX_SAMPLES:
        return features, labels
    chosen = np.random.default_rng(seed).choice(len(features), MAX_SAMPLES, replace=False)
    return features[chosen], labels[chosen]


def _known(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels = np.asarray(labels)
    return features[labels != -1], labels[labels != -1]
