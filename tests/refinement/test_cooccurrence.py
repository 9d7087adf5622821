"""Counting in chunks, in shards and over generations."""

from __future__ import annotations

import itertools
import sys
from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score

from hf_plr.refinement import CooccurrenceTable, adjusted_rand, cooccurrence
from hf_plr.refinement.cooccurrence import Positions
from hf_plr.refinement.correspondence import Overlaps, find_cluster_events
from hf_plr.refinement.projection import project, spread_over_similar

generations = st.tuples(st.integers(1, 50), st.integers(2, 4)).flatmap(
    lambda shape: st.lists(
        arrays(np.int64, shape[0], elements=st.integers(-1, 5)), min_size=shape[1], max_size=shape[1]
    )
)
huge = np.array([2**62, 3, 10**12, 2**63 - 1, 0, 77, -1])  # the last entry serves label -1


@pytest.fixture(params=["small", "chunked", "bisected"])
def counting(request, monkeypatch):
    """Count in one chunk and a table, in many chunks, and in many chunks without a table."""
    module = sys.modules["hf_plr.refinement.cooccurrence"]
    if request.param != "small":
        monkeypatch.setattr(module, "COUNT_CHUNK", 7)
    if request.param == "bisected":
        monkeypatch.setattr(module, "TABLE_SIZE", 0)


def test_counts_and_first_members_equal_a_plain_count(counting):
    rng = np.random.default_rng(0)
    for n_labelings in (2, 3, 4):
        labelings = [huge[rng.integers(-1, 6, 200)] for _ in range(n_labelings)]
        table = cooccurrence(*labelings)
        tuples = list(zip(*(labels.tolist() for labels in labelings), strict=True))
        assert len(table) == len(set(tuples))
        for i, codes in enumerate(table.codes):
            cell = tuple(-1 if code == -1 else int(ids[code]) for ids, code in zip(table.ids, codes, strict=True))
            assert table.counts[i] == Counter(tuples)[cell]
            assert table.first_member[i] == tuples.index(cell)
        cells = table.locate(*labelings)
        assert [tuples[first] for first in table.first_member[cells]] == tuples


@given(generations, st.data())
def test_tables_of_shards_add_up(labelings, data):
    whole = cooccurrence(*labelings)
    n = len(labelings[0])
    bounds = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
    tables = [
        cooccurrence(*(labels[start:stop] for labels in labelings), offset=start)
        for start, stop in itertools.pairwise(bounds)
    ]
    total = sum(tables[::-1])  # in any order
    for ids, expected in zip(total.ids, whole.ids, strict=True):
        np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(total.codes, whole.codes)
    np.testing.assert_array_equal(total.counts, whole.counts)
    np.testing.assert_array_equal(total.first_member, whole.first_member)
    np.testing.assert_array_equal(total.locate(*labelings), whole.locate(*labelings))


@given(generations)
def test_agreement_equals_scikit_learn_on_all_samples(labelings):
    table = cooccurrence(*labelings)
    expected = adjusted_rand_score(labelings[-2], labelings[-1])
    assert adjusted_rand(table.previous, table.current, table.counts) == pytest.approx(expected)


def test_matrix_holds_the_pairs_without_noise():
    table = cooccurrence(np.array([5, 5, 5, -1, 8]), np.array([0, 0, 2, 2, -1]))
    np.testing.assert_array_equal(table.matrix().toarray(), [[2, 1], [0, 0]])
    np.testing.assert_array_equal(table.sizes(-2), [3, 1])
    np.testing.assert_array_equal(table.sizes(-1), [2, 2])


def test_labels_of_other_sizes_and_kinds():
    previous = np.array([0, 1, 1], dtype=np.uint8)
    table = cooccurrence(previous, np.array([2**40, 2**40, 0], dtype=np.uint64))
    assert len(table) == 3
    assert len(cooccurrence(np.empty(0, dtype=int), np.empty(0, dtype=int))) == 0
    with pytest.raises(ValueError, match="previous has 3, current has 2"):
        cooccurrence(previous, previous[:2])
    with pytest.raises(TypeError, match="float64"):
        cooccurrence(previous, np.zeros(3))
    with pytest.raises(ValueError, match=str(2**64 - 1)):
        cooccurrence(previous, np.full(3, 2**64 - 1, dtype=np.uint64))
    with pytest.raises(ValueError, match="two or more"):
        cooccurrence(previous)


