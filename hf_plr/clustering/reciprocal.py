"""Density clustering on the Jaccard distance of k-reciprocal neighbours, sparse from the first step to the last."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import HDBSCAN

from hf_plr.clustering.checks import as_features, check_finite
from hf_plr.clustering.jaccard import compute_jaccard_distances, find_near_pairs
from hf_plr.clustering.neighborhoods import SharedNeighborhoods, find_neighborhoods
from hf_plr.clustering.neighbors import SEARCHES
from hf_plr.utils.distributed import gather_rows, locate_rows, run_on_main

logger = logging.getLogger(__name__)

NOISE = -1
NEARLY_ZERO = 1e-6  # in place of zero distances, which scipy's trees take for missing edges


class _ReciprocalClustering(ClusterMixin, BaseEstimator, ABC):
    """What clustering by shared k-reciprocal neighbours has in common: the neighbours, and who looks for them."""

    min_samples: int
    k1: int
    k2: int
    search: str
    labels_: np.ndarray
    _shared: SharedNeighborhoods | None = None

    def fit(self, features: np.ndarray | torch.Tensor, y: None = None) -> _ReciprocalClustering:
        """Cluster features of shape (N, D), a float numpy array or a tensor on any device.

        Raises:
            ValueError: if features are not finite or not of shape (N, D), or an argument is out of its range.
        """
        self._fit(as_features(features), None)
        return self

    def fit_predict_shard(self, features: np.ndarray | torch.Tensor, accelerator: Accelerator) -> np.ndarray:
        """Cluster the features of all processes together; each calls this with its own, shape (n, D).

        The search for neighbours, most of the work, is shared; the main process does the rest. What `fit` leaves is
        that of all samples, in process order, and the same as with one process.

        Returns:
            int64 array of shape (n,): the labels of this process's samples.

        Raises:
            ValueError: as `fit`.
        """
        mine = as_features(features)
        start, _ = locate_rows(accelerator, len(mine))
        self._fit(gather_rows(accelerator, mine), accelerator)
        return self.labels_[start : start + len(mine)]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Nothing: a call depends on no call before it."""
        return {}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore nothing."""

    def _fit(self, features: torch.Tensor, accelerator: Accelerator | None) -> None:
        self._check_arguments()
        if len(features) == 0:
            raise ValueError(f"features have shape (0, {features.shape[1]}): there are no samples to cluster")
        check_finite(features)
        features = torch.nn.functional.normalize(features.float(), dim=1)
        find = find_neighborhoods if self._shared is None else self._shared.find
        neighborhoods = find(features, self.k1, self.k2, self.search, accelerator)
        for name, value in run_on_main(accelerator, lambda: self._join(neighborhoods.weights)).items():
            setattr(self, name, value)
        if (self.labels_ == NOISE).all():
            logger.warning("all %d samples are noise%s", len(features), self._what_to_change())

    @abstractmethod
    def _join(self, weights: sp.csr_array) -> dict[str, np.ndarray]:
        """The fitted attributes by name, from the weights of the neighbourhoods, shape (N, N)."""

    @abstractmethod
    def _what_to_change(self) -> str:
        """What to do where all samples are noise."""

    def _check_arguments(self) -> None:
        for name in ("min_samples", "k1", "k2"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.search not in SEARCHES:
            raise ValueError(f"search={self.search!r} is unknown: use one of {', '.join(SEARCHES)}")


def share_neighborhoods(clusterers: list[ReciprocalDBSCAN]) -> None:
    """Let clusterers that cluster the same features one after the other search for their neighbours once."""
    shared = SharedNeighborhoods(len(clusterers))
    for each in clusterers:
        each._shared = shared


class ReciprocalDBSCAN(_ReciprocalClustering):
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

    def _join(self, weights: sp.csr_array) -> dict[str, np.ndarray]:
        labels, core = cluster_by_density(find_near_pairs(weights, self.eps), self.min_samples)
        return {"labels_": labels, "core_sample_indices_": core}

    def _what_to_change(self) -> str:
        return f" at eps={self.eps}: try a larger eps"

    def _check_arguments(self) -> None:
        if not 0.0 <= self.eps <= 1.0:
            raise ValueError(f"eps={self.eps} is outside [0, 1], the range of Jaccard distances")
        super()._check_arguments()


class ReciprocalHDBSCAN(_ReciprocalClustering):
    """Density clustering by shared k-reciprocal neighbours that needs no distance to cut at.

    `ReciprocalDBSCAN` joins what is nearer than one eps for all clusters; which eps is right depends on the features
    and changes as they are trained. HDBSCAN (Campello, Moulavi and Sander, 2013) cuts each branch of the tree of all
    eps where its clusters last longest. The clusters are those of scikit-learn's HDBSCAN on the matrix of distances;
    here the tree is made from the pairs that share neighbours, so that memory grows with these. Clusters are numbered
    by their first sample.

    Args:
        min_cluster_size: samples of the smallest cluster, at least 2.
        min_samples: near samples, itself included, whose distance is a sample's core distance, at least 1.
        k1, k2, search: as for `ReciprocalDBSCAN`.
        max_distance: Jaccard distance above which samples are not joined, in (0, 1]; less takes less memory.

    Attributes:
        labels_: int64 array of shape (N,), -1 = noise.
    """

    def __init__(
        self,
        min_cluster_size: int = 4,
        min_samples: int = 4,
        k1: int = 30,
        k2: int = 6,
        search: str = "torch",
        max_distance: float = 0.9,
    ):
        self.min_cluster_size = min_cluster_size
        self.min_samples = min_samples
        self.k1 = k1
        self.k2 = k2
        self.search = search
        self.max_distance = max_distance

    def _join(self, weights: sp.csr_array) -> dict[str, np.ndarray]:
        tree = build_reachability_tree(compute_jaccard_distances(weights, self.max_distance), self.min_samples)
        if tree.shape[0] < self.min_cluster_size:
            return {"labels_": np.full(tree.shape[0], NOISE, dtype=np.int64)}
        # The tree's edges are mutual reachability distances already, which min_samples=1 leaves as they are.
        hdbscan = HDBSCAN(self.min_cluster_size, min_samples=1, metric="precomputed", copy=True)
        labels = hdbscan.fit_predict(tree).astype(np.int64)
        ids, first = np.unique(labels[labels != NOISE], return_index=True)
        number = np.full(len(ids) + 1, NOISE)  # the last is for noise
        number[np.argsort(first)] = np.arange(len(ids))
        return {"labels_": number[labels]}

    def _what_to_change(self) -> str:
        return ": no two clusters stand out; try a smaller min_cluster_size or k1"

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.min_cluster_size < 2:
            raise ValueError(f"min_cluster_size={self.min_cluster_size} must be at least 2")
        if not 0.0 < self.max_distance <= 1.0:
            raise ValueError(f"max_distance={self.max_distance} is outside (0, 1], the range of Jaccard distances")


def build_reachability_tree(distances: sp.csr_array, min_samples: int) -> sp.csr_array:
    """Minimum spanning tree of the mutual reachability distances of HDBSCAN; what is not connected is joined at 1.

    Args:
        distances: sparse and symmetric with a stored diagonal, shape (N, N); pairs that are not stored are 1 apart.
        min_samples: near samples, itself included, whose distance is a sample's core distance.

    Returns:
        Sparse and symmetric, shape (N, N), 2 (N - 1) entries above 0.
    """
    n = distances.shape[0]
    core = np.ones(n)
    for sample in np.flatnonzero(np.diff(distances.indptr) >= min_samples):
        of_sample = distances.data[distances.indptr[sample] : distances.indptr[sample + 1]]
        core[sample] = np.partition(of_sample, min_samples - 1)[min_samples - 1]
    row = np.repeat(np.arange(n), np.diff(distances.indptr))
    reachable = np.maximum(np.maximum(distances.data, core[row]), core[distances.indices])
    graph = sp.csr_array((np.maximum(reachable, NEARLY_ZERO), distances.indices, distances.indptr), shape=(n, n))
    forest = minimum_spanning_tree(graph).tocoo()
    n_parts, part = connected_components(graph, directed=False)
    first = np.unique(part, return_index=True)[1]  # a sample of each part, to be joined one after the other
    rows = np.concatenate([forest.row, first[:-1]])
    columns = np.concatenate([forest.col, first[1:]])
    values = np.concatenate([forest.data, np.ones(n_parts - 1)])
    tree = sp.csr_array(sp.coo_array((values, (rows, columns)), shape=(n, n)))
    return sp.csr_array(tree + tree.T)


def cluster_by_density(near: sp.csr_array, min_samples: int) -> tuple[np.ndarray, np.ndarray]:
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
