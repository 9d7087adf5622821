"""Nearest-neighbour chain: follow nearest neighbours until two clusters are each other's, and merge these."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hf_plr.refinement.agglomeration.merges import Merges, rounding_error


class Clusters(Protocol):
    """Clusters that know their distances to each other.

    Attributes:
        weights: weight per cluster, shape (n,).
        alive: False for a cluster that another has absorbed, bool of shape (n,).
    """

    weights: np.ndarray
    alive: np.ndarray

    def distances_from(self, cluster: int) -> np.ndarray:
        """Distances to all clusters, read-only, infinite to itself and to absorbed ones; shape (n,)."""

    def merge(self, absorbed: int, survivor: int) -> None:
        """Let one cluster absorb another."""


def merge_along_chain(clusters: Clusters, n_left: int = 1) -> Merges:
    """Merge clusters under a linkage where a merged cluster is never nearer to a third than its parts were.

    Stops when `n_left` clusters are left, or fewer where several are tied. The merges come in no order of heights.

    Source: Benzécri 1982; Murtagh 1983. Of equally near neighbours the lightest comes first, which keeps that property.
    Clusters that are tied in distance and in weight merge all at once, so that the order of the points has no effect.
    """
    merges = Merges(len(clusters.weights))
    chain: list[int] = []
    had_ties: list[bool] = []
    n_alive = int(clusters.alive.sum())
    while n_alive > n_left:
        if not chain:
            chain, had_ties = [int(np.argmax(clusters.alive))], [False]
        height, nearest = find_nearest_clusters(clusters.distances_from(chain[-1]), clusters.weights)
        had_ties[-1] = len(nearest) > 1
        if len(chain) == 1 or chain[-2] not in nearest:
            chain.append(int(nearest[0]))
            had_ties.append(False)
            continue
        group = chain[-2:]
        if had_ties[-1] or had_ties[-2]:
            group, nearer_cluster = _find_tied_group(clusters, group)
            if nearer_cluster is not None:
                chain, had_ties = [nearer_cluster], [False]
                continue
        del chain[-2:], had_ties[-2:]
        merges.add(group, height, float(clusters.weights[group].sum()))
        for member in group[1:]:
            clusters.merge(member, group[0])
        n_alive -= len(group) - 1
    return merges


def find_nearest_clusters(distances: np.ndarray, weights: np.ndarray) -> tuple[float, list[int]]:
    """Find the smallest distance and the lightest clusters at that distance, several only where their weights tie."""
    lowest = float(distances.min())
    nearest = (distances <= lowest + rounding_error(lowest)).nonzero()[0]
    if len(nearest) > 1:
        tied = weights[nearest]
        nearest = nearest[tied == tied.min()]
    return lowest, nearest.tolist()


def _find_tied_group(clusters: Clusters, pair: list[int]) -> tuple[list[int], int | None]:
    """Find all clusters that ties connect to a pair of nearest neighbours, each of them nearest to the next.

    A cluster that is nearest to one of the group, but has a nearer one itself, is returned beside the group. It has to
    merge first, and may belong to the group afterwards.
    """
    nearest: dict[int, list[int]] = {}

    def look_up_nearest(cluster: int) -> list[int]:
        if cluster not in nearest:
            nearest[cluster] = find_nearest_clusters(clusters.distances_from(cluster), clusters.weights)[1]
        return nearest[cluster]

    group, queue = set(pair), list(pair)
    while queue:
        cluster = queue.pop()
        for other in look_up_nearest(cluster):
            if cluster not in look_up_nearest(other):
                return sorted(group), other
            if other not in group:
                group.add(other)
                queue.append(other)
    return sorted(group), None
