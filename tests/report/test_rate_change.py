"""Error rates of two runs: the interval of their difference, by cluster, and what an audit leaves in the history."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.run_lines import make_audit, make_history
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from hf_plr.report.audit import Marks, estimate_error_rate
from hf_plr.report.rate_change import bound_difference, find_rate_change, find_rate_changes_by_cluster, note_audit
from hf_plr.report.run_history import RunHistory

PUBLISHED = [  # Newcombe (1998), table II, method 10
    ((56, 70), (48, 80), 0.0524, 0.3339),
    ((9, 10), (3, 10), 0.1705, 0.8090),
    ((6, 7), (2, 7), 0.0582, 0.8062),
    ((5, 56), (0, 29), -0.0381, 0.1926),
    ((0, 10), (0, 20), -0.1611, 0.2775),
    ((0, 10), (0, 10), -0.2775, 0.2775),
    ((10, 10), (0, 20), 0.6791, 1.0000),
    ((10, 10), (0, 10), 0.6075, 1.0000),
]


@pytest.mark.parametrize(("first", "second", "low", "high"), PUBLISHED)
def test_the_bounds_are_the_published_ones(first, second, low, high):
    assert bound_difference(first, second) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 300), st.integers(1, 300), st.data())
def test_bounds_hold_the_difference_and_change_sides_with_the_runs(n, m, data):
    first, second = (data.draw(st.integers(0, n)), n), (data.draw(st.integers(0, m)), m)
    low, high = bound_difference(first, second)
    assert -1 <= low <= first[0] / n - second[0] / m <= high <= 1
    assert bound_difference(second, first) == pytest.approx((-high, -low))
    assert bound_difference((first[0] * 9, n * 9), second)[1] - bound_difference((first[0] * 9, n * 9), second)[0] <= (
        high - low + 1e-12
    )  # more marks never make it wider


@pytest.mark.parametrize(("rate", "other"), [(0.05, 0.05), (0.1, 0.02), (0.3, 0.35)])
def test_the_interval_holds_a_known_difference_in_about_95_of_100_pairs_of_audits(rate, other):
    n, covered = 120, 0.0
    for wrong in range(n + 1):  # exact: every outcome with its probability
        chance = binom.pmf(wrong, n, rate)
        if chance < 1e-9:
            continue
        for wrong_before in range(n + 1):
            joint = chance * binom.pmf(wrong_before, n, other)
            if joint > 1e-9:
                low, high = bound_difference((wrong, n), (wrong_before, n))
                covered += joint * (low <= rate - other <= high)
    assert 0.935 < covered < 0.985


def test_runs_are_compared_with_the_last_one_that_was_audited():
    history = make_history(3, 6)  # the second one was not
    change = find_rate_change(history)
    assert (change.since, change.before, change.now) == ("line-3-january", (9, 120), (6, 120))
    assert change.difference == pytest.approx(-3 / 120)
    assert (change.low, change.high) == bound_difference((6, 120), (9, 120))
    assert find_rate_change(make_history(2, 6)) is None  # this one was not audited
    assert find_rate_change(make_history(1, 6)) is None
    assert find_rate_changes_by_cluster(make_history(2, 6), {}) == {}


def test_clusters_are_compared_where_both_audits_have_marks_and_by_name_where_it_is_shared():
    first, _, last = make_history(3, 6).runs
    before = make_audit(3, {1: (10, 2), 2: (5, 1), 3: (7, 0), 4: (20, 4)}, 500)
    now = make_audit(3, {1: (8, 0), 5: (4, 3), 4: (20, 1), 9: (9, 9)}, 500)
    history = RunHistory(99, (dataclasses.replace(first, audit=before), dataclasses.replace(last, audit=now)))
    by_number = find_rate_changes_by_cluster(history, {})
    assert {key: (change.before, change.now) for key, change in by_number.items()} == {
        "4": ((4, 20), (1, 20)),
        "1": ((2, 10), (0, 8)),
    }
    assert list(by_number) == ["4", "1"]  # most marks first
    by_name = find_rate_changes_by_cluster(history, {2: "dent", 5: "dent", 4: "crack"})
    assert {key: (change.before, change.now) for key, change in by_name.items()} == {
        "crack (4)": ((4, 20), (1, 20)),
        "1": ((2, 10), (0, 8)),
        "dent": ((1, 5), (3, 4)),
    }


def test_an_audit_is_noted_for_the_folders_own_run_in_place_of_an_earlier_one(tmp_path):
    labels = np.repeat([0, 3, -1], [50, 30, 5])
    marks = Marks(
        np.array([0, 1, 2, 51, 52, 81]),
        labels[[0, 1, 2, 51, 52, 81]],
        np.array([1, 0, 0, 1, 1, 1], bool),
        np.array([1, 1, 0, 1, 1, 1], bool),
    )
    estimate = estimate_error_rate(marks, labels)
    assert note_audit(tmp_path, marks, estimate) is None
    assert list(tmp_path.iterdir()) == []
    history = make_history(3, 6)
    history.write(tmp_path)
    noted = note_audit(tmp_path, marks, estimate)
    assert noted == RunHistory.read(tmp_path)
    assert noted.runs[:2] == history.runs[:2]
    audit = noted.runs[2].audit
    assert (audit.marked, audit.wrong, audit.population) == (4, 3, 80)
    assert audit.clusters == {0: (2, 1), 3: (2, 2)}  # the random draw alone, without those in no cluster
    assert (audit.low, audit.high) == (estimate.low, estimate.high)
    assert dataclasses.replace(noted.runs[2], audit=history.runs[2].audit) == history.runs[2]
