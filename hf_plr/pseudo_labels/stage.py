"""Stage between two epochs: cluster the features, refine the clusters, make targets of the refined labels."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering import Clusterer
from hf_plr.clustering.ensemble import Ensemble
from hf_plr.clustering.protocol import validate_labels
from hf_plr.pseudo_labels.epoch_labels import PseudoLabels
from hf_plr.pseudo_labels.holding import AllLabels
from hf_plr.pseudo_labels.soft_targets import SoftTargets
from hf_plr.pseudo_labels.targets import make_hard_targets, make_soft_targets, measure_refinement, spread_to_samples
from hf_plr.refinement import NOISE, PseudoLabelRefiner, RefinementResult
from hf_plr.refinement.blending import SoftCells
from hf_plr.utils.serialization import select_prefix, validate_array

logger = logging.getLogger(__name__)

SMALLEST = 2  # members of a cluster that can be told from noise
REFINER_LABELS = ("refiner.history.1", "refiner.refined")  # in the state of a stage that has run


class RefinementStage:
    """Stage that makes the pseudo-labels of an epoch in two calls: `cluster`, then `refine`.

    Args:
        clusterer: clusters the features; its state is kept in checkpoints.
        refiner: projects, blends and re-clusters.
        refine_start_epoch: epochs before this one are not refined by those before them; a consensus of an epoch's own
            clusterings is made in each.
        accelerator: shares the samples among processes.
        min_confidence: samples of less confident labels keep these, but have no loss in this epoch.
        may_be_empty: True to allow epochs without clusters, as for a labeling beside others.
        ensemble: further clusterings of each epoch, which a refiner in the joint space takes too; None for none.
        holder: knows whose labels each process holds; None for those of all samples.

    Raises:
        ValueError: if the refiner's soft labels cannot be targets.
    """

    def __init__(
        self,
        clusterer: Clusterer,
        refiner: PseudoLabelRefiner,
        refine_start_epoch: int,
        accelerator: Accelerator,
        min_confidence: float = 0.0,
        may_be_empty: bool = False,
        ensemble: Ensemble | None = None,
        holder: AllLabels | None = None,
    ):
        if refiner.assignment == "soft" and refiner.space == "joint":
            raise ValueError(
                "assignment='soft' needs space='projected': joint soft labels are not targets of the clusters"
            )
        self.may_be_empty = may_be_empty
        self.min_confidence = min_confidence
        self.ensemble = ensemble
        self.clusterer = clusterer
        self.refiner = refiner
        self.refine_start_epoch = refine_start_epoch
        self.accelerator = accelerator
        self.holder = AllLabels(accelerator) if holder is None else holder
        self._continued: tuple[np.ndarray, int] | None = None  # labels of an earlier run, and the next number
        self._finer: tuple[RefinementResult, ...] = ()  # of the epoch, until their labels are made
        self._start = refiner.copy(), _copy_state(clusterer)

    def begin_anew(self) -> None:
        """Forget all calls: refiner and clusterer remember what they did when the stage was made."""
        refiner, state = self._start
        self.refiner.return_to(refiner)
        if state is not None:
            self.clusterer.load_state_dict(copy.deepcopy(state))
        self._continued, self._finer = None, ()

    def continue_from(self, labels: np.ndarray, next_number: int) -> None:
        """Let the next refinement continue labels of an earlier run, see `PseudoLabelRefiner.continue_from`.

        Args:
            labels: label of each sample that this process holds, -1 = none, shape (N,).
            next_number: the smallest number that may be given to a new cluster.
        """
        self._continued = labels, next_number

    @property
    def clusterers(self) -> list[Any]:
        """The clusterers of a stage in the order of their calls, without members that are made anew each time."""
        return [self.clusterer, *getattr(self.ensemble, "clusterers", ())]

    @property
    def n_sought(self) -> int | None:
        """Number of clusters that are sought; None where neither refiner nor clusterer has one."""
        if self.refiner.n_levels > 1 and isinstance(self.refiner.n_clusters, int):
            return self.refiner.n_clusters
        n = self.clusterer.get_params().get("n_clusters")
        return n if isinstance(n, int) else None

    def cluster(self, rows: torch.Tensor, epoch: int) -> np.ndarray:
        """Cluster the rows of all processes.

        Args:
            rows: this process's rows, shape (n, D).
            epoch: epoch that the labels will train; the ensemble's clusterings differ between epochs.

        Returns:
            Labels of the samples that this process holds, -1 = noise, shape (N,). With an ensemble (N, M): the
            clusterer's, then those of each of its members.

        Raises:
            ValueError: if the clusterer's labels are not one integer per sample.
        """
        labels = self.clusterer.fit_predict_shard(rows, self.accelerator)
        local = validate_labels(labels, len(rows), self.accelerator)
        if self.ensemble is not None:
            local = np.stack([local, *self.ensemble.fit_predict_shard(rows, epoch, self.accelerator)], axis=1)
        return self.holder.hold(local)

    def refine(self, clusters: np.ndarray, epoch: int, part: slice, previous: PseudoLabels | None) -> PseudoLabels:
        """Refine clusters by those of the epochs before, and make targets of the refined labels.

        Args:
            clusters: output of `cluster`, shape (N,) or (N, M).
            epoch: epoch that the labels will train.
            part: positions of this process's samples.
            previous: labels of the epoch before; None at the first.

        Raises:
            ValueError: if all samples are noise.
        """
        if self._continued is not None:
            last, next_number = self._continued
            self.refiner.continue_from(last, 1 if clusters.ndim == 1 else clusters.shape[1], next_number)
            self._continued = None
        if epoch < self.refine_start_epoch:
            self.refiner.forget()
        refined = self.refiner.refine(
            clusters,
            out=np.empty(len(clusters), np.int32),
            offset=self.holder.first(part),
            add_shards=self.holder.add_shards,
        )
        self._finer = refined.finer
        labels = self._make_labels(refined, clusters, epoch, part, previous)
        self._check_clusters(labels)
        return labels

    def take_finer(self, level: int, epoch: int, part: slice, previous: PseudoLabels | None) -> PseudoLabels:
        """Make targets of a finer level of the epoch's refinement, once after each call of `refine`.

        Args:
            level: 1 for the next finer one, and so on.
            epoch, part, previous: as for `refine`; the labels before are those of this level.
        """
        refined = self._finer[level - 1]
        if level == len(self._finer):
            self._finer = ()
        return self._make_labels(refined, refined.labels, epoch, part, previous)

    def _make_labels(
        self, refined: RefinementResult, clusters: np.ndarray, epoch: int, part: slice, previous: PseudoLabels | None
    ) -> PseudoLabels:
        """Make the labels of an epoch from a refinement of clusters, shape (N,) or (N, M)."""
        is_refined = epoch >= self.refine_start_epoch
        ids, cell_of = np.unique(refined.cells.labels, return_inverse=True)
        sizes = np.bincount(cell_of, refined.cells.table.counts).astype(np.int64)
        has_soft_targets = self.refiner.assignment == "soft" and is_refined
        targets_per_cell = make_soft_targets if has_soft_targets else make_hard_targets
        of_cells, n_clusters, soft = targets_per_cell(refined, self.min_confidence if is_refined else 0.0)
        confidence, targets, soft_targets = self._spread_targets(refined, part, of_cells, soft)
        labels = PseudoLabels(
            epoch=epoch,
            labels=refined.labels,
            previous_labels=np.full(len(clusters), NOISE, np.int32) if previous is None else previous.labels,
            raw_labels=clusters if clusters.ndim == 1 else np.ascontiguousarray(clusters[:, 0]),
            confidence=confidence,
            targets=targets,
            n_clusters=n_clusters,
            sizes=sizes[ids != NOISE],
            n_samples=int(sizes.sum()),
            first=self.holder.first(part),
            soft_targets=soft_targets,
            refinement=measure_refinement(refined.cells, of_cells, has_soft_targets),
        )
        return labels

    def _spread_targets(
        self, refined: RefinementResult, part: slice, targets: np.ndarray, soft: SoftCells | None
    ) -> tuple[np.ndarray, np.ndarray, SoftTargets | None]:
        """Spread confidence, targets and soft targets of cells to samples; each process locates its own."""
        values = [refined.cells.confidence.astype(np.float32), targets.astype(np.int32)]
        if soft is not None:
            values.append(np.arange(len(targets), dtype=np.int32))
        confidence, spread, *cell = (
            self.holder.hold(local) for local in spread_to_samples(refined, self.holder.own(part), values)
        )
        return confidence, spread, None if soft is None else SoftTargets(soft, cell[0])

    def _check_clusters(self, labels: PseudoLabels) -> None:
        if labels.n_clusters == 0 and self.may_be_empty:
            logger.warning(
                "Epoch %d: a finer labeling has no clusters, so this epoch trains on the others.", labels.epoch
            )
        elif labels.n_clusters == 0:
            is_noise = not labels.sizes.sum()
            raise ValueError(
                f"epoch {labels.epoch}: all {labels.n_samples} samples are noise, so there is nothing to train on. "
                f"{self._advise(labels.n_samples, fewer=True)}."
                if is_noise
                else f"epoch {labels.epoch}: no sample in a cluster has a confidence of at least min_confidence, so "
                "there is nothing to train on. Use a lower min_confidence."
            )
        elif labels.n_clusters == 1 and not self.may_be_empty:
            logger.warning(
                "Epoch %d: only one cluster is left, so nothing is learned from clusters. %s, a lower learning rate, "
                "or weaker refinement (--refinement none to check).",
                labels.epoch,
                self._advise(labels.n_samples, fewer=False),
            )

    def _advise(self, n_samples: int, fewer: bool) -> str:
        """Advise on the clusterer's own arguments, towards fewer and larger clusters or towards more of them."""
        parameters = self.clusterer.get_params()
        n = parameters.get("n_clusters") if isinstance(parameters.get("n_clusters"), int) else None
        if n_samples < SMALLEST * (2 if fewer else (n or 1) + 1):
            return f"Use more samples than {n_samples}"
        if isinstance(n, int):
            return (
                f"Use fewer, larger clusters, by a num_clusters below {n}" if fewer else f"Use a num_clusters above {n}"
            )
        words = {"eps": ("a larger eps", "a smaller eps"), "min_cluster_size": ("a lower min_cluster_size",) * 2}
        known = [word[not fewer] for name, word in words.items() if name in parameters]
        return f"Use {' or '.join(known) or ('fewer, larger clusters' if fewer else 'more clusters')}"

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for the next call, as arrays by name."""
        state = {f"refiner.{name}": value for name, value in self.refiner.state_dict().items()}
        for name, value in self.clusterer.state_dict().items():
            state[f"clusterer.{name}"] = torch.as_tensor(value).cpu().numpy()
        return state

    def load_state_dict(self, state: dict[str, np.ndarray], n_samples: int) -> None:
        """Restore the output of `state_dict` for this number of held samples; other entries are ignored.

        Raises:
            ValueError: if an array is missing or damaged, naming it.
        """
        for name in REFINER_LABELS:
            validate_array(state, name, "integers", (n_samples,))
        self.refiner.load_state_dict(select_prefix("refiner.", state))
        self.clusterer.load_state_dict(select_prefix("clusterer.", state))


def _copy_state(clusterer: Clusterer) -> dict[str, Any] | None:
    """Copy a clusterer's state; None where one of the user's own has none before its first call."""
    try:
        return copy.deepcopy(clusterer.state_dict())
    except Exception:
        return None


def default_num_clusters(n_samples: int) -> int:
    """Default number of clusters: 1.5 times the square root of N, at most half of N, and 2 where there are so many."""
    return max(min(2, n_samples), min(n_samples // 2, round(1.5 * n_samples**0.5)))
