"""Stage between two rounds: cluster the frames, refine the units."""

from __future__ import annotations

import copy
import dataclasses
import os
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering import KMeans
from hf_plr.clustering.checks import NotFiniteError, find_nonfinite_rows
from hf_plr.evaluation.codes import lift_classes
from hf_plr.evaluation.units import score_unit_table
from hf_plr.pseudo_labels.holding import add_tables, is_of_samples
from hf_plr.pseudo_labels.stage import REFINER_LABELS
from hf_plr.refinement import NOISE, CooccurrenceTable, PseudoLabelRefiner, adjusted_rand, cooccurrence
from hf_plr.refinement.cooccurrence import iterate_blocks, iterate_chunks
from hf_plr.units.frame_labels import SharedLabels
from hf_plr.units.frames import Frames, compute_frame_bounds
from hf_plr.units.space import FrameSpace, FrameSpaceFitter
from hf_plr.utils.distributed import gather_objects
from hf_plr.utils.mapped_arrays import allocate_array
from hf_plr.utils.serialization import select_prefix, validate_array

SPREAD_RECORDINGS = 1 << 12  # whose frames get their true labels at a time


@dataclass
class FrameUnits:
    """Units of one round.

    Attributes:
        round: round that trains on them.
        labels: refined unit per frame, -1 = none, the recordings' frames one after the other; integers (F,), in a
            memory-mapped file that the processes of a machine share.
        raw_labels: centroid per frame, before refinement, (F,), likewise.
        own: the frames of this process's recordings.
        table: co-occurrence of the centroids and units of all frames.
        changed_share: fraction of the frames whose unit refinement changed; None after a checkpoint.
    """

    round: int
    labels: np.ndarray
    raw_labels: np.ndarray
    own: slice
    table: CooccurrenceTable
    changed_share: float | None = None

    def move_to_round(self, round_: int) -> FrameUnits:
        """Copy the units for another round."""
        return dataclasses.replace(self, round=round_)

    def list_units(self) -> np.ndarray:
        """List the units that have frames, ascending, int64 (K,)."""
        return self.table.current_ids

    def count_frames(self) -> np.ndarray:
        """Count the frames of the units of `list_units`, int64 (K,)."""
        return self.table.sizes(-1)

    def map_centroids_to_units(self, n_centroids: int) -> np.ndarray:
        """Map each centroid to the unit of most of its frames, int64 (K,); -1 if most have none, or there are none."""
        table, is_known = self.table, self.table.previous != NOISE
        counts = np.zeros((len(table.previous_ids), len(table.current_ids) + 1))  # of noise in the last column
        np.add.at(counts, (table.previous[is_known], table.current[is_known]), table.counts[is_known])
        units = np.full(n_centroids, NOISE, dtype=np.int64)
        units[table.previous_ids] = np.append(table.current_ids, NOISE)[counts.argmax(axis=1)]
        return units


def unit_metrics(before: FrameUnits | None, after: FrameUnits, accelerator: Accelerator) -> dict[str, float]:
    """Compute the log's metrics of a stage's new units; called on every process."""
    assert after.changed_share is not None
    metrics = {
        "round": float(after.round),
        "units": float(len(after.list_units())),
        "frames": float(len(after.labels)),
        "changed_share": after.changed_share,
    }
    if before is not None:
        table = add_tables(accelerator, cooccurrence(before.labels[before.own], after.labels[after.own]))
        metrics["agreement_ari"] = adjusted_rand(table.previous, table.current, table.counts)
    return metrics


