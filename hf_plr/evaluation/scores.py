"""Scores of features against true labels, which have no other use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_plr.clustering.blocks import iterate_rows
from hf_plr.clustering.checks import as_features, check_finite, check_lengths
from hf_plr.clustering.exact_sums import average_rows
from hf_plr.clustering.kmeans import KMeans
from hf_plr.evaluation.clusters import find_matched, score_clusters
from hf_plr.evaluation.codes import validate_codes
from hf_plr.evaluation.intervals import Scored, bootstrap_interval
from hf_plr.evaluation.neighbors import LabeledNeighbors, find_labeled_neighbors
from hf_plr.utils.distributed import gather_rows, locate_rows, run_on_main

MAX_SAMPLES = 10_000  # for the linear probe and cross-validation, which are slow
RESTARTS = 10  # of k-means
SAME_INERTIA = 1e-9  # relative difference below which two restarts found the same clusters, in another order
BLOCK_ROWS = 1 << 14  # rows that are centered together
SCORES = {
    "knn_accuracy": "kNN accuracy (5 neighbours)",
    "weighted_knn_accuracy": "Weighted kNN (20)",
    "linear_probe_accuracy": "Linear probe accuracy",
    "nmi": "NMI of k-means",
    "clustering_accuracy": "Clustering accuracy",
}
VOTES: dict[str, Callable[[LabeledNeighbors], np.ndarray]] = {
    "knn_accuracy": LabeledNeighbors.vote,
    "weighted_knn_accuracy": LabeledNeighbors.vote_by_similarity,
}


@dataclass(frozen=True)
class _Samples:
    """Samples of known classes: those of this process, or all of them.

    Attributes:
        features: relative to the mean of the gallery, unit length, float32 of shape (n, D).
        labels: true classes, int64 of shape (n,).
        groups: recording that each sample is a segment of, int64 of shape (n,); None for whole samples.
    """

    features: torch.Tensor
    labels: np.ndarray
    groups: np.ndarray | None = None

    def select(self, positions: np.ndarray) -> _Samples:
        """Select some samples by their positions (m,)."""
        groups = None if self.groups is None else self.groups[positions]
        return _Samples(self.features[torch.from_numpy(positions)], self.labels[positions], groups)

    def draw(self, size: int, seed: int, accelerator: Accelerator | None) -> _Samples:
        """Draw up to `size` of all processes' samples, in their order; returns those of this process."""
        start, total = locate_rows(accelerator, len(self.labels))
        if total <= size:
            return self
        positions = np.sort(np.random.default_rng(seed).choice(total, size, replace=False))
        return self.select(positions[(positions >= start) & (positions < start + len(self.labels))] - start)

    def gather(self, accelerator: Accelerator | None) -> _Samples:
        """Gather the samples of all processes, on every process."""
        labels = gather_rows(accelerator, torch.from_numpy(self.labels)).numpy()
        groups = None if self.groups is None else gather_rows(accelerator, torch.from_numpy(self.groups)).numpy()
        return _Samples(gather_rows(accelerator, self.features), labels, groups)

    def on_host(self) -> tuple[np.ndarray, np.ndarray]:
        """Features and labels for scikit-learn."""
        return self.features.cpu().numpy(), self.labels


def score_features(
    features: np.ndarray | torch.Tensor,
    labels: np.ndarray,
    test_features: np.ndarray | torch.Tensor | None = None,
    test_labels: np.ndarray | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    groups: np.ndarray | None = None,
    test_groups: np.ndarray | None = None,
) -> dict[str, float]:
    """Score the separation of true classes by features: `assess_features` without its intervals."""
    return assess_features(features, labels, test_features, test_labels, seed, accelerator, groups, test_groups).values


