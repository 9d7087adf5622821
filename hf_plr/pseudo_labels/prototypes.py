"""The objective: a memory of one prototype for each cluster."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from hf_plr.clustering.blocks import largest_entry, row_blocks
from hf_plr.clustering.exact_sums import ClusterSums
from hf_plr.utils.distributed import max_over, place_of
from hf_plr.utils.serialization import checked

EMBED_ROWS = 1 << 14  # rows that are embedded together


class PrototypeMemory:
    """Unit-norm prototypes, rebuilt from cluster means at each stage and moved along with the batches.

    The loss is the cross-entropy of cosine / temperature over all prototypes (Cluster Contrast, Dai et al. 2021).
    Prototypes have no gradient: the memory adds no parameter to the model or the optimizer.

    Features are taken relative to their mean over the data set. The features of a transformer share a large common
    part, most of all before training; without it their directions tell samples apart.

    Args:
        temperature: divisor of the cosines, above 0.
        momentum: share of the old prototype that stays at an update, in [0, 1].

    Attributes:
        center: mean feature at the last `recenter`, shape (D,).
        prototypes: float32 tensor of shape (K, D), rows of unit length; empty before the first `rebuild`.
        sizes: members of each cluster at the last `rebuild`, shape (K,).
        lengths: length of the mean of each cluster's members then, in [0, 1]: 1 if all are the same, shape (K,).
    """

    def __init__(self, temperature: float, momentum: float):
        self.temperature = temperature
        self.momentum = momentum
        self.center = torch.zeros(())
        self.prototypes = torch.empty(0, 0)
        self.sizes = torch.empty(0, dtype=torch.int64)
        self.lengths = torch.empty(0, dtype=torch.float64)

    @torch.no_grad()
    def recenter(self, features: torch.Tensor, accelerator: Accelerator | None = None) -> torch.Tensor:
        """Take the mean feature as the new origin, and embed the features by it, in place.

        Args:
            features: float32, this process's rows, shape (n, D); overwritten.
            accelerator: where other processes have further rows; the mean is that of all.

        Returns:
            The features, embedded.
        """
        _, total = place_of(accelerator, len(features))
        largest = max_over(accelerator, largest_entry(features))
        sums = ClusterSums(1, features.shape[1], total, largest, features.device)
        sums.add(features, torch.zeros(len(features), dtype=torch.int64, device=features.device))
        self.center = sums.over(accelerator).means()[0].to(features)
        for block in row_blocks(len(features), EMBED_ROWS):
            features[block] = self.embed(features[block])
        return features

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, D) relative to the origin, with unit length: where clusters are sought and the loss is taken."""
        return F.normalize(features - self.center.to(features), dim=1)

    @torch.no_grad()
    def rebuild(
        self,
        features: torch.Tensor,
        targets: torch.Tensor,
        n_clusters: int,
        accelerator: Accelerator | None = None,
    ) -> None:
        """Set the prototypes to the means of embedded features by target.

        Args:
            features: this process's rows, shape (n, D).
            targets: shape (n,), -1 takes no part.
            n_clusters: number of prototypes K.
            accelerator: where other processes have further rows; the means are those of all.
        """
        _, total = place_of(accelerator, len(features))
        sums = ClusterSums(n_clusters, features.shape[1], total, 1.0, features.device)
        sums.add(features, targets)
        total_sums = sums.over(accelerator)
        means = total_sums.means()
        self.prototypes = F.normalize(means, dim=1).to(features)
        self.sizes, self.lengths = total_sums.counts.clone(), means.norm(dim=1)

    def loss(self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Mean loss of a batch.

        Args:
            features: embedded features, shape (B, D).
            targets: cluster of each sample, shape (B,), -1 = no loss; or soft targets, shape (B, K), where a row of
                zeros has no loss.
            weights: weight of each sample's loss, at least 0, shape (B,); None for equal weights.

        Returns:
            A scalar with a gradient, divided by the number of samples with a target, whatever their weights; zero if
            there are none.
        """
        logits = features @ self.prototypes.to(features).T / self.temperature
        if targets.ndim == 1:
            losses = F.cross_entropy(logits, targets.long(), ignore_index=-1, reduction="none")
            count = (targets >= 0).sum()
        else:
            losses = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)
            count = (targets.sum(dim=1) > 0).sum()
        total = losses.sum() if weights is None else (losses * weights).sum()
        return total / count.clamp(min=1)

    @torch.no_grad()
    def update(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        """Move each prototype that has members in the batch towards their mean; targets (B,), -1 = none."""
        member = targets >= 0
        present, row = torch.unique(targets[member], return_inverse=True)
        sums = ClusterSums(len(present), features.shape[1], len(row), 1.0, features.device)
        sums.add(features[member], row)
        means = F.normalize(sums.means(), dim=1).to(features)
        moved = self.momentum * self.prototypes[present] + (1.0 - self.momentum) * means
        self.prototypes[present] = F.normalize(moved, dim=1)

    def to(self, device: torch.device) -> None:
        """Move origin and prototypes to a device."""
        self.center, self.prototypes = self.center.to(device), self.prototypes.to(device)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Origin and prototypes as arrays."""
        return {"center": self.center.cpu().numpy(), "prototypes": self.prototypes.cpu().numpy()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` gave; other entries are ignored.

        Raises:
            ValueError: if an array is missing or cannot be what `state_dict` gave, naming it.
        """
        prototypes = checked(state, "prototypes", "floats", (None, None))
        center = checked(state, "center", "floats", prototypes.shape[1:])
        self.center, self.prototypes = (
            torch.from_numpy(each.astype(np.float32, copy=False)) for each in (center, prototypes)
        )
