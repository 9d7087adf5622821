"""What is counted of assigned samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.report.assigned import compare_shares
from hf_plr.report.html.assigned_report import describe_new


def test_shares_that_surely_differ_are_named():
    sizes = np.array([400, 300, 200, 100])
    rows = compare_shares(sizes, np.array([200, 200, 90, 10]))
    assert [row["verdict"] for row in rows] == ["same", "grew", "same", "shrank"]
    assert rows[1]["training"] == 0.3
    assert rows[1]["here"] == 0.4
    assert rows[1]["low"] < 0.1 < rows[1]["high"]
    nothing = compare_shares(sizes, np.zeros(4, int))
    assert {row["verdict"] for row in nothing} == {"same"}


@pytest.mark.parametrize("n_here", [1, 2, 10, 600])
def test_chance_alone_seldom_makes_a_difference(n_here):
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(20))
    alarms = 0
    for _ in range(200):
        rows = compare_shares(rng.multinomial(900, share), rng.multinomial(n_here, share))
        alarms += any(row["verdict"] != "same" for row in rows)
    assert alarms < 20  # at most 10 of 200 on average


def test_a_cluster_without_a_sample_in_training_can_grow():
    assert compare_shares(np.array([500, 0]), np.array([40, 20]))[1]["verdict"] == "grew"


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=8))
def test_shares_add_up(pairs):
    sizes, counts = np.array(pairs).T
    rows = compare_shares(sizes, counts)
    assert abs(sum(row["training"] for row in rows) - 1) < 1e-4
    assert abs(sum(row["here"] for row in rows) - (counts.sum() > 0)) < 1e-4
    assert all(row["low"] <= row["high"] for row in rows)


def test_new_samples_are_compared_with_false_alarms():
    described = describe_new(30, 1_000, 0.01)
    assert described["expected"] == 10
    assert 14 <= described["usual"] <= 16
    assert described["low"] < described["share"] == 0.03 < described["high"]
