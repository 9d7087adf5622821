"""Clusters known by their centroids, in memory that grows with the cells and not with their square."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.agglomeration.chain import find_nearest_clusters
from hf_plr.refinement.agglomeration.merges import ZERO, Merges, rounding, rounding_error
from hf_plr.refinement.blending import SoftCells


class CentroidClusters:
    """Clusters of cells with the distances between their centroids, or Ward's.

    A row of distances is made when it is asked for: the inner products of one centroid with all cells need one
    product with each basis of the soft labels and a lookup for each cell.

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
        with_cells = self._soft.inner_products(self._centroid(cluster)[None])[0]
        products = np.bincount(self._cluster_of_cell, self._cell_weights * with_cells, len(self.weights))
        squared = self._squared_norms + self._squared_norms[cluster] - 2.0 * products / self.weights
        squared[squared < ZERO**2] = 0.0
        if self._ward:
            squared *= 2.0 * self.weights[cluster] * self.weights / (self.weights[cluster] + self.weights)
        squared[~self.alive] = np.inf
        squared[cluster] = np.inf
        return np.sqrt(squared)

    def merge(self, gone: int, stays: int) -> None:
        """Let one cluster absorb another."""
        self._cluster_of_cell[self._cells[gone]] = stays
        self._cells[stays] += self._cells[gone]
        self._cells[gone] = []
        self.weights[stays] += self.weights[gone]
        self.alive[gone] = False
        centroid = self._centroid(stays)
        self._squared_norms[stays] = centroid @ centroid

    def _centroid(self, cluster: int) -> np.ndarray:
        cells = self._cells[cluster]
        share = self._cell_weights[cells] / self.weights[cluster]
        centroid = np.zeros(self._soft.n_columns)
        for part, basis in enumerate(self._transposed):
            mass = self._soft.shares_of_case[self._soft.case[cells], part] * share
            used = mass > 0
            centroid += basis @ np.bincount(self._soft.codes[cells, part][used], mass[used], basis.shape[1])
        return centroid


def merge_nearest_first(clusters: CentroidClusters) -> Merges:
    """Agglomerate by always merging the two nearest clusters: for centroid linkage, where the chain is not exact.

    Two merged clusters may be nearer to a third than either was; such a merge gets the height of the one below it, as
    in scipy's cuts. Ties are as in `merge_along_chain`.

    Source: the generic algorithm of Müllner (arXiv 1109.2378), with distances made on demand.
    """
    n = len(clusters.weights)
    merges = Merges(n)
    if n < 2:
        return merges
    lifted = np.zeros(n)
    distance = np.full(n, np.inf)  # to the nearest cluster; a lower bound where it is stale
    partner = np.full(n, -1)  # the lightest of the nearest clusters
    stale = np.ones(n, dtype=bool)

    def refresh(cluster: int) -> list[int]:
        distance[cluster], nearest = find_nearest_clusters(clusters.distances_from(cluster), clusters.weights)
        partner[cluster], stale[cluster] = nearest[0], False
        return nearest

    for cluster in range(n):
        refresh(cluster)
    n_alive = n
    while n_alive > 1:
        while True:
            lowest = float(distance.min())
            candidates = np.flatnonzero(distance <= lowest + rounding_error(lowest))
            if not stale[candidates].any():
                break
            for cluster in candidates[stale[candidates]]:
                refresh(cluster)
        together = clusters.weights[candidates] + clusters.weights[partner[candidates]]
        lightest = int(candidates[np.argmin(together)])
        group, waiting = {lightest}, [lightest]
        while waiting:
            for other in refresh(waiting.pop()):
                if other not in group:
                    group.add(other)
                    waiting.append(other)
        members = sorted(group)
        height = max(lowest, lifted[members].max())
        merges.add(members, height, float(clusters.weights[members].sum()))
        stays = members[0]
        for member in members[1:]:
            clusters.merge(member, stays)
        n_alive -= len(members) - 1
        lifted[stays] = height
        distance[members[1:]] = np.inf
        stale |= np.isin(partner, members)
        if n_alive == 1:
            break
        from_new = clusters.distances_from(stays)
        distance[stays], nearest = find_nearest_clusters(from_new, clusters.weights)
        partner[stays], stale[stays] = nearest[0], False
        nearer = from_new + rounding(from_new) < distance
        tied = clusters.alive & ~nearer & ~stale & (from_new <= distance + rounding(distance))
        lighter = np.zeros(n, dtype=bool)
        lighter[tied] = clusters.weights[stays] < clusters.weights[partner[tied]]
        distance[nearer] = from_new[nearer]
        partner[nearer | lighter] = stays
        stale[nearer] = False
    return merges
