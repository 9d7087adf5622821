"""The refiner against independent implementations on all samples, and the facts that follow from the method."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from helpers.labels import churned, label_pairs, refined, same_partition
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score

from hf_plr import PseudoLabelRefiner
from hf_plr.refinement.agglomeration import LINKAGES


def first_merges(tree, n_clusters):
    """Clusters that the first merges of scipy's tree leave: like fcluster, but inversions tie nothing together."""
    n = len(tree) + 1
    members = {i: [i] for i in range(n)}
    for row in range(n - n_clusters):
        members[n + row] = members.pop(int(tree[row, 0])) + members.pop(int(tree[row, 1]))
    labels = np.empty(n, dtype=int)
    for label, samples in enumerate(members.values()):
        labels[samples] = label
    return labels


def agglomerate_plainly(rows, method, n_clusters):
    """All samples, all distances anew in every step: nearest first, of these the lightest; those tied in full at once.

    The tree is cut before there are fewer than `n_clusters`, except that identical rows are always together.
    """
    clusters = [[i] for i in range(len(rows))]
    samples = np.linalg.norm(rows[:, None] - rows[None], axis=2)

    def distance(a, b):
        between = samples[np.ix_(a, b)]
        if method in ("centroid", "ward"):
            centroids = np.linalg.norm(rows[a].mean(axis=0) - rows[b].mean(axis=0))
            return centroids * (np.sqrt(2 * len(a) * len(b) / (len(a) + len(b))) if method == "ward" else 1)
        return {"average": np.mean, "complete": np.max, "single": np.min}[method](between)

    merges = []  # height, samples in the result, merged clusters
    height = 0.0
    while len(clusters) > 1:
        pairs = [(i, j) for j in range(len(clusters)) for i in range(j)]
        distances = np.array([distance(clusters[i], clusters[j]) for i, j in pairs])
        weights = np.array([len(clusters[i]) + len(clusters[j]) for i, j in pairs])
        nearest = distances <= distances.min() + 1e-9
        nearest &= weights == weights[nearest].min()
        height = max(height, distances.min())  # no lower than the merges before: centroids may come nearer
        ends = np.array(pairs)[nearest].T
        graph = coo_array((np.ones(nearest.sum()), tuple(ends)), shape=(len(clusters),) * 2)
        n_groups, group = connected_components(graph, directed=False)
        groups = [[clusters[i] for i in np.flatnonzero(group == g)] for g in range(n_groups)]
        clusters = [list(itertools.chain(*parts)) for parts in groups]
        merges += [
            (round(height, 7), len(whole), parts) for whole, parts in zip(clusters, groups, strict=True) if parts[1:]
        ]

    labels = np.arange(len(rows))
    for key in sorted({merge[:2] for merge in merges}):
        merged = labels.copy()
        for _, _, parts in (merge for merge in merges if merge[:2] == key):
            for part in parts[1:]:
                merged[merged == merged[part[0]]] = merged[parts[0][0]]
        if len(np.unique(merged)) < n_clusters and key[0] > 0:
            break
        labels = merged
    return labels


def dense_soft_labels(previous, current, weight, normalize, noise):
    """Steps 1 to 3 by loops over samples and clusters."""
    previous_ids = sorted(set(previous) - {-1})
    current_ids = sorted(set(current) - {-1})
    iou = np.zeros((len(previous_ids), len(current_ids)))
    for i, a in enumerate(previous_ids):
        for j, b in enumerate(current_ids):
            both = sum((p == a) and (c == b) for p, c in zip(previous, current, strict=True))
            either = sum((p == a) or (c == b) for p, c in zip(previous, current, strict=True))
            iou[i, j] = both / either
    totals = iou.sum(axis=1, keepdims=True) if normalize == "row" else iou.sum(axis=0, keepdims=True)
    projection = np.divide(iou, totals, out=np.zeros_like(iou), where=totals > 0)
    rows = np.zeros((len(current), len(current_ids)))
    for i, (a, b) in enumerate(zip(previous, current, strict=True)):
        from_previous = projection[previous_ids.index(a)] if a != -1 else np.zeros(len(current_ids))
        if b == -1:
            rows[i] = from_previous if noise == "project" else 0
        else:
            onehot = np.eye(len(current_ids))[current_ids.index(b)]
            rows[i] = weight * onehot + (1 - weight) * from_previous if from_previous.any() else onehot
    return projection, rows


