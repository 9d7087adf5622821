"""Votes of neighbours against plain implementations and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from hf_plr.evaluation import neighbors
from hf_plr.evaluation.neighbors import LabeledNeighbors, find_labeled_neighbors


def unit(features):
    return F.normalize(torch.as_tensor(features, dtype=torch.float32), dim=1)


def plain(gallery, labels, queries, k, temperature):
    """Sample by sample, by cosines in float64; returns the classes, and False where float32 could decide otherwise."""
    found, is_clear = [], []
    for query in queries:
        cosines = np.append(gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query), -2.0)
        order = np.argsort(-cosines)
        votes = np.zeros(labels.max() + 2)
        for nearest in order[:k]:
            votes[labels[nearest]] += np.exp((cosines[nearest] - 1) / temperature)
        found.append(votes.argmax())
        second, most = np.sort(votes)[-2:]
        is_clear.append(cosines[order[k - 1]] - cosines[order[k]] > 1e-5 and most - second > 1e-3 * most)
    return np.array(found), np.array(is_clear)


@given(st.integers(0, 9_999), st.integers(1, 30), st.sampled_from([0.01, 0.07, 1.0]))
def test_weighted_votes_equal_a_plain_implementation(seed, k, temperature):
    rng = np.random.default_rng(seed)
    gallery, queries = rng.normal(size=(30, 4)), rng.normal(size=(20, 4))
    labels = rng.integers(0, 4, 30)
    expected, is_clear = plain(gallery, labels, queries, k, temperature)
    found = find_labeled_neighbors(unit(gallery), labels, unit(queries), k).vote_by_similarity(k, temperature)
    np.testing.assert_array_equal(found[is_clear], expected[is_clear])
    assert is_clear.mean() > 0.7


@given(st.integers(0, 9_999), st.integers(1, 80), st.integers(2, 70), st.integers(1, 12), st.booleans())
def test_both_votes_are_those_of_scikit_learn(seed, n, dimension, n_neighbors, has_large_labels):
    rng = np.random.default_rng(seed)
    gallery, queries = unit(rng.normal(size=(n, dimension))), unit(rng.normal(size=(50, dimension)))
    codes = rng.integers(0, 8, n)
    labels = (codes - 3) * (10**12 if has_large_labels else 1)
    k = min(n, n_neighbors)
    found = find_labeled_neighbors(gallery, labels, queries, n_neighbors)
    _, is_clear = plain(gallery.double().numpy(), codes, queries.double().numpy(), k, 0.07)
    for weights, predicted in (
        ("uniform", found.vote(n_neighbors)),
        (lambda distances: np.exp(-(distances**2) / 2 / 0.07), found.vote_by_similarity(n_neighbors)),
    ):
        theirs = KNeighborsClassifier(k, weights=weights, algorithm="brute").fit(gallery.numpy(), labels)
        np.testing.assert_array_equal(predicted[is_clear], theirs.predict(queries.numpy())[is_clear])
    assert is_clear.mean() > 0.7


def test_near_neighbours_outvote_many_far_ones():
    gallery = unit([[1.0, 0.0], *[[0.7, 0.7]] * 3])
    found = find_labeled_neighbors(gallery, np.array([0, 1, 1, 1]), unit([[1.0, 0.0]]))
    assert found.vote().tolist() == [1]
    assert found.vote_by_similarity().tolist() == [0]
    assert found.vote_by_similarity(temperature=100.0).tolist() == [1]
    assert found.vote_by_similarity(1, temperature=100.0).tolist() == [0]


def test_the_smallest_of_classes_with_equal_votes_wins_in_blocks_too(monkeypatch):
    monkeypatch.setattr(neighbors, "BLOCK_VOTES", 6)  # two queries at once
    labels = np.array([[7, 3, 3, 7], [3, 7, 7, 5], [9, 9, 3, 5], [5, 3, 5, 3], [7, 7, 7, 7]])
    found = LabeledNeighbors(np.full(labels.shape, 0.5), labels)
    assert found.vote().tolist() == found.vote_by_similarity().tolist() == [3, 7, 9, 3, 7]
    assert found.vote(1).tolist() == [7, 3, 9, 5, 7]
    assert LabeledNeighbors(np.empty((0, 4)), np.empty((0, 4), int)).vote().tolist() == []


def test_arguments_outside_their_range():
    features, labels = unit(np.eye(3)), np.arange(3)
    found = find_labeled_neighbors(features, labels, features)
    with pytest.raises(ValueError, match="n_neighbors=0 must be at least 1"):
        found.vote_by_similarity(0)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        found.vote_by_similarity(temperature=0)
    with pytest.raises(ValueError, match="k=0 and the 3 samples of the gallery must be at least 1"):
        find_labeled_neighbors(features, labels, features, 0)
