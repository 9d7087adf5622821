"""Scores that need no labels: of features, of clusters, and signs of collapse."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering.cluster_means import ClusterMeans
from hf_plr.utils.distributed import gather_rows, locate_rows

SAMPLES = 2048  # samples that are scored, evenly spaced over the data set
LABEL_FREE_SCORES = {
    "effective_rank": "Effective rank of the features",
    "silhouette": "Silhouette of the clusters",
}
COLLAPSED_RANK = 0.1  # fraction of the first stage's effective rank
COLLAPSED_FRACTION = 0.5  # of the samples in clusters


def label_free_scores(
    features: torch.Tensor, targets: torch.Tensor, means: ClusterMeans, accelerator: Accelerator
) -> dict[str, float]:
    """Score features and their clusters without labels, on every process.

    Args:
        features: this process's rows, centered, shape (n, D).
        targets: cluster per row, 0 to K - 1, -1 = none, shape (n,).
        means: means of these clusters.
        accelerator: connects processes that hold further rows.

    Returns:
        Scores of `LABEL_FREE_SCORES` on at most 2,048 samples of all processes, equal for any number of processes.
    """
    start, total = locate_rows(accelerator, len(features))
    positions = torch.linspace(0, total - 1, min(total, SAMPLES), dtype=torch.float64).round().long()
    local = (positions[(positions >= start) & (positions < start + len(features))] - start).to(features.device)
    rows = gather_rows(accelerator, features[local]).cpu()
    cluster = gather_rows(accelerator, targets[local]).cpu()
    is_member = cluster >= 0
    cosines = rows[is_member] @ means.directions.cpu().T
    widths = silhouettes(cosines, cluster[is_member], means.sizes.cpu(), means.lengths.cpu())
    return {
        "effective_rank": effective_rank(rows),
        "silhouette": float(widths.mean()) if len(widths) else 0.0,
    }


def effective_rank(features: torch.Tensor) -> float:
    """Number of directions that features spread over, in [1, min(n, D)], or 0 if they are all zero.

    The exponential of the entropy of the singular values over their sum (RankMe: Garrido et al., ICML 2023, after Roy
    and Vetterli 2007). It falls to 1 as features collapse onto a line.

    Args:
        features: shape (n, D).
    """
    rows = features.double()
    gram = rows.T @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    total = values.sum()
    if total == 0.0:
        return 0.0
    fractions = values / total
    return float(torch.special.entr(fractions).sum().exp())


def silhouettes(cosines: torch.Tensor, own: torch.Tensor, sizes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Silhouette per sample: distance to the nearest other centre against that to the own one, in [-1, 1].

    The simplified silhouette (Hruschka et al. 2004) replaces mean distances to members by distances to centres, here
    1 - cosine. The own centre excludes the sample, so that small clusters have no advantage. It needs n x K cosines and
    no pairs of samples.

    Args:
        cosines: cosines of the samples, which have unit length, with the centres, shape (n, K).
        own: cluster per sample, 0 to K - 1, shape (n,).
        sizes: members per cluster, shape (K,).
        lengths: length of the mean of each cluster's members, shape (K,).

    Returns:
        Shape (n,); 0 for the only member of a cluster, and for everything if there is one cluster only.
    """
    if cosines.shape[1] < 2:
        return torch.zeros(len(cosines), dtype=torch.float64)
    cosines, own = cosines.double(), own.long()
    nearest_other = cosines.scatter(1, own[:, None], -torch.inf).max(dim=1).values
    total = (sizes * lengths).double()[own]  # length of the sum of the members
    projected_length = total * cosines.gather(1, own[:, None])[:, 0]
    length_without_sample = (total**2 - 2.0 * projected_length + 1.0).clamp(min=1e-12).sqrt()
    within, between = 1.0 - (projected_length - 1.0) / length_without_sample, 1.0 - nearest_other
    widths = (between - within) / torch.maximum(within, between).clamp(min=1e-12)
    return torch.where(sizes[own] > 1, widths, 0.0)


def size_entropy(sizes: np.ndarray) -> float:
    """Entropy of the clusters' sizes over that of equal sizes: 1 if all are equal, near 0 if one has nearly all.

    Args:
        sizes: members per cluster, shape (K,), none of them 0.

    Returns:
        In [0, 1]; 0 for fewer than two clusters.
    """
    if len(sizes) < 2:
        return 0.0
    fractions = np.asarray(sizes, np.float64) / np.sum(sizes)
    return float(-np.sum(fractions * np.log(fractions)) / np.log(len(sizes)))


def describe_collapse(metrics: dict[str, float], first_rank: float) -> str | None:
    """Describe a sign of collapse in a stage's metrics; returns None if there is none.

    Args:
        metrics: metrics of the stage, with "effective_rank", "largest_share" and "clusters".
        first_rank: effective rank at the first stage.
    """
    if metrics["effective_rank"] < COLLAPSED_RANK * first_rank:
        return (
            f"the features spread over {metrics['effective_rank']:.1f} directions, {first_rank:.1f} at the first stage"
        )
    if metrics["clusters"] > 2 and metrics["largest_share"] > COLLAPSED_FRACTION:
        return f"one of {metrics['clusters']:.0f} clusters has {metrics['largest_share']:.0%} of the samples"
    return None
