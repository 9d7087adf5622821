"""Scores that need no labels: of features, of clusters, and signs of collapse."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering.cluster_means import ClusterMeans
from hf_plr.utils.distributed import gather_rows, locate_rows

SAMPLES = 2048  # that are looked at, evenly spaced over the data set
LABEL_FREE_SCORES = {
    "effective_rank": "Effective rank of the features",
    "silhouette": "Silhouette of the clusters",
}
LOWER_IS_BETTER = (
    "churn",
    "noise_share",
    "left_out_share",
    "changed_share",
    "soft_share",
    "largest_share",
    "born",
    "died",
)
COLLAPSED_RANK = 0.1  # share of the first stage's effective rank
COLLAPSED_SHARE = 0.5  # of the samples that have a cluster


def label_free_scores(
    features: torch.Tensor, targets: torch.Tensor, means: ClusterMeans, accelerator: Accelerator
) -> dict[str, float]:
    """Scores of features and of their clusters, on every process.

    Args:
        features: this process's rows, centered, shape (n, D).
        targets: cluster of each row, 0 to K - 1, -1 = none, shape (n,).
        means: means of these clusters.
        accelerator: connects processes that hold further rows.

    Returns:
        The scores of `LABEL_FREE_SCORES`, of at most 2,048 samples of all processes, for any number of processes.
    """
    start, total = locate_rows(accelerator, len(features))
    positions = torch.linspace(0, total - 1, min(total, SAMPLES), dtype=torch.float64).round().long()
    drawn = (positions[(positions >= start) & (positions < start + len(features))] - start).to(features.device)
    rows = gather_rows(accelerator, features[drawn]).cpu()
    cluster = gather_rows(accelerator, targets[drawn]).cpu()
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
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def silhouettes(cosines: torch.Tensor, own: torch.Tensor, sizes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """How much nearer each sample is to the centre of its own cluster than to the nearest other one, in [-1, 1].

    The simplified silhouette (Hruschka et al. 2004): distances are those to centres rather than means of distances to
    members, here 1 - cosine. The own centre is taken without the sample, so that small clusters gain nothing by being
    small. Needs n x K cosines and no pairs of samples.

    Args:
        cosines: of the samples, which have unit length, with the centres, shape (n, K).
        own: each sample's cluster, 0 to K - 1, shape (n,).
        sizes: members of each cluster, shape (K,).
        lengths: length of the mean of each cluster's members, shape (K,).

    Returns:
        Shape (n,); 0 for the only member of a cluster, and for everything if there is one cluster only.
    """
    if cosines.shape[1] < 2:
        return torch.zeros(len(cosines), dtype=torch.float64)
    cosines, own = cosines.double(), own.long()
    others = cosines.scatter(1, own[:, None], -torch.inf).max(dim=1).values
    total = (sizes * lengths).double()[own]  # length of the sum of the members
    along = total * cosines.gather(1, own[:, None])[:, 0]
    rest = (total**2 - 2.0 * along + 1.0).clamp(min=1e-12).sqrt()
    within, between = 1.0 - (along - 1.0) / rest, 1.0 - others
    found = (between - within) / torch.maximum(within, between).clamp(min=1e-12)
    return torch.where(sizes[own] > 1, found, 0.0)


def size_entropy(sizes: np.ndarray) -> float:
    """Entropy of the clusters' sizes over that of equal sizes: 1 if all are equal, near 0 if one has nearly all.

    Args:
        sizes: members of each cluster, shape (K,), none of them 0.

    Returns:
        In [0, 1]; 0 for fewer than two clusters.
    """
    if len(sizes) < 2:
        return 0.0
    shares = np.asarray(sizes, np.float64) / np.sum(sizes)
    return float(-np.sum(shares * np.log(shares)) / np.log(len(sizes)))


def describe_collapse(figures: dict[str, float], first_rank: float) -> str | None:
    """A sign of collapse in a stage's figures, in words; None if there is none.

    Args:
        figures: with "effective_rank", "largest_share" and "clusters".
        first_rank: effective rank at the first stage.
    """
    if figures["effective_rank"] < COLLAPSED_RANK * first_rank:
        return (
            f"the features spread over {figures['effective_rank']:.1f} directions, {first_rank:.1f} at the first stage"
        )
    if figures["clusters"] > 2 and figures["largest_share"] > COLLAPSED_SHARE:
        return f"one of {figures['clusters']:.0f} clusters has {figures['largest_share']:.0%} of the samples"
    return None
