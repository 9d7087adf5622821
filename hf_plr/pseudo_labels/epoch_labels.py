"""The pseudo-labels of an epoch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from hf_plr.pseudo_labels.holding import AllLabels
from hf_plr.pseudo_labels.soft_targets import SoftTargets
from hf_plr.refinement import NOISE
from hf_plr.utils.serialization import select_prefix, validate_array


@dataclass
class PseudoLabels:
    """Pseudo-labels and targets of one labeling in one epoch.

    The arrays are of the samples that this process holds (see `hf_plr.pseudo_labels.holding`): as a rule all N, with
    shards the n of its own. Labels are int32; raw ones are int64 where the clusterer's ids need it.

    Attributes:
        epoch: epoch that these labels train.
        labels: refined label per sample, -1 = noise, shape (N,); numbers persist from epoch to epoch.
        previous_labels: the refined labels of the epoch before, shape (N,); -1 everywhere at the first.
        raw_labels: the clusterer's labels before refinement, shape (N,).
        confidence: in [0, 1], float32 of shape (N,).
        targets: position of the prototype per sample, 0 to n_clusters - 1, -1 = none and, where targets are hard, no
            loss, shape (N,). Noise that projects onto two clusters alike has soft targets and -1 here.
        n_clusters: number of prototypes.
        sizes: members of each refined cluster, ascending by its label, among all samples, shape (clusters,).
        n_samples: number of all samples.
        first: position of the first sample that this process holds.
        soft_targets: soft targets, or None where targets are hard.
        refinement: metrics of the refinement that made the labels, as in `compute_stage_metrics`; empty after resuming.
    """

    epoch: int
    labels: np.ndarray
    previous_labels: np.ndarray
    raw_labels: np.ndarray
    confidence: np.ndarray
    targets: np.ndarray
    n_clusters: int
    sizes: np.ndarray
    n_samples: int
    first: int = 0
    soft_targets: SoftTargets | None = None
    refinement: dict[str, float] = field(default_factory=dict)

    @property
    def noise_share(self) -> float:
        """Fraction of all samples that are in no cluster."""
        return (self.n_samples - int(self.sizes.sum())) / self.n_samples

    def for_epoch(self, epoch: int) -> PseudoLabels:
        """Copy the labels for another epoch."""
        return dataclasses.replace(self, epoch=epoch)

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for a resumed epoch, as arrays by name."""
        state = {
            "epoch": np.array([self.epoch]),
            "labels": self.labels,
            "previous_labels": self.previous_labels,
            "raw_labels": self.raw_labels,
            "confidence": self.confidence,
            "targets": self.targets,
            "n_clusters": np.array([self.n_clusters]),
        }
        if self.soft_targets is not None:
            state |= {f"soft.{name}": value for name, value in self.soft_targets.state_dict().items()}
        return state

    @classmethod
    def from_state(
        cls, state: dict[str, np.ndarray], may_be_empty: bool = False, holder: AllLabels | None = None, first: int = 0
    ) -> PseudoLabels:
        """Restore the output of `state_dict`.

        Args:
            state: arrays by name.
            may_be_empty: as for `RefinementStage`.
            holder: adds up what the processes hold; None if each holds all.
            first: position of the first sample that this process holds.

        Raises:
            ValueError: if an array is missing or damaged, naming it.
        """
        holder = AllLabels(None) if holder is None else holder
        n_held = len(validate_array(state, "labels", "integers", (None,)))
        n_samples = int(holder.add(np.array([n_held]))[0])
        n_clusters = int(validate_array(state, "n_clusters", "integers", (1,), 0 if may_be_empty else 1, n_samples)[0])

        def integers(name: str, highest: int | None = None) -> np.ndarray:
            return validate_array(state, name, "integers", (n_held,), NOISE, highest)

        soft = select_prefix("soft.", state)
        labels = integers("labels")
        ids, sizes = holder.count(labels)
        return cls(
            epoch=int(validate_array(state, "epoch", "integers", (1,), 0)[0]),
            labels=labels,
            previous_labels=integers("previous_labels"),
            raw_labels=integers("raw_labels"),
            confidence=validate_array(state, "confidence", "floats", (n_held,), 0.0, 1.0),
            targets=integers("targets", n_clusters - 1),
            n_clusters=n_clusters,
            sizes=sizes[ids != NOISE],
            n_samples=n_samples,
            first=first,
            soft_targets=SoftTargets.from_state(soft, n_held, n_clusters) if soft else None,
        )
