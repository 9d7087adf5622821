"""The nearest-neighbour chain: follow nearest neighbours until two clusters are each other's, and merge these."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from hf_plr.refinement.agglomeration.merges import Merges, rounding_error


class Clusters(Protocol):
    """Clusters that know their distances to each other.

    Attributes:
        weights: weight of each cluster, shape (n,).
        alive: whether it is still there, bool of shape (n,).
    """

    weights: np.ndarray
    alive: np.ndarray

    def distances_from(self, cluster: int) -> np.ndarray:
        """Distances to all clusters, infinite to itself and to those that are gone; shape (n,). Not to be changed."""

    def merge(self, gone: int, stays: int) -> None:
        """Let one cluster absorb another."""


def merge_along_chain(clusters: Clusters, n_left: int = 1) -> Merges:
    """Agglomerate with a linkage under which a merged cluster is never nearer to a third than its parts were.

    Stops when `n_left` clusters are left, or fewer where several are tied; which merges have been made by then says
    nothing about their heights.

    Source: Benzécri 1982; Murtagh 1983. Of equally near neighbours the lightest comes first, which keeps that property.
    Clusters that are tied in distance and in weight merge all at once. So the order of the points means nothing.
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
            group, unsettled = _tied_group(clusters, group)
            if unsettled is not None:
                chain, had_ties = [unsettled], [False]
                continue
        del chain[-2:], had_ties[-2:]
        merges.add(group, height, float(clusters.weights[group].sum()))
        for member in group[1:]:
            clusters.merge(member, group[0])
        n_alive -= len(group) - 1
    return merges


def find_nearest_clusters(distances: np.ndarray, weights: np.ndarray) -> tuple[float, list[int]]:
    """The smallest distance, and the clusters at that distance; of several the lightest, all of them if tied."""
    lowest = float(distances.min())
    nearest = (distances <= lowest + rounding_error(lowest)).nonzero()[0]
    if len(nearest) > 1:
        tied = weights[nearest]
        nearest = nearest[tied == tied.min()]
    return lowest, nearest.tolist()


def _tied_group(clusters: Clusters, pair: list[int]) -> tuple[list[int], int | None]:
    """All clusters that hang together with a pair of nearest neighbours by ties: each of them nearest to the next.

    If one is nearest to a cluster of the group, but has a nearer one itself, that one is given as the second answer.
    It has to merge first, and may then turn out to belong to the group.
    """
    nearest: dict[int, list[int]] = {}

    def nearest_to(cluster: int) -> list[int]:
        if cluster not in nearest:
            nearest[cluster] = find_nearest_clusters(clusters.distances_from(cluster), clusters.weights)[1]
        return nearest[cluster]

    group, waiting = set(pair), list(pair)
    while waiting:
        cluster = waiting.pop()
        for other in nearest_to(cluster):
            if cluster not in nearest_to(other):
                return sorted(group), other
            if other not in group:
                group.add(other)
                waiting.append(other)
    return sorted(group), None
