"""The stage between two epochs: cluster the features, refine the labels, make the new targets."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering.checks import NotFiniteError, not_finite
from hf_plr.evaluation.label_free import size_entropy
from hf_plr.pseudo_labels.soft_targets import SoftTargets
from hf_plr.refinement import NOISE, PseudoLabelRefiner, RefinementResult, adjusted_rand, cooccurrence
from hf_plr.refinement.assignment import keep_current
from hf_plr.refinement.blending import SoftCells
from hf_plr.refinement.cooccurrence import chunks
from hf_plr.utils.distributed import gather_all, gather_rows, max_over, on_main, place_of
from hf_plr.utils.serialization import checked, under

logger = logging.getLogger(__name__)

REFINER_LABELS = ("refiner.history.1", "refiner.refined")  # in the state of a stage that has run


class Clusterer(Protocol):
    """Any object with scikit-learn's `fit_predict`: features (N, D) to integer labels (N,), -1 = noise.

    It is called on the main process, with all features as a numpy array. An object that also has
    `fit_predict_shard(features, accelerator)` is called with that instead, on every process, with the process's rows as
    a tensor on its device, and returns their labels.
    """

    def fit_predict(self, features: Any) -> Any:
        """Cluster features (N, D) and return their labels (N,)."""


@dataclass
class PseudoLabels:
    """What the stage gives to the training loop.

    Every process holds these arrays of all samples. Labels are int32; raw ones are int64 where the clusterer's ids are
    too large for that.

    Attributes:
        epoch: epoch that these labels train.
        labels: refined label of each sample, -1 = noise, shape (N,); numbers live on from epoch to epoch.
        previous_labels: the refined labels of the epoch before, shape (N,); -1 everywhere at the first.
        raw_labels: the clusterer's labels before refinement, shape (N,).
        confidence: in [0, 1], float32 of shape (N,).
        targets: position of each sample's prototype, 0 to n_clusters - 1, -1 = none and, where targets are hard, no
            loss, shape (N,). Noise whose past says two clusters alike has soft targets and none here.
        n_clusters: number of prototypes.
        soft_targets: soft targets, or None where targets are hard.
    """

    epoch: int
    labels: np.ndarray
    previous_labels: np.ndarray
    raw_labels: np.ndarray
    confidence: np.ndarray
    targets: np.ndarray
    n_clusters: int
    soft_targets: SoftTargets | None = None


class RefinementStage:
    """Cluster, refine and turn labels into targets, once an epoch.

    Args:
        clusterer: see `Clusterer`; if it also has `state_dict` and `load_state_dict`, they are kept in
            checkpoints.
        refiner: the refinement.
        refine_start_epoch: epochs before this one train on the clusters as they are.
        accelerator: shares the samples among processes; all of them have all labels.
        min_confidence: samples whose label has less confidence are not trained on in this epoch; they keep it.
        may_be_empty: an epoch without any cluster is no error, as of a labeling beside others.

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
    ):
        if refiner.harden == "none" and refiner.space == "joint":
            raise ValueError("harden='none' needs space='projected': joint soft labels are no targets of the clusters")
        self.may_be_empty = may_be_empty
        self.min_confidence = min_confidence
        self.clusterer = clusterer
        self.refiner = refiner
        self.refine_start_epoch = refine_start_epoch
        self.accelerator = accelerator
        self.current: PseudoLabels | None = None

    def run(self, features: torch.Tensor, epoch: int) -> dict[str, float]:
        """Make the pseudo-labels of an epoch from its features and leave them in `current`.

        Args:
            features: this process's rows, shape (n, D); those of all processes one after the other are the N samples.
            epoch: the epoch.

        Returns:
            The stage's figures for the log, without a prefix.

        Raises:
            ValueError: if the clusterer's answer does not fit, or all samples are noise.
        """
        last = self.current
        started = time.perf_counter()
        raw = self._cluster(features)
        clustered = time.perf_counter()
        refining = epoch >= self.refine_start_epoch
        if not refining:
            self.refiner.forget()
        result = self.refiner.refine(raw, out=np.empty(len(raw), np.int32))
        refined = time.perf_counter()

        soft = self.refiner.harden == "none" and refining
        find_targets = _soft_targets if soft else _hard_targets
        of_cell, n_clusters, rows = find_targets(result, self.min_confidence if refining else 0.0)
        cells, counts = result.cells, result.table.counts
        start, _ = place_of(self.accelerator, len(features))
        mine = slice(start, start + len(features))
        wanted = [cells.confidence.astype(np.float32), of_cell.astype(np.int32)]
        if soft:
            wanted.append(np.arange(len(of_cell), dtype=np.int32))
        confidence, targets, *cell = (
            gather_rows(self.accelerator, torch.from_numpy(values)).numpy()
            for values in _of_samples(result, mine, *wanted)
        )
        previous = np.full(len(raw), NOISE, np.int32) if last is None else last.labels
        soft_targets = None if rows is None else SoftTargets(rows, cell[0])
        self.current = PseudoLabels(epoch, result.labels, previous, raw, confidence, targets, n_clusters, soft_targets)
        seconds = {"seconds_cluster": clustered - started, "seconds_refine": refined - clustered}
        if n_clusters == 0 and self.may_be_empty:
            logger.warning("Epoch %d: a finer labeling has no clusters, so this epoch trains on the others.", epoch)
            return {"clusters": 0.0, **seconds}
        if n_clusters == 0:
            raise ValueError(
                f"epoch {epoch}: all {len(raw)} samples are noise, so there is nothing to train on. "
                "Use fewer, larger clusters or a lower min_cluster_size or min_confidence; with dbscan, a larger eps."
            )
        if n_clusters == 1 and not self.may_be_empty:
            logger.warning(
                "Epoch %d: only one cluster is left, so the loss is zero and nothing is learned. Use a larger "
                "num_clusters, a lower learning rate, or weaker refinement (--refinement none to check).",
                epoch,
            )
        taught = of_cell != NOISE
        sizes = np.bincount(of_cell[taught], weights=counts[taught], minlength=n_clusters)
        figures = {
            "clusters": float(n_clusters),
            "clusters_raw": float(len(result.table.current_ids)),
            "noise_share": float(counts[cells.labels == NOISE].sum() / len(raw)),
            "left_out_share": float(counts[of_cell == NOISE].sum() / len(raw)),
            "changed_share": result.changed_share,
            "mean_confidence": float(np.average(cells.confidence, weights=counts)),
            "size_entropy": size_entropy(sizes),
            "largest_share": float(sizes.max() / sizes.sum()),
            **seconds,
        }
        if soft:
            figures["soft_share"] = 1.0 - float(np.average(cells.confidence[taught], weights=counts[taught]))
        if last is not None:
            pairs = sum(gather_all(self.accelerator, cooccurrence(last.labels[mine], result.labels[mine])))
            figures["agreement_ari"] = adjusted_rand(pairs.previous, pairs.current, pairs.counts)
            before, after = (
                np.append(ids, NOISE)[codes]
                for ids, codes in ((pairs.previous_ids, pairs.previous), (pairs.current_ids, pairs.current))
            )
            figures["churn"] = float(pairs.counts[before != after].sum() / len(raw))
            figures |= {kind: float(number) for kind, number in result.events.counts().items()}
        return figures

    def keep(self, epoch: int) -> None:
        """Let an epoch train on the labels of the one before."""
        assert self.current is not None
        self.current = dataclasses.replace(self.current, epoch=epoch)

    def _cluster(self, features: torch.Tensor) -> np.ndarray:
        """The clusterer's labels of all samples, on every process."""
        if hasattr(self.clusterer, "fit_predict_shard"):
            found = self.clusterer.fit_predict_shard(features, self.accelerator)
            mine = check_labels(found, features, self.accelerator)
            return gather_rows(self.accelerator, torch.from_numpy(mine)).numpy()
        everything = gather_rows(self.accelerator, features)
        fit_predict = self.clusterer.fit_predict
        labels: np.ndarray = on_main(
            self.accelerator, lambda: check_labels(fit_predict(everything.cpu().numpy()), everything)
        )
        return labels

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that the next epoch or a resumed one needs, as arrays by name."""
        state = {f"refiner.{name}": value for name, value in self.refiner.state_dict().items()}
        if hasattr(self.clusterer, "state_dict"):
            for name, value in self.clusterer.state_dict().items():
                state[f"clusterer.{name}"] = torch.as_tensor(value).cpu().numpy()
        if self.current is not None:
            now = self.current
            state |= {
                "epoch": np.array([now.epoch]),
                "labels": now.labels,
                "previous_labels": now.previous_labels,
                "raw_labels": now.raw_labels,
                "confidence": now.confidence,
                "targets": now.targets,
                "n_clusters": np.array([now.n_clusters]),
            }
            if now.soft_targets is not None:
                state |= {f"soft.{name}": value for name, value in now.soft_targets.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: if an array is missing or cannot be what `state_dict` gave, naming it.
        """
        self.refiner.load_state_dict(under("refiner.", state))
        if hasattr(self.clusterer, "load_state_dict"):
            self.clusterer.load_state_dict(under("clusterer.", state))
        self.current = None
        if not {"epoch", "labels"} & state.keys():
            return
        n = len(checked(state, "labels", "integers", (None,)))
        for name in REFINER_LABELS:
            checked(state, name, "integers", (n,))
        n_clusters = int(checked(state, "n_clusters", "integers", (1,), 0 if self.may_be_empty else 1, n)[0])

        def integers(name: str, highest: int | None = None) -> np.ndarray:
            return checked(state, name, "integers", (n,), NOISE, highest)

        soft = under("soft.", state)
        self.current = PseudoLabels(
            epoch=int(checked(state, "epoch", "integers", (1,), 0)[0]),
            labels=integers("labels"),
            previous_labels=integers("previous_labels"),
            raw_labels=integers("raw_labels"),
            confidence=checked(state, "confidence", "floats", (n,), 0.0, 1.0),
            targets=integers("targets", n_clusters - 1),
            n_clusters=n_clusters,
            soft_targets=SoftTargets.from_state(soft, n, n_clusters) if soft else None,
        )


