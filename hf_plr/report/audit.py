"""What marks on some samples say of all pseudo-labels: an error rate with an interval, and where to look first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from hf_plr.refinement.cooccurrence import NOISE

LEVEL = 0.95
PRIOR_MARKS = 2.0  # marks that the rate of all clusters counts for in each of them


@dataclass(frozen=True)
class Marks:
    """Marked samples, each once.

    Attributes:
        index: row of the data set, shape (n,).
        label: pseudo-label that was looked at, -1 = in no cluster, shape (n,).
        wrong: whether it was found wrong, shape (n,).
        random: whether the sample was drawn uniformly from all, shape (n,).
    """

    index: np.ndarray
    label: np.ndarray
    wrong: np.ndarray
    random: np.ndarray


@dataclass(frozen=True)
class ErrorRate:
    """An estimated share of wrong pseudo-labels.

    Attributes:
        marked: samples that it is estimated from.
        wrong: those of them that were found wrong.
        low, high: bounds of the exact 95% interval, in [0, 1].
        population: samples that it speaks of.
    """

    marked: int
    wrong: int
    low: float
    high: float
    population: int

    @property
    def rate(self) -> float:
        """The share of the marked samples that are wrong."""
        return self.wrong / self.marked

    def in_samples(self, share: float) -> int:
        """A share of the population as a number of samples, rounded."""
        return round(share * self.population)


@dataclass(frozen=True)
class RankedClusters:
    """All clusters, those with the most wrong members to expect first.

    Attributes:
        label: the clusters' labels, shape (K,).
        members: their members, shape (K,).
        marked: those of them that were marked, shape (K,).
        wrong: those of these that are wrong, shape (K,).
        expected_wrong: wrong members to expect, those that were found among them, shape (K,).
    """

    label: np.ndarray
    members: np.ndarray
    marked: np.ndarray
    wrong: np.ndarray
    expected_wrong: np.ndarray


def estimate_error_rate(marks: Marks, labels: np.ndarray) -> ErrorRate | None:
    """The share of wrong labels among all samples that are in a cluster, from the random draw alone.

    The other sheets show what is most or least likely to be wrong, so they say nothing of all samples. Of a uniform
    draw from all samples or from those in clusters, the part in clusters is a uniform draw from these; a sample in no
    cluster has no label that could be wrong. The interval is exact (Clopper and Pearson, 1934): it holds the true rate
    in at least 95 of 100 audits, a little more often where a large part of all samples was drawn.

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
    return ErrorRate(marked, wrong, float(interval.low), float(interval.high), int((labels != NOISE).sum()))


def rank_clusters(marks: Marks, labels: np.ndarray) -> RankedClusters:
    """Clusters by the wrong members to expect, most first, from all marks.

    With m marked members of which w are wrong, a member that was not marked is taken to be wrong with the mean of a
    Beta posterior, (w + a p) / (m + a). The prior is the rate p of all clusters, worth a = 2 marks: p = (W + 1/2) /
    (M + 1) for W of M marks wrong, of the random draw where there is one, otherwise of all. Expected wrong is
    w + (members - m) times that. Sheets of doubtful members make it larger than it is: it ranks, it does not estimate.

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
    of_all = (marks.wrong[chosen].sum() + 0.5) / (chosen.sum() + 1.0)
    posterior = (wrong + PRIOR_MARKS * of_all) / (marked + PRIOR_MARKS)
    expected = wrong + (members - marked) * posterior
    order = np.lexsort((clusters, -members, -expected))
    return RankedClusters(clusters[order], members[order], marked[order], wrong[order], expected[order])
