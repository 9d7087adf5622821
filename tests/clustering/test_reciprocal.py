"""The sparse way against a plain dense implementation of the published algorithm, and scikit-learn's DBSCAN."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.metrics import adjusted_rand_score

from hf_plr.clustering import ReciprocalDBSCAN, ReciprocalHDBSCAN
from hf_plr.clustering.jaccard import compute_jaccard_distances, compute_overlaps, find_near_pairs, weigh_neighborhoods
from hf_plr.clustering.neighbors import find_nearest_neighbors


def blobs(n_samples, n_clusters, spread, seed=0, dimension=16):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(n_clusters, dimension))
    labels = rng.integers(0, n_clusters, n_samples)
    return (centers[labels] + spread * rng.normal(size=(n_samples, dimension))).astype(np.float32), labels


def unit(features):
    return torch.nn.functional.normalize(torch.as_tensor(features), dim=1)


def dense_jaccard(features, neighbors, k1, k2):
    """Re-ranking of Zhong et al. 2017, sample by sample, with N x N matrices."""
    n = len(features)

    def reciprocal(i, k):
        forward = neighbors[i, :k]
        return [j for j in forward if i in neighbors[j, :k]]

    weights = np.zeros((n, n))
    for i in range(n):
        known = reciprocal(i, k1)
        expanded = set(known)
        for candidate in known:
            half = reciprocal(candidate, round(k1 / 2) + 1)
            if len(set(half) & set(known)) > 2 / 3 * len(half):
                expanded |= set(half)
        members = np.array(sorted(expanded))
        distances = 2 - 2 * (features[members].double() @ features[i].double()).numpy()
        weights[i, members] = np.exp(-distances) / np.exp(-distances).sum()
    if k2 > 1:
        weights = np.stack([weights[neighbors[i, :k2]].mean(axis=0) for i in range(n)])
    overlap = np.stack([np.minimum(weights[i], weights).sum(axis=1) for i in range(n)])
    return weights, 1 - overlap / (2 - overlap)


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (9, 1), (30, 3)])
@pytest.mark.parametrize("eps", [0.3, 0.6])
def test_labels_equal_the_dense_way_and_scikit_learn(k1, k2, eps, monkeypatch):
    monkeypatch.setattr("hf_plr.clustering.jaccard.BLOCK_ELEMENTS", 2000)
    monkeypatch.setattr("hf_plr.clustering.neighbors.BLOCK_ELEMENTS", 2000)
    features = unit(blobs(240, 12, 0.45)[0])
    neighbors = find_nearest_neighbors(features, max(k1, k2))
    weights, jaccard = dense_jaccard(features, neighbors, k1, k2)
    np.testing.assert_allclose(weigh_neighborhoods(features, neighbors, k1, k2).toarray(), weights, atol=1e-6)
    expected = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit(np.maximum(jaccard, 0))
    ours = ReciprocalDBSCAN(eps=eps, min_samples=4, k1=k1, k2=k2).fit(features)
    np.testing.assert_array_equal(ours.labels_, expected.labels_)  # border samples and numbers, too
    np.testing.assert_array_equal(ours.core_sample_indices_, expected.core_sample_indices_)
    assert len(np.unique(ours.labels_)) > 2


def test_it_finds_clusters_and_leaves_strays_out():
    features, labels = blobs(600, 10, 0.15, seed=3)
    strays = np.random.default_rng(9).normal(size=(30, 16)).astype(np.float32)
    found = ReciprocalDBSCAN(eps=0.5, k1=30).fit_predict(np.concatenate([features, strays]))
    assert adjusted_rand_score(found[:600], labels) > 0.98
    assert (found[600:] == -1).mean() > (found[:600] == -1).mean() + 0.3


@pytest.mark.parametrize("search", ["torch", "faiss"])
def test_neighbors_are_exact_and_begin_with_the_sample_itself(search, monkeypatch):
    if search == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr("hf_plr.clustering.neighbors.BLOCK_ELEMENTS", 1000)
    features = unit(np.repeat(blobs(30, 3, 0.5)[0], 2, axis=0))  # every sample twice
    found = find_nearest_neighbors(features, 7, search=search)
    np.testing.assert_array_equal(found[:, 0], np.arange(60))
    similarities = features @ features.T
    expected = similarities.sort(dim=1, descending=True).values[:, :7]
    torch.testing.assert_close(similarities.gather(1, torch.as_tensor(found).long()), expected)


def test_faiss_finds_the_same_neighbors_also_among_duplicates():
    pytest.importorskip("faiss")
    features = unit(blobs(200, 6, 0.4)[0])
    np.testing.assert_array_equal(
        find_nearest_neighbors(features, 20, search="faiss"), find_nearest_neighbors(features, 20)
    )
    duplicates = unit(np.ones((12, 3)))
    assert (find_nearest_neighbors(duplicates, 4, search="faiss")[:, 0] == np.arange(12)).all()
    with_torch, with_faiss = (ReciprocalDBSCAN(k1=12, search=search) for search in ("torch", "faiss"))
    np.testing.assert_array_equal(with_faiss.fit_predict(features), with_torch.fit_predict(features))


def test_wanting_faiss_where_it_is_missing_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="faiss is not installed: pip install faiss-cpu, or search='torch'"):
        ReciprocalDBSCAN(search="faiss").fit(np.ones((3, 2)))


def test_edge_cases_have_defined_results(caplog):
    features = blobs(40, 4, 0.1)[0]
    assert (ReciprocalDBSCAN(k1=100, k2=50, eps=1.0).fit_predict(features) == 0).all()  # more neighbours than samples
    assert (ReciprocalDBSCAN(k1=5).fit_predict(np.ones((12, 3))) == 0).all()
    assert (ReciprocalDBSCAN(k1=5).fit_predict(np.zeros((12, 3))) == 0).all()
    assert ReciprocalDBSCAN(min_samples=1).fit_predict(features[:1]).tolist() == [0]
    with caplog.at_level(logging.WARNING):
        assert (ReciprocalDBSCAN(eps=0.0).fit_predict(features) == -1).all()
    assert "all 40 samples are noise at eps=0.0: try a larger eps" in caplog.text


def test_a_sample_is_near_itself_whatever_rounding_does():
    features = unit(blobs(30, 3, 0.4)[0])
    weights = weigh_neighborhoods(features, find_nearest_neighbors(features, 6), 6, 3)
    near = find_near_pairs(compute_overlaps(weights, 0.0), 0.0)
    assert (near.diagonal() == 1).all()


@pytest.mark.parametrize(
    ("arguments", "features", "message"),
    [
        ({"eps": 1.5}, np.ones((3, 2)), r"eps=1.5 is outside \[0, 1\]"),
        ({"k1": 0}, np.ones((3, 2)), "k1=0 must be at least 1"),
        ({"search": "annoy"}, np.ones((3, 2)), "search='annoy' is unknown: use one of torch, faiss"),
        ({}, np.array([[1.0], [np.nan]]), "features of 1 samples are NaN or infinite, the first is sample 1"),
        ({}, np.ones(3), r"not \(3,\)"),
        ({}, np.ones((0, 3)), r"\(0, 3\): there are no samples"),
    ],
)
def test_bad_input_is_named(arguments, features, message):
    with pytest.raises(ValueError, match=message):
        ReciprocalDBSCAN(**arguments).fit(features)


@pytest.mark.parametrize(("min_cluster_size", "min_samples"), [(4, 4), (5, 1), (8, 3)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hdbscan_labels_equal_those_of_scikit_learn_on_the_matrix(min_cluster_size, min_samples, seed, monkeypatch):
    monkeypatch.setattr("hf_plr.clustering.jaccard.BLOCK_ELEMENTS", 2000)
    features = unit(blobs(260, 12, 0.35, seed=seed)[0])
    weights = weigh_neighborhoods(features, find_nearest_neighbors(features, 20), 20, 6)
    stored = compute_jaccard_distances(weights, 1.0).tocoo()
    matrix = np.ones((260, 260))
    matrix[stored.row, stored.col] = stored.data
    expected = HDBSCAN(min_cluster_size, min_samples=min_samples, metric="precomputed", copy=True).fit_predict(matrix)
    found = ReciprocalHDBSCAN(min_cluster_size, min_samples, k1=20, max_distance=1.0).fit_predict(features)
    assert len(np.unique(found)) > 4
    assert adjusted_rand_score(found, expected) == 1.0
    assert (found != -1).mean() == pytest.approx((expected != -1).mean(), abs=0.01)


def test_distances_are_those_of_the_dense_way():
    features = unit(blobs(120, 6, 0.4)[0])
    neighbors = find_nearest_neighbors(features, 15)
    _, dense = dense_jaccard(features, neighbors, 15, 4)
    found = compute_jaccard_distances(weigh_neighborhoods(features, neighbors, 15, 4), 0.8).tocoo()
    np.testing.assert_allclose(found.data, np.maximum(dense, 0)[found.row, found.col], atol=1e-6)
    near = (dense <= 0.8 - 1e-6).sum()
    assert near <= found.nnz <= (dense <= 0.8 + 1e-6).sum()


def test_hdbscan_finds_clusters_of_different_density_that_no_eps_finds():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(8, 16))
    spread = np.repeat([0.08, 0.08, 0.3, 0.3, 0.45, 0.45, 0.15, 0.15], 60)
    truth = np.repeat(np.arange(8), 60)
    features = (centers[truth] + spread[:, None] * rng.normal(size=(480, 16))).astype(np.float32)
    found = ReciprocalHDBSCAN(min_cluster_size=20).fit_predict(features)
    member = found >= 0
    assert member.mean() > 0.8
    assert adjusted_rand_score(found[member], truth[member]) > 0.95


def test_hdbscan_edge_cases_have_defined_results(caplog):
    apart = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    assert ReciprocalHDBSCAN(k1=8).fit_predict(apart).tolist() == np.repeat([0, 1, 2], 10).tolist()
    with caplog.at_level(logging.WARNING):
        assert (ReciprocalHDBSCAN(k1=12).fit_predict(np.ones((12, 3))) == -1).all()
    assert "all 12 samples are noise: no two clusters stand out; try a smaller min_cluster_size" in caplog.text
    assert ReciprocalHDBSCAN().fit_predict(np.ones((2, 3))).tolist() == [-1, -1]
    for arguments, message in (
        ({"min_cluster_size": 1}, "min_cluster_size=1 must be at least 2"),
        ({"max_distance": 0.0}, r"max_distance=0.0 is outside \(0, 1\]"),
        ({"k2": 0}, "k2=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ReciprocalHDBSCAN(**arguments).fit(np.ones((9, 3)))


def test_a_tensor_that_requires_a_gradient_has_the_same_clusters():
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    expected = ReciprocalDBSCAN(k1=8).fit_predict(rows)
    np.testing.assert_array_equal(ReciprocalDBSCAN(k1=8).fit_predict(rows.clone().requires_grad_()), expected)


def test_features_whose_lengths_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="features of 9 samples are too large for float32, the first is sample 0"):
        ReciprocalDBSCAN().fit(torch.full((9, 4), 1e25))


@pytest.mark.parametrize("n_copies", [3, 6, 7, 10, 11, 13])
def test_copies_are_one_cluster_at_an_eps_of_zero(n_copies):
    features = np.repeat(np.random.default_rng(0).normal(size=(4, 8)), n_copies, axis=0)
    found = ReciprocalDBSCAN(eps=0.0, min_samples=3, k1=n_copies, k2=1).fit_predict(features)
    np.testing.assert_array_equal(found, np.repeat(np.arange(4), n_copies))


@pytest.mark.parametrize("full_rows", [0, 1 << 14])  # of tiles, and at once
@pytest.mark.parametrize("n_copies", [20, 31, 100])
def test_copies_beside_others_are_one_cluster_whatever_their_number(n_copies, full_rows, monkeypatch):
    monkeypatch.setattr("hf_plr.clustering.neighbors.FULL_ROWS", full_rows)
    monkeypatch.setattr("hf_plr.clustering.neighbors.TILE_COLUMNS", 64)
    random = np.random.default_rng(0)
    copies = np.repeat(random.normal(size=(2, 32)), n_copies, axis=0)
    features = np.concatenate([copies, random.normal(size=(100, 32))]).astype(np.float32)
    order = random.permutation(len(features))
    for clusterer in (ReciprocalDBSCAN(eps=0.0), ReciprocalDBSCAN(), ReciprocalHDBSCAN()):
        labels = np.empty(len(features), np.int64)
        labels[order] = clusterer.fit_predict(features[order])
        first, second = labels[0], labels[n_copies]
        assert min(first, second) >= 0
        assert first != second
        np.testing.assert_array_equal(labels[: 2 * n_copies], np.repeat([first, second], n_copies))
    with_two = ReciprocalDBSCAN(min_samples=40, k1=20, k2=1).fit(features)
    assert len(with_two.core_sample_indices_) == (2 * n_copies if n_copies >= 40 else 0)
