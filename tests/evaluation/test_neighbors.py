"""Weighted kNN against a plain implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.evaluation.neighbors import make_weighted_knn, normalize_rows


def plain(gallery, labels, queries, k, temperature):
    """Sample by sample, by cosines."""
    found = []
    for query in queries:
        cosines = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
        votes = np.zeros(labels.max() + 1)
        for nearest in np.argsort(-cosines)[:k]:
            votes[labels[nearest]] += np.exp(cosines[nearest] / temperature)
        found.append(votes.argmax())
    return np.array(found)


@given(st.integers(0, 9_999), st.integers(1, 40), st.sampled_from([0.01, 0.07, 1.0]))
def test_predictions_equal_a_plain_implementation(seed, k, temperature):
    rng = np.random.default_rng(seed)
    gallery, queries = rng.normal(size=(30, 4)), rng.normal(size=(20, 4))
    labels = rng.integers(0, 4, 30)
    knn = make_weighted_knn(30, k, temperature).fit(normalize_rows(gallery), labels)
    np.testing.assert_array_equal(knn.predict(normalize_rows(queries)), plain(gallery, labels, queries, k, temperature))


def test_near_neighbours_outvote_many_far_ones():
    gallery = normalize_rows(np.array([[1.0, 0.0], *[[0.7, 0.7]] * 3]))
    labels = np.array([0, 1, 1, 1])
    query = np.array([[1.0, 0.0]])
    assert make_weighted_knn(4).fit(gallery, labels).predict(query) == [0]
    assert make_weighted_knn(4, temperature=100.0).fit(gallery, labels).predict(query) == [1]


def test_arguments_outside_their_range():
    with pytest.raises(ValueError, match="n_neighbors=0 must be at least 1"):
        make_weighted_knn(3, n_neighbors=0)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        make_weighted_knn(3, temperature=0)
