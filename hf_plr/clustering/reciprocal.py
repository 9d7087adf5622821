"""DBSCAN on the Jaccard distance of k-reciprocal neighbours, sparse from the first step to the last."""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from scipy.sparse.csgraph import connected_components
from sklearn.base import BaseEstimator, ClusterMixin

from hf_plr.clustering.checks import as_features, check_finite
from hf_plr.clustering.neighbors import SEARCHES, nearest_neighbors
from hf_plr.processes import gather_rows, on_main, place_of

logger = logging.getLogger(__name__)

NOISE = -1
BLOCK_ELEMENTS = 1 << 20  # pairs of samples, or products of them, that are looked at together


class ReciprocalDBSCAN(ClusterMixin, BaseEstimator):
    """Density clustering of features by which neighbours they share: what clustering-based re-identification uses.

    Two samples are near if their expanded sets of k-reciprocal neighbours overlap (Zhong et al., CVPR 2017, in the form
    that Cluster Contrast released); DBSCAN joins samples with at least `min_samples` near ones. Memory grows with the
    neighbours, not with the square of the samples. The same input gives the same labels.

    A sample that is near a core sample, but not one itself, goes to the first of the clusters that it is near to;
    clusters are numbered by their first core sample. That is what scikit-learn's DBSCAN does, too.

    Args:
        eps: Jaccard distance up to which samples are near, in [0, 1].
        min_samples: near samples that make a core sample, itself included, at least 1.
        k1: neighbours that may be reciprocal, the sample itself included, at least 1; at most all are taken.
        k2: nearest neighbours, the sample itself included, whose neighbourhoods are averaged; 1 for none.
        search: how neighbours are found: "torch" on the features' device, or "faiss" where it is installed.

    Attributes:
        labels_: int64 array of shape (N,), -1 = noise.
        core_sample_indices_: positions of the core samples, ascending.
    """

    def __init__(self, eps: float = 0.6, min_samples: int = 4, k1: int = 30, k2: int = 6, search: str = "torch"):
        self.eps = eps
        self.min_samples = min_samples
        self.k1 = k1
        self.k2 = k2
        self.search = search

    def fit(self, features: np.ndarray | torch.Tensor, y: None = None) -> ReciprocalDBSCAN:
        """Cluster features of shape (N, D), a float numpy array or a tensor on any device.

        Raises:
            ValueError: if features are not finite or not of shape (N, D), or an argument is out of its range.
        """
        self._fit(as_features(features), None)
        return self

    def fit_predict_shard(self, features: np.ndarray | torch.Tensor, accelerator: Accelerator) -> np.ndarray:
        """Cluster the features of all processes together; each calls this with its own, shape (n, D).

        The search for neighbours, most of the work, is shared; the main process does the rest. `labels_` and
        `core_sample_indices_` are those of all samples, in process order, and the same as those of one process.

        Returns:
            int64 array of shape (n,): the labels of this process's samples.

        Raises:
            ValueError: as `fit`.
        """
        mine = as_features(features)
        start, _ = place_of(accelerator, len(mine))
        self._fit(gather_rows(accelerator, mine), accelerator)
        return self.labels_[start : start + len(mine)]

    def _fit(self, features: torch.Tensor, accelerator: Accelerator | None) -> None:
        self._check_arguments()
        n = len(features)
        if n == 0:
            raise ValueError(f"features have shape (0, {features.shape[1]}): there are no samples to cluster")
        check_finite(features)
        features = torch.nn.functional.normalize(features.float(), dim=1)
        k = min(max(self.k1, self.k2, _half(self.k1)), n)
        neighbors = nearest_neighbors(features, k, accelerator, self.search)
        self.labels_, self.core_sample_indices_ = on_main(accelerator, lambda: self._join(features, neighbors))

    def _join(self, features: torch.Tensor, neighbors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(features)
        weights = neighborhood_weights(features, neighbors, min(self.k1, n), min(self.k2, n))
        labels, core = density_clusters(near_pairs(weights, self.eps), self.min_samples)
        if (labels == NOISE).all():
            logger.warning("all %d samples are noise at eps=%s: try a larger eps", n, self.eps)
        return labels, core

    def _check_arguments(self) -> None:
        if not 0.0 <= self.eps <= 1.0:
            raise ValueError(f"eps={self.eps} is outside [0, 1], the range of Jaccard distances")
        for name in ("min_samples", "k1", "k2"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.search not in SEARCHES:
            raise ValueError(f"search={self.search!r} is unknown: use one of {', '.join(SEARCHES)}")


def neighborhood_weights(features: torch.Tensor, neighbors: np.ndarray, k1: int, k2: int) -> sp.csr_array:
    """Weights of each sample's expanded k-reciprocal neighbourhood, adding up to one.

    Args:
        features: float32 of unit length, shape (N, D).
        neighbors: nearest neighbours, itself first, shape (N, at least max(k1, k2, round(k1 / 2) + 1) or N).
        k1: a neighbour is reciprocal if both are among each other's first k1. Reciprocal neighbours of these by half of
            k1 join, if more than two thirds of them are reciprocal neighbours of the sample already.
        k2: first neighbours over which the weights are averaged.

    Returns:
        Sparse, shape (N, N); before averaging proportional to exp(-squared distance).
    """
    reciprocal = _reciprocal(neighbors[:, :k1])
    half = _reciprocal(neighbors[:, : _half(k1)])
    shared = (reciprocal @ half.T).multiply(reciprocal).tocoo()  # [i, j]: half neighbours of j that i knows already
    joins = shared.data > 2.0 / 3.0 * half.sum(axis=1)[shared.col]
    joining = sp.csr_array(
        sp.coo_array((shared.data[joins], (shared.row[joins], shared.col[joins])), shape=shared.shape)
    )
    expanded = sp.csr_array(reciprocal + joining @ half)
    expanded.sum_duplicates()
    row = np.repeat(np.arange(len(neighbors)), np.diff(expanded.indptr))
    expanded.data = np.exp(2.0 * _cosines(features, row, expanded.indices) - 2.0)
    expanded.data /= np.add.reduceat(expanded.data, expanded.indptr[:-1])[row]
    if k2 > 1:
        expanded = _onehot_rows(neighbors[:, :k2]) @ expanded / k2
    expanded.sort_indices()
    return sp.csr_array(expanded)


def near_pairs(weights: sp.csr_array, eps: float) -> sp.csr_array:
    """Pairs of samples whose Jaccard distance is at most eps, as a sparse matrix of ones with the diagonal.

    The distance is 1 - s / (2 - s), with s the sum of the smaller of both weights over all samples.
    """
    n = weights.shape[0]
    least_overlap = 2.0 * (1.0 - eps) / (2.0 - eps)
    columns = sp.csr_array(weights.T)
    n_in_column = np.diff(columns.indptr)
    row = np.repeat(np.arange(n), np.diff(weights.indptr))
    products = np.cumsum(n_in_column[weights.indices])[weights.indptr[1:] - 1]
    found_rows, found_columns = [], []
    height = max(1, BLOCK_ELEMENTS // n)
    start = 0
    while start < n:
        done = products[start - 1] if start else 0
        stop = max(start + 1, min(start + height, int(np.searchsorted(products, done + BLOCK_ELEMENTS, "right"))))
        entries = np.arange(weights.indptr[start], weights.indptr[stop])
        lengths = n_in_column[weights.indices[entries]]
        owner = np.repeat(np.arange(len(entries)), lengths)
        other = np.arange(len(owner)) + np.repeat(
            columns.indptr[weights.indices[entries]] - np.cumsum(lengths) + lengths, lengths
        )
        smaller = np.minimum(weights.data[entries][owner], columns.data[other])
        keys = (row[entries][owner] - start) * n + columns.indices[other]
        overlap = np.bincount(keys, smaller, (stop - start) * n).reshape(stop - start, n)
        near = overlap >= least_overlap
        near[np.arange(stop - start), np.arange(start, stop)] = True
        rows, there = near.nonzero()
        found_rows.append((rows + start).astype(np.int32))
        found_columns.append(there.astype(np.int32))
        start = stop
    places = (np.concatenate(found_rows), np.concatenate(found_columns))
    return sp.csr_array(sp.coo_array((np.ones(len(places[0]), dtype=np.int8), places), shape=(n, n)))


def density_clusters(near: sp.csr_array, min_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """DBSCAN from near pairs: connected components of the core samples, and what is near to them.

    Args:
        near: symmetric sparse matrix with the diagonal, shape (N, N).
        min_samples: near samples that make a core sample.

    Returns:
        Labels (N,), -1 = noise, numbered by their first core sample, and the positions of the core samples.
    """
    n = near.shape[0]
    core = np.flatnonzero(np.diff(near.indptr) >= min_samples)
    labels = np.full(n, NOISE, dtype=np.int64)
    if len(core) == 0:
        return labels, core
    _, component = connected_components(near[core][:, core], directed=False)
    _, first, component = np.unique(component, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    labels[core] = number[component]
    border = np.flatnonzero(np.diff(near.indptr) < min_samples)
    reached = near[border][:, core].tocoo()
    lowest = np.full(len(border), n, dtype=np.int64)
    np.minimum.at(lowest, reached.row, labels[core][reached.col])
    labels[border[lowest < n]] = lowest[lowest < n]
    return labels, core


def _half(k1: int) -> int:
    return int(np.around(k1 / 2)) + 1


def _onehot_rows(neighbors: np.ndarray) -> sp.csr_array:
    """Ones at the neighbours of each sample, shape (N, N)."""
    n, k = neighbors.shape
    return sp.csr_array((np.ones(n * k), neighbors.ravel(), np.arange(n + 1) * k), shape=(n, n))


def _reciprocal(neighbors: np.ndarray) -> sp.csr_array:
    """Ones where two samples are each other's neighbours."""
    one_way = _onehot_rows(neighbors)
    return sp.csr_array(one_way.multiply(one_way.T))


def _cosines(features: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Inner products of pairs of rows, shape (pairs,)."""
    result = np.empty(len(rows))
    height = max(1, BLOCK_ELEMENTS // features.shape[1])
    for start in range(0, len(rows), height):
        pair = (torch.as_tensor(ends[start : start + height].astype(np.int64)) for ends in (rows, columns))
        first, second = (features[ends.to(features.device)] for ends in pair)
        result[start : start + height] = (first * second).sum(dim=1).double().cpu().numpy()
    return result
