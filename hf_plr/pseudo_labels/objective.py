"""The objective: samples are pulled to the prototypes of their refined clusters, in all labelings at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hf_plr.clustering.cluster_means import ClusterMeans
from hf_plr.features.centering import CenteredFeatures
from hf_plr.pseudo_labels.labeling import Labeling
from hf_plr.pseudo_labels.prototypes import PrototypeMemory
from hf_plr.pseudo_labels.soft_targets import SoftTargetTable
from hf_plr.utils.serialization import select_prefix, validate_array


class ClusterObjective:
    """Loss of a batch against the prototypes of L labelings, which follow the batches.

    Args:
        labelings: the labelings; the first is reported and saved.
        memory: holds the prototypes.
    """

    def __init__(self, labelings: Sequence[Labeling], memory: PrototypeMemory):
        self.labelings = labelings
        self.memory = memory
        self._targets = torch.empty(0, len(labelings), dtype=torch.int32)  # of held samples, on the training device
        self._first = 0  # position of the first of them
        self._soft_targets: SoftTargetTable | None = None
        self._weights: torch.Tensor | None = None

    def rebuild_prototypes(self, features: CenteredFeatures) -> list[ClusterMeans]:
        """Reset the prototypes to the means of the refined clusters; returns these by labeling."""
        means = [labeling.average_clusters(features) for labeling in self.labelings]
        self.memory.reset(features.center, [each.directions for each in means])
        return means

    def to(self, device: torch.device) -> None:
        """Move targets, weights and prototypes of this epoch to a device; the loss and the updates stay there."""
        self.memory.to(device)
        labels = [labeling.pseudo_labels for labeling in self.labelings]
        self._first = labels[0].first
        targets = np.stack([each.targets for each in labels], axis=1).astype(np.int32, copy=False)  # as backends take
        self._targets = torch.from_numpy(targets).to(device)
        soft = [each.soft_targets for each in labels if each.soft_targets is not None]
        self._soft_targets = SoftTargetTable(soft, self.memory.starts, device) if soft else None
        weights = [each for each in (labeling.loss_weights() for labeling in self.labelings) if each is not None]
        self._weights = torch.from_numpy(np.stack(weights, axis=1)).to(device) if weights else None

    def loss(self, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Compute the loss of features (B, D) of the samples at positions (B,), which this process holds: a scalar.

        No sample without a target in the first labeling is drawn. One without a target in a finer labeling counts there
        with a loss of zero.
        """
        held = index - self._first
        targets = self._targets[held] if self._soft_targets is None else self._soft_targets.rows(held)
        weights = None if self._weights is None else self._weights[held]
        return self.memory.loss(self.memory.embed(features), targets, weights)

    def targets_of(self, index: torch.Tensor) -> torch.Tensor:
        """Hard targets of the samples at positions (B,), which this process holds, in L labelings: int32 (B, L)."""
        return self._targets[index - self._first]

    def update_prototypes(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        """Move the prototypes towards features (B, D) of samples with these hard targets (B, L)."""
        self.memory.update(self.memory.embed(features), targets)

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for a resumed run, as arrays by name: of the labelings and their prototypes."""
        state: dict[str, np.ndarray] = {}
        for prefix, labeling, prototypes in zip(self._prefixes(), self.labelings, self.memory.prototypes, strict=True):
            arrays = labeling.state_dict() | {
                "center": self.memory.center.cpu().numpy(),
                "prototypes": prototypes.cpu().numpy(),
            }
            state |= {f"{prefix}{name}": value for name, value in arrays.items()}
        return state

    def load_state_dict(self, state: dict[str, Any], held: slice, width: int) -> None:
        """Restore the output of `state_dict`, of the samples at these positions; ignores other entries.

        Args:
            state: arrays by name.
            held: positions of the samples that this process holds.
            width: size of features.

        Raises:
            ValueError: if an array is missing or damaged, naming it.
        """
        tables = []
        for prefix, labeling in zip(self._prefixes(), self.labelings, strict=True):
            own = select_prefix(prefix, state)
            labeling.load_state_dict(own, held)
            shape = (labeling.pseudo_labels.n_clusters, width)
            tables.append(_as_tensor(validate_array(own, "prototypes", "floats", shape)))
            center = _as_tensor(validate_array(own, "center", "floats", (width,)))
        self.memory.reset(center, tables)

    def _prefixes(self) -> list[str]:
        """What the names of each labeling's arrays begin with in a state."""
        return [f"labeling.{i}." if i else "" for i in range(len(self.labelings))]


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32, copy=False))
