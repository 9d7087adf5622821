"""Confidence intervals of scores that are means over tested samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import binomtest, bootstrap

LEVEL = 0.95
RESAMPLES = 2_000
MOST_SAMPLES = 10_000  # with more, the interval of a fraction is narrower than two points
Interval = tuple[float, float]


@dataclass(frozen=True)
class Scored:
    """Scores, and their confidence intervals.

    Attributes:
        values: scores by name.
        intervals: (low, high) of the scores that are means over fewer than 10,000 tested samples, see
            `bootstrap_interval`.
    """

    values: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> Interval | None:
    """Bootstrap the 95% percentile interval of a mean (Efron and Tibshirani, 1993).

    The tested samples are resampled with replacement, 2,000 times. Weights, gallery, probe, clusters and their matching
    to classes are fixed: the interval covers other labelled samples, not another run. Where all values are 0 or all are
    1, resampling would only repeat them, and the interval is the exact binomial one (Clopper and Pearson, 1934).

    Args:
        values: one number in [0, 1] per tested sample, shape (n,): 1 if it is correct, or its average precision.
        seed: seed of the resampling.

    Returns:
        (low, high), or None without samples and for 10,000 or more.
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
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 1_000_000 // n),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
