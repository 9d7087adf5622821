"""Agglomeration along the pairs of cells whose soft labels share a column, without a distance matrix.

With local churn, as in training, nearly all pairs of cells are unrelated: their soft labels share no column, and their
squared distance is the sum of their squared norms. Two clusters without a related pair are at least as far apart as a
bound that depends on each of them alone. Up to that bound the search among related clusters is exact. Mutual nearest
neighbours may merge in any order, so that all of them merge at once.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from hf_plr.refinement.agglomeration.dense import convert_to_distances
from hf_plr.refinement.agglomeration.merges import ZERO, Cut, Merges, rounding_errors
from hf_plr.refinement.blending import SoftCells

BLOCK = 1 << 20  # cell pairs that are computed together
REDUCERS = {"average": np.add, "complete": np.maximum, "single": np.minimum}


class RelatedClusters:
    """Clusters of cells with the distances of related pairs, under "average", "complete" or "single" linkage.

    Args:
        soft: soft labels of the cells.
        weights: of the cells, shape (n,).
        linkage: "average", "complete" or "single".
    """

    def __init__(self, soft: SoftCells, weights: np.ndarray, linkage: str):
        self.weights = np.asarray(weights, dtype=np.float64)
        self.cluster_of_cell = np.arange(len(weights))
        self.merges = Merges(len(weights))
        self.representatives = np.arange(len(weights))  # one cell of each cluster
        self._linkage = linkage
        self._cell_weights = self.weights
        self._squared_norms = soft.squared_norms()
        self._cell_bounds = np.sqrt(self._squared_norms + self._squared_norms.min())
        rows = soft.rows()
        related = sp.triu(rows @ rows.T, k=1, format="coo")
        self._first, self._second = (ends.astype(np.int64) for ends in related.coords)
        squared = self._squared_norms[self._first] + self._squared_norms[self._second] - 2.0 * related.data
        self._distances = np.sqrt(np.where(squared < ZERO**2, 0.0, squared))

    def __len__(self) -> int:
        return len(self.weights)

    def merge_related(self, cut: Cut) -> bool:
        """Merge while related pairs give the nearest neighbours; returns True if the cut is settled then."""
        while True:
            bounds = self._reduce_cells(self._cell_bounds)
            lowest_remaining = min(float(bounds.min()), float(self._distances.min(initial=np.inf)))
            if cut.is_settled(self.merges, lowest_remaining):
                return True
            pairs = self._find_mutual_pairs(bounds)
            if len(pairs) == 0:
                return False
            self._merge(pairs)

    def _find_mutual_pairs(self, bounds: np.ndarray) -> np.ndarray:
        """Find the pairs that are each other's nearest within their bounds, of equally near ones the lightest.

        Pairs that ties connect count only together. They wait where one of their clusters is as near to another one
        that has a nearer one itself: that one has to merge first.
        """
        cluster = np.concatenate([self._first, self._second])
        neighbor = np.concatenate([self._second, self._first])
        distances = np.concatenate([self._distances, self._distances])
        lowest = np.full(len(self), np.inf)
        np.minimum.at(lowest, cluster, distances)
        nearest = np.flatnonzero(distances <= lowest[cluster] + rounding_errors(lowest[cluster]))
        lightest = np.full(len(self), np.inf)
        np.minimum.at(lightest, cluster[nearest], self.weights[neighbor[nearest]])
        nearest = nearest[self.weights[neighbor[nearest]] == lightest[cluster[nearest]]]

        n_pairs = len(self._first)
        is_nearest = np.zeros((2, n_pairs), dtype=bool)  # seen from the first, seen from the second cluster
        is_nearest.reshape(-1)[nearest] = True
        mutual = np.flatnonzero(is_nearest.all(axis=0))
        n_groups, group = self._find_groups(mutual)
        is_settled = np.ones(n_groups, dtype=bool)
        limit = np.minimum(bounds[self._first[mutual]], bounds[self._second[mutual]])
        is_settled[group[self._first[mutual[self._distances[mutual] >= limit - rounding_errors(limit)]]]] = False
        one_sided = is_nearest & ~is_nearest.all(axis=0)
        is_settled[group[self._first[one_sided[0]]]] = False
        is_settled[group[self._second[one_sided[1]]]] = False
        return mutual[is_settled[group[self._first[mutual]]]]

    def _find_groups(self, pairs: np.ndarray) -> tuple[int, np.ndarray]:
        """Find the groups that these pairs connect; returns their number, and the group per cluster."""
        ends = (self._first[pairs], self._second[pairs])
        edges = sp.coo_array((np.ones(len(pairs)), ends), shape=(len(self), len(self)))
        n_groups, group = connected_components(edges, directed=False)
        return int(n_groups), group.astype(np.int64)  # 32 bits would not hold a pair of groups

    def _merge(self, pairs: np.ndarray) -> None:
        """Merge the clusters of these pairs, each group at once."""
        n_groups, group = self._find_groups(pairs)
        order, starts, sizes = _sort_by_cluster(group, n_groups)
        weights = np.add.reduceat(self.weights[order], starts)
        height = np.zeros(n_groups)
        height[group[self._first[pairs]]] = self._distances[pairs]
        for i in np.flatnonzero(sizes > 1):
            members = self.representatives[order[starts[i] : starts[i] + sizes[i]]]
            self.merges.add(members.tolist(), float(height[i]), float(weights[i]))
        self._join_distances(group, n_groups)
        self.representatives = self.representatives[order[starts]]
        self.cluster_of_cell = group[self.cluster_of_cell]
        self.weights = weights

    def _join_distances(self, group: np.ndarray, n_groups: int) -> None:
        """Compute the distances of the merged clusters from those of their parts, related and unrelated ones."""
        ends = np.sort(np.stack([group[self._first], group[self._second]]), axis=0)
        distinct = np.flatnonzero(ends[0] != ends[1])
        keys, key_of_part = np.unique(ends[0, distinct] * n_groups + ends[1, distinct], return_inverse=True)
        a, b = np.divmod(keys, n_groups)
        order, starts, sizes = _sort_by_cluster(group, n_groups)

        # Unrelated pairs are not stored: list all pairs of parts, and keep those that are not related.
        n_related = np.bincount(key_of_part, minlength=len(keys))
        incomplete = np.flatnonzero(n_related < sizes[a] * sizes[b])
        first, second = a[incomplete], b[incomplete]
        owner, i, j = _list_pairs(starts[first], sizes[first], starts[second], sizes[second])
        x, y = np.sort(np.stack([order[i], order[j]]), axis=0)
        is_related = np.isin(x * len(self) + y, self._first * len(self) + self._second)
        owner, x, y = incomplete[owner[~is_related]], x[~is_related], y[~is_related]

        owners = np.concatenate([key_of_part, owner])
        values = np.concatenate([self._distances[distinct], self._unrelated_distances(x, y)])
        if self._linkage == "average":
            related = self.weights[self._first[distinct]] * self.weights[self._second[distinct]]
            pair_weights = np.concatenate([related, self.weights[x] * self.weights[y]])
            total = np.bincount(owners, pair_weights * values, len(keys))
            joined = total / np.bincount(owners, pair_weights, len(keys))
        else:
            joined = np.full(len(keys), -np.inf if self._linkage == "complete" else np.inf)
            REDUCERS[self._linkage].at(joined, owners, values)
        self._first, self._second, self._distances = a, b, joined

    def _unrelated_distances(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Compute distances of pairs of clusters without related cells."""
        if self._linkage != "average":
            extreme = self._reduce_cells(self._squared_norms)
            return np.sqrt(extreme[x] + extreme[y])
        order, starts, sizes = _sort_by_cluster(self.cluster_of_cell, len(self))
        distances = np.empty(len(x))
        block = np.cumsum(sizes[x] * sizes[y]) // BLOCK
        for pairs in np.split(np.arange(len(x)), np.flatnonzero(np.diff(block)) + 1):
            owner, i, j = _list_pairs(starts[x[pairs]], sizes[x[pairs]], starts[y[pairs]], sizes[y[pairs]])
            i, j = order[i], order[j]
            pair_weights = self._cell_weights[i] * self._cell_weights[j]
            total = pair_weights * np.sqrt(self._squared_norms[i] + self._squared_norms[j])
            distances[pairs] = np.bincount(owner, total, len(pairs))
        return distances / (self.weights[x] * self.weights[y])

    def _reduce_cells(self, values: np.ndarray) -> np.ndarray:
        """Reduce values of cells to one per cluster: their mean (average linkage), maximum or minimum."""
        order, starts, _ = _sort_by_cluster(self.cluster_of_cell, len(self))
        if self._linkage == "average":
            return np.add.reduceat((values * self._cell_weights)[order], starts) / self.weights
        return REDUCERS[self._linkage].reduceat(values[order], starts)


