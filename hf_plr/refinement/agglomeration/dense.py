"""Clusters with all their distances in one matrix."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.agglomeration.chain import merge_along_chain
from hf_plr.refinement.agglomeration.merges import ZERO, Merges
from hf_plr.refinement.blending import SoftCells

BLOCK = 128  # cells whose distances to all others are computed together


class DenseClusters:
    """Clusters whose distances are updated by the Lance-Williams recurrence (1967).

    Args:
        distances: distances under this linkage, infinite on the diagonal, shape (n, n), symmetric; overwritten.
        weights: of the clusters, shape (n,).
        linkage: "average", "complete", "single" or "ward".
    """

    def __init__(self, distances: np.ndarray, weights: np.ndarray, linkage: str):
        self.weights = np.asarray(weights, dtype=np.float64).copy()
        self.alive = np.ones(len(weights), dtype=bool)
        self._linkage = linkage
        self._distances = distances

    def select(self, clusters: np.ndarray) -> DenseClusters:
        """Select some of the clusters, as a copy."""
        return DenseClusters(self._distances[np.ix_(clusters, clusters)], self.weights[clusters], self._linkage)

    def distances_from(self, cluster: int) -> np.ndarray:
        """Distances to all clusters, shape (n,)."""
        return self._distances[cluster]

    def merge(self, absorbed: int, survivor: int) -> None:
        """Let one cluster absorb another."""
        first, second = self._distances[absorbed], self._distances[survivor]
        first_weight, second_weight = self.weights[absorbed], self.weights[survivor]
        if self._linkage == "average":
            second *= second_weight / (first_weight + second_weight)
            second += first * (first_weight / (first_weight + second_weight))
        elif self._linkage == "complete":
            np.maximum(first, second, out=second)
        elif self._linkage == "single":
            np.minimum(first, second, out=second)
        else:
            other_weights = self.weights
            height = first[survivor]
            with np.errstate(invalid="ignore"):  # infinite minus infinite, where clusters are absorbed
                second[:] = (
                    (first_weight + other_weights) * first**2
                    + (second_weight + other_weights) * second**2
                    - other_weights * height**2
                )
            second /= first_weight + second_weight + other_weights
            np.sqrt(np.maximum(second, 0.0, out=second), out=second)
            second[~self.alive] = np.inf
        self.weights[survivor] += first_weight
        self.alive[absorbed] = False
        second[[absorbed, survivor]] = np.inf
        self._distances[:, survivor] = second
        self._distances[:, absorbed] = np.inf


def merge_all(distances: np.ndarray, weights: np.ndarray, linkage: str) -> Merges:
    """Merge weighted points under a linkage until one cluster is left.

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
        remaining = np.flatnonzero(clusters.alive)
        representatives = representatives[remaining]
        clusters = clusters.select(remaining)
    return merges


def compute_distances(soft: SoftCells) -> np.ndarray:
    """Compute Euclidean distances between soft labels, shape (cells, cells); zero where rounding hides them."""
    n = len(soft)
    norms = soft.squared_norms()
    distances = np.empty((n, n))
    for start in range(0, n, BLOCK):
        block = slice(start, start + BLOCK)
        distances[block] = soft.inner_products(soft.rows(block).toarray())
        convert_to_distances(distances[block], norms[block, None], norms)
    return distances


def convert_to_distances(products: np.ndarray, norms: np.ndarray, other_norms: np.ndarray) -> None:
    """Convert inner products to Euclidean distances in place; squared norms broadcast against them."""
    products *= -2.0
    products += norms
    products += other_norms
    products[products < ZERO**2] = 0.0
    np.sqrt(products, out=products)
