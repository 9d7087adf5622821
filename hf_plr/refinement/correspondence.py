"""Correspondence between the clusters of two labelings, and the events that it shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from hf_plr.refinement.cooccurrence import NOISE, count_samples, sum_entries


@dataclass(frozen=True)
class Overlaps:
    """Pairs of clusters of two labelings that share samples; noise counts in the sizes alone.

    Attributes:
        previous, current: clusters of each overlap, shape (overlaps,), each pair once, in ascending order.
        counts: number of shared samples, shape (overlaps,).
        previous_sizes: samples per previous cluster, shape (K',).
        current_sizes: samples per current cluster, shape (K,).
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
        is_labelled = (previous != NOISE) & (current != NOISE)
        shared = sum_entries(counts, previous, current, (n_previous, n_current), is_labelled).tocoo()
        return cls(
            shared.row,
            shared.col,
            shared.data.astype(np.int64),
            count_samples(previous, counts, n_previous),
            count_samples(current, counts, n_current),
        )

    def find_mutual_best(self) -> np.ndarray:
        """Find the overlaps that are the largest of both their clusters; of equal ones the lower cluster's."""
        return np.intersect1d(self.find_largest_of_previous(), self.find_largest_of_current())

    def find_largest_of_previous(self) -> np.ndarray:
        """Find the largest overlap of each previous cluster that has one; of equal ones the first."""
        return _find_largest(self.previous, self.counts, len(self.previous_sizes))

    def find_largest_of_current(self) -> np.ndarray:
        """Find the largest overlap of each current cluster that has one; of equal ones the first."""
        return _find_largest(self.current, self.counts, len(self.current_sizes))


@dataclass(frozen=True)
class ClusterEvent:
    """Event of some clusters between two epochs.

    Attributes:
        kind: "kept", "split", "merged", "reshaped" (both a split and a merge), "born" or "died".
        previous: ids of the previous clusters.
        current: ids of the current clusters.
        samples: samples of the current clusters, or of the previous ones if these died.
    """

    kind: str
    previous: tuple[int, ...]
    current: tuple[int, ...]
    samples: int


class ClusterEvents(tuple[ClusterEvent, ...]):
    """Events of one refinement, larger ones first.

    Two clusters are linked if more than half of the smaller one lies in the other. Clusters that links connect make one
    event: one to one is "kept", one to many "split", many to one "merged", many to many "reshaped". A current cluster
    alone is "born", a previous one "died".
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
        """Number of events by kind."""
        return {kind: len(self.of_kind(kind)) for kind in self.KINDS}

    def __repr__(self) -> str:
        return f"ClusterEvents({', '.join(f'{kind}={count}' for kind, count in self.counts().items())})"


def find_cluster_events(overlaps: Overlaps, previous_ids: np.ndarray, current_ids: np.ndarray) -> ClusterEvents:
    """Find the events of the clusters, which have ids of shapes (K',) and (K,)."""
    n_previous, n_current = len(previous_ids), len(current_ids)
    # More than half of a cluster is in one overlap at most: only the largest overlaps can be links.
    largest = np.union1d(overlaps.find_largest_of_previous(), overlaps.find_largest_of_current())
    previous_members, current_members = overlaps.previous[largest], overlaps.current[largest]
    smaller = np.minimum(overlaps.previous_sizes[previous_members], overlaps.current_sizes[current_members])
    links = largest[2 * overlaps.counts[largest] > smaller]
    n_nodes = n_previous + n_current
    ends = (overlaps.previous[links], n_previous + overlaps.current[links])
    graph = sp.coo_array((np.ones(len(links)), ends), shape=(n_nodes, n_nodes))
    n_groups, group = connected_components(graph, directed=False)
    order = np.argsort(group, kind="stable")
    events = list(_classify_groups(np.split(order, np.searchsorted(group[order], np.arange(1, n_groups))), n_previous))
    named_events = [
        ClusterEvent(
            kind,
            tuple(previous_ids[previous_members].tolist()),
            tuple(current_ids[current_members].tolist()),
            int(
                overlaps.current_sizes[current_members].sum()
                if len(current_members)
                else overlaps.previous_sizes[previous_members].sum()
            ),
        )
        for kind, previous_members, current_members in events
    ]
    return ClusterEvents(sorted(named_events, key=lambda event: (-event.samples, event.previous, event.current)))


def _classify_groups(groups: list[np.ndarray], n_previous: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    kinds = {(1, 1): "kept", (1, 2): "split", (2, 1): "merged", (2, 2): "reshaped", (0, 1): "born", (1, 0): "died"}
    for members in groups:
        previous_members, current_members = members[members < n_previous], members[members >= n_previous] - n_previous
        if len(members):
            yield kinds[min(len(previous_members), 2), min(len(current_members), 2)], previous_members, current_members


def number_clusters(
    overlaps: Overlaps, previous_ids: np.ndarray, first_member: np.ndarray, next_number: int | None = None
) -> np.ndarray:
    """Number current clusters so that numbers persist from epoch to epoch.

    A cluster that is the mutual best overlap of a previous one takes over its number. The others, ordered by size
    (largest first) and then by first member, take the lowest numbers that no previous cluster had, or those from
    `next_number` on. A number never passes straight from one cluster to another.

    Args:
        overlaps: overlaps of the previous with the current clusters.
        previous_ids: numbers of the previous clusters, shape (K',).
        first_member: smallest sample index per current cluster, shape (K,).
        next_number: lowest number of a new cluster; where a previous one has a higher number, they begin after that.
            None takes the lowest numbers that are free.

    Returns:
        Number per current cluster, shape (K,).
    """
    n_current = len(overlaps.current_sizes)
    number = np.full(n_current, NOISE, dtype=np.int64)
    best = overlaps.find_mutual_best()
    number[overlaps.current[best]] = previous_ids[overlaps.previous[best]]
    new_clusters = np.flatnonzero(number == NOISE)
    new_clusters = new_clusters[np.lexsort((first_member[new_clusters], -overlaps.current_sizes[new_clusters]))]
    if next_number is None:
        free_numbers = np.setdiff1d(np.arange(n_current + len(previous_ids)), previous_ids)
    else:
        free_numbers = max(next_number, int(previous_ids.max(initial=NOISE)) + 1) + np.arange(n_current)
    number[new_clusters] = free_numbers[: len(new_clusters)]
    return number


def adjusted_rand(previous: np.ndarray, current: np.ndarray, counts: np.ndarray) -> float:
    """Adjusted Rand index of two labelings from their cells, in [-1, 1]; noise counts as a cluster.

    Source: Hubert and Arabie 1985; equal to scikit-learn's `adjusted_rand_score` on all samples.

    Args:
        previous, current: cluster of each cell, -1 = noise, shape (cells,).
        counts: samples per cell, shape (cells,).

    Example:
        >>> adjusted_rand(np.array([0, 1]), np.array([3, 4]), np.array([10, 20]))
        1.0
    """
    # Cells of more than two generations repeat pairs of clusters, so these are summed first.
    previous_ids, previous_codes = np.unique(previous, return_inverse=True)
    current_ids, current_codes = np.unique(current, return_inverse=True)
    return adjusted_rand_of_table(
        sum_entries(counts, previous_codes, current_codes, (len(previous_ids), len(current_ids)))
    )


def adjusted_rand_of_table(table: sp.csr_array) -> float:
    """Adjusted Rand index from the samples that two clusters have in common, sparse, shape (K', K)."""

    def count_pairs(sizes: np.ndarray) -> float:
        return float((sizes * (sizes - 1.0) / 2.0).sum())

    n_pairs = count_pairs(table.data)
    previous_pairs, current_pairs = count_pairs(table.sum(axis=1)), count_pairs(table.sum(axis=0))
    n_samples = float(table.sum())
    expected = previous_pairs * current_pairs / max(n_samples * (n_samples - 1.0) / 2.0, 1.0)
    largest = (previous_pairs + current_pairs) / 2.0
    return 1.0 if largest == expected else (n_pairs - expected) / (largest - expected)


def _find_largest(cluster: np.ndarray, counts: np.ndarray, n_clusters: int) -> np.ndarray:
    """Find the position of the largest count per cluster; of equal ones the first."""
    largest = np.zeros(n_clusters, dtype=np.int64)
    np.maximum.at(largest, cluster, counts)
    positions = np.flatnonzero(counts == largest[cluster])
    return positions[np.unique(cluster[positions], return_index=True)[1]]
