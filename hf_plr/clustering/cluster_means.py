"""Means of clusters, exact and equal for any number of processes."""

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
        lengths: lengths of the means before scaling, in [0, 1], 1 if all members are equal, float64 of shape (K,).
        sizes: members per cluster, int64 of shape (K,).
    """

    directions: torch.Tensor
    lengths: torch.Tensor
    sizes: torch.Tensor


@torch.no_grad()
def average_clusters(
    features: torch.Tensor, targets: torch.Tensor, n_clusters: int, accelerator: Accelerator | None = None
) -> ClusterMeans:
    """Average features of unit length by cluster.

    Args:
        features: this process's rows, shape (n, D).
        targets: cluster per row, 0 to K - 1, -1 = none, shape (n,).
        n_clusters: number of clusters K; may be 0.
        accelerator: connects processes that hold further rows.
    """
    if n_clusters == 0:
        no_means = features.new_empty(0, features.shape[1])
        return ClusterMeans(no_means, no_means.new_empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    _, total = locate_rows(accelerator, len(features))
    sums = ClusterSums(n_clusters, features.shape[1], total, 1.0, features.device)
    sums.add(features, targets)
    total_sums = sums.all_reduce(accelerator)
    means = total_sums.means()
    return ClusterMeans(F.normalize(means, dim=1).to(features), means.norm(dim=1), total_sums.counts.clone())
