"""Stage between two rounds: cluster the frames, refine the units."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering import KMeans
from hf_plr.clustering.checks import NotFiniteError, find_nonfinite_rows
from hf_plr.pseudo_labels.stage import REFINER_LABELS
from hf_plr.refinement import NOISE, PseudoLabelRefiner, adjusted_rand, cooccurrence
from hf_plr.refinement.cooccurrence import as_int64, iterate_blocks, iterate_chunks, list_cluster_ids
from hf_plr.units.frames import Frames, compute_frame_bounds
from hf_plr.units.space import FrameSpace, FrameSpaceFitter
from hf_plr.utils.distributed import gather_objects, gather_rows
from hf_plr.utils.serialization import select_prefix, validate_array

GATHERED_FRAMES = 1 << 22  # of each process at a time
SPREAD_RECORDINGS = 1 << 12  # whose frames get their labels at a time


@dataclass
class FrameUnits:
    """Units of one round.

    Attributes:
        round: round that trains on them.
        labels: refined unit per frame, -1 = none, the recordings' frames one after the other; integers (F,),
            in a memory-mapped file.
        raw_labels: centroid per frame, before refinement, (F,).
        changed_share: fraction of the frames whose unit refinement changed; None after a checkpoint.
    """

    round: int
    labels: np.ndarray
    raw_labels: np.ndarray
    changed_share: float | None = None

    def move_to_round(self, round_: int) -> FrameUnits:
        """Copy the units for another round."""
        return dataclasses.replace(self, round=round_)

    def list_units(self) -> np.ndarray:
        """List the units that have frames, ascending, int64 (K,); labels are read in chunks."""
        return list_cluster_ids(self.labels)

    def count_frames(self) -> np.ndarray:
        """Count the frames of the units of `list_units`, int64 (K,); labels are read in chunks."""
        counts = np.zeros(0, dtype=np.int64)
        for span in iterate_chunks(len(self.labels)):
            units = as_int64(self.labels[span])
            total = np.bincount(units[units != NOISE], minlength=len(counts))
            total[: len(counts)] += counts
            counts = total
        return counts[counts > 0]

    def map_centroids_to_units(self, n_centroids: int) -> np.ndarray:
        """Map each centroid to the unit of most of its frames, int64 (K,); -1 for a centroid without frames."""
        table = cooccurrence(self.raw_labels, self.labels)
        counts = table.matrix().toarray()
        units = np.full(n_centroids, NOISE, dtype=np.int64)
        units[table.previous_ids] = table.current_ids[counts.argmax(axis=1)]
        return units


def unit_metrics(before: FrameUnits | None, after: FrameUnits) -> dict[str, float]:
    """Compute the log's metrics of a stage's new units."""
    assert after.changed_share is not None
    metrics = {
        "round": float(after.round),
        "units": float(len(after.list_units())),
        "frames": float(len(after.labels)),
        "changed_share": after.changed_share,
    }
    if before is not None:
        table = cooccurrence(before.labels, after.labels)
        metrics["agreement_ari"] = adjusted_rand(table.previous, table.current, table.counts)
    return metrics


class FrameStage:
    """Stage that makes a round's units: `fit` centroids, `assign` all frames in a stream, `refine` the units.

    Args:
        n_units: centroids.
        refiner: the refinement, over frames.
        fit_frames: frames, of recordings drawn at random, that the centroids are fitted on.
        seed: seed of the draw and of k-means.
        accelerator: shares the recordings among processes; every process has all labels.
        folder: folder of the labels' memory-mapped files, which have no name; None takes the system's temporary folder.
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
        self.folder = folder
        self.kmeans = KMeans(n_units, spherical=False, seed=seed)

    def refine(self, clusters: np.ndarray, round_: int) -> FrameUnits:
        """Refine the output of `assign` by the units of the last round."""
        refined = self.refiner.refine(clusters, out=self._allocate_labels(len(clusters)))
        return FrameUnits(round_, refined.labels, clusters, refined.changed_share)

    def state_dict(self, units: FrameUnits) -> dict[str, np.ndarray]:
        """State for a resumed run, as arrays by name."""
        return {
            **{f"refiner.{name}": value for name, value in self.refiner.state_dict().items()},
            **{f"kmeans.{name}": value.cpu().numpy() for name, value in self.kmeans.state_dict().items()},
            "round": np.array([units.round]),
            "units": units.labels,
            "raw_units": units.raw_labels,
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> FrameUnits:
        """Restore the output of `state_dict`, and return the units in it; other entries are ignored.

        Raises:
            ValueError: if an array is missing or invalid, naming it.
        """
        self.refiner.load_state_dict(select_prefix("refiner.", state))
        self.kmeans.load_state_dict(
            {name: torch.from_numpy(value) for name, value in select_prefix("kmeans.", state).items()}
        )
        round_ = int(validate_array(state, "round", "integers", (1,), 0)[0])
        units = validate_array(state, "units", "integers", (None,), NOISE)
        for name in REFINER_LABELS:
            validate_array(state, name, "integers", units.shape)
        raw_labels = validate_array(state, "raw_units", "integers", units.shape, 0, self.kmeans.n_clusters - 1)
        return FrameUnits(round_, units, raw_labels)

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

    def assign(self, frames: Frames, round_: int) -> np.ndarray:
        """Assign every frame to its nearest centroid; returns integers (F,) on every process.

        Raises:
            NotFiniteError: if features are NaN or infinite.
        """
        local_slice = frames.extractor.local_slice(frames.store)
        bounds = compute_frame_bounds(frames.counts)
        local_labels = self._allocate_labels(int(bounds[local_slice.stop] - bounds[local_slice.start]))
        start = n_bad = 0
        for rows, positions in frames.stream_recordings(torch.arange(local_slice.start, local_slice.stop)):
            n_bad += len(find_nonfinite_rows(rows))
            mapped = self.space.map(rows, *self.fitter.describe(frames, positions))
            local_labels[start : start + len(rows)] = self.kmeans.predict(mapped)
            start += len(rows)
        self._check_finite(n_bad, round_)
        if self.accelerator.num_processes == 1:
            return local_labels
        return self._gather_labels(local_labels)

    def spread_over_frames(self, labels: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        """Give each frame its recording's label: integers (F,) in a memory-mapped file.

        Args:
            labels: integers (N,).
            bounds: output of `compute_frame_bounds` (N + 1,).
        """
        is_small = labels.max(initial=0) < 2**31
        spread = self._allocate(int(bounds[-1]), np.dtype(np.int32) if is_small else labels.dtype)
        for part in iterate_blocks(len(labels), SPREAD_RECORDINGS):
            counts = np.diff(bounds[part.start : part.stop + 1])
            spread[bounds[part.start] : bounds[part.stop]] = np.repeat(labels[part].astype(spread.dtype), counts)
        return spread

    def apply_centroid_units(self, units: np.ndarray, raw_labels: np.ndarray) -> np.ndarray:
        """Give each frame the unit of its centroid: integers (F,) in a memory-mapped file.

        Args:
            units: output of `FrameUnits.map_centroids_to_units`, (K,).
            raw_labels: centroid per frame, (F,).
        """
        labels = self._allocate_labels(len(raw_labels))
        for span in iterate_chunks(len(raw_labels)):
            labels[span] = units[raw_labels[span]]
        return labels

    def _gather_labels(self, local_labels: np.ndarray) -> np.ndarray:
        """Gather the labels of all processes, part by part: on CPUs, from file to file."""
        lengths = gather_objects(self.accelerator, len(local_labels))
        starts = np.cumsum(lengths) - lengths
        labels = self._allocate_labels(sum(lengths))
        for span in iterate_blocks(max(lengths), GATHERED_FRAMES):
            values = torch.from_numpy(local_labels[span].view(np.uint8))  # as bytes: no backend takes int16
            gathered = gather_rows(self.accelerator, values).numpy().view(labels.dtype)
            for start, length in zip(starts, lengths, strict=True):
                part = slice(start + min(span.start, length), start + min(span.stop, length))
                n_frames = part.stop - part.start
                labels[part], gathered = gathered[:n_frames], gathered[n_frames:]
        return labels

    def _check_finite(self, n_bad: int, round_: int) -> None:
        """Reject frames that are not finite, on every process if any has some."""
        n_bad = sum(gather_objects(self.accelerator, n_bad))
        if n_bad:
            raise NotFiniteError(
                f"round {round_}: {n_bad} frames are NaN or infinite. The weights have probably diverged: lower the "
                "learning rate"
            )

    def _allocate_labels(self, n_frames: int) -> np.ndarray:
        """Allocate labels of frames in the smallest type that holds every unit."""
        return self._allocate(n_frames, np.dtype(np.int16 if 2 * self.kmeans.n_clusters < 2**15 else np.int32))

    def _allocate(self, n_frames: int, dtype: np.dtype) -> np.ndarray:
        """Allocate an array in a memory-mapped file without a name; it is gone as soon as nothing refers to it."""
        if n_frames == 0:
            return np.empty(0, dtype)
        if self.folder is not None:
            os.makedirs(self.folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder, prefix="units-") as file:
            file.truncate(n_frames * dtype.itemsize)
            return np.memmap(file, dtype, "r+", shape=(n_frames,))