@pytest.mark.parametrize("normalize", ["row", "column"])
@pytest.mark.parametrize("noise", ["project", "drop"])
def test_projection_and_blend_equal_plain_loops(normalize, noise):
    previous, current = churned(150, 7, 0.4, noise=0.15)
    current[previous == 3] = -1  # a previous cluster that is all noise now: its row is empty
    result = refined(previous, current, weight=0.3, normalize=normalize, noise=noise)
    # The refiner's previous labels are its own numbers of the first call, so compare without the order of rows.
    projection, rows = dense_soft_labels(previous, current, 0.3, normalize, noise)
    np.testing.assert_allclose(result.soft_labels().toarray(), rows, atol=1e-12)
    np.testing.assert_allclose(np.sort(result.projection.toarray(), axis=0), np.sort(projection, axis=0), atol=1e-12)
    np.testing.assert_allclose(result.soft_labels(10, 20).toarray(), rows[10:20], atol=1e-12)


# Under complete linkage soft labels are tied all over, and scipy breaks ties by sample order: see the test after next.
@pytest.mark.parametrize("method", ["average", "ward", "single", "centroid"])
@pytest.mark.parametrize("n_clusters", [9, 5, 2])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_same_partition_as_scipy_on_all_samples(method, n_clusters, noise):
    previous, current = churned(600, 9, 0.25, seed=4, noise=noise)
    result = refined(previous, current, weight=0.45, linkage=method, n_clusters=n_clusters, min_cluster_size=1)
    rows = result.soft_labels().toarray()
    known = rows.any(axis=1)
    expected = first_merges(linkage(rows[known], method), n_clusters)
    assert same_partition(expected, result.labels[known])
    assert (result.labels[~known] == -1).all()


@pytest.mark.parametrize("method", LINKAGES)
@pytest.mark.parametrize("threshold", [0.2, 0.45, 0.8])
def test_same_cut_by_distance_as_scipy_on_all_samples(method, threshold):
    previous, current = churned(500, 8, 0.3, seed=1)
    options = {"n_clusters": None, "distance_threshold": threshold, "weight": 0.4, "min_cluster_size": 1}
    result = refined(previous, current, linkage=method, **options)
    expected = fcluster(linkage(result.soft_labels().toarray(), method), threshold, "distance")
    assert same_partition(expected, result.labels)


@given(
    st.integers(2, 24).flatmap(lambda n: st.tuples(*(arrays(np.int64, n, elements=st.integers(-1, 3)),) * 2)),
    st.sampled_from(LINKAGES),
    st.sampled_from(["projected", "joint"]),
    st.integers(1, 6),
    st.sampled_from([0.3, 0.5]),
)
def test_same_partition_as_plain_agglomeration_of_all_samples_with_ties(pair, method, space, n_clusters, weight):
    previous, current = pair
    assume((previous != -1).any())
    result = refined(
        previous, current, linkage=method, space=space, n_clusters=n_clusters, weight=weight, min_cluster_size=1
    )
    rows = result.soft_labels().toarray()
    known = rows.any(axis=1)
    if known.any():
        assert same_partition(agglomerate_plainly(rows[known], method, n_clusters), result.labels[known])


