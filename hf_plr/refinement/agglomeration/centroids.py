"""Clusters by their centroids, in memory that grows with the cells and not with their square."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.agglomeration.chain import find_nearest_clusters
from hf_plr.refinement.agglomeration.merges import ZERO, Merges, rounding_error, rounding_errors
from hf_plr.refinement.blending import SoftCells


class CentroidClusters:
    """Clusters of cells with the distances between their centroids, or Ward's.

    A row of distances is computed on demand: the inner products of one centroid with all cells need one product with
    each basis of the soft labels and one lookup per cell.

    Args:
        soft: soft labels of the cells.
        weights: of the cells, shape (n,).
        linkage: "centroid" for distances of centroids, or "ward" for sqrt(2 |A||B| / (|A| + |B|)) times these.
    """

    def __init__(self, soft: SoftCells, weights: np.ndarray, linkage: str):
        n = len(weights)
        self.weights = np.asarray(weights, dtype=np.float64).copy()
        self.alive = np.ones(n, dtype=bool)
        self._ward = linkage == "ward"
        self._soft = soft
        self._cell_weights = self.weights.copy()
        self._cluster_of_cell = np.arange(n)
        self._cells = [[i] for i in range(n)]
        self._squared_norms = soft.squared_norms()
        self._transposed = [basis.T.tocsr() for basis in soft.bases]

    def distances_from(self, cluster: int) -> np.ndarray:
        """Distances to all clusters, shape (n,)."""
        cell_products = self._soft.inner_products(self._centroid(cluster)[None])[0]
        products = np.bincount(self._cluster_of_cell, self._cell_weights * cell_products, len(self.weights))
        squared = self._squared_norms + self._squared_norms[cluster] - 2.0 * products / self.weights
        squared[squared < ZERO**2] = 0.0
        if self._ward:
            squared *= 2.0 * self.weights[cluster] * self.weights / (self.weights[cluster] + self.weights)
        squared[~self.alive] = np.inf
        squared[cluster] = np.inf
        return np.sqrt(squared)

    def merge(self, absorbed: int, survivor: int) -> None:
        """Let one cluster absorb another."""
        self._cluster_of_cell[self._cells[absorbed]] = survivor
        self._cells[survivor] += self._cells[absorbed]
        self._cells[absorbed] = []
        self.weights[survivor] += self.weights[absorbed]
        self.alive[absorbed] = False
        centroid = self._centroid(survivor)
        self._squared_norms[survivor] = centroid @ centroid

    def _centroid(self, cluster: int) -> np.ndarray:
        cells = self._cells[cluster]
        fraction = self._cell_weights[cells] / self.weights[cluster]
        centroid = np.zeros(self._soft.n_columns)
        for part, basis in enumerate(self._transposed):
            mass = self._soft.shares_of_case[self._soft.case[cells], part] * fraction
            is_used = mass > 0
            centroid += basis @ np.bincount(self._soft.codes[cells, part][is_used], mass[is_used], basis.shape[1])
        return centroid


def merge_nearest_first(clusters: CentroidClusters) -> Merges:
    """Merge the two nearest clusters again and again: for centroid linkage, where the chain is not exact.

    Two merged clusters may be nearer to a third than either was. Such a merge gets the height of the one below it, as
    in scipy's cuts. Ties are as in `merge_along_chain`.

    Source: the generic algorithm of Müllner (arXiv 1109.2378), with distances computed on demand.
    """
    n = len(clusters.weights)
    merges = Merges(n)
    if n < 2:
        return merges
    height_of_cluster = np.zeros(n)
    distance = np.full(n, np.inf)  # to the nearest cluster; a lower bound where stale
    partner = np.full(n, -1)  # the lightest of the nearest clusters
    is_stale = np.ones(n, dtype=bool)

    def refresh(cluster: int) -> list[int]:
        distance[cluster], nearest = find_nearest_clusters(clusters.distances_from(cluster), clusters.weights)
        partner[cluster], is_stale[cluster] = nearest[0], False
        return nearest

    for cluster in range(n):
        refresh(cluster)
    n_alive = n
    while n_alive > 1:
        while True:
            lowest = float(distance.min())
            candidates = np.flatnonzero(distance <= lowest + rounding_error(lowest))
            if not is_stale[candidates].any():
                break
            for cluster in candidates[is_stale[candidates]]:
                refresh(cluster)
        pair_weights = clusters.weights[candidates] + clusters.weights[partner[candidates]]
        start = int(candidates[np.argmin(pair_weights)])
        group, queue = {start}, [start]
        while queue:
            for other in refresh(queue.pop()):
                if other not in group:
                    group.add(other)
                    queue.append(other)
        members = sorted(group)
        height = max(lowest, height_of_cluster[members].max())
        merges.add(members, height, float(clusters.weights[members].sum()))
        survivor = members[0]
        for member in members[1:]:
            clusters.merge(member, survivor)
        n_alive -= len(members) - 1
        height_of_cluster[survivor] = height
        distance[members[1:]] = np.inf
        is_stale |= np.isin(partner, members)
        if n_alive == 1:
            break
        new_distances = clusters.distances_from(survivor)
        distance[survivor], nearest = find_nearest_clusters(new_distances, clusters.weights)
        partner[survivor], is_stale[survivor] = nearest[0], False
        is_nearer = new_distances + rounding_errors(new_distances) < distance
        is_tied = clusters.alive & ~is_nearer & ~is_stale & (new_distances <= distance + rounding_errors(distance))
        is_lighter = np.zeros(n, dtype=bool)
        is_lighter[is_tied] = clusters.weights[survivor] < clusters.weights[partner[is_tied]]
        distance[is_nearer] = new_distances[is_nearer]
        partner[is_nearer | is_lighter] = survivor
        is_stale[is_nearer] = False
    return merges