@torch.no_grad()
def assess_features(
    features: np.ndarray | torch.Tensor,
    labels: np.ndarray,
    test_features: np.ndarray | torch.Tensor | None = None,
    test_labels: np.ndarray | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    groups: np.ndarray | None = None,
    test_groups: np.ndarray | None = None,
) -> Scored:
    """Score the separation of true classes by features, with confidence intervals.

    Both kNN (the majority of 5, and 20 weighted votes) and the linear probe are trained on the features, the probe on
    10,000 of them at most, and tested on the test features. Without test features, up to 10,000 features are
    cross-validated in up to five stratified folds. Classes with a single member are then left out. NMI and clustering
    accuracy compare k-means, with as many clusters as there are classes, with the classes of the tested samples; it is
    the best of ten starts.

    Features are centered on the mean of `features`, as in training, and scaled to unit length first.

    The accuracies have intervals. NMI has none: resampling repeats samples, which shifts it upwards.

    Samples of one group, segments of a recording, are never on both sides: folds are drawn by groups, and a class with
    a single one is left out. kNN and probe are scored by groups, whose class is that of most of their samples (the
    smallest of equally frequent ones). NMI and clustering accuracy count samples, and the latter has no interval then.

    Several processes score together: each gives its own rows, and the main process fits the linear probe. No process
    holds all features; the tested ones, and those that the probe is trained on, are on every process.

    Args:
        features: shape (n, D), this process's rows; a tensor on any device, which then computes, or an array.
        labels: true classes, integers of shape (n,), -1 = unknown (left out); a few known ones suffice.
        test_features: shape (m, D), this process's rows, or None on all processes.
        test_labels: shape (m,), -1 = unknown (left out), or None on all processes.
        seed: seed of k-means, of the folds, of the samples of 10,000, and of the resampling.
        accelerator: connects processes that hold further rows; None for one alone.
        groups: group of each feature, integers of shape (n,), of one class each; None if each is one of its own.
        test_groups: group of each test feature, (m,), whose numbers are their own.

    Returns:
        Scores by the names in `SCORES`, each in [0, 1], on every process and the same for any number of processes.
        Scores that need more classes or members are left out.

    Raises:
        ValueError: if features are not finite or not of shape (n, D), labels or groups are not one integer per row, or
            only a part of the test samples is given.
    """
    if (test_features is None) != (test_labels is None):
        raise ValueError("test_features and test_labels: give both or none")
    if test_features is None and test_groups is not None:
        raise ValueError("test_groups have no effect without test_features: leave them out")
    rows = as_features(features).float()
    labels, groups = _validate("", labels, groups, len(rows))
    center = _find_center(rows, accelerator)
    gallery = _select_known(rows, labels, center, groups)
    judge: Callable[[], dict[str, list[np.ndarray]]]
    if test_features is None or test_labels is None:
        tested = gallery.draw(MAX_SAMPLES, seed, accelerator)
        all_tested = tested.gather(accelerator)
        judge = functools.partial(_cross_validate, all_tested, seed)
    else:
        test_rows = as_features(test_features).to(rows.device, torch.float32)
        if test_rows.shape[1] != rows.shape[1]:
            raise ValueError(f"features have {rows.shape[1]} columns, test features {test_rows.shape[1]}")
        test_labels, test_groups = _validate("test_", test_labels, test_groups, len(test_rows))
        check_finite(test_rows, "test features", accelerator)
        check_lengths(test_rows, "test features", accelerator)
        tested = _select_known(test_rows, test_labels, center, test_groups)
        all_tested = tested.gather(accelerator)
        trained = gallery.draw(MAX_SAMPLES, seed, accelerator).gather(accelerator)
        neighbors = None
        if len(np.unique(trained.labels)) > 1 and len(all_tested.labels):
            neighbors = find_labeled_neighbors(
                gallery.features, gallery.labels, all_tested.features, accelerator=accelerator
            )
        judge = functools.partial(_test, neighbors, trained, all_tested)
    n_classes = len(np.unique(all_tested.labels))
    clusters = _cluster(tested.features, n_classes, seed, accelerator) if n_classes > 1 else None
    scored: Scored = run_on_main(
        accelerator, lambda: _summarize(judge(), clusters, all_tested, seed), "scoring the features"
    )
    return scored


