"""Error rates of two runs: their difference, by cluster, and what an audit leaves in the history."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.run_lines import make_audit, make_history

from hf_plr.evaluation.proportions import difference_interval
from hf_plr.report.audit import Marks, estimate_error_rate
from hf_plr.report.rate_change import find_rate_change, find_rate_changes_by_cluster, note_audit
from hf_plr.report.run_history import RunHistory


def test_runs_are_compared_with_the_last_one_that_was_audited():
    history = make_history(3, 6)  # the second one was not
    change = find_rate_change(history)
    assert (change.since, change.before, change.now) == ("line-3-january", (9, 120), (6, 120))
    assert change.difference == pytest.approx(-3 / 120)
    assert (change.low, change.high) == difference_interval(6, 120, 9, 120)
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
    digits = find_rate_changes_by_cluster(history, {2: "1", 5: "1"})  # a name that is another cluster's number
    assert {key: (change.before, change.now) for key, change in digits.items()} == {
        "4": ((4, 20), (1, 20)),
        "cluster 1": ((2, 10), (0, 8)),
        "1": ((1, 5), (3, 4)),
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
