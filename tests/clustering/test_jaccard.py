"""Jaccard distances, bit for bit, against dense rows of sums."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.clustering import jaccard
from hf_plr.clustering.jaccard import (
    ROUNDING,
    compute_jaccard_distances,
    compute_overlaps,
    find_near_pairs,
    weigh_neighborhoods,
)
from hf_plr.clustering.neighbors import find_nearest_neighbors

EPS = [0.0, 0.1, 0.3375, 0.45, 0.6, 0.75, 0.9, 0.99, 1.0]


def dense_overlaps(weights):
    """Sums of the smaller weights, a dense row for each sample, in the order of the samples that are shared."""
    n = weights.shape[0]
    columns = sp.csr_array(weights.T)
    overlaps = np.empty((n, n))
    for i in range(n):
        entries = range(weights.indptr[i], weights.indptr[i + 1])
        shared = [np.arange(*columns.indptr[weights.indices[entry] :][:2]) for entry in entries]
        smaller = [np.minimum(weights.data[entry], columns.data[of]) for entry, of in zip(entries, shared, strict=True)]
        overlaps[i] = np.bincount(columns.indices[np.concatenate(shared)], np.concatenate(smaller), n)
    return overlaps


def dense_distances(weights, eps):
    """Distances as a dense array with infinity for pairs that are more than eps apart."""
    overlaps = dense_overlaps(weights)
    is_near = overlaps >= (1.0 - ROUNDING) * 2.0 * (1.0 - eps) / (2.0 - eps)
    np.fill_diagonal(overlaps, 1.0)
    np.fill_diagonal(is_near, True)
    distances = np.clip(1.0 - overlaps / (2.0 - overlaps), 0.0, 1.0).astype(np.float32)
    return np.where(is_near, distances, np.inf)


def check(weights, eps):
    expected = dense_distances(weights, eps)
    near = find_near_pairs(compute_overlaps(weights, eps), eps)
    found = compute_jaccard_distances(weights, eps)
    assert (found.dtype, near.dtype, found.indices.dtype, near.indices.dtype) == (np.float32, np.int8, *[np.int32] * 2)
    rows, columns = np.isfinite(expected).nonzero()
    for each in (found, near):
        assert each.has_canonical_format
        np.testing.assert_array_equal(each.tocoo().row, rows)
        np.testing.assert_array_equal(each.indices, columns)
    np.testing.assert_array_equal(found.data, expected[rows, columns])
    assert (near.data == 1).all()


@given(st.integers(0, 9_999), st.integers(1, 60), st.floats(0.0, 1.0), st.sampled_from([0, 1, 3]), st.sampled_from(EPS))
def test_distances_of_any_weights_are_those_of_dense_rows(seed, n, density, decimals, eps):
    rng = np.random.default_rng(seed)
    dense = rng.random((n, n)) ** 3 * (rng.random((n, n)) < density)
    np.fill_diagonal(dense, 0.5)
    dense[n // 2 :] = dense[rng.integers(0, n, n - n // 2)]  # equal rows
    dense = np.where(dense.any(axis=1)[:, None], dense.round(decimals) + 0.1 * (dense > 0) * (decimals == 0), 0)
    dense[dense.sum(axis=1) == 0] = np.eye(n)[dense.sum(axis=1) == 0]
    weights = sp.csr_array(dense / dense.sum(axis=1, keepdims=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaccard, "BLOCK_ELEMENTS", 50)
        patch.setattr(jaccard, "BLOCK_ROWS", 7)
        check(weights, eps)


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize(("spread", "k1", "k2"), [(0.2, 20, 6), (0.9, 30, 6), (0.6, 9, 1)])
def test_distances_of_clusters_are_those_of_dense_rows(spread, k1, k2, eps):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(30, 16))
    features = centers[rng.integers(0, 30, 500)] + spread * rng.normal(size=(500, 16))
    features[:20] = features[0]
    unit = torch.nn.functional.normalize(torch.tensor(features, dtype=torch.float32), dim=1)
    check(weigh_neighborhoods(unit, find_nearest_neighbors(unit, max(k1, k2)), k1, k2), eps)


@pytest.mark.parametrize("eps", EPS)
def test_finer_distances_are_found_among_the_overlaps_of_coarser_ones(eps):
    unit = torch.nn.functional.normalize(torch.randn(300, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    weights = weigh_neighborhoods(unit, find_nearest_neighbors(unit, 20), 20, 6)
    alone = find_near_pairs(compute_overlaps(weights, eps), eps)
    for coarser in (each for each in EPS if each >= eps):
        shared = find_near_pairs(compute_overlaps(weights, coarser), eps)
        np.testing.assert_array_equal(shared.indptr, alone.indptr)
        np.testing.assert_array_equal(shared.indices, alone.indices)
