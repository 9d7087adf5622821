"""One labeling of the samples, from epoch to epoch: how it is made, and what training on it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_plr.evaluation.label_free import score_clusters
from hf_plr.pseudo_labels.prototypes import PrototypeMemory
from hf_plr.pseudo_labels.stage import PseudoLabels, RefinementStage
from hf_plr.utils.serialization import checked


class Labeling:
    """The stage that makes labels, the memory of their clusters' prototypes, and the loss against these.

    Args:
        stage: clusters and refines.
        memory: holds the prototypes.
        confidence_power: each sample's loss is weighted by the confidence of its label to this power.
    """

    def __init__(self, stage: RefinementStage, memory: PrototypeMemory, confidence_power: float):
        self.stage = stage
        self.memory = memory
        self.confidence_power = confidence_power
        self.targets = torch.empty(0, dtype=torch.int64)
        self.weights: torch.Tensor | None = None

    @property
    def now(self) -> PseudoLabels:
        """The labels of this epoch.

        Raises:
            RuntimeError: if there are none yet.
        """
        if self.stage.current is None:
            raise RuntimeError("there are no pseudo-labels yet: call train() first")
        return self.stage.current

    def renew(self, features: torch.Tensor, center: torch.Tensor, mine: slice, epoch: int) -> dict[str, float]:
        """Make the labels and prototypes of an epoch.

        Args:
            features: this process's rows, embedded, shape (n, D).
            center: what they are relative to, shape (D,).
            mine: which of all samples they are.
            epoch: the epoch.

        Returns:
            The stage's figures.
        """
        figures = self.stage.run(features, epoch)
        self.memory.center = center
        self._rebuild(self.memory, features, mine)
        return figures

    def score(self, features: torch.Tensor, mine: slice) -> dict[str, float]:
        """Scores of features, arguments as for `renew`, under the labels of this epoch."""
        memory = PrototypeMemory(self.memory.temperature, self.memory.momentum)
        targets = self._rebuild(memory, features, mine)
        return score_clusters(features, targets, memory, self.stage.accelerator)

    def _rebuild(self, memory: PrototypeMemory, features: torch.Tensor, mine: slice) -> torch.Tensor:
        targets = torch.from_numpy(self.now.targets[mine]).to(features.device)
        if self.now.n_clusters == 0:
            memory.prototypes = features.new_empty(0, features.shape[1])
            return targets
        memory.rebuild(features, targets, self.now.n_clusters, self.stage.accelerator)
        return targets

    def to(self, device: torch.device) -> None:
        """Put what steps need on a device."""
        self.targets = torch.from_numpy(self.now.targets).to(device)
        self.weights = self._weights_on(device)
        self.memory.to(device)

    def _weights_on(self, device: torch.device) -> torch.Tensor | None:
        """Weight of each sample's loss, with a mean of one over those that have a target; None for equal weights."""
        if self.confidence_power == 0.0 or self.now.n_clusters == 0:
            return None
        weights = self.now.confidence**self.confidence_power
        mean = weights[self.now.targets >= 0].mean()
        return torch.from_numpy(weights / mean if mean > 0 else np.ones_like(weights)).to(device, torch.float32)

    def loss(self, raw: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of features (B, D) of the samples at positions (B,) against the prototypes: a scalar."""
        weights = None if self.weights is None else self.weights[index]
        features, soft = self.memory.embed(raw), self.now.soft_targets
        if soft is None:
            return self.memory.loss(features, self.targets[index], weights)
        rows = torch.from_numpy(soft.of_samples(index.cpu().numpy()))
        return self.memory.loss(features, rows.to(features), weights)

    def follow(self, raw: torch.Tensor, index: torch.Tensor) -> None:
        """Let the prototypes follow features (B, D) of the samples at positions (B,), -1 = none."""
        self.memory.update(self.memory.embed(raw), torch.where(index >= 0, self.targets[index], -1))

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a resumed run needs, as arrays by name."""
        return self.stage.state_dict() | self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Any], n_samples: int, width: int) -> None:
        """Restore what `state_dict` gave, for as many samples and features of this size; other entries are ignored.

        Raises:
            ValueError: if an array is missing or cannot be what `state_dict` gave, naming it.
        """
        checked(state, "labels", "integers", (n_samples,))
        self.stage.load_state_dict(state)
        checked(state, "prototypes", "floats", (self.now.n_clusters, width))
        self.memory.load_state_dict(state)
