"""Step 4: agglomerative clustering of weighted points.

scipy's and scikit-learn's agglomeration start from points of weight one. Here each point stands for as
many identical samples as its weight says, and the tree above them is the one that all those samples would
have got: identical samples merge at height zero first, whatever the linkage.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.cluster.hierarchy import fcluster

LINKAGES = ("average", "ward", "complete", "single")


def weighted_linkage(distances: np.ndarray, weights: np.ndarray, linkage: str = "average") -> np.ndarray:
    """Agglomerate weighted points with the nearest-neighbour chain (Benzécri 1982; Murtagh 1983).

    Args:
        distances: Euclidean distances between the points, shape (n, n), symmetric. It is used as working
            memory and overwritten.
        weights: how many identical samples each point stands for, at least 1, shape (n,).
        linkage: "average" (UPGMA), "ward", "complete" or "single".

    Returns:
        The tree in scipy's format, shape (n - 1, 4): the two clusters merged, the height, and the number of points
        in the result. Points are clusters 0 to n - 1, row i makes cluster n + i, heights ascend. Ward heights follow
        scipy's convention: sqrt(2 |A||B| / (|A| + |B|)) times the distance of the centroids. Among equal distances the
        chain stays with its predecessor, then takes the lowest index, so that the result is deterministic.

    Raises:
        ValueError: for an unknown linkage.
    """
    if linkage not in LINKAGES:
        raise ValueError(f"linkage={linkage!r} is unknown: use one of {', '.join(LINKAGES)}")
    n = len(weights)
    sizes = np.asarray(weights, dtype=np.float64).copy()
    np.fill_diagonal(distances, np.inf)
    if linkage == "ward":
        distances *= np.sqrt(2.0 * sizes[:, None] * sizes[None, :] / (sizes[:, None] + sizes[None, :]))
    merges = np.empty((max(n - 1, 0), 3))
    alive = np.ones(n, dtype=bool)
    chain: list[int] = []
    for step in range(n - 1):
        if not chain:
            chain.append(int(np.argmax(alive)))
        while True:
            tip = chain[-1]
            nearest = int(np.argmin(distances[tip]))
            if len(chain) > 1 and distances[tip, chain[-2]] <= distances[tip, nearest]:
                nearest = chain[-2]
                break
            chain.append(nearest)
        chain[-2:] = []
        height = distances[tip, nearest]
        gone, stays = sorted((tip, nearest))
        merged = _lance_williams(linkage, distances[gone], distances[stays], sizes[gone], sizes[stays], sizes, height)
        sizes[stays] += sizes[gone]
        alive[gone] = False
        merged[~alive] = np.inf
        merged[stays] = np.inf
        distances[stays] = merged
        distances[:, stays] = merged
        distances[gone] = np.inf
        distances[:, gone] = np.inf
        merges[step] = gone, stays, height
    return _as_scipy_tree(merges, n)


def _lance_williams(
    linkage: str, to_a: np.ndarray, to_b: np.ndarray, size_a: float, size_b: float, sizes: np.ndarray, height: float
) -> np.ndarray:
    """Distances of every cluster to the union of a and b (Lance and Williams 1967)."""
    if linkage == "average":
        return (size_a * to_a + size_b * to_b) / (size_a + size_b)
    if linkage == "complete":
        return np.maximum(to_a, to_b)
    if linkage == "single":
        return np.minimum(to_a, to_b)
    total = size_a + size_b + sizes
    squared = ((size_a + sizes) * to_a**2 + (size_b + sizes) * to_b**2 - sizes * height**2) / total
    return np.sqrt(np.maximum(squared, 0.0))


def _as_scipy_tree(merges: np.ndarray, n: int) -> np.ndarray:
    """Sort the chain's merges by height and name each merged cluster by the row that made it."""
    merges = merges[np.argsort(merges[:, 2], kind="stable")]
    tree = np.empty((len(merges), 4))
    parent = np.arange(n)
    name = np.arange(n)
    size = np.ones(n)

    def root(point: int) -> int:
        while parent[point] != point:
            parent[point] = parent[parent[point]]
            point = parent[point]
        return point

    for row, (a, b, height) in enumerate(merges):
        a, b = root(int(a)), root(int(b))
        size[b] += size[a]
        tree[row] = min(name[a], name[b]), max(name[a], name[b]), height, size[b]
        parent[a] = b
        name[b] = n + row
    return tree


def cut(tree: np.ndarray, n_points: int, n_clusters: int | None, distance_threshold: float | None) -> np.ndarray:
    """Cut the tree into at most `n_clusters` clusters, or at `distance_threshold`; shape (n_points,), from 0."""
    if n_points < 2:
        return np.zeros(n_points, dtype=np.int64)
    if n_clusters is not None:
        return fcluster(tree, n_clusters, criterion="maxclust").astype(np.int64) - 1
    return fcluster(tree, distance_threshold, criterion="distance").astype(np.int64) - 1


def euclidean_distances(rows: sp.csr_array, others: sp.csr_array | None = None) -> np.ndarray:
    """Dense Euclidean distances between the rows of sparse matrices, shape (n, m)."""
    others = rows if others is None else others
    squared = (rows @ others.T).toarray()
    squared *= -2.0
    squared += rows.multiply(rows).sum(axis=1)[:, None]
    squared += others.multiply(others).sum(axis=1)[None, :]
    # Rounding keeps distances that are equal on paper equal, in whatever order their terms were added.
    np.round(squared, 13, out=squared)
    np.maximum(squared, 0.0, out=squared)
    return np.sqrt(squared, out=squared)