class FrameStage:
    """Stage that makes a round's units: `fit` centroids, `assign` all frames in a stream, `refine` the units.

    Args:
        n_units: centroids.
        refiner: the refinement, over frames.
        fit_frames: frames, of recordings drawn at random, that the centroids are fitted on.
        seed: seed of the draw and of k-means.
        accelerator: shares the recordings among processes; each machine has all labels once.
        folder: folder of the labels' memory-mapped files, see `SharedLabels`; None takes the system's temporary folder.
        fitter: makes the space in which frames are clustered; None leaves them as they are.

    Attributes:
        kmeans: the last round's centroids.
        space: the space of the centroids, fitted with them; a resumed run fits it anew with the next round.
    """

    def __init__(
        self,
        n_units: int,
        refiner: PseudoLabelRefiner,
        fit_frames: int,
        seed: int,
        accelerator: Accelerator,
        folder: str | os.PathLike[str] | None = None,
        fitter: FrameSpaceFitter | None = None,
    ):
        self.fitter = FrameSpaceFitter() if fitter is None else fitter
        self.space = FrameSpace()
        self.refiner = refiner
        self.fit_frames = fit_frames
        self.seed = seed
        self.accelerator = accelerator
        self.files = SharedLabels(accelerator, folder)
        self.kmeans = KMeans(n_units, spherical=False, seed=seed)
        self._start = refiner.copy()

    def begin_anew(self) -> None:
        """Forget all rounds: the next one is refined by none, and its centroids start from none."""
        self.refiner.return_to(self._start)
        self.kmeans.load_state_dict({})
        self.space = FrameSpace()

    def copy(self) -> FrameStage:
        """Copy the stage: what the copy fits and refines leaves this one as it is. They share labels of frames."""
        other = copy.copy(self)
        other.refiner, other.kmeans = self.refiner.copy(), copy.copy(self.kmeans)
        return other

    def refine(self, clusters: np.ndarray, round_: int, own: slice) -> FrameUnits:
        """Refine the output of `assign` by the units of the last round; each process refines its own frames."""
        labels = self._allocate_labels(len(clusters))
        refined = self.refiner.refine(
            clusters[own],
            out=labels[own],
            offset=own.start,
            add_shards=lambda table: add_tables(self.accelerator, table),
        )
        self.files.complete(labels, own)
        return self._make_units(round_, labels, clusters, own, refined.changed_share)

    def _make_units(
        self, round_: int, labels: np.ndarray, clusters: np.ndarray, own: slice, changed_share: float | None = None
    ) -> FrameUnits:
        table = add_tables(self.accelerator, cooccurrence(clusters[own], labels[own]))
        return FrameUnits(round_, labels, clusters, own, table, changed_share)

    def state_dict(self, units: FrameUnits) -> dict[str, np.ndarray]:
        """State for a resumed run, as arrays by name; labels are those of this process's recordings."""
        return {
            **{f"refiner.{name}": value for name, value in self.refiner.state_dict().items()},
            **{f"kmeans.{name}": value.cpu().numpy() for name, value in self.kmeans.state_dict().items()},
            "round": np.array([units.round]),
            "units": units.labels[units.own],
            "raw_units": units.raw_labels[units.own],
        }

    def load_state_dict(self, state: dict[str, np.ndarray], own: slice, n_frames: int) -> FrameUnits:
        """Restore the output of `state_dict`, and return the units in it; other entries are ignored.

        Args:
            state: arrays by name. Before release 0.2, labels were those of all recordings on every process.
            own: the frames of this process's recordings.
            n_frames: number F of all frames.

        Raises:
            ValueError: if an array is missing or invalid, naming it.
        """
        n_own = own.stop - own.start
        if n_own < n_frames and len(state.get("units", ())) == n_frames:
            state = {name: array[own] if is_of_samples(name) else array for name, array in state.items()}
        self.refiner.load_state_dict(select_prefix("refiner.", state))
        self.kmeans.load_state_dict(
            {name: torch.from_numpy(value) for name, value in select_prefix("kmeans.", state).items()}
        )
        round_ = int(validate_array(state, "round", "integers", (1,), 0)[0])
        units = validate_array(state, "units", "integers", (n_own,), NOISE)
        for name in REFINER_LABELS:
            validate_array(state, name, "integers", units.shape)
        raw_labels = validate_array(state, "raw_units", "integers", units.shape, 0, self.kmeans.n_clusters - 1)
        return self._make_units(round_, self._share(units, own, n_frames), self._share(raw_labels, own, n_frames), own)

    def _share(self, values: np.ndarray, own: slice, n_frames: int) -> np.ndarray:
        """Labels of all frames, from each process's of its own."""
        labels = self._allocate_labels(n_frames)
        labels[own] = values
        self.files.complete(labels, own)
        return labels

    def fit(self, frames: Frames, round_: int) -> None:
        """Fit space and centroids on a part of the frames, from the last round's if those are of the same features.

        Raises:
            ValueError: if there are fewer frames than units.
            NotFiniteError: if features are NaN or infinite.
        """
        order = np.random.default_rng([self.seed, round_]).permutation(len(frames.counts))
        n_drawn = int(np.searchsorted(np.cumsum(frames.counts[order]), self.fit_frames)) + 1
        positions = torch.from_numpy(np.sort(order[:n_drawn]))
        local_positions = positions[frames.extractor.local_slice(frames.store, positions)]
        drawn = list(frames.stream_recordings(local_positions))
        self._check_finite(sum(len(find_nonfinite_rows(rows)) for rows, _ in drawn), round_)
        self.space, rows = self.fitter.fit(frames, drawn, self.accelerator)
        self.kmeans.fit_predict_shard(rows, self.accelerator)

    def own_frames(self, frames: Frames) -> slice:
        """The frames of this process's recordings among those of all."""
        recordings, bounds = frames.extractor.local_slice(frames.store), compute_frame_bounds(frames.counts)
        return slice(int(bounds[recordings.start]), int(bounds[recordings.stop]))

    def assign(self, frames: Frames, round_: int) -> np.ndarray:
        """Assign every frame to its nearest centroid; returns integers (F,), in a file that each machine has once.

        Raises:
            NotFiniteError: if features are NaN or infinite.
        """
        recordings, own = frames.extractor.local_slice(frames.store), self.own_frames(frames)
        labels = self._allocate_labels(int(frames.counts.sum()))
        start, n_bad = own.start, 0
        for rows, positions in frames.stream_recordings(torch.arange(recordings.start, recordings.stop)):
            n_bad += len(find_nonfinite_rows(rows))
            if not n_bad:  # the others are told of on every process, when all are counted
                mapped = self.space.map(rows, *self.fitter.describe(frames, positions))
                labels[start : start + len(rows)] = self.kmeans.predict(mapped)
            start += len(rows)
        self._check_finite(n_bad, round_)
        self.files.complete(labels, own)
        return labels

    def score(self, units: FrameUnits, truth: np.ndarray, bounds: np.ndarray) -> dict[str, float]:
        """Score units by the true labels of their recordings as `score_units` does; called on every process.

        Args:
            units: the units.
            truth: true label per recording, integers (N,), -1 = unknown; classes may have any other numbers.
            bounds: output of `compute_frame_bounds`, (N + 1,).

        Returns:
            The scores, on every process; empty where no frame has both a unit and a label.
        """
        truth = lift_classes(truth)
        first, last = np.searchsorted(bounds, [units.own.start, units.own.stop])
        table = cooccurrence(np.empty(0, np.int64), np.empty(0, np.int64))
        for part in iterate_blocks(int(last - first), SPREAD_RECORDINGS):
            recordings = slice(first + part.start, first + part.stop)
            counts = np.diff(bounds[recordings.start : recordings.stop + 1])
            found = units.labels[bounds[recordings.start] : bounds[recordings.stop]]
            table = table + cooccurrence(np.repeat(truth[recordings], counts), found)
        table = add_tables(self.accelerator, table)
        return score_unit_table(table) if table.matrix().nnz else {}

    def apply_centroid_units(self, units: np.ndarray, raw_labels: np.ndarray) -> np.ndarray:
        """Give each frame the unit of its centroid: integers (F,) in a memory-mapped file of this process alone.

        Args:
            units: output of `FrameUnits.map_centroids_to_units`, (K,).
            raw_labels: centroid per frame, (F,).
        """
        labels = allocate_array((len(raw_labels),), self._label_type, self.files.folder)
        for span in iterate_chunks(len(raw_labels)):
            labels[span] = units[raw_labels[span]]
        return labels

    def _check_finite(self, n_bad: int, round_: int) -> None:
        """Reject frames that are not finite, on every process if any has some."""
        n_bad = sum(gather_objects(self.accelerator, n_bad))
        if n_bad:
            raise NotFiniteError(
                f"round {round_}: {n_bad} frames are NaN or infinite. The weights have probably diverged: lower the "
                "learning rate"
            )

    @property
    def _label_type(self) -> np.dtype:
        """The smallest type that holds every unit."""
        return np.dtype(np.int16 if 2 * self.kmeans.n_clusters < 2**15 else np.int32)

    def _allocate_labels(self, n_frames: int) -> np.ndarray:
        return self.files.allocate(n_frames, self._label_type)
