"""Merges of an agglomeration, and the cut through their tree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

ZERO = 3e-7  # rows closer than this count as identical: rounding hides smaller distances


def rounding_errors(distance: np.ndarray) -> np.ndarray:
    """Largest difference at which two distances of this size count as equal.

    Squared distances between rows of norm one are exact to about 1e-15, so distances to 1e-15 over their size.
    """
    return 1e-12 * np.maximum(distance, 1.0) + 1e-14 / np.maximum(distance, ZERO)


def rounding_error(distance: float) -> float:
    """Rounding error of one distance, without the cost of an array."""
    return 1e-12 * max(distance, 1.0) + 1e-14 / max(distance, ZERO)


@dataclass(frozen=True)
class Cut:
    """Cut through a tree; exactly one of the two attributes is given.

    Attributes:
        n_clusters: number of clusters to leave. Tied merges at the cut are not made, which leaves more clusters; fewer
            distinct points leave fewer.
        distance_threshold: largest height of the merges that are made.
    """

    n_clusters: int | None
    distance_threshold: float | None

    def apply(self, merges: Merges) -> np.ndarray:
        """Make the merges below the cut; returns the cluster per point, from 0, shape (n_points,)."""
        heights = np.asarray(merges.heights)
        if self.n_clusters is None:
            chosen = np.flatnonzero(heights <= self._highest)
        else:
            order, rank = merges.order()
            n_chosen = min(max(merges.n_points - self.n_clusters, 0), len(order))
            if 0 < n_chosen < len(order) and rank[n_chosen - 1] == rank[n_chosen]:
                n_chosen = int(np.searchsorted(rank, rank[n_chosen]))
            chosen = order[: max(n_chosen, int((heights <= ZERO).sum()))]
        ends = (np.asarray(merges.first, dtype=int)[chosen], np.asarray(merges.second, dtype=int)[chosen])
        graph = sp.coo_array((np.ones(len(chosen)), ends), shape=(merges.n_points, merges.n_points))
        return connected_components(graph, directed=False)[1].astype(np.int64)

    def is_settled(self, merges: Merges, bound: float) -> bool:
        """True if no further merge can change the clusters, where all of them are at `bound` or higher."""
        if bound <= ZERO:
            return False
        if self.n_clusters is None:
            return bound > self._highest
        is_below = np.asarray(merges.heights) < bound - rounding_error(bound)
        return int(is_below.sum()) >= merges.n_points - self.n_clusters

    def limit(self, merges: Merges) -> float:
        """Height above which no merge can be below the cut, given some of the merges."""
        if self.n_clusters is None:
            return self._highest
        n_needed = merges.n_points - self.n_clusters
        if not 0 < n_needed <= len(merges):
            return np.inf
        height = float(np.partition(np.asarray(merges.heights), n_needed - 1)[n_needed - 1])
        return height + rounding_error(height)

    @property
    def _highest(self) -> float:
        assert self.distance_threshold is not None
        return self.distance_threshold + rounding_error(self.distance_threshold)


@dataclass
class Merges:
    """Merges of weighted points, two at a time. Merges that are tied in full have equal height and weight.

    Attributes:
        n_points: number of points.
        first, second: one point of each of the two clusters.
        heights: distance at which they merge.
        weights: weight of the merged cluster; of tied merges, of the cluster that all of them make.
    """

    n_points: int
    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    heights: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.heights)

    def add(self, group: list[int], height: float, weight: float) -> None:
        """Add the merge of all clusters of a group, at one height, into one of this weight."""
        for member in group[1:]:
            self.first.append(group[0])
            self.second.append(member)
            self.heights.append(height)
            self.weights.append(weight)

    def add_pairs(self, first: np.ndarray, second: np.ndarray, heights: np.ndarray, weights: np.ndarray) -> None:
        """Add merges of disjoint pairs of clusters, each of shape (pairs,)."""
        self.first += first.tolist()
        self.second += second.tolist()
        self.heights += heights.tolist()
        self.weights += weights.tolist()

    def extend(self, later: Merges, point_of_cluster: np.ndarray) -> Merges:
        """Extend by the merges of the clusters that these left; `point_of_cluster` is one point of each."""
        return Merges(
            self.n_points,
            self.first + point_of_cluster[later.first].tolist(),
            self.second + point_of_cluster[later.second].tolist(),
            self.heights + later.heights,
            self.weights + later.weights,
        )

    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """Order of the merges, lowest and then lightest first, and their ranks in it, which tied ones share."""
        heights, weights = np.asarray(self.heights), np.asarray(self.weights)
        order = np.argsort(heights, kind="stable")
        level = np.empty(len(heights), dtype=np.int64)
        steps = np.diff(heights[order], prepend=heights[order[:1]]) > rounding_errors(heights[order])
        level[order] = np.cumsum(steps)
        order = np.lexsort((weights, level))
        keys = np.stack([level, weights])[:, order]
        rank = np.cumsum((np.diff(keys, axis=1, prepend=keys[:, :1]) != 0).any(axis=0))
        return order, rank

    def tree(self) -> np.ndarray:
        """Tree in scipy's format, shape (n_points - 1, 4): clusters, height, number of points; heights ascend."""
        order, _ = self.order()
        tree = np.empty((len(self), 4))
        parent = list(range(self.n_points))
        name = list(range(self.n_points))
        size = [1] * self.n_points

        def root(point: int) -> int:
            while parent[point] != point:
                parent[point] = parent[parent[point]]
                point = parent[point]
            return point

        for row, merge in enumerate(order):
            a, b = root(self.first[merge]), root(self.second[merge])
            parent[a] = b
            size[b] += size[a]
            tree[row] = min(name[a], name[b]), max(name[a], name[b]), self.heights[merge], size[b]
            name[b] = self.n_points + row
        return tree
