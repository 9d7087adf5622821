"""Memory of one prototype per cluster of every labeling, and the loss against it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hf_plr.clustering.cluster_means import average_clusters
from hf_plr.features.centering import compute_directions
from hf_plr.pseudo_labels.soft_targets import SparseTargets


class PrototypeMemory:
    """Unit-norm prototypes of L labelings, reset to cluster means at each stage and updated by the batches.

    The loss is the cross-entropy of cosine / temperature over all prototypes of a labeling (Cluster Contrast, Dai et
    al. 2021), a mean over the labelings. Prototypes have no gradient: the memory adds no parameter to the model or the
    optimizer.

    Loss and updates take all labelings at once, and no shape in them depends on a value, so that a GPU gets few
    operations and the host never waits for it.

    Args:
        temperature: divisor of the cosines, above 0.
        momentum: fraction of the old prototype that stays at an update, in [0, 1].

    Attributes:
        center: mean feature, origin of the directions, shape (D,).
    """

    def __init__(self, temperature: float, momentum: float):
        self.temperature = temperature
        self.momentum = momentum
        self.center = torch.zeros(())
        self._sizes: list[int] = []
        self._rows = torch.empty(1, 0)  # of all labelings; the last row takes what belongs to no cluster

    @property
    def prototypes(self) -> tuple[torch.Tensor, ...]:
        """Prototypes of each labeling, float32 of shape (K, D), rows of unit length; none before the first `reset`."""
        return self._rows[:-1].split(self._sizes)

    def reset(self, center: torch.Tensor, prototypes: Sequence[torch.Tensor]) -> None:
        """Start an epoch with the center (D,) of its features and the directions (K, D) of each labeling's clusters."""
        self.center = center
        self._sizes = [len(rows) for rows in prototypes]
        self._rows = F.pad(torch.cat(list(prototypes)), (0, 0, 0, 1))

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Embed features (B, D) for the loss, as directions from the center."""
        return compute_directions(self.center, features)

    def loss(
        self,
        directions: torch.Tensor,
        targets: Sequence[torch.Tensor | SparseTargets],
        weights: Sequence[torch.Tensor | None],
    ) -> torch.Tensor:
        """Compute the mean loss of a batch.

        Args:
            directions: embedded features, shape (B, D).
            targets: by labeling, the cluster per sample, shape (B,), -1 = no loss; or soft targets.
            weights: by labeling, the weight of the loss per sample, at least 0, shape (B,); None for equal weights.

        Returns:
            A scalar with a gradient, the mean over the labelings that have clusters. Each is divided by its number of
            samples with a target, whatever their weights; zero without targets.
        """
        logits = (directions @ self._rows[:-1].to(directions).T / self.temperature).split(self._sizes, dim=1)
        losses = [_loss(*each) for each in zip(logits, targets, weights, strict=True) if each[0].shape[1]]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def update(self, directions: torch.Tensor, targets: Sequence[torch.Tensor]) -> None:
        """Move each prototype that has members in the batch towards their mean.

        Args:
            directions: embedded features, shape (B, D).
            targets: by labeling, the cluster per sample, shape (B,), -1 = none.
        """
        starts = [sum(self._sizes[:i]) for i in range(len(self._sizes))]
        shifted = [torch.where(each >= 0, each + start, -1) for each, start in zip(targets, starts, strict=True)]
        cluster, order = torch.cat(shifted).long().sort(stable=True)
        # Clusters of the batch, numbered in their order; numbers that are left over stand for none.
        number = F.pad((cluster[1:] != cluster[:-1]).long().cumsum(0), (1, 0))
        cluster = torch.full_like(cluster, -1).scatter_(0, number, cluster)
        means = average_clusters(directions[order % len(directions)], number, len(cluster)).directions
        updated = self.momentum * self._rows[cluster] + (1.0 - self.momentum) * means
        self._rows[cluster] = F.normalize(updated, dim=1)

    def to(self, device: torch.device) -> None:
        """Move center and prototypes to a device."""
        self.center, self._rows = self.center.to(device), self._rows.to(device)


def _loss(logits: torch.Tensor, targets: torch.Tensor | SparseTargets, weights: torch.Tensor | None) -> torch.Tensor:
    """Loss of one labeling from its logits (B, K)."""
    if isinstance(targets, SparseTargets):
        losses = -(targets.shares * F.log_softmax(logits, dim=1).gather(1, targets.columns)).sum(dim=1)
        count = (targets.shares.sum(dim=1) > 0).sum()
    else:
        losses = F.cross_entropy(logits, targets.long(), ignore_index=-1, reduction="none")
        count = (targets >= 0).sum()
    total = losses.sum() if weights is None else (losses * weights).sum()
    return total / count.clamp(min=1)
