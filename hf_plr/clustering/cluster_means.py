"""Means of clusters, exact and the same for any number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from hf_plr.clustering.exact_sums import ClusterSums
from hf_plr.utils.distributed import locate_rows


@dataclass(frozen=True)
class ClusterMeans:
    """Means of K clusters of unit-length features.

    Attributes:
        directions: the means, scaled to unit length, shape (K, D).
        lengths: lengths of the means before scaling, in [0, 1], 1 if all members are the same, float64 of shape (K,).
        sizes: members of each cluster, int64 of shape (K,).
    """

    directions: torch.Tensor
    lengths: torch.Tensor
    sizes: torch.Tensor


@torch.no_grad()
def average_clusters(
    features: torch.Tensor, targets: torch.Tensor, n_clusters: int, accelerator: Accelerator | None = None
) -> ClusterMeans:
    """Means of features of unit length by cluster.

    Args:
        features: this process's rows, shape (n, D).
        targets: cluster of each row, 0 to K - 1, -1 = in none, shape (n,).
        n_clusters: number of clusters K; may be 0.
        accelerator: connects processes that hold further rows.
    """
    if n_clusters == 0:
        nothing = features.new_empty(0, features.shape[1])
        return ClusterMeans(nothing, nothing.new_empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    _, total = locate_rows(accelerator, len(features))
    sums = ClusterSums(n_clusters, features.shape[1], total, 1.0, features.device)
    sums.add(features, targets)
    sums_of_all = sums.all_reduce(accelerator)
    means = sums_of_all.means()
    return ClusterMeans(F.normalize(means, dim=1).to(features), means.norm(dim=1), sums_of_all.counts.clone())