def test_labels_that_were_not_counted_together_are_not_found():
    table = cooccurrence(np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"labels \(0, 1\)"):
        table.locate(np.array([0, 0]), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"labels \(7, 0\)"):
        table.locate(np.array([7]), np.array([0]))
    with pytest.raises(ValueError, match=r"labels \(-1, 0\)"):
        table.locate(np.array([-1]), np.array([0]))


def test_tables_of_other_generations_do_not_add_up():
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match="2 labelings and one of 3"):
        cooccurrence(labels, labels) + cooccurrence(labels, labels, labels)


@given(st.sets(st.integers(0, 40), max_size=20), st.booleans())
def test_positions_of_keys(keys, by_table):
    ascending = np.array(sorted(keys), dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        if not by_table:
            patch.setattr(sys.modules["hf_plr.refinement.cooccurrence"], "TABLE_SIZE", 0)
        position = Positions(ascending)
    asked = np.arange(-3, 50)
    expected = [int(np.searchsorted(ascending, key)) if key in keys else -1 for key in asked]
    assert position(asked).tolist() == expected


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_a_table_of_counted_cells_is_that_of_the_samples(seed, n_labelings):
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 0, 3, 4, 900], (n_labelings, 40))
    expected = cooccurrence(*labels)
    with_noise = [np.append(ids, -1) for ids in expected.ids]  # a code of -1 is the last
    cells = np.stack([ids[column] for ids, column in zip(with_noise, expected.codes.T, strict=True)], axis=1)
    order = rng.permutation(len(cells))
    table = CooccurrenceTable.from_cells(cells[order], expected.counts[order], expected.first_member[order])
    for name in ("codes", "counts", "first_member"):
        np.testing.assert_array_equal(getattr(table, name), getattr(expected, name))
        assert getattr(table, name).dtype == getattr(expected, name).dtype
    np.testing.assert_array_equal(table.locate(*labels), expected.locate(*labels))


@pytest.mark.parametrize(
    ("labels", "counts", "message"),
    [
        ([[0, 1], [0, 1]], [1, 2], "a cell occurs more than once"),
        ([[0, 1], [1, 1]], [1, 0], "counts must be at least 1"),
        ([[0, -2]], [1], "must be -1"),
        ([[0], [1]], [1, 1], "need shape"),
        ([[0, 1]], [1, 1], "need shape"),
    ],
)
def test_cells_that_do_not_fit_are_refused(labels, counts, message):
    with pytest.raises(ValueError, match=message):
        CooccurrenceTable.from_cells(labels, counts, np.zeros(len(counts), int))


def test_clusters_that_share_just_half_are_not_linked():
    events = find_cluster_events(Overlaps(*map(np.array, ([0], [0], [2], [4], [4]))), np.array([3]), np.array([7]))
    assert {event.kind for event in events} == {"born", "died"}
    events = find_cluster_events(Overlaps(*map(np.array, ([0], [0], [3], [4], [4]))), np.array([3]), np.array([7]))
    assert {event.kind for event in events} == {"kept"}


def test_a_tenth_goes_to_similar_clusters_by_the_constants_of_rlcc():
    cosines = np.array([[1.0, 0.95], [0.95, 1.0]])
    spread = spread_over_similar(sp.csr_array(np.eye(2)), cosines).toarray()
    share = 0.1 / (1 + np.exp(30.0 * 0.05))
    np.testing.assert_allclose(spread, [[1 - share, share], [share, 1 - share]], rtol=1e-12)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalize='rows' is unknown: use row or column"):
        project(cooccurrence([0, 1], [0, 1]), normalize="rows")
