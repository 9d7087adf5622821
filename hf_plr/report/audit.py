"""Estimates from marks on some samples: an error rate of all pseudo-labels with an interval, and a ranking of clusters.

A sample has one mark, whether it was made in the random check or on a sheet of members that shows it too. A mark does
not depend on the place, so a marked sample of the random draw counts in the estimate either way. The choice of what is
marked may depend on it: a draw of which only the doubtful members have marks is no longer uniform. The estimate
therefore reports the samples of the draw without a mark.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from hf_plr.refinement.cooccurrence import NOISE

LEVEL = 0.95
PRIOR_MARKS = 2.0  # weight of the rate of all clusters in each of them, in marks


@dataclass(frozen=True)
class Marks:
    """Marked samples, each once.

    Attributes:
        index: row of the data set, shape (n,); of several segments of a recording the same.
        label: pseudo-label that was validated, -1 = in no cluster, shape (n,).
        wrong: True for a wrong label, shape (n,).
        random: True for a sample that was drawn uniformly from all, shape (n,).
        unmarked: samples of the random draw that are in a cluster and have no mark.
    """

    index: np.ndarray
    label: np.ndarray
    wrong: np.ndarray
    random: np.ndarray
    unmarked: int = 0


@dataclass(frozen=True)
class ErrorRate:
    """An estimated fraction of wrong pseudo-labels.

    Attributes:
        marked: samples that it is estimated from.
        wrong: those of them with a wrong label.
        low, high: bounds of the exact 95% interval, in [0, 1].
        population: samples in clusters, which it is an estimate for.
        unmarked: samples of the random draw without a mark; with many of them the marked ones may not be a fair draw.
    """

    marked: int
    wrong: int
    low: float
    high: float
    population: int
    unmarked: int = 0

    @property
    def rate(self) -> float:
        """Fraction of the marked samples that are wrong."""
        return self.wrong / self.marked

    def in_samples(self, fraction: float) -> int:
        """Convert a fraction of the population to a number of samples, rounded."""
        return round(fraction * self.population)


@dataclass(frozen=True)
class RankedClusters:
    """All clusters, those with the most expected wrong members first.

    Attributes:
        label: label of each cluster, shape (K,).
        members: number of members, shape (K,).
        marked: number of marked members, shape (K,).
        wrong: number of members marked as wrong, shape (K,).
        expected_wrong: expected number of wrong members, with those marked as wrong, shape (K,).
    """

    label: np.ndarray
    members: np.ndarray
    marked: np.ndarray
    wrong: np.ndarray
    expected_wrong: np.ndarray


def estimate_error_rate(marks: Marks, labels: np.ndarray) -> ErrorRate | None:
    """Estimate the fraction of wrong labels among all samples that are in a cluster, from the random draw alone.

    The other sheets show the members that are most or least likely to be wrong, so they are not a fair draw. The part
    of a uniform draw that is in clusters is a uniform draw of the samples in clusters. A sample in no cluster has no
    label that could be wrong. The interval is exact (Clopper and Pearson, 1934): it holds the true rate in at least 95
    of 100 audits, a little more often where a large part of all samples was drawn.

    Args:
        marks: the marks.
        labels: pseudo-label of every sample, -1 = in no cluster, shape (N,).

    Returns:
        The estimate, or None where no sample of a random draw is marked.
    """
    drawn = marks.random & (marks.label != NOISE)
    marked, wrong = int(drawn.sum()), int(marks.wrong[drawn].sum())
    if marked == 0:
        return None
    interval = binomtest(wrong, marked).proportion_ci(LEVEL, method="exact")
    population = int((labels != NOISE).sum())
    return ErrorRate(marked, wrong, float(interval.low), float(interval.high), population, marks.unmarked)


def rank_clusters(marks: Marks, labels: np.ndarray) -> RankedClusters:
    """Rank clusters by their expected number of wrong members, most first, from all marks.

    With m marked members of which w are wrong, a member that was not marked is taken to be wrong with the mean of a
    Beta posterior, (w + a p) / (m + a). The prior is the rate p of all clusters, worth a = 2 marks: p = (W + 1/2) /
    (M + 1) for W of M marks wrong, of the random draw where there is one, otherwise of all. Expected wrong is
    w + (members - m) times that. Sheets of doubtful members make it too large: it ranks, it does not estimate.

    Args:
        marks: the marks.
        labels: pseudo-label of every sample, -1 = in no cluster, shape (N,).
    """
    clusters, members = np.unique(labels[labels != NOISE], return_counts=True)
    inside = marks.label != NOISE
    position = np.searchsorted(clusters, marks.label[inside])
    marked = np.bincount(position, minlength=len(clusters))
    wrong = np.bincount(position, weights=marks.wrong[inside], minlength=len(clusters)).astype(np.int64)
    chosen = inside & marks.random if (inside & marks.random).any() else inside
    overall = (marks.wrong[chosen].sum() + 0.5) / (chosen.sum() + 1.0)
    posterior = (wrong + PRIOR_MARKS * overall) / (marked + PRIOR_MARKS)
    expected = wrong + (members - marked) * posterior
    order = np.lexsort((clusters, -members, -expected))
    return RankedClusters(clusters[order], members[order], marked[order], wrong[order], expected[order])
