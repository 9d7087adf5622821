"""Intervals of scores that are means over the samples that were tested."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import binomtest, bootstrap

LEVEL = 0.95
RESAMPLES = 2_000
MOST_SAMPLES = 10_000  # from here on the interval of a share is narrower than two points
Interval = tuple[float, float]


@dataclass(frozen=True)
class Scored:
    """Scores, and how sure they are.

    Attributes:
        values: the scores by name.
        intervals: (low, high) of those scores that are means over fewer than 10,000 tested samples; see
            `bootstrap_interval` for what they say.
    """

    values: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> Interval | None:
    """95% percentile bootstrap interval of a mean (Efron and Tibshirani, 1993).

    Resampled are the tested samples: as many as there are, with replacement, 2,000 times. What tested them (weights,
    gallery, probe, clusters and their matching to classes) is held fixed, so the interval tells what the mean might be
    with other labelled samples, not with another run. Where all values are 0 or all are 1, resampling can only repeat
    that, and the exact binomial interval (Clopper and Pearson, 1934) is given.

    Args:
        values: one number in [0, 1] a tested sample, shape (n,); whether it was right, or its average precision.
        seed: seed of the resampling.

    Returns:
        (low, high), or None without samples and for 10,000 or more, where it is too narrow to matter.
    """
    n = len(values)
    if not 0 < n < MOST_SAMPLES:
        return None
    values = np.asarray(values, dtype=np.float64)
    if values.min() == values.max() and values[0] in (0.0, 1.0):
        exact = binomtest(round(values.sum()), n).proportion_ci(LEVEL, method="exact")
        return float(exact.low), float(exact.high)
    if values.min() == values.max():
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 1_000_000 // n),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