def compute_cluster_distances(soft: SoftCells, weights: np.ndarray, cluster: np.ndarray, linkage: str) -> np.ndarray:
    """Compute a dense matrix of distances between clusters from the distances of all their cells."""
    n_clusters = int(cluster.max()) + 1
    order, starts, _ = _sort_by_cluster(cluster, n_clusters)
    soft, weights, cluster = soft.select(order), weights[order], cluster[order]
    norms = soft.squared_norms()
    reduce = REDUCERS[linkage]
    result = np.full((n_clusters, n_clusters), {"average": 0.0, "complete": -np.inf, "single": np.inf}[linkage])
    height = max(1, BLOCK // len(weights))
    for start in range(0, len(weights), height):
        block = slice(start, start + height)
        distances = soft.inner_products(soft.rows(block).toarray())
        convert_to_distances(distances, norms[block, None], norms)
        if linkage == "average":
            distances *= weights[block, None] * weights
        partial = reduce.reduceat(distances, starts, axis=1)
        reduce.at(result, cluster[block], partial)
    if linkage == "average":
        cluster_weights = np.add.reduceat(weights, starts)
        result /= cluster_weights[:, None] * cluster_weights
    return result


def _sort_by_cluster(cluster: np.ndarray, n_clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort members by cluster; returns their order, the start of each cluster in it, and the clusters' sizes."""
    order = np.argsort(cluster, kind="stable")
    sizes = np.bincount(cluster, minlength=n_clusters)
    return order, np.cumsum(sizes) - sizes, sizes


def _list_pairs(
    start_a: np.ndarray, size_a: np.ndarray, start_b: np.ndarray, size_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List all pairs (i, j) with i in a range a and j in the range b beside it, after the number of their range."""
    totals = size_a * size_b
    owner = np.repeat(np.arange(len(totals)), totals)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(totals) - totals, totals)
    return owner, start_a[owner] + rank // size_b[owner], start_b[owner] + rank % size_b[owner]
