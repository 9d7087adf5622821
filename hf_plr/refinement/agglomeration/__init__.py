"""Step 4: agglomerative clustering of weighted cells.

scipy's and scikit-learn's agglomeration start from points of weight one. Here each cell stands for as many identical
samples as its weight says. The tree above the cells is the one that all those samples would get: identical samples
merge at height zero first, whatever the linkage. The algorithm depends on the number of cells; all but folding are
exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_plr.refinement.agglomeration.centroids import CentroidClusters, merge_nearest_first
from hf_plr.refinement.agglomeration.chain import merge_along_chain
from hf_plr.refinement.agglomeration.coassociation import agglomerate_coassociation, measure_coassociation
from hf_plr.refinement.agglomeration.dense import compute_distances, merge_all
from hf_plr.refinement.agglomeration.folding import fold
from hf_plr.refinement.agglomeration.merges import Cut, Merges
from hf_plr.refinement.agglomeration.related import RelatedClusters, compute_cluster_distances
from hf_plr.refinement.blending import SoftCells

LINKAGES = ("average", "ward", "complete", "single", "centroid")
SMALL = 2_400  # cells whose distances fit into a matrix of 44 MiB
FOLDED = 1_500  # cells that folding leaves, or 1.5 times the number of clusters
MAX_RELATED_PAIRS = 16_000_000  # some 0.4 GiB

__all__ = [
    "LINKAGES",
    "Cut",
    "Merges",
    "agglomerate",
    "agglomerate_coassociation",
    "measure_coassociation",
    "weighted_linkage",
]


def agglomerate(
    soft: SoftCells, weights: np.ndarray, linkage: str, cuts: Sequence[Cut], max_cells: int
) -> tuple[list[np.ndarray], bool]:
    """Cluster weighted cells hierarchically.

    Args:
        soft: soft labels of the cells, none of them empty.
        weights: samples per cell, shape (cells,).
        linkage: one of `LINKAGES`.
        cuts: places of the cuts through the tree, that into the fewest clusters first.
        max_cells: more cells than these are folded first, unless a cheaper exact algorithm applies.

    Returns:
        For each cut cluster per cell, from 0, shape (cells,), and True if the clusters are exact. The clusters of a
        cut lie in those of the one before.
    """
    merges = _merge_exactly(soft, weights, linkage, cuts[0], max_cells)
    if merges is not None:
        return [cut.apply(merges) for cut in cuts], True
    n_clusters = cuts[-1].n_clusters or 0
    n_left = min(max_cells, max(FOLDED, 3 * n_clusters // 2))
    if n_left <= n_clusters and len(cuts) == 1:  # nothing is left to agglomerate
        return [fold(soft, weights, n_clusters)[1].astype(np.int64)], False
    heavy, destination = fold(soft, weights, max(n_left, n_clusters))
    folded_weights = np.bincount(destination, weights, len(heavy))
    merges = _merge_exactly(soft.select(heavy), folded_weights, linkage, cuts[0], max(max_cells, len(heavy)))
    assert merges is not None
    return [cut.apply(merges)[destination] for cut in cuts], False


def _merge_exactly(soft: SoftCells, weights: np.ndarray, linkage: str, cut: Cut, max_cells: int) -> Merges | None:
    """Merge exactly until the cut is settled; returns None where there are too many cells for every algorithm."""
    n_cells = len(weights)
    if linkage == "centroid":
        return merge_nearest_first(CentroidClusters(soft, weights, linkage)) if n_cells <= max_cells else None
    if n_cells <= min(SMALL, max_cells):
        return merge_all(compute_distances(soft), weights, linkage)
    if linkage == "ward":
        return merge_along_chain(CentroidClusters(soft, weights, linkage)) if n_cells <= max_cells else None
    if _bound_related_pairs(soft) <= MAX_RELATED_PAIRS:
        related = RelatedClusters(soft, weights, linkage)
        if related.merge_related(cut):
            return related.merges
        if len(related) <= max_cells:
            distances = compute_cluster_distances(soft, weights, related.cluster_of_cell, linkage)
            later = merge_all(distances, related.weights, linkage)
            return related.merges.extend(later, related.representatives)
    elif n_cells <= max_cells:
        return merge_all(compute_distances(soft), weights, linkage)
    return None


def _bound_related_pairs(soft: SoftCells) -> float:
    """Bound the number of pairs of cells whose soft labels share a column, from above."""
    cells_per_column = np.zeros(soft.n_columns)
    for part, basis in enumerate(soft.bases):
        cells = np.bincount(soft.codes[soft.shares(part) > 0, part], minlength=basis.shape[0]).astype(np.float64)
        cells_per_column += abs(basis).sign().T @ cells
    return float((cells_per_column**2).sum() / 2)


def weighted_linkage(distances: np.ndarray, weights: np.ndarray, linkage: str = "average") -> np.ndarray:
    """Agglomerate weighted points, as `scipy.cluster.hierarchy.linkage` does points of weight one.

    Args:
        distances: Euclidean distances between the points, shape (n, n), symmetric.
        weights: number of identical samples per point, at least 1, shape (n,).
        linkage: "average" (UPGMA), "ward", "complete" or "single".

    Returns:
        The tree in scipy's format, shape (n - 1, 4): the two clusters merged, the height, and the number of points in
        the result. Points are clusters 0 to n - 1, row i makes cluster n + i, heights ascend. Ward heights follow
        scipy's convention: `sqrt(2 |A||B| / (|A| + |B|))` times the distance of the centroids. Of equal distances the
        lightest clusters merge first.

    Raises:
        ValueError: for an unknown linkage, shapes that do not fit, distances that are not finite, or weights below 1.

    Example:
        >>> distances = np.abs(np.subtract.outer([0.0, 1.0, 9.0], [0.0, 1.0, 9.0]))
        >>> weighted_linkage(distances, np.array([3, 1, 1])).tolist()  # the mean of the first cluster is at 0.25
        [[0.0, 1.0, 1.0, 2.0], [2.0, 3.0, 8.75, 3.0]]
    """
    if linkage not in LINKAGES or linkage == "centroid":
        known = ", ".join(name for name in LINKAGES if name != "centroid")
        raise ValueError(f"linkage={linkage!r} is not possible from distances alone: use one of {known}")
    distances = np.array(distances, dtype=np.float64)
    if distances.shape != (len(weights), len(weights)):
        raise ValueError(f"distances have shape {distances.shape}, expected ({len(weights)}, {len(weights)})")
    n_bad = np.count_nonzero(~np.isfinite(distances))
    if n_bad:
        raise ValueError(f"{n_bad} of the distances are NaN or infinite")
    weights = np.asarray(weights, dtype=np.float64)
    is_bad = ~(weights >= 1)
    if is_bad.any():
        raise ValueError(f"weights has {weights[is_bad][0]:g}, expected numbers of samples of at least 1: leave it out")
    return merge_all(distances, weights, linkage).tree()