def _validate(prefix: str, labels: Any, groups: Any, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Validate labels and groups of n samples as int64 (n,)."""
    known_groups = None if groups is None else validate_codes(f"{prefix}groups", groups, n)
    return validate_codes(f"{prefix}labels", labels, n), known_groups


def _find_center(rows: torch.Tensor, accelerator: Accelerator | None) -> torch.Tensor:
    """Find the mean (D,) of all processes' rows (n, D), exact and so the same for any number of processes."""
    check_finite(rows, "features", accelerator)
    check_lengths(rows, "features", accelerator)
    return average_rows(rows, accelerator)


def _select_known(
    rows: torch.Tensor, labels: np.ndarray, center: torch.Tensor, groups: np.ndarray | None = None
) -> _Samples:
    """Select the rows with a known class, as directions from the center."""
    known = np.flatnonzero(labels != -1)
    positions = torch.from_numpy(known)
    directions = rows.new_empty(len(known), rows.shape[1])
    for block in iterate_rows(len(known), BLOCK_ROWS):
        directions[block] = F.normalize(rows[positions[block]] - center, dim=1)
    return _Samples(directions, labels[known], None if groups is None else groups[known])


def _cluster(features: torch.Tensor, n_clusters: int, seed: int, accelerator: Accelerator | None) -> np.ndarray:
    """Cluster the features of all processes by k-means, the best of ten starts; returns all labels on every process."""
    best = np.inf
    for restart in range(RESTARTS):
        kmeans = KMeans(n_clusters, "k-means++", spherical=False, max_iter=300, seed=seed * RESTARTS + restart)
        if accelerator is None:
            kmeans.fit(features)
        else:
            kmeans.fit_predict_shard(features, accelerator)
        # The last digits of the inertia depend on the number of processes.
        if kmeans.inertia_ < best * (1.0 - SAME_INERTIA):
            best, labels = kmeans.inertia_, kmeans.labels_
    return gather_rows(accelerator, torch.from_numpy(labels)).numpy()


def _cross_validate(samples: _Samples, seed: int) -> dict[str, list[np.ndarray]]:
    """Cross-validate the classifiers; returns by name, fold by fold, True for each correct sample or group."""
    first, member_of = _find_members(samples)
    classes, sizes = np.unique(samples.labels[first], return_counts=True)
    if (sizes > 1).sum() < 2:
        return {}
    samples = samples.select(np.flatnonzero(np.isin(samples.labels, classes[sizes > 1])))
    first, member_of = _find_members(samples)
    features, labels = samples.on_host()
    folds = StratifiedKFold(min(5, sizes[sizes > 1].min()), shuffle=True, random_state=seed)
    parts = [
        tuple(np.flatnonzero(np.isin(member_of, side)) for side in sides) for sides in folds.split(first, labels[first])
    ]
    is_correct: dict[str, list[np.ndarray]] = {name: [] for name in VOTES}
    for trained, tested in parts:
        gallery, queries = samples.select(trained), samples.select(tested)
        neighbors = find_labeled_neighbors(gallery.features, gallery.labels, queries.features)
        for name, vote in VOTES.items():
            is_correct[name].append(_judge(vote(neighbors), queries))
    predicted = cross_val_predict(_make_probe(), features, labels, cv=parts)
    probed = [_judge(predicted[tested], samples.select(tested)) for _, tested in parts]
    return is_correct | {"linear_probe_accuracy": probed}


def _test(neighbors: LabeledNeighbors | None, trained: _Samples, tested: _Samples) -> dict[str, list[np.ndarray]]:
    """Test the classifiers on the test samples; returns by name True for each correct sample or group, as one fold."""
    if neighbors is None:
        return {}
    is_correct = {name: [_judge(vote(neighbors), tested)] for name, vote in VOTES.items()}
    predicted = _make_probe().fit(*trained.on_host()).predict(tested.on_host()[0])
    return is_correct | {"linear_probe_accuracy": [_judge(predicted, tested)]}


def _find_members(samples: _Samples) -> tuple[np.ndarray, np.ndarray]:
    """Find the first sample of each group (G,), and the number of each sample's group (n,): itself if it is whole."""
    if samples.groups is None:
        return np.arange(len(samples.labels)), np.arange(len(samples.labels))
    _, first, member_of = np.unique(samples.groups, return_index=True, return_inverse=True)
    return first, member_of


def _judge(predicted: np.ndarray, samples: _Samples) -> np.ndarray:
    """Return True for each sample whose predicted class (n,) is right, or for each group by its most frequent one."""
    if samples.groups is None:
        return predicted == samples.labels
    first, member_of = _find_members(samples)
    classes, code = np.unique(predicted, return_inverse=True)
    votes = np.bincount(member_of * len(classes) + code, minlength=len(first) * len(classes))
    elected = classes[votes.reshape(len(first), len(classes)).argmax(axis=1)]
    return elected == samples.labels[first]


def _make_probe() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))


def _summarize(
    is_correct: dict[str, list[np.ndarray]], clusters: np.ndarray | None, tested: _Samples, seed: int
) -> Scored:
    """Average over folds, compare clusters (M,) with the classes of M samples, and add the intervals."""
    values = {name: float(np.mean([part.mean() for part in parts])) for name, parts in is_correct.items()}
    outcomes = {name: np.concatenate(parts) for name, parts in is_correct.items()}
    if clusters is not None:
        _, codes = np.unique(tested.labels, return_inverse=True)
        agreement = score_clusters(clusters, codes)
        values |= {"nmi": agreement["nmi"], "clustering_accuracy": agreement["accuracy"]}
        if tested.groups is None:  # segments of a recording are no independent draws
            outcomes["clustering_accuracy"] = find_matched(clusters, codes)
    all_intervals = {name: bootstrap_interval(outcome, seed) for name, outcome in outcomes.items()}
    return Scored(values, {name: interval for name, interval in all_intervals.items() if interval is not None})
