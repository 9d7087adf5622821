"""Intervals of fractions of samples, and of differences of two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

LEVEL = 0.95


def wilson_interval(
    count: npt.ArrayLike, total: npt.ArrayLike, level: float = LEVEL
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compute the score interval of a fraction (Wilson, 1927), elementwise.

    Args:
        count: samples that are in the part, (...).
        total: all samples, (...), at least `count`; without any, the interval is from 0 to 1.
        level: confidence level, in (0, 1).

    Returns:
        Lower and upper bounds in [0, 1].
    """
    n, k = np.asarray(total, np.float64), np.asarray(count, np.float64)
    z = norm.ppf((1.0 + level) / 2.0)
    safe = np.maximum(n, 1.0)
    fraction = k / safe
    middle = (fraction + z**2 / (2 * safe)) / (1 + z**2 / safe)
    half = z / (1 + z**2 / safe) * np.sqrt(fraction * (1 - fraction) / safe + z**2 / (4 * safe**2))
    # At no or all samples a bound is the fraction itself, which the formula misses by rounding.
    low = np.where(k <= 0, 0.0, np.clip(middle - half, 0.0, 1.0))
    high = np.where(k >= n, 1.0, np.clip(middle + half, 0.0, 1.0))
    return np.where(n > 0, low, 0.0), np.where(n > 0, high, 1.0)


def difference_interval(
    count: npt.ArrayLike,
    total: npt.ArrayLike,
    other_count: npt.ArrayLike,
    other_total: npt.ArrayLike,
    level: float = LEVEL,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compute the hybrid score interval of the difference of two independent fractions, elementwise.

    It is method 10 of Newcombe (Statistics in Medicine 17, 1998): the difference of the fractions, less or plus the
    distances from each fraction to the bounds of its own score interval, as if these were two standard errors.

    Args:
        count, total: of the first fraction, (...).
        other_count, other_total: of the second, which is subtracted, (...).
        level: confidence level, in (0, 1).

    Returns:
        Lower and upper bounds in [-1, 1].
    """
    low, high = wilson_interval(count, total, level)
    other_low, other_high = wilson_interval(other_count, other_total, level)
    first = np.asarray(count, np.float64) / np.maximum(np.asarray(total, np.float64), 1.0)
    second = np.asarray(other_count, np.float64) / np.maximum(np.asarray(other_total, np.float64), 1.0)
    difference = first - second
    lower = difference - np.hypot(first - low, other_high - second)
    upper = difference + np.hypot(high - first, second - other_low)
    return np.clip(lower, -1.0, 1.0), np.clip(upper, -1.0, 1.0)
