"""Scores of clusters against scikit-learn, scipy and hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix, pair_confusion_matrix

from hf_plr.evaluation.clusters import CLUSTER_SCORES, find_matched, score_clusters

labelings = st.tuples(st.integers(1, 200), st.integers(1, 12), st.integers(1, 12), st.integers(0, 9_999))


def drawn(n, n_clusters, n_labels, seed):
    """Clusters and labels that have something in common, with -1 in both, and at least one sample with both."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_labels, n)
    clusters = np.where(rng.random(n) < 0.5, labels % n_clusters, rng.integers(0, n_clusters, n))
    labels[1:][rng.random(n - 1) < 0.2], clusters[1:][rng.random(n - 1) < 0.2] = -1, -1
    return clusters, labels


def test_a_hand_worked_case():
    labels = np.array([0, 0, 0, 1, 1, 2, -1, 2])
    clusters = np.array([5, 5, 9, 9, 9, 9, 9, -1])
    scores = score_clusters(clusters, labels)
    assert list(scores) == list(CLUSTER_SCORES)
    assert scores["accuracy"] == pytest.approx(4 / 6)  # 5 is class 0, 9 is class 1
    assert scores["purity"] == pytest.approx(4 / 6)
    assert scores["pair_precision"] == pytest.approx(2 / 7)  # one pair in 5, of six in 9 one is right
    assert scores["pair_recall"] == pytest.approx(2 / 4)  # three pairs of class 0, one of class 1
    assert scores["pair_f1"] == pytest.approx(4 / 11)
    assert scores["coverage"] == pytest.approx(6 / 7)
    assert find_matched(clusters, labels).tolist() == [True, True, False, True, True, False, False, False]


@given(labelings)
def test_every_score_equals_an_independent_implementation(case):
    clusters, labels = drawn(*case)
    scores = score_clusters(clusters, labels)
    known, both = labels >= 0, (labels >= 0) & (clusters >= 0)
    assert scores["coverage"] == pytest.approx(both.sum() / known.sum())
    c, y = clusters[both], labels[both]
    table = contingency_matrix(y, c)
    assert scores["accuracy"] == pytest.approx(table[linear_sum_assignment(-table)].sum() / len(y))
    assert find_matched(clusters, labels).sum() / len(y) == pytest.approx(scores["accuracy"])
    assert scores["purity"] == pytest.approx(sum(np.bincount(y[c == k]).max() for k in set(c)) / len(y))
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(y, c), abs=1e-9)
    assert scores["ari"] == pytest.approx(adjusted_rand_score(y, c), abs=1e-9)
    (_, wrong), (missed, right) = pair_confusion_matrix(y, c)
    assert scores["pair_precision"] == pytest.approx(right / (right + wrong) if right + wrong else 1.0)
    assert scores["pair_recall"] == pytest.approx(right / (right + missed) if right + missed else 1.0)
    assert scores["pair_f1"] == pytest.approx(
        2 * right / (2 * right + wrong + missed) if right + wrong + missed else 1.0
    )


@given(labelings)
def test_names_and_order_mean_nothing_and_ranges_hold(case):
    clusters, labels = drawn(*case)
    scores = score_clusters(clusters, labels)
    rng = np.random.default_rng(case[-1])
    names, order = rng.permutation(1_000)[:12] * 7, rng.permutation(len(labels))
    renamed, relabelled = (np.where(x >= 0, names[x], -1) for x in (clusters, labels))
    assert score_clusters(renamed, relabelled) == pytest.approx(scores, abs=1e-12)
    assert score_clusters(clusters[order], labels[order]) == pytest.approx(scores, abs=1e-12)
    for name, value in scores.items():
        assert (-0.5 if name == "ari" else 0.0) <= value <= 1.0


@given(labelings)
def test_clusters_that_are_the_classes_score_one(case):
    _, labels = drawn(*case)
    clusters = np.where(labels >= 0, labels * 3 + 1, 0)  # those of unknown class are in a cluster too
    assert score_clusters(clusters, labels) == pytest.approx(dict.fromkeys(CLUSTER_SCORES, 1.0))


def test_one_sample_a_cluster_and_one_cluster_for_all():
    labels = np.repeat([0, 1, 2], 10)
    alone = score_clusters(np.arange(30), labels)
    assert (alone["purity"], alone["pair_precision"], alone["pair_recall"], alone["ari"]) == (1.0, 1.0, 0.0, 0.0)
    together = score_clusters(np.zeros(30, int), labels)
    assert (together["nmi"], together["ari"], together["pair_recall"]) == (0.0, 0.0, 1.0)
    assert together["accuracy"] == together["purity"] == pytest.approx(1 / 3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="none of 2 samples has both a cluster and a label"):
        score_clusters([0, -1], [-1, 1])
    with pytest.raises(ValueError, match="differ in length"):
        score_clusters([0, 1], [0, 1, 2])
    with pytest.raises(TypeError, match="must be integers"):
        score_clusters([0.5, 1.0], [0, 1])
