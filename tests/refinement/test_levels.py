"""Levels of a run: nested cuts whose numbers live on in the runs that continue it, and are never given twice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.refinement import cooccurrence
from hf_plr.refinement.cluster_tree import KnownLevels, make_levels, make_tree


def tree_of(labels: np.ndarray, rng: np.random.Generator):
    """A random tree of the clusters that samples are in, -1 = none."""
    ids, sizes = np.unique(labels[labels >= 0], return_counts=True)
    points = rng.normal(size=(len(ids), 2))
    return make_tree(ids, sizes, np.linalg.norm(points[:, None] - points[None], axis=2))


def numbers_of(levels):
    return {n: dict(zip(level.labels.tolist(), level.numbers.tolist(), strict=True)) for n, level in levels.items()}


def take_over(before, last, labels, next_number):
    return KnownLevels(cooccurrence(last, labels), numbers_of(before), next_number)


@st.composite
def lines_of_runs(draw):
    """Labels of the same samples in two to four runs; a later run keeps some clusters and has some that are new."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    runs, next_number = [], 0
    for _ in range(draw(st.integers(2, 4))):
        n_clusters = draw(st.integers(3, 12))
        own = next_number + np.arange(n_clusters)
        if runs:
            kept = np.unique(runs[-1][runs[-1] >= 0])
            own[: len(kept)] = rng.permutation(kept)[: len(own)]
        labels = rng.choice(np.append(own, -1), 150)
        if runs:
            stays = rng.random(150) < draw(st.floats(0, 1))
            labels[stays & np.isin(runs[-1], own)] = runs[-1][stays & np.isin(runs[-1], own)]
        runs.append(labels)
        next_number = max(next_number, int(labels.max()) + 1)
    return runs, rng


@given(lines_of_runs())
def test_numbers_follow_the_samples_and_are_never_given_twice(line):
    runs, rng = line
    levels, next_number = make_levels(tree_of(runs[0], rng), [2, 3], next_number=int(runs[0].max()) + 1)
    assert all(set(level.numbers) <= set(level.labels) for level in levels.values())  # of a first run: labels
    ever = {n: set(level.numbers.tolist()) for n, level in levels.items()}
    for last, labels in pairwise(runs):
        first_new, before = next_number, levels
        tree = tree_of(labels, rng)
        known = take_over(before, last, labels, first_new)
        levels, next_number = make_levels(tree, None, known, max(first_new, int(labels.max()) + 1))
        assert list(levels) == [n for n in before if n <= len(tree)]
        for n, level in levels.items():
            assert len(set(zip(level.numbers.tolist(), tree.cut(n).numbers.tolist(), strict=True))) == n
            kept = set(level.numbers.tolist()) & set(before[n].numbers.tolist())
            assert not (set(level.numbers.tolist()) - kept) & ever[n]
            assert max(level.numbers) < next_number
            was, now = before[n].apply(last), level.apply(labels)
            shared = {(a, b): int(((was == a) & (now == b)).sum()) for a in set(was) - {-1} for b in set(now) - {-1}}
            for a in before[n].members:
                row, column = ({pair: s for pair, s in shared.items() if pair[i] == a} for i in (0, 1))
                if a in kept:
                    assert shared[a, a] == max(row.values()) == max(column.values()) > 0
                else:  # whoever has most of it has more of another one, or as much
                    (_, b), most = max(row.items(), key=lambda item: item[1], default=((a, a), 0))
                    rivals = [s for (c, d), s in shared.items() if d == b and c != a]
                    tied = sum(s == most for s in row.values()) > 1
                    assert most == 0 or tied or max(rivals, default=0) >= most
            ever[n] |= set(level.numbers.tolist())
        parts = [level.apply(labels) for level in levels.values()]
        for coarse, fine in pairwise(parts):
            assert len(set(zip(fine.tolist(), coarse.tolist(), strict=True))) == len(set(fine.tolist()))
            assert ((fine == -1) == (labels == -1)).all()


@given(st.integers(0, 2**32), st.permutations(range(12)))
def test_a_run_of_the_same_samples_and_tree_keeps_all_numbers_whatever_its_clusters_are_called(seed, order):
    rng = np.random.default_rng(seed)
    labels = np.append(np.arange(12), rng.integers(-1, 12, 100))
    tree = tree_of(labels, rng)
    levels, next_number = make_levels(tree, [2, 5, 9], next_number=12)
    renamed = np.append(20 + np.array(order), -1)[labels]
    other = type(tree)(20 + np.array(order)[tree.labels], tree.sizes, tree.nodes, tree.heights)
    again, after = make_levels(other, None, take_over(levels, labels, renamed, 12), next_number)
    assert after == next_number
    for n, level in levels.items():
        np.testing.assert_array_equal(again[n].apply(renamed), level.apply(labels))


def test_a_new_part_has_the_number_of_a_new_cluster_or_one_of_its_own():
    last = np.array([0] * 4 + [1] * 4 + [2] * 4 + [-1] * 9)
    before, _ = make_levels(tree_at(last, {0: 0.0, 1: 1.0, 2: 9.0}), [2], next_number=3)
    assert numbers_of(before) == {2: {0: 0, 1: 0, 2: 2}}
    # cluster 1 leaves 0 and makes a part with the new cluster 5; 2 joins 0
    labels = np.array([0] * 4 + [1] * 4 + [2] * 4 + [5] * 9)
    tree = tree_at(labels, {0: 0.0, 2: 1.0, 1: 9.0, 5: 9.5})
    levels, next_number = make_levels(tree, None, take_over(before, last, labels, 3), 6)
    assert numbers_of(levels) == {2: {0: 0, 2: 0, 1: 5, 5: 5}}  # 2 is no more: it would be the number of another part
    assert next_number == 6
    # without a new cluster in it, it has a number of its own
    labels = np.array([0] * 4 + [1] * 4 + [2] * 4 + [-1] * 9)
    tree = tree_at(labels, {0: 0.0, 2: 1.0, 1: 9.0})
    levels, next_number = make_levels(tree, None, take_over(before, last, labels, 3), 6)
    assert numbers_of(levels) == {2: {0: 0, 2: 0, 1: 6}}
    assert next_number == 7


def tree_at(labels: np.ndarray, places: dict[int, float]):
    """A tree of the clusters of samples, which lie at these places of a line."""
    ids, sizes = np.unique(labels[labels >= 0], return_counts=True)
    at = np.array([places[label] for label in ids.tolist()])
    return make_tree(ids, sizes, np.abs(at[:, None] - at))


@pytest.mark.parametrize(
    ("wanted", "known", "expected"),
    [
        (None, None, "chosen"),
        ([3, 2, 9], None, [2, 3]),  # of the six clusters
        ([3], {2: {}}, [3]),
        (None, {4: {}, 2: {}, 9: {}}, [2, 4]),
        (None, {9: {}}, "chosen"),
        ([], None, []),
    ],
)
def test_which_levels_there_are(wanted, known, expected):
    labels = np.repeat(np.arange(6), 3)
    tree = tree_of(labels, np.random.default_rng(0))
    given_levels = None if known is None else KnownLevels(cooccurrence(labels, labels), known, 6)
    levels, _ = make_levels(tree, wanted, given_levels, 6)
    assert list(levels) == (tree.choose_levels() if expected == "chosen" else expected)
    assert all(len(level) == n for n, level in levels.items())
