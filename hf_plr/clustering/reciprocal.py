"""Density clustering on the Jaccard distance of k-reciprocal neighbours, sparse throughout."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import HDBSCAN

from hf_plr.clustering.checks import as_features, check_finite, check_lengths
from hf_plr.clustering.jaccard import compute_jaccard_distances, find_near_pairs
from hf_plr.clustering.neighborhoods import Neighborhoods, SharedNeighborhoods, find_neighborhoods
from hf_plr.clustering.neighbors import SEARCHES
from hf_plr.utils.distributed import gather_rows, locate_rows, run_on_main

logger = logging.getLogger(__name__)

NOISE = -1
NEARLY_ZERO = 1e-6  # replaces zero distances, which are missing edges for scipy's trees


class _ReciprocalClustering(ClusterMixin, BaseEstimator, ABC):
    """Base of clustering by shared k-reciprocal neighbours: validation, and the search for neighbours."""

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

        The search for neighbours, most of the work, is shared; the main process does the rest. The fitted attributes
        are those of all samples, in process order, and the same as with one process.

        Returns:
            int64 array of shape (n,): the labels of this process's samples.

        Raises:
            ValueError: as `fit`.
        """
        local = as_features(features)
        start, _ = locate_rows(accelerator, len(local))
        self._fit(gather_rows(accelerator, local), accelerator)
        return self.labels_[start : start + len(local)]

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for the next call: empty, as no call depends on an earlier one."""
        return {}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore nothing."""

    def _fit(self, features: torch.Tensor, accelerator: Accelerator | None) -> None:
        self.check_arguments()
        if len(features) == 0:
            raise ValueError(f"features have shape (0, {features.shape[1]}): there are no samples to cluster")
        check_finite(features)
        check_lengths(features)
        features = torch.nn.functional.normalize(features.float(), dim=1)
        find = find_neighborhoods if self._shared is None else self._shared.find
        neighborhoods = find(features, self.k1, self.k2, self.search, accelerator)
        description = f"clustering by {type(self).__name__}"
        for name, value in run_on_main(accelerator, lambda: self._cluster(neighborhoods), description).items():
            setattr(self, name, value)
        if (self.labels_ == NOISE).all():
            logger.warning("all %d samples are noise%s", len(features), self._suggest_remedy())

    @abstractmethod
    def _cluster(self, neighborhoods: Neighborhoods) -> dict[str, np.ndarray]:
        """Cluster by the overlaps of the neighbourhoods; returns the fitted attributes by name."""

    @abstractmethod
    def _suggest_remedy(self) -> str:
        """Suggest a remedy where all samples are noise."""

    def check_arguments(self) -> None:
        """Check the arguments.

        Raises:
            ValueError: naming an argument that is out of its range.
        """
        for name in ("min_samples", "k1", "k2"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.search not in SEARCHES:
            raise ValueError(f"search={self.search!r} is unknown: use one of {', '.join(SEARCHES)}")


def share_neighborhoods(clusterers: Sequence[Any]) -> None:
    """Share neighbours and overlaps among those clusterers of the same features that are `ReciprocalDBSCAN`.

    Args:
        clusterers: clusterers in the order of their calls, one after the other.
    """
    sharing = [clusterer for clusterer in clusterers if isinstance(clusterer, ReciprocalDBSCAN)]
    if sharing:
        shared = SharedNeighborhoods(len(sharing), max(clusterer.eps for clusterer in sharing))
        for clusterer in sharing:
            clusterer._shared = shared


class ReciprocalDBSCAN(_ReciprocalClustering):
    """Density clustering of features by shared neighbours, as in clustering-based re-identification.

    Two samples are near if their expanded sets of k-reciprocal neighbours overlap (Zhong et al., CVPR 2017, as released
    with Cluster Contrast). DBSCAN joins samples with at least `min_samples` near ones. Memory grows with the
    neighbours, not with the square of the samples. The same input gives the same labels.

    A sample that is near a core sample, but not one itself, joins the first cluster that it is near to. Clusters are
    numbered by their first core sample. Both are as in scikit-learn's DBSCAN.

    Args:
        eps: largest Jaccard distance of near samples, in [0, 1].
        min_samples: number of near samples that make a core sample, itself included, at least 1.
        k1: number of neighbours that may be reciprocal, the sample itself included, at least 1.
        k2: number of neighbours, the sample itself included, whose neighbourhoods are averaged; 1 for none.
        search: "torch" to search on the features' device, or "faiss" where it is installed.

    Attributes:
        labels_: int64 array of shape (N,), -1 = noise.
        core_sample_indices_: positions of the core samples, ascending.

    Example:
        >>> angles = np.radians([0, 1, 2, 3, 90, 91, 92, 93])
        >>> features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        >>> ReciprocalDBSCAN(min_samples=2, k1=4, k2=1).fit(features).labels_.tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """

    def __init__(self, eps: float = 0.6, min_samples: int = 4, k1: int = 30, k2: int = 6, search: str = "torch"):
        self.eps = eps
        self.min_samples = min_samples
        self.k1 = k1
        self.k2 = k2
        self.search = search

    def _cluster(self, neighborhoods: Neighborhoods) -> dict[str, np.ndarray]:
        near = find_near_pairs(neighborhoods.overlaps(self.eps), self.eps)
        labels, core = cluster_by_density(near, self.min_samples)
        return {"labels_": labels, "core_sample_indices_": core}

    def _suggest_remedy(self) -> str:
        return f" at eps={self.eps}: try a larger eps"

    def check_arguments(self) -> None:
        """Check the arguments, as the base does."""
        if not 0.0 <= self.eps <= 1.0:
            raise ValueError(f"eps={self.eps} is outside [0, 1], the range of Jaccard distances")
        super().check_arguments()


class ReciprocalHDBSCAN(_ReciprocalClustering):
    """Density clustering by shared k-reciprocal neighbours, without a distance to choose.

    `ReciprocalDBSCAN` joins samples that are nearer than one eps for all clusters. The right eps depends on the
    features and changes as they are trained. HDBSCAN (Campello, Moulavi and Sander, 2013) cuts each branch of the tree
    of all eps where its clusters last longest. The clusters are those of scikit-learn's HDBSCAN on the matrix of
    distances. The tree is built from the pairs that share neighbours, so that memory grows with these. Clusters are
    numbered by their first sample.

    Args:
        min_cluster_size: size of the smallest cluster, at least 2.
        min_samples: number of near samples, itself included, that sets a sample's core distance, at least 1.
        k1, k2, search: as for `ReciprocalDBSCAN`.
        max_distance: largest Jaccard distance at which samples are joined, in (0, 1]; less takes less memory.

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

    def _cluster(self, neighborhoods: Neighborhoods) -> dict[str, np.ndarray]:
        distances = compute_jaccard_distances(neighborhoods.weights, self.max_distance)
        tree = build_reachability_tree(distances, self.min_samples)
        if tree.shape[0] < self.min_cluster_size:
            return {"labels_": np.full(tree.shape[0], NOISE, dtype=np.int64)}
        # The tree's edges are mutual reachability distances already, which min_samples=1 leaves as they are.
        hdbscan = HDBSCAN(self.min_cluster_size, min_samples=1, metric="precomputed", copy=True)
        labels = hdbscan.fit_predict(tree).astype(np.int64)
        ids, first_sample = np.unique(labels[labels != NOISE], return_index=True)
        number = np.full(len(ids) + 1, NOISE)  # the last is for noise
        number[np.argsort(first_sample)] = np.arange(len(ids))
        return {"labels_": number[labels]}

    def _suggest_remedy(self) -> str:
        return ": no two clusters stand out; try a smaller min_cluster_size or k1"

    def check_arguments(self) -> None:
        """Check the arguments, as the base does."""
        super().check_arguments()
        if self.min_cluster_size < 2:
            raise ValueError(f"min_cluster_size={self.min_cluster_size} must be at least 2")
        if not 0.0 < self.max_distance <= 1.0:
            raise ValueError(f"max_distance={self.max_distance} is outside (0, 1], the range of Jaccard distances")


def build_reachability_tree(distances: sp.csr_array, min_samples: int) -> sp.csr_array:
    """Build the minimum spanning tree of HDBSCAN's mutual reachability distances, with unconnected parts joined at 1.

    Args:
        distances: sparse and symmetric with a stored diagonal, shape (N, N); pairs that are not stored are 1 apart.
        min_samples: number of near samples, itself included, that sets a sample's core distance.

    Returns:
        Sparse and symmetric, shape (N, N), 2 (N - 1) entries above 0.
    """
    n = distances.shape[0]
    core = np.ones(n)
    for sample in np.flatnonzero(np.diff(distances.indptr) >= min_samples):
        sample_distances = distances.data[distances.indptr[sample] : distances.indptr[sample + 1]]
        core[sample] = np.partition(sample_distances, min_samples - 1)[min_samples - 1]
    row = np.repeat(np.arange(n), np.diff(distances.indptr))
    reachable = np.maximum(np.maximum(distances.data, core[row]), core[distances.indices])
    graph = sp.csr_array((np.maximum(reachable, NEARLY_ZERO), distances.indices, distances.indptr), shape=(n, n))
    forest = minimum_spanning_tree(graph).tocoo()
    n_components, component = connected_components(graph, directed=False)
    first_sample = np.unique(component, return_index=True)[1]  # one sample per component
    rows = np.concatenate([forest.row, first_sample[:-1]])
    columns = np.concatenate([forest.col, first_sample[1:]])
    values = np.concatenate([forest.data, np.ones(n_components - 1)])
    tree = sp.csr_array(sp.coo_array((values, (rows, columns)), shape=(n, n)))
    return sp.csr_array(tree + tree.T)


def cluster_by_density(near: sp.csr_array, min_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster by DBSCAN from near pairs: connected components of the core samples, and samples near to them.

    Args:
        near: symmetric sparse matrix with the diagonal, shape (N, N).
        min_samples: number of near samples that make a core sample.

    Returns:
        Labels (N,), -1 = noise, numbered by their first core sample, and the positions of the core samples.
    """
    n = near.shape[0]
    core = np.flatnonzero(np.diff(near.indptr) >= min_samples)
    labels = np.full(n, NOISE, dtype=np.int64)
    if len(core) == 0:
        return labels, core
    _, component = connected_components(near[core][:, core], directed=False)
    _, first_sample, component = np.unique(component, return_index=True, return_inverse=True)
    number = np.empty(len(first_sample), dtype=np.int64)
    number[np.argsort(first_sample)] = np.arange(len(first_sample))
    labels[core] = number[component]
    border = np.flatnonzero(np.diff(near.indptr) < min_samples)
    reached = near[border][:, core].tocoo()
    lowest = np.full(len(border), n, dtype=np.int64)
    np.minimum.at(lowest, reached.row, labels[core][reached.col])
    labels[border[lowest < n]] = lowest[lowest < n]
    return labels, core
