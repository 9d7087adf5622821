"""What became of the clusters of a run in the next one."""

from __future__ import annotations

import numpy as np
import pytest

from hf_plr.refinement import cooccurrence
from hf_plr.refinement.run_events import find_run_events

KINDS = ("kept", "split", "merged", "reshaped", "born", "died")


def events(pairs, previous_ids):
    """Events by kind from (label before, label now, samples)."""
    before, now = (np.repeat([pair[i] for pair in pairs], [pair[2] for pair in pairs]) for i in (0, 1))
    found = find_run_events(cooccurrence(before, now), np.array(previous_ids))
    return {kind: [(e.previous, e.current) for e in found.of_kind(kind)] for kind in KINDS if found.of_kind(kind)}


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(5, 5, 20), (-1, 5, 80)], {"kept": [((5,), (5,))]}),  # grown fivefold
        ([(5, 5, 20), (5, 8, 20), (-1, 5, 30), (-1, 8, 30)], {"split": [((5,), (5, 8))]}),  # halves that grew
        (
            [(5, 5, 20), (5, 8, 1), (-1, 8, 99)],
            {"kept": [((5,), (5,))], "born": [((), (8,))]},
        ),  # a stray among new ones
        ([(5, 5, 20), (5, 8, 5), (-1, 8, 15)], {"split": [((5,), (5, 8))]}),  # a fifth of it went away
        ([(5, 5, 99), (5, 8, 1)], {"split": [((5,), (5, 8))]}),  # all of a cluster
        ([(5, 5, 20), (7, 5, 20), (-1, 5, 9)], {"merged": [((5, 7), (5,))]}),
        ([(5, 5, 20), (-1, 9, 20)], {"kept": [((5,), (5,))], "born": [((), (9,))]}),
        ([(5, -1, 20), (7, 7, 3)], {"kept": [((7,), (7,))], "died": [((5,), ())]}),
        ([(5, 5, 11), (7, 5, 10), (7, 7, 11), (5, 7, 10)], {"kept": [((5,), (5,)), ((7,), (7,))]}),
        ([(5, 8, 20)], {"kept": [((5,), (8,))]}),
    ],
)
def test_events(pairs, expected):
    assert events(pairs, sorted({pair[0] for pair in pairs} - {-1})) == expected


def test_a_cluster_whose_samples_were_all_removed_died():
    assert events([(5, 5, 20)], [3, 5, 8]) == {
        "kept": [((5,), (5,))],
        "died": [((3,), ()), ((8,), ())],
    }


def test_nothing_is_known():
    assert events([(-1, 0, 20), (-1, -1, 3)], [3]) == {"born": [((), (0,))], "died": [((3,), ())]}


@pytest.mark.parametrize(("went", "kind"), [(2, "split"), (1, "kept")])  # a tenth of 20 known samples, and less
def test_a_tenth_of_a_cluster_continues_it(went, kind):
    found = events([(5, 5, 20 - went), (5, 8, went), (-1, 8, 90)], [5])
    assert kind in found


def test_half_of_a_cluster_does_not_make_it_the_continuation():
    # One of 99 known samples is exactly half of cluster 8, which is no more than half.
    assert events([(5, 5, 99), (5, 8, 1), (-1, 8, 1)], [5]) == {"kept": [((5,), (5,))], "born": [((), (8,))]}
