"""Members of an ensemble: further clusterings of the same samples, which differ so that their consensus says more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.base import clone

from hf_plr.clustering.kmeans import KMeans
from hf_plr.clustering.protocol import Clusterer, validate_labels
from hf_plr.utils.distributed import gather_rows, locate_rows

MEMBERS = 4  # fresh k-means clusterings, each of
FINER = 2  # times as many clusters as are sought
FIT_SAMPLES_PER_CLUSTER = 64


class Ensemble(Protocol):
    """Further clusterings of the rows of all processes together."""

    def fit_predict_shard(self, rows: torch.Tensor, epoch: int, accelerator: Accelerator) -> list[np.ndarray]:
        """Cluster the rows of all processes; returns labels of this process's rows, integers (n,), by member.

        Args:
            rows: this process's rows, shape (n, D).
            epoch: epoch of the stage.
            accelerator: connects the processes.
        """


class FreshKMeans:
    """Clusterings by k-means that never start from earlier centers.

    A warm-started clustering repeats the mistakes of the last one. Fresh ones make other mistakes, so that what they
    agree on is more often right. They are finer than the clusters that are sought, which keeps them pure. Each begins
    at samples drawn at random: k-means++ would draw by distances, and let a rounding error change every later center.

    Args:
        kmeans: clusterer that seeks K clusters, whose settings the members share; they have 2 K.
        n_samples: number of samples N; a member has half as many clusters at most.
        seed: seed of the first centers, which differ between members and epochs.
        n_members: number of clusterings.
    """

    def __init__(self, kmeans: KMeans, n_samples: int, seed: int, n_members: int = MEMBERS):
        self.kmeans = kmeans
        self.n_clusters = max(kmeans.n_clusters, min(FINER * kmeans.n_clusters, n_samples // 2))
        largest_fit = FIT_SAMPLES_PER_CLUSTER * self.n_clusters
        self.fit_samples = max(min(kmeans.fit_samples or largest_fit, largest_fit), self.n_clusters)
        self.n_samples = n_samples
        self.seed = seed
        self.n_members = n_members

    def fit_predict_shard(self, rows: torch.Tensor, epoch: int, accelerator: Accelerator) -> list[np.ndarray]:
        """Cluster as `Ensemble` says."""
        rng = np.random.default_rng([self.seed, epoch])
        start, _ = locate_rows(accelerator, len(rows))
        labels = []
        for _ in range(self.n_members):
            drawn = np.sort(rng.choice(self.n_samples, self.n_clusters, replace=False)) - start
            own = torch.from_numpy(drawn[(drawn >= 0) & (drawn < len(rows))]).to(rows.device)
            kmeans = clone(self.kmeans).set_params(
                n_clusters=self.n_clusters,
                verbose=False,
                init=gather_rows(accelerator, rows[own]),
                seed=int(rng.integers(2**31)),
                fit_samples=self.fit_samples if self.fit_samples < self.n_samples else None,
            )
            labels.append(validate_labels(kmeans.fit_predict_shard(rows, accelerator), len(rows), accelerator))
        return labels


class Clusterings:
    """Given clusterers as members, such as DBSCAN with other eps.

    Args:
        clusterers: clusterers without a state.
    """

    def __init__(self, clusterers: Sequence[Clusterer]):
        self.clusterers = clusterers

    def fit_predict_shard(self, rows: torch.Tensor, epoch: int, accelerator: Accelerator) -> list[np.ndarray]:
        """Cluster as `Ensemble` says; the same in every epoch."""
        return [
            validate_labels(each.fit_predict_shard(rows, accelerator), len(rows), accelerator)
            for each in self.clusterers
        ]
