"""Finer levels of one refinement as labelings of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.stage import RefinementStage


class LevelStage(RefinementStage):
    """Stage of a finer level: it neither clusters nor refines, but takes what the stage of the coarsest level made.

    In each epoch it is called after that one.

    Args:
        coarsest: stage whose refiner has several levels.
        level: 1 for the next finer one, and so on.
    """

    def __init__(self, coarsest: RefinementStage, level: int):
        super().__init__(
            coarsest.clusterer,
            coarsest.refiner,
            coarsest.refine_start_epoch,
            coarsest.accelerator,
            coarsest.min_confidence,
            may_be_empty=True,
            holder=coarsest.holder,
        )
        self.coarsest = coarsest
        self.level = level

    @property
    def clusterers(self) -> list[Any]:
        """None: the other stage clusters."""
        return []

    @property
    def n_sought(self) -> int | None:
        """Number of clusters that are sought; None where it follows from the refiner's clusters of the epoch."""
        n, finest = self.refiner.n_clusters, self.clusterer.get_params().get("n_clusters")
        return max(n, min(n * 2**self.level, finest)) if isinstance(n, int) and isinstance(finest, int) else None

    def cluster(self, rows: torch.Tensor, epoch: int) -> np.ndarray:
        """Nothing: the other stage clusters."""
        return np.empty(0, np.int64)

    def refine(self, clusters: np.ndarray, epoch: int, part: slice, previous: PseudoLabels | None) -> PseudoLabels:
        """Make targets of the level of the epoch's refinement; takes no clusters."""
        labels = self.coarsest.take_finer(self.level, epoch, part, previous)
        self._check_clusters(labels)
        return labels

    def state_dict(self) -> dict[str, np.ndarray]:
        """Nothing: the refiner of the other stage remembers all levels."""
        return {}

    def load_state_dict(self, state: dict[str, np.ndarray], n_samples: int) -> None:
        """Take nothing."""