def check_labels(labels: Any, features: torch.Tensor, accelerator: Accelerator | None = None) -> np.ndarray:
    """A clusterer's answer as int32 labels (N,), or int64 if an id does not fit on one of the processes.

    Raises:
        ValueError: if it is not one integer a sample.
    """
    labels = np.asarray(labels)
    if labels.shape != (len(features),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"the clusterer's fit_predict gave {labels.dtype} of shape {labels.shape}; "
            f"expected integers of shape ({len(features)},), -1 = noise"
        )
    largest = max(int(labels.max()), -int(labels.min())) if len(labels) else 0
    return labels.astype(np.int32 if max_over(accelerator, largest) <= np.iinfo(np.int32).max else np.int64)


def default_num_clusters(n_samples: int) -> int:
    """Number of clusters when the user names none: 1.5 times the square root of N, at most half of N."""
    return max(1, min(n_samples // 2, round(1.5 * n_samples**0.5)))


def _hard_targets(result: RefinementResult, min_confidence: float) -> tuple[np.ndarray, int, None]:
    """Position of each cell's prototype, -1 = no loss, shape (cells,), how many there are, and no soft targets."""
    cells = result.cells
    trained = (cells.labels != NOISE) & (cells.confidence >= min_confidence)
    ids = np.unique(cells.labels[trained])
    return np.where(trained, np.searchsorted(ids, cells.labels), NOISE), len(ids), None


def _soft_targets(result: RefinementResult, min_confidence: float) -> tuple[np.ndarray, int, SoftCells]:
    """As `_hard_targets`, with the soft targets of the cells: over the clusters that have a sure member."""
    cells = result.cells
    cluster, soft = keep_current(cells.table, cells.soft), cells.soft
    doubtful = cells.confidence < min_confidence
    if not doubtful.any():
        return cluster, soft.n_columns, soft
    cluster = np.where(doubtful, NOISE, cluster)
    taught = np.unique(cluster[cluster != NOISE])
    target = np.where(cluster != NOISE, np.searchsorted(taught, cluster), NOISE)
    return target, len(taught), soft.without(doubtful).columns(taught)


def _of_samples(result: RefinementResult, samples: slice, *of_cells: np.ndarray) -> list[np.ndarray]:
    """What cells have, for each of these n samples: an array (n,) for each one of shape (cells,), of its type."""
    found = [np.empty(samples.stop - samples.start, values.dtype) for values in of_cells]
    for span in chunks(len(found[0])):
        cell = result.cell_of_sample(samples.start + span.start, samples.start + span.stop)
        for array, values in zip(found, of_cells, strict=True):
            array[span] = values[cell]
    return found


def check_finite(features: torch.Tensor, epoch: int, rows: np.ndarray, accelerator: Accelerator) -> None:
    """Refuse features that are not finite, on every process.

    Args:
        features: this process's rows, shape (n, D).
        epoch: the epoch, for the message.
        rows: these samples' rows in the data set, shape (n,).
        accelerator: tells the others.

    Raises:
        NotFiniteError: with the epoch and the rows.
    """
    found = gather_all(accelerator, (len(features), rows[not_finite(features).numpy()].tolist()))
    total, bad = sum(n for n, _ in found), [row for _, part in found for row in part]
    if bad:
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise NotFiniteError(
            f"epoch {epoch}: the features of {len(bad)} of {total} samples are NaN or infinite "
            f"(samples {shown}). The weights have probably diverged: lower the learning rate."
        )
