"""Every way of agglomerating gives the same tree, with ties and without."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.labels import churned, label_pairs, refined
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.cluster.hierarchy import linkage
from sklearn.metrics import adjusted_rand_score

from hf_plr.refinement import agglomeration, weighted_linkage
from hf_plr.refinement.agglomeration.folding import fold
from hf_plr.refinement.blending import blend_joint, blend_projected
from hf_plr.refinement.cooccurrence import cooccurrence
from hf_plr.refinement.projection import project


def soft_cells(previous, current, space="projected"):
    table = cooccurrence(previous, current)
    if space == "joint":
        return blend_joint(table, 0.4, "project"), table.counts
    return blend_projected(table, project(table), 0.4, "project"), table.counts


@pytest.fixture
def without_matrix(monkeypatch):
    """Take the way of few cells away: Ward goes by centroids, the others along related pairs."""
    monkeypatch.setattr(agglomeration, "SMALL", 0)


@pytest.mark.parametrize("method", ["average", "ward", "complete", "single"])
@pytest.mark.parametrize("n_clusters", [2, 7, 30, 60])
@pytest.mark.parametrize("kind", ["local", "uniform"])
def test_ways_for_many_cells_agree_with_the_matrix(method, n_clusters, kind, monkeypatch):
    rng = np.random.default_rng(3)
    previous = rng.integers(0, 30, 4000)
    moved = (previous + rng.integers(-2, 3, 4000)) % 30 if kind == "local" else rng.integers(0, 30, 4000)
    current = np.where(rng.random(4000) < 0.3, moved, previous)
    options = {"linkage": method, "n_clusters": n_clusters, "weight": 0.45, "min_cluster_size": 1}
    expected = refined(previous, current, **options).labels
    monkeypatch.setattr(agglomeration, "SMALL", 0)
    np.testing.assert_array_equal(refined(previous, current, **options).labels, expected)


@given(
    label_pairs,
    st.sampled_from(["average", "ward", "complete", "single"]),
    st.sampled_from(["projected", "joint"]),
    st.integers(1, 8),
)
def test_ways_for_many_cells_agree_with_the_matrix_on_ties(pair, method, space, n_clusters):
    soft, counts = soft_cells(*pair, space)
    labelled = soft.labelled
    assume(labelled.any())
    cut = agglomeration.Cut(n_clusters, None)
    arguments = (soft.select(labelled), counts[labelled].astype(float), method, [cut], 1000)
    (expected,), _ = agglomeration.agglomerate(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agglomeration, "SMALL", 0)
        (found,), exact = agglomeration.agglomerate(*arguments)
    assert exact
    assert adjusted_rand_score(expected, found) == 1.0


def test_related_pairs_settle_a_cut_at_k_under_local_churn_without_any_matrix(without_matrix, monkeypatch):
    rng = np.random.default_rng(0)
    previous = rng.integers(0, 200, 50_000)
    current = np.where(rng.random(50_000) < 0.2, (previous + rng.integers(-3, 4, 50_000)) % 200, previous)
    monkeypatch.setattr(agglomeration, "merge_all", None)  # would fail if it were called
    result = refined(previous, current)
    assert result.exact
    assert len(np.unique(result.labels)) == 200


def test_pairs_of_more_clusters_than_32_bits_can_name():
    rng = np.random.default_rng(0)
    previous = np.repeat(np.arange(15_000), 16)
    current = np.where(rng.random(240_000) < 0.2, (previous + rng.integers(-3, 4, 240_000)) % 15_000, previous)
    result = refined(previous, current, min_cluster_size=1)
    assert len(result.table) > 2**15.5
    assert result.exact
    assert adjusted_rand_score(result.labels, current) > 0.9


@pytest.mark.parametrize("method", ["average", "ward", "complete", "single"])
def test_heights_equal_scipy_where_weights_matter(method):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(25, 4))
    weights = rng.integers(1, 30, 25)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    tree = weighted_linkage(distances, weights, method)
    everybody = linkage(np.repeat(points, weights, axis=0), method)
    np.testing.assert_allclose(tree[:, 2], everybody[-24:, 2], atol=1e-9)
    assert tree[-1, 3] == 25
    if method in ("average", "ward"):  # without the weights the heights would be others
        assert np.abs(linkage(points, method)[:, 2] - tree[:, 2]).max() > 1e-3
    np.testing.assert_allclose(weighted_linkage(distances, np.ones(25), method), linkage(points, method), atol=1e-9)


def test_weighted_linkage_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="'centroid' is not possible from distances"):
        weighted_linkage(np.zeros((2, 2)), np.ones(2), "centroid")
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(2, 2\)"):
        weighted_linkage(np.zeros((2, 3)), np.ones(2))


def test_equal_points_and_a_single_point():
    assert weighted_linkage(np.zeros((1, 1)), np.ones(1)).shape == (0, 4)
    np.testing.assert_array_equal(weighted_linkage(np.zeros((4, 4)), np.ones(4))[:, 2], 0)


@given(label_pairs, st.integers(1, 12))
def test_folding_keeps_the_heaviest_and_gives_each_cell_a_home(pair, n_heavy):
    soft, counts = soft_cells(*pair)
    labelled = soft.labelled
    assume(labelled.any())
    soft, counts = soft.select(labelled), counts[labelled].astype(float)
    heavy, home = fold(soft, counts, n_heavy)
    assert len(heavy) == min(n_heavy, len(counts))
    np.testing.assert_array_equal(home[heavy], np.arange(len(heavy)))
    assert ((home >= 0) & (home < len(heavy))).all()
    assert counts[heavy].max() == counts.max()


def test_folding_goes_to_the_nearest_of_the_same_current_cluster():
    previous, current = churned(2000, 12, 0.6, seed=1)
    soft, counts = soft_cells(previous, current)
    heavy, home = fold(soft, counts.astype(float), 40)
    rows = soft.rows().toarray()
    for cell in np.setdiff1d(np.arange(len(counts)), heavy):
        same = heavy[soft.codes[heavy, 0] == soft.codes[cell, 0]]
        distances = np.linalg.norm(rows[same] - rows[cell], axis=1)
        assert np.linalg.norm(rows[heavy[home[cell]]] - rows[cell]) == pytest.approx(distances.min())


@given(arrays(np.float64, 12, elements=st.floats(0, 3)), st.integers(1, 13))
def test_a_cut_leaves_as_many_clusters_as_asked_for_unless_merges_are_tied(heights, n_clusters):
    merges = agglomeration.Merges(13)
    for i, height in enumerate(np.sort(heights)):
        merges.add([0, i + 1], float(height), i + 2.0)
    labels = agglomeration.Cut(n_clusters, None).apply(merges)
    identical = int((heights <= 3e-7).sum())
    assert len(np.unique(labels)) == min(n_clusters, 13 - identical)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_distances_that_are_no_numbers_are_refused(bad):
    distances = np.ones((3, 3)) - np.eye(3)
    distances[0, 1] = distances[1, 0] = bad
    with pytest.raises(ValueError, match="2 of the distances are NaN or infinite"):
        weighted_linkage(distances, np.ones(3))


@pytest.mark.parametrize("weight", [0, -1, 0.5, np.nan])
def test_points_of_no_samples_are_refused(weight):
    with pytest.raises(ValueError, match="expected numbers of samples of at least 1"):
        weighted_linkage(1.0 - np.eye(2), np.array([1, weight]))
