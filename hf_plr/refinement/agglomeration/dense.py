"""Clusters with all their distances in one matrix."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.agglomeration.chain import merge_along_chain
from hf_plr.refinement.agglomeration.merges import ZERO, Merges
from hf_plr.refinement.blending import SoftCells

BLOCK = 128  # cells whose distances to all others are made together


class DenseClusters:
    """Clusters whose distances are updated by the Lance-Williams recurrence (1967).

    Args:
        distances: under this linkage, infinite on the diagonal, shape (n, n), symmetric; used as working memory.
        weights: of the clusters, shape (n,).
        linkage: "average", "complete", "single" or "ward".
    """

    def __init__(self, distances: np.ndarray, weights: np.ndarray, linkage: str):
        self.weights = np.asarray(weights, dtype=np.float64).copy()
        self.alive = np.ones(len(weights), dtype=bool)
        self._linkage = linkage
        self._distances = distances

    def select(self, clusters: np.ndarray) -> DenseClusters:
        """Some of the clusters, by themselves."""
        return DenseClusters(self._distances[np.ix_(clusters, clusters)], self.weights[clusters], self._linkage)

    def distances_from(self, cluster: int) -> np.ndarray:
        """Distances to all clusters, shape (n,)."""
        return self._distances[cluster]

    def merge(self, gone: int, stays: int) -> None:
        """Let one cluster absorb another."""
        a, b = self._distances[gone], self._distances[stays]
        size_a, size_b = self.weights[gone], self.weights[stays]
        if self._linkage == "average":
            b *= size_b / (size_a + size_b)
            b += a * (size_a / (size_a + size_b))
        elif self._linkage == "complete":
            np.maximum(a, b, out=b)
        elif self._linkage == "single":
            np.minimum(a, b, out=b)
        else:
            others = self.weights
            height = a[stays]
            with np.errstate(invalid="ignore"):  # infinite minus infinite, where clusters are gone
                b[:] = (size_a + others) * a**2 + (size_b + others) * b**2 - others * height**2
            b /= size_a + size_b + others
            np.sqrt(np.maximum(b, 0.0, out=b), out=b)
            b[~self.alive] = np.inf
        self.weights[stays] += size_a
        self.alive[gone] = False
        b[[gone, stays]] = np.inf
        self._distances[:, stays] = b
        self._distances[:, gone] = np.inf


def merge_all(distances: np.ndarray, weights: np.ndarray, linkage: str) -> Merges:
    """All merges of weighted points under a linkage.

    Args:
        distances: Euclidean distances between the points, shape (n, n), symmetric; overwritten.
        weights: of the points, shape (n,).
        linkage: "average", "complete", "single" or "ward".
    """
    merges = Merges(len(weights))
    representatives = np.arange(len(weights))
    if linkage == "ward":
        for row, weight in zip(distances, weights, strict=True):
            row *= np.sqrt(2.0 * weight * weights / (weight + weights))
    np.fill_diagonal(distances, np.inf)
    clusters = DenseClusters(distances, weights, linkage)
    while len(clusters.weights) > 1:
        merges = merges.extend(merge_along_chain(clusters, n_left=len(clusters.weights) // 2), representatives)
        left = np.flatnonzero(clusters.alive)
        representatives = representatives[left]
        clusters = clusters.select(left)
    return merges


def compute_distances(soft: SoftCells) -> np.ndarray:
    """Euclidean distances between the soft labels of cells, shape (cells, cells); zero where rounding hides them."""
    n = len(soft)
    norms = soft.squared_norms()
    distances = np.empty((n, n))
    for start in range(0, n, BLOCK):
        block = slice(start, start + BLOCK)
        distances[block] = soft.inner_products(soft.rows(block).toarray())
        convert_to_distances(distances[block], norms[block, None], norms)
    return distances


def convert_to_distances(products: np.ndarray, norms: np.ndarray, others: np.ndarray) -> None:
    """Turn inner products into Euclidean distances, in place; squared norms broadcast against them."""
    products *= -2.0
    products += norms
    products += others
    products[products < ZERO**2] = 0.0
    np.sqrt(products, out=products)
