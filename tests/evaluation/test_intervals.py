"""Bootstrap intervals against the distribution that they draw from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from hf_plr.evaluation.intervals import bootstrap_interval


@pytest.mark.parametrize(("n", "right"), [(40, 30), (300, 240), (2_000, 1_900)])
def test_a_share_has_the_quantiles_of_its_resampled_count(n, right):
    values = np.arange(n) < right
    low, high = bootstrap_interval(values)
    assert np.array([low, high]) * n == pytest.approx(binom.ppf([0.025, 0.975], n, right / n), abs=0.1 * n**0.5 + 1)
    assert low < right / n < high
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) == pytest.approx((low, high), abs=0.1)


def test_about_95_of_100_intervals_cover_the_mean_that_was_drawn_from():
    rng = np.random.default_rng(0)
    found = [bootstrap_interval(rng.random(200) < 0.7, seed) for seed in range(300)]
    assert np.mean([low <= 0.7 <= high for low, high in found]) == pytest.approx(0.95, abs=0.03)
    means = rng.beta(2, 1, (300, 100))  # such as average precisions
    found = [bootstrap_interval(values, seed) for seed, values in enumerate(means)]
    assert np.mean([low <= 2 / 3 <= high for low, high in found]) == pytest.approx(0.95, abs=0.03)


def test_where_resampling_can_say_nothing_the_exact_interval_is_given():
    assert bootstrap_interval(np.ones(20)) == pytest.approx((0.025 ** (1 / 20), 1.0))
    assert bootstrap_interval(np.zeros(20)) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert bootstrap_interval(np.full(5, 0.25)) == (0.25, 0.25)


def test_none_and_very_many_samples_have_no_interval():
    assert bootstrap_interval(np.empty(0)) is None
    assert bootstrap_interval(np.arange(10_000) % 2) is None
    low, high = bootstrap_interval(np.arange(9_999) % 2)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 9_999**0.5, rel=0.1)
