"""What a refiner refuses, in words that name it, and that it stays as it was then."""

from __future__ import annotations

import numpy as np
import pytest

from hf_plr import PseudoLabelRefiner


def test_a_number_that_the_labels_cannot_hold_is_refused():
    refiner = PseudoLabelRefiner.from_preset("none", min_cluster_size=1)
    refiner.continue_from(np.array([127, 127, -1]), 1, 128)
    with pytest.raises(ValueError, match="labels of int8 cannot hold the cluster 128"):
        refiner.refine(np.array([0, 0, 1]), out=np.empty(3, np.int8))


@pytest.mark.parametrize("case", ["larger numbers of the last call", "a new number", "a finer level"])
def test_a_refused_array_leaves_the_refiner_as_it_was(case):
    if case == "larger numbers of the last call":
        refiner, labels = PseudoLabelRefiner(previous="raw"), np.repeat(np.arange(4), 10)
        refiner.continue_from(300 + labels, 1, 400)
    elif case == "a new number":
        refiner = PseudoLabelRefiner(previous="raw", assignment="current", min_cluster_size=1)
        refiner.refine(np.repeat(np.arange(90), 4))
        labels = np.tile(np.arange(90), 4)
    else:
        refiner, labels = PseudoLabelRefiner(n_levels=2), np.repeat(np.arange(200), 3)
        refiner.refine(labels // 2)
    other = refiner.copy()
    for each in (refiner, other):
        each.refine(labels)
    before = refiner.state_dict()
    now = np.roll(labels, 1)
    if case == "a finer level":
        assert other.copy().refine(now).labels.max() < 128
    with pytest.raises(ValueError, match=r"labels of int8 cannot hold the cluster \d+: use smaller numbers"):
        refiner.refine(now, out=np.empty(len(now), np.int8))
    after = refiner.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    expected = other.refine(now)
    found = refiner.refine(now)
    np.testing.assert_array_equal(found.labels, expected.labels)
    for level, expected_level in zip(found.finer, expected.finer, strict=True):
        np.testing.assert_array_equal(level.labels, expected_level.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.5}, r"weight=1.5 is outside \[0, 1\]"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"space": "both"}, "space='both' is unknown: use one of projected, joint"),
        ({"linkage": "median"}, "linkage='median'"),
        ({"n_clusters": None}, "exactly one of them"),
        ({"distance_threshold": 0.5}, "exactly one of them"),
        ({"n_clusters": 0}, "n_clusters=0"),
        ({"n_clusters": None, "distance_threshold": -1.0}, "distance_threshold=-1.0"),
        ({"min_cluster_size": 0}, "min_cluster_size=0 must be an integer of at least 1"),
        ({"generations": 1}, "generations=1 must be an integer of at least 2"),
        ({"generations": 3}, "generations=3 needs space='joint'"),
        ({"max_cells": 2.5}, "max_cells=2.5"),
        ({"n_clusters": True}, "n_clusters=True"),
        ({"assignment": "argmax", "space": "joint"}, "needs space='projected'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabelRefiner(**options)


def test_bad_labels_are_named():
    refiner = PseudoLabelRefiner()
    with pytest.raises(TypeError, match="float64"):
        refiner.refine(np.array([0.0, 1.0]))
    with pytest.raises(TypeError, match=r"labels are a masked array: fill it first, with labels.filled\(-1\)"):
        refiner.refine(np.ma.array([0, 1, 1], mask=[0, 1, 0]))
    with pytest.raises(ValueError, match="empty"):
        refiner.refine(np.array([], dtype=int))
    with pytest.raises(ValueError, match="-2"):
        refiner.refine(np.array([0, -2]))
    with pytest.raises(ValueError, match=r"shape \(N,\), or \(N, M\) for M labelings, not \(2, 2, 2\)"):
        refiner.refine(np.zeros((2, 2, 2), dtype=int))
    refiner.refine(np.arange(5))
    with pytest.raises(ValueError, match="6 labels, but the last call had 5"):
        refiner.refine(np.arange(6))
    with pytest.raises(ValueError, match="slr, joint, consensus, nested, soft, rlcc, none"):
        PseudoLabelRefiner.from_preset("paper")
