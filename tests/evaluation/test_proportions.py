"""Intervals of fractions and of their differences, against published values and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from hf_plr.evaluation.proportions import difference_interval, wilson_interval

# Newcombe (1998), table II, method 10.
PUBLISHED = [
    ((56, 70, 48, 80), (0.0524, 0.3339)),
    ((9, 10, 3, 10), (0.1705, 0.8090)),
    ((6, 7, 2, 7), (0.0582, 0.8062)),
    ((5, 56, 0, 29), (-0.0381, 0.1926)),
    ((0, 10, 0, 20), (-0.1611, 0.2775)),
    ((0, 10, 0, 10), (-0.2775, 0.2775)),
    ((10, 10, 0, 20), (0.6791, 1.0)),
    ((10, 10, 0, 10), (0.6075, 1.0)),
]


@given(st.integers(1, 2_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.999]))
def test_a_fraction_has_the_score_interval(sample, level):
    count, total = sample
    low, high = wilson_interval(count, total, level)
    expected = binomtest(count, total).proportion_ci(level, method="wilson")
    assert float(low) == pytest.approx(expected.low, abs=1e-9)
    assert float(high) == pytest.approx(expected.high, abs=1e-9)


@pytest.mark.parametrize(("counts", "expected"), PUBLISHED)
def test_a_difference_has_the_published_interval(counts, expected):
    low, high = difference_interval(*counts)
    assert (float(low), float(high)) == pytest.approx(expected, abs=6e-5)


def test_intervals_are_elementwise_and_say_nothing_without_samples():
    low, high = wilson_interval([0, 3, 5], [0, 10, 5])
    assert (low[0], high[0]) == (0.0, 1.0)
    assert high[2] == 1.0
    assert (float(low[1]), float(high[1])) == tuple(float(bound) for bound in wilson_interval(3, 10))
    low, high = difference_interval([0, 0], 0, [1, 2], 4)
    assert (low <= np.array([-0.25, -0.5])).all()
    assert (high > 0.4).all()


@given(*[st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))] * 2)
def test_a_difference_turned_round_has_the_opposite_interval(one, other):
    low, high = difference_interval(*one, *other)
    opposite_low, opposite_high = difference_interval(*other, *one)
    assert float(low) == pytest.approx(-float(opposite_high))
    assert float(high) == pytest.approx(-float(opposite_low))
    assert low <= one[0] / one[1] - other[0] / other[1] <= high


@given(*[st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))] * 2)
def test_more_samples_never_make_an_interval_wider(one, other):
    low, high = difference_interval(*one, *other)
    narrow_low, narrow_high = difference_interval(one[0] * 9, one[1] * 9, *other)
    assert narrow_high - narrow_low <= high - low + 1e-12


@pytest.mark.parametrize(("rate", "other"), [(0.05, 0.05), (0.1, 0.02), (0.3, 0.35)])
def test_the_interval_holds_a_known_difference_in_about_95_of_100_pairs(rate, other):
    n, covered = 120, 0.0
    for wrong in range(n + 1):  # exact: every outcome with its probability
        chance = binom.pmf(wrong, n, rate)
        if chance < 1e-9:
            continue
        for wrong_before in range(n + 1):
            joint = chance * binom.pmf(wrong_before, n, other)
            if joint > 1e-9:
                low, high = difference_interval(wrong, n, wrong_before, n)
                covered += joint * (low <= rate - other <= high)
    assert 0.935 < covered < 0.985