@pytest.mark.parametrize("generations", [2, 3, 4])
def test_joint_space_equals_scipy_on_all_samples(generations):
    rng = np.random.default_rng(0)
    epochs = [np.repeat(np.arange(6), 40)]
    for _ in range(generations - 1):
        epochs.append(np.where(rng.random(240) < 0.3, rng.integers(0, 6, 240), epochs[-1]))
    # Distances in the joint space are tied all over. Under single linkage that does not matter.
    refiner = PseudoLabelRefiner(
        space="joint", generations=generations, weight=0.4, previous="raw", linkage="single",
        n_clusters=None, distance_threshold=0.5, min_cluster_size=1,
    )  # fmt: skip
    for labels in epochs:
        result = refiner.refine(labels)
    shares = [0.4] + [0.6 / (generations - 1)] * (generations - 1)
    onehots = [share * np.eye(6)[labels] for share, labels in zip(shares, epochs[::-1], strict=True)]
    np.testing.assert_allclose(result.soft_labels().toarray(), np.hstack(onehots))
    assert same_partition(fcluster(linkage(np.hstack(onehots), "single"), 0.5, "distance"), result.labels)
    assert len(result.table) == len({tuple(row) for row in np.stack(epochs, axis=1)})


def test_noise_cases():
    previous = np.array([0, 0, 0, -1, 1, 1, 1, -1])
    current = np.array([0, 0, -1, 0, 1, 1, 1, -1])
    rows = refined(previous, current).soft_labels().toarray()
    np.testing.assert_allclose(rows[3], [1, 0])  # b after noise: the current cluster alone
    np.testing.assert_allclose(rows[2], [1, 0])  # noise after a: what a projects
    np.testing.assert_allclose(rows[7], [0, 0])  # noise after noise
    assert refined(previous, current).labels[2] == refined(previous, current).labels[0]
    assert refined(previous, current).labels[7] == -1
    assert refined(previous, current, noise="drop").labels[2] == -1


def test_a_tie_keeps_the_current_cluster_whatever_its_weight():
    for weight in (0.0, 0.01):
        result = refined([0, 0, 0, 0], [0, 0, 1, 1], weight=weight, assignment="argmax", min_cluster_size=1)
        assert result.labels.tolist() == [0, 0, 1, 1]


def test_argmax_changes_nothing_above_one_half():
    previous, current = churned(400, 10, 0.5)
    high = refined(previous, current, weight=0.51, assignment="argmax", min_cluster_size=1).labels
    assert same_partition(high, current)
    low = refined(previous, current, weight=0.2, assignment="argmax", min_cluster_size=1).labels
    assert not same_partition(low, current)


def test_distances_scale_with_the_weight():
    # Cluster 0 splits in halves; the rest stays, so that the cells' rows are easy to write down.
    previous = np.array([0] * 20 + [1] * 20)
    current = np.array([0] * 10 + [1] * 10 + [2] * 20)
    for weight in (0.2, 0.5, 0.9):
        rows = refined(previous, current, weight=weight).soft_labels().toarray()
        assert np.linalg.norm(rows[0] - rows[10]) == pytest.approx(weight * np.sqrt(2))


def test_within_a_current_cluster_distances_are_those_of_the_projections():
    previous, current = churned(400, 5, 0.4, seed=6)
    for weight in (0.2, 0.5, 0.9):
        result = refined(previous, current, weight=weight)
        rows = result.soft_labels().toarray()
        projections = result.projection.toarray()[result.table.previous[result.cell_of_sample()]]
        members = np.flatnonzero(current == 2)
        for i, j in itertools.pairwise(members):
            expected = (1 - weight) * np.linalg.norm(projections[i] - projections[j])
            assert np.linalg.norm(rows[i] - rows[j]) == pytest.approx(expected, abs=1e-12)


def test_joint_distances_with_equal_weights_are_those_of_co_association():
    rng = np.random.default_rng(1)
    epochs = rng.integers(0, 4, (3, 30))
    refiner = PseudoLabelRefiner(space="joint", generations=3, weight=1 / 3, previous="raw")
    for labels in epochs:
        result = refiner.refine(labels)
    rows = result.soft_labels().toarray()
    co_association = (epochs[:, :, None] == epochs[:, None]).mean(axis=0)
    squared = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(squared, 2 / 3 * (1 - co_association), atol=1e-12)


