"""One labeling of the samples: the stage that makes it, its labels in this epoch, and the loss of training on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_plr.clustering.cluster_means import ClusterMeans, average_clusters
from hf_plr.evaluation.label_free import label_free_scores
from hf_plr.features.centering import CenteredFeatures
from hf_plr.pseudo_labels.prototypes import PrototypeMemory
from hf_plr.pseudo_labels.soft_targets import SoftTargetTable
from hf_plr.pseudo_labels.stage import PseudoLabels, RefinementStage
from hf_plr.utils.serialization import validate_array


class Labeling:
    """The stage that makes the labels, the labels of the epoch, and the prototypes that samples are pulled to.

    Args:
        stage: clusters and refines.
        memory: holds the prototypes.
        confidence_power: exponent of the confidence, which weights the loss per sample.
    """

    def __init__(self, stage: RefinementStage, memory: PrototypeMemory, confidence_power: float):
        self.stage = stage
        self.memory = memory
        self.confidence_power = confidence_power
        self._pseudo_labels: PseudoLabels | None = None
        self._targets = torch.empty(0, dtype=torch.int64)  # of all samples, on the training device
        self._soft_targets: SoftTargetTable | None = None
        self._weights: torch.Tensor | None = None

    @property
    def has_labels(self) -> bool:
        """True from the first stage on."""
        return self._pseudo_labels is not None

    @property
    def pseudo_labels(self) -> PseudoLabels:
        """The labels of this epoch.

        Raises:
            RuntimeError: before the first stage.
        """
        if self._pseudo_labels is None:
            raise RuntimeError("there are no pseudo-labels yet: call train() first")
        return self._pseudo_labels

    def cluster(self, features: CenteredFeatures) -> np.ndarray:
        """Cluster features; returns the labels of all samples, integers (N,), -1 = noise."""
        return self.stage.cluster(features)

    def refine(self, clusters: np.ndarray, epoch: int, part: slice) -> PseudoLabels:
        """Refine clusters (N,) by the labels of the epoch before, and train on the result in this epoch."""
        self._pseudo_labels = self.stage.refine(clusters, epoch, part, previous=self._pseudo_labels)
        return self._pseudo_labels

    def keep_labels(self, epoch: int) -> None:
        """Train another epoch on the labels of the one before."""
        self._pseudo_labels = self.pseudo_labels.for_epoch(epoch)

    def rebuild_prototypes(self, features: CenteredFeatures) -> ClusterMeans:
        """Reset the prototypes to the means of the refined clusters; returns these."""
        means = self._average_clusters(features)
        self.memory.reset(features.center, means.directions)
        return means

    def score(self, features: CenteredFeatures, means: ClusterMeans | None = None) -> dict[str, float]:
        """Score features of the training samples without true labels, under the labels of this epoch.

        Args:
            features: features of the training samples.
            means: their means by cluster, if they are known: they take a pass over the features.
        """
        means = self._average_clusters(features) if means is None else means
        return label_free_scores(features.rows, self._local_targets(features), means, self.stage.accelerator)

    def _average_clusters(self, features: CenteredFeatures) -> ClusterMeans:
        targets = self._local_targets(features)
        return average_clusters(features.rows, targets, self.pseudo_labels.n_clusters, self.stage.accelerator)

    def _local_targets(self, features: CenteredFeatures) -> torch.Tensor:
        return torch.from_numpy(self.pseudo_labels.targets[features.part]).to(features.rows.device)

    # ---- training ------------------------------------------------------------------------------------------------

    def to(self, device: torch.device) -> None:
        """Move targets, weights and prototypes of this epoch to a device; the loss and the updates stay there."""
        self._targets = torch.from_numpy(self.pseudo_labels.targets).to(device)
        soft = self.pseudo_labels.soft_targets
        self._soft_targets = None if soft is None else soft.to(device)
        self._weights = self._compute_weights(device)
        self.memory.to(device)

    def _compute_weights(self, device: torch.device) -> torch.Tensor | None:
        """Compute loss weights per sample, with a mean of one over samples with a target; None for equal weights."""
        labels = self.pseudo_labels
        if self.confidence_power == 0.0 or labels.n_clusters == 0:
            return None
        weights = labels.confidence**self.confidence_power
        mean = weights[labels.targets >= 0].mean()
        return torch.from_numpy(weights / mean if mean > 0 else np.ones_like(weights)).to(device, torch.float32)

    def loss(self, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Compute the cross-entropy of features (B, D) at positions (B,) against the prototypes: a scalar."""
        weights = None if self._weights is None else self._weights[index]
        targets = self._targets[index] if self._soft_targets is None else self._soft_targets.rows(index)
        return self.memory.loss(self.memory.embed(features), targets, weights)

    def update_prototypes(self, features: torch.Tensor, index: torch.Tensor) -> None:
        """Move the prototypes towards features (B, D) of the samples at positions (B,), -1 = none."""
        self.memory.update(self.memory.embed(features), torch.where(index >= 0, self._targets[index], -1))

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for a resumed run, as arrays by name."""
        return self.stage.state_dict() | self.pseudo_labels.state_dict() | self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any], n_samples: int, width: int) -> None:
        """Restore the output of `state_dict`, for this number of samples and size of features; ignores other entries.

        Raises:
            ValueError: if an array is missing or damaged, naming it.
        """
        validate_array(state, "labels", "integers", (n_samples,))
        self.stage.load_state_dict(state, n_samples)
        labels = PseudoLabels.from_state(state, self.stage.may_be_empty)
        validate_array(state, "prototypes", "floats", (labels.n_clusters, width))
        self.memory.load_state_dict(state)
        self._pseudo_labels = labels
