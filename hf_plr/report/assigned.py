"""Samples that have been assigned to known clusters, and what is counted of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import hypergeom

from hf_plr.evaluation.proportions import LEVEL, difference_interval
from hf_plr.refinement import NOISE

GREW, SHRANK, SAME = "grew", "shrank", "same"


@dataclass(frozen=True)
class AssignedSamples:
    """n samples that have been assigned to known clusters, ordered by row and start.

    Attributes:
        row: row of the data set, int64 (n,).
        is_new: True for a sample that fits no known cluster, (n,).
        nearest, similarity: nearest known cluster, and the cosine to its prototype, (n,).
        second, second_similarity: second nearest, -1 with a single cluster, (n,).
        novelty: larger for samples that fit less, (n,).
        p_value: share of the run's own samples that are at least as novel, in (0, 1], (n,).
        group: number of the proposed pattern of a new sample, -1 = none, (n,).
        spans: start and end in seconds, (n, 2); None where samples are whole.
        files: file of each sample; None where they are not known.
    """

    row: np.ndarray
    is_new: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray
    second: np.ndarray
    second_similarity: np.ndarray
    novelty: np.ndarray
    p_value: np.ndarray
    group: np.ndarray
    spans: np.ndarray | None = None
    files: list[str] | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def label(self) -> np.ndarray:
        """Known cluster of each sample, -1 = new, int64 (n,)."""
        return np.where(self.is_new, NOISE, self.nearest)

    @property
    def n_groups(self) -> int:
        """Number of proposed patterns."""
        return int(self.group.max(initial=NOISE)) + 1


def compare_shares(sizes: np.ndarray, counts: np.ndarray) -> list[dict[str, Any]]:
    """Compare the shares of clusters in training with those in other data, of the samples that fit.

    A cluster grew or shrank if Fisher's exact test says so, at a level of 0.05 / K (Bonferroni), so that chance alone
    names any cluster in one of twenty data sets, at most. Intervals of differences would not do: of two samples, each
    is half of the data, and far outside of the interval of a cluster that holds a hundredth.

    Args:
        sizes: training samples nearest to each, (K,): all, or drawn ones.
        counts: members in the other data, (K,).

    Returns:
        Per cluster "training" and "here" (shares in [0, 1]), "low" and "high" (the 95% interval of the difference, by
        itself), and "verdict": "grew", "shrank", or "same".
    """
    total, n_here = max(int(sizes.sum()), 1), int(counts.sum())
    low, high = difference_interval(counts, n_here, sizes, total)
    training, here = sizes / total, counts / max(n_here, 1)
    one_side = (1.0 - LEVEL) / 2.0 / max(len(sizes), 1)
    drawn = hypergeom(total + n_here, sizes + counts, n_here)  # members here, if all were drawn from one pool
    verdict = np.where(drawn.sf(counts - 1) <= one_side, GREW, np.where(drawn.cdf(counts) <= one_side, SHRANK, SAME))
    columns = zip(training, here, low, high, verdict.tolist(), strict=True)
    return [
        {"training": _rounded(a), "here": _rounded(b), "low": _rounded(c), "high": _rounded(d), "verdict": word}
        for a, b, c, d, word in columns
    ]


def _rounded(value: float) -> float:
    return round(float(value), 6)
