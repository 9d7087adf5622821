"""Memory of one prototype per cluster, and the loss against it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from hf_plr.clustering.cluster_means import average_clusters
from hf_plr.features.centering import compute_directions
from hf_plr.pseudo_labels.soft_targets import SparseTargets
from hf_plr.utils.serialization import validate_array


class PrototypeMemory:
    """Unit-norm prototypes, reset to cluster means at each stage and updated by the batches.

    The loss is the cross-entropy of cosine / temperature over all prototypes (Cluster Contrast, Dai et al. 2021).
    Prototypes have no gradient: the memory adds no parameter to the model or the optimizer.

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
        self._rows = torch.empty(1, 0)  # the last row takes what belongs to no cluster

    @property
    def prototypes(self) -> torch.Tensor:
        """float32 tensor of shape (K, D), rows of unit length; empty before the first `reset`."""
        return self._rows[:-1]

    def reset(self, center: torch.Tensor, prototypes: torch.Tensor) -> None:
        """Start an epoch with the center (D,) of its features and the directions (K, D) of its clusters."""
        self.center = center
        self._rows = F.pad(prototypes, (0, 0, 0, 1))

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Embed features (B, D) for the loss, as directions from the center."""
        return compute_directions(self.center, features)

    def loss(
        self, features: torch.Tensor, targets: torch.Tensor | SparseTargets, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute the mean loss of a batch.

        Args:
            features: embedded features, shape (B, D).
            targets: cluster per sample, shape (B,), -1 = no loss; or soft targets.
            weights: weight of the loss per sample, at least 0, shape (B,); None for equal weights.

        Returns:
            A scalar with a gradient, divided by the number of samples with a target, whatever their weights; zero
            without targets.
        """
        logits = features @ self.prototypes.to(features).T / self.temperature
        if isinstance(targets, SparseTargets):
            losses = -(targets.shares * F.log_softmax(logits, dim=1).gather(1, targets.columns)).sum(dim=1)
            count = (targets.shares.sum(dim=1) > 0).sum()
        else:
            losses = F.cross_entropy(logits, targets.long(), ignore_index=-1, reduction="none")
            count = (targets >= 0).sum()
        total = losses.sum() if weights is None else (losses * weights).sum()
        return total / count.clamp(min=1)

    @torch.no_grad()
    def update(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        """Move each prototype that has members in the batch towards their mean; targets (B,), -1 = none.

        All shapes are known before the values are, so that nothing waits for a GPU: the batch's clusters are numbered
        in the order of their targets, and numbers that are left over stand for none.
        """
        targets, order = targets.long().sort(stable=True)
        number = F.pad((targets[1:] != targets[:-1]).long().cumsum(0), (1, 0))
        cluster = torch.full_like(targets, -1).scatter_(0, number, targets)
        means = average_clusters(features[order], number, len(targets)).directions
        updated = self.momentum * self._rows[cluster] + (1.0 - self.momentum) * means
        self._rows[cluster] = F.normalize(updated, dim=1)

    def to(self, device: torch.device) -> None:
        """Move center and prototypes to a device."""
        self.center, self._rows = self.center.to(device), self._rows.to(device)

    def state_dict(self) -> dict[str, np.ndarray]:
        """State: center and prototypes as arrays."""
        return {"center": self.center.cpu().numpy(), "prototypes": self.prototypes.cpu().numpy()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore the output of `state_dict`; other entries are ignored.

        Raises:
            ValueError: if an array is missing or damaged, naming it.
        """
        prototypes = validate_array(state, "prototypes", "floats", (None, None))
        center = validate_array(state, "center", "floats", prototypes.shape[1:])
        self.reset(*(torch.from_numpy(array.astype(np.float32, copy=False)) for array in (center, prototypes)))
