"""One read-out for everybody: what frozen features tell of the true classes, in two spaces.

"centered": the mean of the training rows taken away, unit length, which is the library's own space. "white": besides
rotated, scaled and rotated back so that directions have about equal variance, unit length. Both are fitted on training
rows alone. Peers' features gain by whitening too, and a score in one space alone mixes that up with what was learned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler, normalize

from hf_plr.evaluation.clusters import score_clusters
from hf_plr.evaluation.label_free import effective_rank
from hf_plr.evaluation.neighbors import find_labeled_neighbors

FOLDS = 5  # where there is no test split
SHRINKAGE = 0.1  # lambda of the whitening, for all
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # C of the linear probe
PROBE_FOLDS, PROBE_ROWS = 3, 2_000  # to choose C by
FEW, DRAWS, FEW_STRENGTH = 10, 5, 1.0  # labelled samples of a class, draws of them, and C
RESTARTS = 10  # of k-means

Space = Callable[[np.ndarray], np.ndarray]


def read_out(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    spaces: Mapping[str, Callable[[np.ndarray], Space]] | None = None,
) -> dict[str, dict[str, float]]:
    """Score features in both spaces, or in others.

    * "knn", "weighted_knn": 5 nearest neighbours, and 20 that are weighted by exp(cosine / .07).
    * "linear": logistic regression on standardised columns; C is chosen by cross-validation inside the training rows.
    * "few": the same with C = 1 on 10 samples of each class, a mean of 5 draws; left out where a class has fewer than
      twice as many training rows.
    * "nmi", "ari", "accuracy": k-means with as many clusters as classes on the tested rows against their classes.
    * "effective_rank": of the training rows.

    Without a test split the first four are means of 5 stratified folds, and all rows are clustered.

    Args:
        features: training rows, shape (n, D).
        labels: their classes, integers of shape (n,).
        test_features: shape (m, D), or None.
        test_labels: shape (m,), or None.
        spaces: by name, what fits them to rows (n, D); None for `SPACES`.

    Returns:
        The scores by name, by space.
    """
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    fits = SPACES if spaces is None else spaces
    return {name: _read(fit, features, labels, test_features, test_labels) for name, fit in fits.items()}


def fit_centering(rows: np.ndarray) -> Space:
    """Fit the space of directions from the mean of rows (n, D)."""
    center = rows.mean(axis=0)
    return lambda others: normalize(others - center)


def fit_whitening(rows: np.ndarray, shrinkage: float = SHRINKAGE) -> Space:
    """Fit directions after (C + lambda tr(C) / D I)^(-1/2), symmetric (ZCA), where C is the covariance of rows (n, D).

    Source: Bell and Sejnowski, The "Independent Components" of Natural Scenes are Edge Filters, Vision Research 1997;
    lambda is the shrinkage, the same for all.
    """
    center = rows.mean(axis=0)
    covariance = np.cov(rows, rowvar=False, bias=True).astype(np.float64)
    values, vectors = np.linalg.eigh(covariance)
    scale = (values.clip(min=0.0) + shrinkage * values.mean()) ** -0.5
    whitening = (vectors * scale) @ vectors.T
    return lambda others: normalize((others - center) @ whitening.astype(np.float32))


SPACES: dict[str, Callable[[np.ndarray], Space]] = {"centered": fit_centering, "white": fit_whitening}


def _read(
    fit: Callable[[np.ndarray], Space],
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray | None,
    test_labels: np.ndarray | None,
) -> dict[str, float]:
    space = fit(features)
    rows = space(features)
    if test_features is not None and test_labels is not None:
        tested, tested_labels = space(np.asarray(test_features, np.float32)), np.asarray(test_labels)
        scores = _classify(rows, labels, tested, tested_labels)
    else:
        tested, tested_labels = rows, labels
        folds = []
        for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(features, labels):
            of_fold = fit(features[train])
            folds.append(_classify(of_fold(features[train]), labels[train], of_fold(features[test]), labels[test]))
        scores = {name: float(np.mean([fold[name] for fold in folds])) for name in folds[0]}
    classes, codes = np.unique(tested_labels, return_inverse=True)
    found = score_clusters(KMeans(len(classes), n_init=RESTARTS, random_state=0).fit_predict(tested), codes)
    scores |= {name: found[name] for name in ("nmi", "ari", "accuracy")}
    return scores | {"effective_rank": effective_rank(torch.from_numpy(rows))}


def _classify(rows: np.ndarray, labels: np.ndarray, tested: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracies of classifiers that are trained on rows (n, D), on tested rows (m, D)."""
    neighbors = find_labeled_neighbors(torch.from_numpy(rows), labels, torch.from_numpy(tested))
    scaler = StandardScaler().fit(rows)
    rows, tested = scaler.transform(rows), scaler.transform(tested)
    scores = {
        "knn": np.mean(neighbors.vote() == truth),
        "weighted_knn": np.mean(neighbors.vote_by_similarity() == truth),
        "linear": _fit_probe(rows, labels, _choose_strength(rows, labels)).score(tested, truth),
    }
    if np.unique(labels, return_counts=True)[1].min() >= 2 * FEW:
        drawn = (_draw_few(labels, draw) for draw in range(DRAWS))
        scores["few"] = np.mean(
            [_fit_probe(rows[few], labels[few], FEW_STRENGTH).score(tested, truth) for few in drawn]
        )
    return {name: float(value) for name, value in scores.items()}


def _choose_strength(rows: np.ndarray, labels: np.ndarray) -> float:
    """Choose C of the linear probe by cross-validation; the smallest of those that are equally good."""
    if len(rows) > PROBE_ROWS:
        drawn = np.random.default_rng(0).choice(len(rows), PROBE_ROWS, replace=False)
        rows, labels = rows[drawn], labels[drawn]
    right = np.zeros(len(STRENGTHS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer members than folds
        parts = list(StratifiedKFold(PROBE_FOLDS, shuffle=True, random_state=0).split(rows, labels))
    for train, test in parts:
        for i, strength in enumerate(STRENGTHS):
            right[i] += (_fit_probe(rows[train], labels[train], strength).predict(rows[test]) == labels[test]).sum()
    return STRENGTHS[int(right.argmax())]


def _fit_probe(rows: np.ndarray, labels: np.ndarray, strength: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it need not converge in so few steps
        return LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(rows, labels)


def _draw_few(labels: np.ndarray, draw: int) -> np.ndarray:
    """Draw 10 positions of each class, the same for everybody."""
    rng = np.random.default_rng(draw)
    return np.concatenate([rng.choice(np.flatnonzero(labels == one), FEW, replace=False) for one in np.unique(labels)])