def test_a_merge_stays_in_the_projected_space_and_is_undone_in_the_joint_space():
    previous = np.array([0] * 30 + [1] * 30 + [2] * 30)
    current = np.array([0] * 60 + [1] * 30)
    projected = refined(previous, current, n_clusters=3)
    assert len(np.unique(projected.labels)) == 2
    joint = refined(previous, current, space="joint", n_clusters=3)
    assert same_partition(joint.labels, previous)


def test_clusters_keep_their_numbers():
    previous = np.repeat([0, 1, 2], [30, 40, 50])
    refiner = PseudoLabelRefiner()
    first = refiner.refine(previous).labels
    renamed = np.array([7, 100, 3])[previous]  # the clusterer's ids mean nothing
    renamed[:2] = 3
    second = refiner.refine(renamed).labels
    assert (second == first).mean() > 0.98
    born = renamed.copy()
    born[-20:] = 55
    third = refiner.refine(born).labels
    assert (third[:100] == second[:100]).mean() > 0.95


refinements = st.fixed_dictionaries(
    {
        "space": st.sampled_from(["projected", "joint"]),
        "linkage": st.sampled_from(LINKAGES),
        "n_clusters": st.sampled_from(["current", 2, 3]),
        "noise": st.sampled_from(["project", "drop"]),
        "normalize": st.sampled_from(["row", "column"]),
        "weight": st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
        "min_cluster_size": st.integers(1, 3),
        "previous": st.sampled_from(["refined", "raw"]),
    }
)


@given(label_pairs, refinements, st.randoms(use_true_random=False))
def test_names_and_order_of_samples_mean_nothing(pair, options, random):
    """Ties are everywhere in such small tables: what is tied in full must stay together or apart."""
    previous, current = pair
    result = refined(previous, current, **options)
    names = np.array([11, 3, 500, 7, 2, 0, 10**15, -1])  # the last entry serves label -1
    other = refined(names[previous], names[current], **options)
    assert same_partition(other.labels, result.labels)
    np.testing.assert_array_equal(other.labels == -1, result.labels == -1)
    np.testing.assert_allclose(other.confidence, result.confidence, atol=1e-9)
    order = np.array(random.sample(range(len(current)), len(current)))
    shuffled = refined(previous[order], current[order], **options)
    assert same_partition(shuffled.labels, result.labels[order])
    np.testing.assert_array_equal(shuffled.labels == -1, result.labels[order] == -1)
    np.testing.assert_allclose(shuffled.confidence, result.confidence[order], atol=1e-9)
    rows = (np.sort(r.soft_labels().toarray()) for r in (shuffled, result))
    np.testing.assert_allclose(next(rows), next(rows)[order], atol=1e-12)


@given(label_pairs)
def test_argmax_moves_only_where_one_column_is_largest(pair):
    previous, current = pair
    result = refined(previous, current, weight=0.3, assignment="argmax", min_cluster_size=1)
    rows = result.soft_labels().toarray()
    if (previous == -1).all() or not rows.shape[1]:
        assert same_partition(result.labels, current)
        return
    largest = rows.max(axis=1, keepdims=True)
    is_largest = (rows >= largest - 1e-9) & (largest > 0)
    position = np.where(current == -1, -1, np.searchsorted(result.table.current_ids, current))
    expected = np.where(is_largest.sum(axis=1) == 1, is_largest.argmax(axis=1), position)
    assert same_partition(expected, result.labels)
    np.testing.assert_array_equal(expected == -1, result.labels == -1)


@given(label_pairs)
def test_results_are_well_formed(pair):
    previous, current = pair
    for preset in ("slr", "soft", "joint", "rlcc", "none"):
        refiner = PseudoLabelRefiner.from_preset(preset)
        refiner.refine(previous)
        result = refiner.refine(current)
        assert result.labels.shape == current.shape
        assert result.labels.min() >= -1
        assert ((result.confidence >= 0) & (result.confidence <= 1)).all()
        assert 0.0 <= result.changed_share <= 1.0
        rows = result.soft_labels().sum(axis=1)
        assert (rows < 1 + 1e-9).all()


