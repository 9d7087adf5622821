"""The tree of clusters: distances from prototypes and from the past, cuts, pins, numbers and levels."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from hf_plr.refinement import cooccurrence
from hf_plr.refinement.cluster_tree import ClusterTree, TreeError, compare_clusters, make_tree
from hf_plr.refinement.cluster_tree.likeness import measure_membership_distances, measure_prototype_distances
from hf_plr.refinement.cluster_tree.tree import order_by_seniority


def distances_of(rng: np.random.Generator, n: int) -> np.ndarray:
    points = rng.normal(size=(n, 3))
    return np.linalg.norm(points[:, None] - points[None], axis=2)


@st.composite
def trees(draw, least: int = 1) -> ClusterTree:
    n = draw(st.integers(least, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels, sizes = rng.choice(50, n, replace=False), rng.integers(1, 30, n)
    distances = distances_of(rng, n)
    if draw(st.booleans()):  # many of them are equal
        distances = np.round(distances)
    return make_tree(labels, sizes, distances)


def partition(level) -> set[frozenset[int]]:
    return {frozenset(members) for members in level.members.values()}


def is_nested(finer, coarser) -> bool:
    return all(any(part <= whole for whole in partition(coarser)) for part in partition(finer))


@given(trees())
def test_cuts_have_as_many_clusters_as_wanted_and_are_nested(tree):
    levels = [tree.cut(n) for n in range(1, len(tree) + 1)]
    assert [len(level) for level in levels] == list(range(1, len(tree) + 1))
    assert all(is_nested(finer, coarser) for coarser, finer in pairwise(levels))
    assert partition(tree.cut()) == partition(levels[-1]) == {frozenset([label]) for label in tree.labels.tolist()}


@given(trees(), st.floats(0, 8))
def test_a_cut_at_a_height_makes_the_merges_up_to_it(tree, height):
    level = tree.cut(height=height)
    assert len(level) == len(tree) - int((tree.heights <= height).sum())
    assert partition(level) == partition(tree.cut(len(level)))
    assert level.height <= height


@given(trees(), st.data())
def test_sizes_add_up_and_samples_follow_their_cluster(tree, data):
    level = tree.cut(data.draw(st.integers(1, len(tree))))
    labels = np.append(np.repeat(tree.labels, tree.sizes), -1)
    spread = level.apply(labels)
    assert spread[-1] == -1
    for number, members in level.members.items():
        assert level.size(number) == (spread == number).sum() == np.isin(labels, members).sum()
        assert number in members
        assert number == members[0]  # in a first run the most senior cluster is the largest
    assert tree.node_sizes[-1] == tree.sizes.sum()


@given(st.integers(2, 9), st.integers(0, 2**32))
def test_weights_are_as_many_identical_points(n, seed):
    rng = np.random.default_rng(seed)
    distances, sizes = distances_of(rng, n), rng.integers(1, 5, n)
    tree = ClusterTree.from_distances(np.arange(n), sizes, distances)
    repeated = np.repeat(np.arange(n), sizes)
    points = linkage(squareform(distances[np.ix_(repeated, repeated)], checks=False), "average")
    np.testing.assert_allclose(tree.heights, points[-(n - 1) :, 2], atol=1e-5)
    for clusters in range(1, n + 1):
        expected = fcluster(points, clusters, "maxclust")
        found = tree.cut(clusters).numbers[repeated]
        assert len(set(zip(expected, found, strict=True))) == clusters


@given(trees(), st.permutations(range(14)))
def test_the_order_of_clusters_does_not_matter(tree, order):
    order = np.array([place for place in order if place < len(tree)])
    rng = np.random.default_rng(len(tree))
    distances, labels, sizes = distances_of(rng, len(tree)), tree.labels, tree.sizes
    a = make_tree(labels, sizes, distances)
    b = make_tree(labels[order], sizes[order], distances[np.ix_(order, order)])
    for name in ("labels", "sizes", "nodes"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_allclose(a.heights, b.heights, atol=2e-6)


@given(trees(), st.permutations(range(1000, 1050)))
def test_other_numbers_give_the_same_parts(tree, numbers):
    runs = [dict(zip(tree.labels.tolist(), tree.sizes.tolist(), strict=True))]
    renumbered = ClusterTree(np.array(numbers)[tree.labels], tree.sizes, tree.nodes, tree.heights)
    for clusters in range(1, len(tree) + 1):
        expected = tree.cut(clusters)
        np.testing.assert_array_equal(renumbered.cut(clusters).numbers, np.array(numbers)[expected.numbers])
    assert order_by_seniority(tree.labels, tree.sizes, runs).tolist() == list(range(len(tree)))


@given(trees(2), st.data())
def test_numbers_stay_over_runs_whatever_becomes_of_sizes(tree, data):
    """Clusters that stay in their part keep its number; new clusters take none over."""
    n_new = data.draw(st.integers(0, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    labels = np.append(tree.labels, 100 + np.arange(n_new))
    sizes = rng.integers(1, 1000, len(labels))
    parts = tree.cut(data.draw(st.integers(1, len(tree))))
    home = np.append(parts.numbers, rng.choice(parts.numbers, n_new))
    distances = 1.0 + 10.0 * (home[:, None] != home)
    np.fill_diagonal(distances, 0.0)
    later = make_tree(labels, sizes, distances, [dict(zip(tree.labels.tolist(), tree.sizes.tolist(), strict=True))])
    level = later.cut(len(parts))
    found = dict(zip(later.labels.tolist(), level.numbers.tolist(), strict=True))
    assert found == dict(zip(labels.tolist(), home.tolist(), strict=True))


@given(trees(4), st.data())
def test_pins_hold_at_every_level_and_levels_stay_nested(tree, data):
    labels = data.draw(st.permutations(tree.labels.tolist()))
    apart, together = labels[:2], labels[2:4]
    levels = []
    for clusters in range(2, len(tree)):
        level = tree.cut(clusters, keep=[apart], join=[together])
        number = dict(zip(level.labels.tolist(), level.numbers.tolist(), strict=True))
        assert len(level) == clusters
        assert number[apart[0]] != number[apart[1]]
        assert number[together[0]] == number[together[1]]
        levels.append(level)
    assert all(is_nested(finer, coarser) for coarser, finer in pairwise(levels))
    with pytest.raises(TreeError, match="leaves at least 2 clusters, not 1"):
        tree.cut(1, keep=[apart], join=[together])


@given(trees(2), st.data())
def test_pins_that_the_tree_fulfils_by_itself_change_nothing(tree, data):
    clusters = data.draw(st.integers(2, len(tree)))
    expected = tree.cut(clusters)
    representatives = list(expected.members)
    together = [members for members in expected.members.values() if len(members) > 1]
    assert partition(tree.cut(clusters, keep=[representatives], join=together)) == partition(expected)


def test_a_pinned_merge_lets_the_more_senior_side_go_on():
    # 0 and 1 merge first, 2 joins them, 3 comes last; kept apart from 0, 1 stays alone and 2 joins 0
    tree = ClusterTree(
        np.array([0, 1, 2, 3]), np.array([9, 8, 7, 6]), np.array([[0, 1], [2, 4], [3, 5]]), np.array([1.0, 2.0, 3.0])
    )
    level = tree.cut(2, keep=[(0, 1)])
    assert level.members == {0: (0, 2, 3), 1: (1,)}
    assert level.height == 3.0
    assert tree.cut(3, keep=[(0, 1)]).members == {0: (0, 2), 1: (1,), 3: (3,)}
    assert tree.cut(2, join=[(1, 3)]).members == {0: (0, 1, 3), 2: (2,)}


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"clusters": 0}, "at least 1 cluster, not 0"),
        ({"clusters": 5}, "5 clusters are more than the 4"),
        ({"clusters": 4, "join": [(0, 1)]}, "more than the 3 that there are after the joins"),
        ({"clusters": 2, "height": 1.0}, "not both"),
        ({"height": -1.0}, "at least 0, not -1"),
        ({"height": float("nan")}, "at least 0, not nan"),
        ({"clusters": 2, "keep": [(0, 7)]}, "no cluster 7 to keep"),
        ({"clusters": 2, "join": [(3, 3)]}, "to join takes two clusters or more, not 3, 3"),
        ({"clusters": 2, "keep": [(0, 3)], "join": [(0, 1), (1, 3)]}, "0 and 3 are to be joined and to stay apart"),
        ({"clusters": 2, "keep": [(0, 1, 2)]}, "leaves at least 3 clusters, not 2"),
    ],
)
def test_cuts_that_a_tree_does_not_have_are_refused(arguments, fault):
    tree = make_tree(np.arange(4), np.array([4, 3, 2, 1]), distances_of(np.random.default_rng(0), 4))
    with pytest.raises(TreeError, match=fault):
        tree.cut(**arguments)


def test_labels_of_another_run_are_refused():
    tree = make_tree(np.array([3, 9]), np.array([4, 3]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert tree.cut(1).apply(np.array([9, -1, 3], np.int16)).tolist() == [3, -1, 3]
    with pytest.raises(ValueError, match="no cluster 4 in the tree"):
        tree.cut(1).apply([3, 4])


def test_levels_are_where_the_gaps_are_largest():
    # two groups of three groups of two groups of three clusters
    steps = product((0.0, 1000.0), (0.0, 200.0, 400.0), (0.0, 20.0), (0.0, 1.0, 3.0))
    places = np.array([sum(step) for step in steps])
    tree = make_tree(np.arange(36), np.ones(36, int), np.abs(places[:, None] - places))
    assert tree.choose_levels() == [2, 6, 12]
    assert make_tree(np.arange(2), np.ones(2, int), np.ones((2, 2))).choose_levels() == []


@given(trees())
def test_chosen_levels_can_be_cut(tree):
    chosen = tree.choose_levels()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(3, max(len(tree) - 2, 0)) or len(tree) < 10
    assert all(2 <= n <= max(2, len(tree) // 2) for n in chosen)


def test_levels_are_no_near_copies_of_the_clusters():
    # the largest gaps of all are those that leave 63 clusters, and 62
    heights = np.concatenate([[0.0, 0.5], np.linspace(0.9, 1.0, 61)])
    tree = ClusterTree(
        np.arange(64), np.ones(64, int), np.array([[0, 1], *([62 + i, i] for i in range(2, 64))]), heights
    )
    assert max(tree.choose_levels()) <= 32
    assert tree.cut(32).height > tree.cut(62).height


def test_names_of_a_level_are_those_of_its_clusters():
    tree = ClusterTree(
        np.array([0, 1, 2, 3]), np.array([9, 8, 7, 6]), np.array([[0, 1], [2, 3], [4, 5]]), np.array([1.0, 2.0, 3.0])
    )
    names = {0: "dog", 1: "cat", 2: "cat"}
    assert tree.cut(2).names(names) == {0: "dog / cat", 2: "cat and 1 without a name"}
    assert tree.cut(2).names(names, counts_unnamed=False) == {0: "dog / cat", 2: "cat"}
    assert tree.cut(1).names(names) == {0: "cat / dog and 1 without a name"}  # 15 samples against 9
    assert tree.cut(4).names(names) == names


# ---- distances -------------------------------------------------------------------------------------------------------


def test_prototypes_are_compared_by_cosine():
    distances = measure_prototype_distances(np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32))
    np.testing.assert_allclose(distances, [[0, 1, 2], [1, 0, 1], [2, 1, 0]], atol=1e-12)


def test_members_that_shared_clusters_before_make_clusters_alike():
    #      0 and 1 were divided alike, 2 was with half of them, 3 was elsewhere
    now = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    past = np.array([5, 6, 5, 6, 5, 5, 7, -1])
    distances = measure_membership_distances([cooccurrence(past, now)])
    half = 1.0 - 0.5**0.5
    expected = [[0, 0, half, 1], [0, 0, half, 1], [half, half, 0, 1], [1, 1, 1, 0]]
    np.testing.assert_allclose(distances, expected, atol=1e-12)


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_membership_is_the_mean_of_bhattacharyya_coefficients(seed, n_labelings):
    rng = np.random.default_rng(seed)
    now = np.concatenate([np.arange(5), rng.integers(0, 5, 60)])
    past = [rng.integers(0, 4, len(now)) for _ in range(n_labelings)]
    shares = [np.array([[(p[now == k] == j).mean() for j in range(4)] for k in range(5)]) for p in past]
    expected = 1.0 - np.mean([np.sqrt(share) @ np.sqrt(share).T for share in shares], axis=0)
    np.fill_diagonal(expected, 0.0)
    found = measure_membership_distances([cooccurrence(p, now) for p in past])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (found == found.T).all()


@given(st.integers(0, 2**32), st.integers(0, 60))
def test_tables_of_shards_add_up_to_the_same_distances(seed, place):
    rng = np.random.default_rng(seed)
    now, past = np.concatenate([np.arange(5), rng.integers(-1, 5, 55)]), rng.integers(-1, 6, 60)
    prototypes = rng.normal(size=(5, 3))
    whole = compare_clusters(prototypes, [cooccurrence(past, now)])
    parts = [cooccurrence(past[:place], now[:place]), cooccurrence(past[place:], now[place:], offset=place)]
    assert compare_clusters(prototypes, [sum(parts)]).tobytes() == whole.tobytes()


def test_labelings_that_tell_nothing_are_left_out():
    rng = np.random.default_rng(0)
    now, prototypes = np.repeat(np.arange(4), 5), rng.normal(size=(4, 3))
    same, none, past = cooccurrence(9 - now, now), cooccurrence(np.full(20, -1), now), rng.integers(0, 3, 20)
    alone = compare_clusters(prototypes)
    np.testing.assert_array_equal(compare_clusters(prototypes, [same, none]), alone)
    once = compare_clusters(prototypes, [cooccurrence(past, now)])
    np.testing.assert_array_equal(compare_clusters(prototypes, [cooccurrence(past, now)] * 2 + [same, none]), once)
    assert not np.array_equal(once, alone)


def test_a_prototype_of_zeros_is_far_from_all():
    distances = compare_clusters(np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    np.testing.assert_array_equal(distances, [[0, 1, 1], [1, 0, 1], [1, 1, 0]])
