"""Memory of one prototype per cluster of every labeling, and the loss against it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hf_plr.clustering.exact_sums import ClusterSums
from hf_plr.features.centering import compute_directions
from hf_plr.pseudo_labels.soft_targets import SparseTargets
from hf_plr.utils.constants import make_constant


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
        targets: torch.Tensor | SparseTargets,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the mean loss of a batch.

        Args:
            directions: embedded features, shape (B, D).
            targets: cluster per sample and labeling, integers of shape (B, L), -1 = no loss; or soft targets.
            weights: weight of the loss per sample and labeling, at least 0, shape (B, L); None for equal weights.

        Returns:
            A scalar with a gradient, the mean over the labelings that have clusters and over all B samples: one without
            a target counts with a loss of zero. So the mean over equal parts of a batch, on several processes or in
            several steps of an accumulation, is the loss of the whole.
        """
        logits = directions @ self._rows[:-1].to(directions).T / self.temperature
        if isinstance(targets, SparseTargets):
            losses = _soft_losses(logits, targets, self._sizes)
        else:
            losses = _hard_losses(logits, targets, self._sizes)
        losses = (losses if weights is None else losses * weights).mean(dim=0)
        return losses.sum() / sum(size > 0 for size in self._sizes)

    @torch.no_grad()
    def update(self, directions: torch.Tensor, targets: torch.Tensor) -> None:
        """Move each prototype that has members in the batch towards their mean.

        Args:
            directions: embedded features, shape (B, D).
            targets: cluster per sample and labeling, integers of shape (B, L), -1 = none.
        """
        starts = make_constant(self.starts, targets.device, torch.int64)
        cluster, order = torch.where(targets >= 0, targets + starts, -1).flatten().sort(stable=True)
        # Clusters of the batch, numbered in their order; numbers that are left over stand for none.
        number = F.pad((cluster[1:] != cluster[:-1]).long().cumsum(0), (1, 0))
        cluster = torch.full_like(cluster, -1).scatter_(0, number, cluster)
        sums = ClusterSums(len(cluster), directions.shape[1], len(cluster), 1.0, directions.device)
        sums.add(directions[order // len(self._sizes)], number)
        means = F.normalize(sums.means(), dim=1).to(directions)
        updated = self.momentum * self._rows[cluster] + (1.0 - self.momentum) * means
        self._rows[cluster] = F.normalize(updated, dim=1)

    @property
    def starts(self) -> tuple[int, ...]:
        """Number of each labeling's first cluster, where clusters of all labelings are counted on."""
        return tuple(itertools.accumulate(self._sizes[:-1], initial=0))

    def to(self, device: torch.device) -> None:
        """Move center and prototypes to a device."""
        self.center, self._rows = self.center.to(device), self._rows.to(device)


def _soft_losses(logits: torch.Tensor, targets: SparseTargets, sizes: Sequence[int]) -> torch.Tensor:
    """Cross-entropies of logits (B, all K) by sample and labeling (B, L), zero without a target."""
    totals = torch.stack(
        [part.logsumexp(dim=1) if part.shape[1] else part.sum(dim=1) for part in logits.split(list(sizes), dim=1)],
        dim=1,
    )
    taught = logits.gather(1, targets.columns.flatten(1)).view_as(targets.shares)
    mass = targets.shares.sum(dim=2)
    return mass * totals - (targets.shares * taught).sum(dim=2)


def _hard_losses(logits: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The same for hard targets (B, L)."""
    columns = targets.long().unbind(dim=1)
    losses = [
        F.cross_entropy(part, column, ignore_index=-1, reduction="none") if part.shape[1] else column * 0.0
        for part, column in zip(logits.split(list(sizes), dim=1), columns, strict=True)
    ]
    return torch.stack(losses, dim=1)
