"""Which clusters of one labeling continue which clusters of another, and what happened to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from hf_plr.refinement.cooccurrence import NOISE
from hf_plr.refinement.lookup import count_samples, sum_entries


@dataclass(frozen=True)
class Overlaps:
    """The clusters of two labelings that share samples, with how many; noise is in no overlap, but in the sizes.

    Attributes:
        previous, current: clusters of each overlap, shape (overlaps,), each pair once, in ascending order.
        counts: samples that they share, shape (overlaps,).
        previous_sizes: samples of each previous cluster, shape (K',).
        current_sizes: samples of each current cluster, shape (K,).
    """

    previous: np.ndarray
    current: np.ndarray
    counts: np.ndarray
    previous_sizes: np.ndarray
    current_sizes: np.ndarray

    @classmethod
    def from_cells(
        cls, previous: np.ndarray, current: np.ndarray, counts: np.ndarray, n_previous: int, n_current: int
    ) -> Overlaps:
        """Count overlaps from the clusters of cells, -1 = noise, each of shape (cells,)."""
        inside = (previous != NOISE) & (current != NOISE)
        shared = sum_entries(counts, previous, current, (n_previous, n_current), inside).tocoo()
        return cls(
            shared.row,
            shared.col,
            shared.data.astype(np.int64),
            count_samples(previous, counts, n_previous),
            count_samples(current, counts, n_current),
        )

    def find_mutual_best(self) -> np.ndarray:
        """Positions of the overlaps that are the largest of both their clusters; equal ones go to the lower cluster."""
        return np.intersect1d(self.find_largest_of_previous(), self.find_largest_of_current())

    def find_largest_of_previous(self) -> np.ndarray:
        """Position of the largest overlap of each previous cluster that has one; of equal ones the first."""
        return _largest(self.previous, self.counts, len(self.previous_sizes))

    def find_largest_of_current(self) -> np.ndarray:
        """Position of the largest overlap of each current cluster that has one; of equal ones the first."""
        return _largest(self.current, self.counts, len(self.current_sizes))


@dataclass(frozen=True)
class ClusterEvent:
    """What happened to some clusters between two epochs.

    Attributes:
        kind: "kept", "split", "merged", "reshaped" (both a split and a merge), "born" or "died".
        previous: the previous clusters concerned.
        current: the current clusters concerned.
        samples: samples of the current clusters, or of the previous ones if these died.
    """

    kind: str
    previous: tuple[int, ...]
    current: tuple[int, ...]
    samples: int


class ClusterEvents(tuple[ClusterEvent, ...]):
    """The events of one refinement, larger ones first.

    Two clusters belong together if more than half of the smaller one lies in the other. Groups that hang together in
    this way make one event each: one to one is "kept", one to many "split", many to one "merged", many to many
    "reshaped"; a current cluster alone is "born", a previous one "died".
    """

    KINDS = ("kept", "split", "merged", "reshaped", "born", "died")

    def of_kind(self, kind: str) -> tuple[ClusterEvent, ...]:
        """The events of one kind, larger ones first.

        Raises:
            ValueError: if there is no such kind.
        """
        if kind not in self.KINDS:
            raise ValueError(f"kind={kind!r} is unknown: use one of {', '.join(self.KINDS)}")
        return tuple(event for event in self if event.kind == kind)

    def counts(self) -> dict[str, int]:
        """How many events there are of each kind."""
        return {kind: len(self.of_kind(kind)) for kind in self.KINDS}

    def __repr__(self) -> str:
        return f"ClusterEvents({', '.join(f'{kind}={count}' for kind, count in self.counts().items())})"


def find_cluster_events(overlaps: Overlaps, previous_ids: np.ndarray, current_ids: np.ndarray) -> ClusterEvents:
    """What happened to the clusters, which are named by their ids, shapes (K',) and (K,)."""
    n_previous, n_current = len(previous_ids), len(current_ids)
    # More than half of a cluster is in one overlap at most, so that only the largest overlaps can be links.
    largest = np.union1d(overlaps.find_largest_of_previous(), overlaps.find_largest_of_current())
    before, after = overlaps.previous[largest], overlaps.current[largest]
    smaller = np.minimum(overlaps.previous_sizes[before], overlaps.current_sizes[after])
    linked = largest[2 * overlaps.counts[largest] > smaller]
    n_nodes = n_previous + n_current
    ends = (overlaps.previous[linked], n_previous + overlaps.current[linked])
    graph = sp.coo_array((np.ones(len(linked)), ends), shape=(n_nodes, n_nodes))
    n_groups, group = connected_components(graph, directed=False)
    order = np.argsort(group, kind="stable")
    events = list(_events_of(np.split(order, np.searchsorted(group[order], np.arange(1, n_groups))), n_previous))
    named = [
        ClusterEvent(
            kind,
            tuple(previous_ids[before].tolist()),
            tuple(current_ids[after].tolist()),
            int(overlaps.current_sizes[after].sum() if len(after) else overlaps.previous_sizes[before].sum()),
        )
        for kind, before, after in events
    ]
    return ClusterEvents(sorted(named, key=lambda event: (-event.samples, event.previous, event.current)))


def _events_of(groups: list[np.ndarray], n_previous: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    kinds = {(1, 1): "kept", (1, 2): "split", (2, 1): "merged", (2, 2): "reshaped", (0, 1): "born", (1, 0): "died"}
    for members in groups:
        before, after = members[members < n_previous], members[members >= n_previous] - n_previous
        if len(members):
            yield kinds[min(len(before), 2), min(len(after), 2)], before, after


def number_clusters(overlaps: Overlaps, previous_ids: np.ndarray, first_member: np.ndarray) -> np.ndarray:
    """Give current clusters numbers that live on from epoch to epoch.

    A cluster that is the mutual best overlap of a previous one takes over its number. The others, ordered by size
    (largest first) and then by first member, take the lowest numbers that no previous cluster had: a number never
    passes straight from one cluster to another.

    Args:
        overlaps: of the previous with the current clusters.
        previous_ids: numbers of the previous clusters, shape (K',).
        first_member: smallest sample index in each current cluster, shape (K,).

    Returns:
        The number of each current cluster, shape (K,).
    """
    n_current = len(overlaps.current_sizes)
    number = np.full(n_current, NOISE, dtype=np.int64)
    best = overlaps.find_mutual_best()
    number[overlaps.current[best]] = previous_ids[overlaps.previous[best]]
    new = np.flatnonzero(number == NOISE)
    new = new[np.lexsort((first_member[new], -overlaps.current_sizes[new]))]
    free = np.setdiff1d(np.arange(n_current + len(previous_ids)), previous_ids)
    number[new] = free[: len(new)]
    return number


def adjusted_rand(previous: np.ndarray, current: np.ndarray, counts: np.ndarray) -> float:
    """Adjusted Rand index of two labelings from their cells, in [-1, 1], noise as one cluster of its own.

    Source: Hubert and Arabie 1985; equal to scikit-learn's `adjusted_rand_score` on all samples.

    Args:
        previous, current: cluster of each cell, -1 = noise, shape (cells,).
        counts: samples in each cell, shape (cells,).
    """

    def pairs(sizes: np.ndarray) -> float:
        return float((sizes * (sizes - 1.0) / 2.0).sum())

    # Cells may repeat a pair of clusters (of tuples of more generations): count pairs of clusters first.
    previous_ids, previous_codes = np.unique(previous, return_inverse=True)
    current_ids, current_codes = np.unique(current, return_inverse=True)
    table = sum_entries(counts, previous_codes, current_codes, (len(previous_ids), len(current_ids)))
    together = pairs(table.data)
    of_previous, of_current = pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    n_samples = float(counts.sum())
    expected = of_previous * of_current / max(n_samples * (n_samples - 1.0) / 2.0, 1.0)
    largest = (of_previous + of_current) / 2.0
    return 1.0 if largest == expected else (together - expected) / (largest - expected)


def _largest(cluster: np.ndarray, counts: np.ndarray, n_clusters: int) -> np.ndarray:
    """Position of the largest count of each cluster; of equal ones the first."""
    top = np.zeros(n_clusters, dtype=np.int64)
    np.maximum.at(top, cluster, counts)
    at_top = np.flatnonzero(counts == top[cluster])
    return at_top[np.unique(cluster[at_top], return_index=True)[1]]
