"""One labeling of the samples: the stage that makes it, and its labels in this epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_plr.clustering.cluster_means import ClusterMeans, average_clusters
from hf_plr.evaluation.label_free import label_free_scores
from hf_plr.features.centering import CenteredFeatures
from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.stage import RefinementStage
from hf_plr.refinement import NOISE
from hf_plr.utils.serialization import validate_array


class Labeling:
    """The stage that makes the labels, and the labels of the epoch.

    Args:
        stage: clusters and refines.
        confidence_power: exponent of the confidence, which weights the loss per sample.
    """

    def __init__(self, stage: RefinementStage, confidence_power: float):
        self.stage = stage
        self.confidence_power = confidence_power
        self._pseudo_labels: PseudoLabels | None = None

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

    def begin_anew(self) -> None:
        """Forget the labels, and what the stage has learned of them."""
        self.stage.begin_anew()
        self._pseudo_labels = None

    def continue_from(self, labels: np.ndarray, first: int, next_number: int) -> None:
        """Take labels of an earlier run for those of the epoch before the first, which is refined by them.

        Args:
            labels: label of each sample that this process holds, -1 = none, shape (N,).
            first: position of the first of them.
            next_number: the smallest number that may be given to a new cluster.
        """
        self.stage.continue_from(labels, next_number)
        ids, sizes = self.stage.holder.count(labels)
        no_labels, no_confidence = np.full(len(labels), NOISE, np.int32), np.zeros(len(labels), np.float32)
        self._pseudo_labels = PseudoLabels(
            epoch=-1,
            labels=labels,
            previous_labels=no_labels,
            raw_labels=labels,
            confidence=no_confidence,
            targets=no_labels,
            n_clusters=0,
            sizes=sizes[ids != NOISE],
            n_samples=int(sizes.sum()),
            first=first,
        )

    def cluster(self, rows: torch.Tensor, epoch: int) -> np.ndarray:
        """Cluster this process's rows (n, D); returns labels of its held samples, see `RefinementStage.cluster`."""
        return self.stage.cluster(rows, epoch)

    def refine(self, clusters: np.ndarray, epoch: int, part: slice) -> PseudoLabels:
        """Refine the output of `cluster` by the labels of the epoch before, and train on the result in this epoch."""
        self._pseudo_labels = self.stage.refine(clusters, epoch, part, previous=self._pseudo_labels)
        return self._pseudo_labels

    def keep_labels(self, epoch: int) -> None:
        """Train another epoch on the labels of the one before."""
        self._pseudo_labels = self.pseudo_labels.for_epoch(epoch)

    def average_clusters(self, features: CenteredFeatures) -> ClusterMeans:
        """Average features of the training samples by their refined clusters."""
        targets = self._local_targets(features)
        return average_clusters(features.rows, targets, self.pseudo_labels.n_clusters, self.stage.accelerator)

    def score(self, features: CenteredFeatures, means: ClusterMeans | None = None) -> dict[str, float]:
        """Score features of the training samples without true labels, under the labels of this epoch.

        Args:
            features: features of the training samples.
            means: their means by cluster, if they are known: they take a pass over the features.
        """
        means = self.average_clusters(features) if means is None else means
        return label_free_scores(features.rows, self._local_targets(features), means, self.stage.accelerator)

    def _local_targets(self, features: CenteredFeatures) -> torch.Tensor:
        own = self.stage.holder.own(features.part)
        return torch.from_numpy(self.pseudo_labels.targets[own].astype(np.int32, copy=False)).to(features.rows.device)

    def loss_weights(self) -> np.ndarray | None:
        """Compute the weights of the loss by confidence, float32 (N,), with a mean of one over samples with a target.

        Called on every process, for the samples that each holds.

        Returns:
            None for equal weights.
        """
        labels = self.pseudo_labels
        if self.confidence_power == 0.0:
            return None
        weights = labels.confidence**self.confidence_power
        mean = self.stage.holder.mean(weights[labels.targets >= 0])
        return (weights / mean if mean > 0 else np.ones_like(weights)).astype(np.float32)

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for a resumed run, as arrays by name."""
        return self.stage.state_dict() | self.pseudo_labels.state_dict()

    def load_state_dict(self, state: dict[str, Any], held: slice) -> None:
        """Restore the output of `state_dict`, of the samples at these positions; ignores other entries.

        Raises:
            ValueError: if an array is missing or damaged, naming it.
        """
        n_held = held.stop - held.start
        validate_array(state, "labels", "integers", (n_held,))
        self.stage.load_state_dict(state, n_held)
        self._pseudo_labels = PseudoLabels.from_state(
            state, self.stage.may_be_empty, self.stage.holder, first=held.start
        )
