"""The tree that agglomeration makes, and its cut."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

ZERO = 3e-7  # rows closer than this count as identical: rounding hides smaller distances


def rounding(distance: np.ndarray) -> np.ndarray:
    """Below which difference two distances of this size count as equal.

    Squared distances between rows of norm one are exact to about 1e-15, so distances to 1e-15 over their size.
    """
    return 1e-12 * np.maximum(distance, 1.0) + 1e-14 / np.maximum(distance, ZERO)


def rounding_error(distance: float) -> float:
    """The same for one distance, without the cost of an array."""
    return 1e-12 * max(distance, 1.0) + 1e-14 / max(distance, ZERO)


@dataclass(frozen=True)
class Cut:
    """Where to cut a tree: exactly one of the two is given.

    Attributes:
        n_clusters: how many clusters to leave. There are more if merges that are tied in full stand at the cut (none of
            them is made, so that the order of the points means nothing), and fewer if fewer points are distinct.
        distance_threshold: all merges up to this height are made.
    """

    n_clusters: int | None
    distance_threshold: float | None

    def apply(self, merges: Merges) -> np.ndarray:
        """Cluster of each point, from 0, shape (n_points,)."""
        heights = np.asarray(merges.heights)
        if self.n_clusters is None:
            made = np.flatnonzero(heights <= self._highest)
        else:
            order, rank = merges.order()
            n_made = min(max(merges.n_points - self.n_clusters, 0), len(order))
            if 0 < n_made < len(order) and rank[n_made - 1] == rank[n_made]:
                n_made = int(np.searchsorted(rank, rank[n_made]))
            made = order[: max(n_made, int((heights <= ZERO).sum()))]
        ends = (np.asarray(merges.first, dtype=int)[made], np.asarray(merges.second, dtype=int)[made])
        graph = sp.coo_array((np.ones(len(made)), ends), shape=(merges.n_points, merges.n_points))
        return connected_components(graph, directed=False)[1].astype(np.int64)

    def is_settled(self, merges: Merges, bound: float) -> bool:
        """Whether no merge that is still to come, all of them at `bound` or higher, can change the clusters."""
        if bound <= ZERO:
            return False
        if self.n_clusters is None:
            return bound > self._highest
        below = np.asarray(merges.heights) < bound - rounding_error(bound)
        return int(below.sum()) >= merges.n_points - self.n_clusters

    @property
    def _highest(self) -> float:
        assert self.distance_threshold is not None
        return self.distance_threshold + rounding_error(self.distance_threshold)


@dataclass
class Merges:
    """Merges of weighted points, two at a time. Merges that are tied in full have equal height and weight.

    Attributes:
        n_points: number of points.
        first, second: any point of either cluster that is merged.
        heights: the distance at which they merge.
        weights: weight of what results; for tied merges, of what results from all of them.
    """

    n_points: int
    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    heights: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.heights)

    def add(self, group: list[int], height: float, weight: float) -> None:
        """Merge all clusters of a group at one height into one of this weight."""
        for member in group[1:]:
            self.first.append(group[0])
            self.second.append(member)
            self.heights.append(height)
            self.weights.append(weight)

    def extend(self, later: Merges, point_of_cluster: np.ndarray) -> Merges:
        """These merges, then those of the clusters that they left; `point_of_cluster` is one point of each."""
        return Merges(
            self.n_points,
            self.first + point_of_cluster[later.first].tolist(),
            self.second + point_of_cluster[later.second].tolist(),
            self.heights + later.heights,
            self.weights + later.weights,
        )

    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """The order of the merges, lowest and then lightest first, and the rank of each in it: tied ones share one."""
        heights, weights = np.asarray(self.heights), np.asarray(self.weights)
        order = np.argsort(heights, kind="stable")
        level = np.empty(len(heights), dtype=np.int64)
        steps = np.diff(heights[order], prepend=heights[order[:1]]) > rounding(heights[order])
        level[order] = np.cumsum(steps)
        order = np.lexsort((weights, level))
        keys = np.stack([level, weights])[:, order]
        rank = np.cumsum((np.diff(keys, axis=1, prepend=keys[:, :1]) != 0).any(axis=0))
        return order, rank

    def tree(self) -> np.ndarray:
        """The tree in scipy's format, shape (n_points - 1, 4): clusters, height, number of points; heights ascend."""
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