@given(arrays(np.int64, 40, elements=st.integers(0, 4)))
def test_the_same_labels_twice_give_the_same_partition(labels):
    permuted = (labels + 3) % 5
    result = refined(labels, permuted, min_cluster_size=1)
    assert same_partition(result.labels, labels)
    assert result.changed_share == 0.0
    np.testing.assert_allclose(result.confidence, 1.0)


def test_weight_one_is_the_current_and_weight_zero_what_the_previous_projects():
    previous, current = churned(300, 6, 0.3)
    assert same_partition(refined(previous, current, weight=1.0, min_cluster_size=1).labels, current)
    rows = refined(previous, current, weight=0.0).soft_labels().toarray()
    for cluster in np.unique(previous):
        assert np.ptp(rows[previous == cluster], axis=0).max() < 1e-12


def test_edge_cases_have_defined_results():
    assert (refined([-1] * 5, [-1] * 5).labels == -1).all()
    assert (refined([0] * 5, [0] * 5).labels == 0).all()
    assert same_partition(refined([0] * 6, [0, 0, 0, 1, 1, 1], min_cluster_size=1).labels, [0, 0, 0, 1, 1, 1])
    assert (refined([10**12] * 4, [5 * 10**15] * 4).labels == 0).all()
    assert refined([0], [0], min_cluster_size=1).labels.tolist() == [0]


def test_folding_leaves_as_many_clusters_as_asked_for(monkeypatch):
    monkeypatch.setattr("hf_plr.refinement.agglomeration.MAX_RELATED_PAIRS", 0)
    previous, current = churned(3000, 40, 0.2, seed=2)
    result = refined(previous, current, max_cells=20)
    assert not result.exact
    assert len(np.unique(result.labels)) == 40
    assert adjusted_rand_score(result.labels, current) > 0.9


def test_small_clusters_become_noise():
    result = refined([0] * 9 + [1], [0] * 9 + [1], min_cluster_size=2)
    assert result.labels[-1] == -1
    assert result.confidence[-1] == 0.0


@pytest.mark.parametrize("linkage", ["average", "ward", "centroid"])
def test_too_many_cells_are_folded_and_said_to_be(linkage, monkeypatch):
    monkeypatch.setattr("hf_plr.refinement.agglomeration.MAX_RELATED_PAIRS", 0)
    previous, current = churned(3000, 40, 0.2, seed=2)
    exact = refined(previous, current, linkage=linkage)
    folded = refined(previous, current, linkage=linkage, max_cells=300)
    assert exact.exact
    assert not folded.exact
    assert "not exact" in repr(folded)
    assert adjusted_rand_score(exact.labels, folded.labels) > 0.8


def test_refinement_needs_neither_torch_nor_transformers():
    code = (
        "import sys, hf_plr.refinement; from hf_plr import PseudoLabelRefiner; "
        "print(sorted({'torch', 'transformers', 'accelerate', 'datasets'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_several_labelings_are_remembered_in_32_bits():
    refiner = PseudoLabelRefiner.from_preset("consensus")
    labels = np.repeat(np.arange(4), 5)
    for _ in range(3):
        refiner.refine(np.stack([labels] * 3, axis=1).astype(np.int32))
    remembered = {name: value for name, value in refiner.state_dict().items() if name.startswith("history")}
    assert len(remembered) == 6
    assert {value.dtype for value in remembered.values()} == {np.dtype(np.int32)}


def test_a_consensus_needs_votes_of_the_current_epoch():
    with pytest.raises(ValueError, match=r"weight=0\.0 must be above 0 with metric='coassociation'"):
        PseudoLabelRefiner.from_preset("consensus", weight=0.0)
