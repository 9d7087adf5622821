"""The stage between two rounds: cluster the frames, refine the units."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering import KMeans
from hf_plr.clustering.checks import NotFiniteError, not_finite
from hf_plr.pseudo_labels.stage import REFINER_LABELS
from hf_plr.refinement import NOISE, PseudoLabelRefiner, adjusted_rand, cooccurrence
from hf_plr.units.frames import Frames, one_after_the_other
from hf_plr.utils.distributed import gather_all, gather_rows
from hf_plr.utils.serialization import checked


@dataclass
class FrameUnits:
    """The units of one round.

    Attributes:
        round: the round that they train.
        labels: refined unit of each frame, -1 = none, the sounds' frames one after the other; integers (F,), in a
            memory-mapped file.
        raw_labels: centroid of each frame, before refinement, (F,).
    """

    round: int
    labels: np.ndarray
    raw_labels: np.ndarray


class FrameStage:
    """Fit k-means on a share of the frames, assign all of them in a stream, and refine the units.

    Args:
        n_units: centroids.
        refiner: the refinement, over frames.
        fit_frames: frames, of sounds drawn at random, that the centroids are fitted on.
        seed: seed of the draw and of k-means.
        accelerator: shares the sounds among processes; all of them have all labels.
        folder: where labels lie in memory-mapped files without a name; None takes the system's temporary folder.

    Attributes:
        current: the last round's units, None before the first.
        kmeans: the last round's centroids.
    """

    def __init__(
        self,
        n_units: int,
        refiner: PseudoLabelRefiner,
        fit_frames: int,
        seed: int,
        accelerator: Accelerator,
        folder: str | os.PathLike[str] | None = None,
    ):
        self.refiner = refiner
        self.fit_frames = fit_frames
        self.seed = seed
        self.accelerator = accelerator
        self.folder = folder
        self.kmeans = KMeans(n_units, spherical=False, seed=seed)
        self.current: FrameUnits | None = None

    def run(self, frames: Frames, round_: int) -> dict[str, float]:
        """Make a round's units and leave them in `current`.

        Returns:
            The stage's figures for the log.

        Raises:
            ValueError: if there are fewer frames than units, or features are not finite.
        """
        started = time.perf_counter()
        self._fit(frames, round_)
        fitted = time.perf_counter()
        raw = self._assign(frames, round_)
        assigned = time.perf_counter()
        refined = self.refiner.refine(raw, out=self._room(len(raw)))
        last, self.current = self.current, FrameUnits(round_, refined.labels, raw)
        figures = {
            "round": float(round_),
            "units": float(len(np.unique(refined.labels[refined.labels != NOISE]))),
            "frames": float(len(raw)),
            "changed_share": refined.changed_share,
            "seconds_fit": fitted - started,
            "seconds_assign": assigned - fitted,
            "seconds_refine": time.perf_counter() - assigned,
            "seconds": time.perf_counter() - started,
        }
        if last is not None:
            table = cooccurrence(last.labels, refined.labels)
            figures["agreement_ari"] = adjusted_rand(table.previous, table.current, table.counts)
        return figures

    def keep(self, round_: int) -> None:
        """Let a round train on the units of the one before."""
        assert self.current is not None
        self.current = dataclasses.replace(self.current, round=round_)

    def unit_of_centroid(self) -> np.ndarray:
        """The unit that most frames of each centroid have, int64 (K,); -1 for a centroid without frames."""
        assert self.current is not None
        table = cooccurrence(self.current.raw_labels, self.current.labels)
        counts = table.matrix().toarray()
        units = np.full(self.kmeans.n_clusters, NOISE, dtype=np.int64)
        units[table.previous_ids] = table.current_ids[counts.argmax(axis=1)]
        return units

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a resumed run needs, as arrays by name."""
        if self.current is None:
            return {}
        return {
            **{f"refiner.{name}": value for name, value in self.refiner.state_dict().items()},
            **{f"kmeans.{name}": value.cpu().numpy() for name, value in self.kmeans.state_dict().items()},
            "round": np.array([self.current.round]),
            "units": self.current.labels,
            "raw_units": self.current.raw_labels,
        }

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `state_dict` gave; other entries are ignored.

        Raises:
            ValueError: if an array is missing or cannot be what `state_dict` gave, naming it.
        """
        under = {
            prefix: {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            for prefix in ("refiner.", "kmeans.")
        }
        self.refiner.load_state_dict(under["refiner."])
        self.kmeans.load_state_dict({name: torch.from_numpy(value) for name, value in under["kmeans."].items()})
        round_ = int(checked(state, "round", "integers", (1,), 0)[0])
        units = checked(state, "units", "integers", (None,), NOISE)
        for name in REFINER_LABELS:
            checked(state, name, "integers", units.shape)
        raw = checked(state, "raw_units", "integers", units.shape, 0, self.kmeans.n_clusters - 1)
        self.current = FrameUnits(round_, units, raw)

    def _fit(self, frames: Frames, round_: int) -> None:
        """Centroids on a share of the frames, from the last round's where these are of the same features."""
        order = np.random.default_rng([self.seed, round_]).permutation(len(frames.counts))
        enough = int(np.searchsorted(np.cumsum(frames.counts[order]), self.fit_frames)) + 1
        drawn = torch.from_numpy(np.sort(order[:enough]))
        mine = frames.of(drawn[frames.extractor.part(frames.store, drawn)])
        rows = list(mine)
        drawn_frames = torch.cat(rows) if rows else self._no_rows(frames)
        self._check_finite(len(not_finite(drawn_frames)), round_)
        self.kmeans.fit_predict_shard(drawn_frames, self.accelerator)

    def _assign(self, frames: Frames, round_: int) -> np.ndarray:
        """Nearest centroid of every frame on every process: integers (F,)."""
        part = frames.extractor.shard(frames.store)
        bounds = one_after_the_other(frames.counts)
        mine = self._room(int(bounds[part.stop] - bounds[part.start]))
        start = n_bad = 0
        for rows in frames.of(torch.arange(part.start, part.stop)):
            n_bad += len(not_finite(rows))
            mine[start : start + len(rows)] = self.kmeans.predict(rows)
            start += len(rows)
        self._check_finite(n_bad, round_)
        if self.accelerator.num_processes == 1:
            return mine
        labels = self._room(int(bounds[-1]))
        labels[:] = gather_rows(
            self.accelerator, torch.from_numpy(mine.astype(np.int32))
        ).numpy()  # no backend takes int16
        return labels

    def _check_finite(self, n_bad: int, round_: int) -> None:
        """Refuse frames that are not finite, on every process if one of them has some."""
        n_bad = sum(gather_all(self.accelerator, n_bad))
        if n_bad:
            raise NotFiniteError(
                f"round {round_}: {n_bad} frames are NaN or infinite. The weights have probably diverged: lower the "
                "learning rate."
            )

    def _no_rows(self, frames: Frames) -> torch.Tensor:
        width = 39 if frames.layer is None else frames.extractor.width
        return torch.empty(0, width, device=self.accelerator.device)

    def _room(self, n_frames: int) -> np.ndarray:
        """Room for labels in a memory-mapped file without a name; it is gone as soon as nothing refers to it."""
        dtype = np.dtype(np.int16 if 2 * self.kmeans.n_clusters < 2**15 else np.int32)
        if n_frames == 0:
            return np.empty(0, dtype)
        if self.folder is not None:
            os.makedirs(self.folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder, prefix="units-") as file:
            file.truncate(n_frames * dtype.itemsize)
            return np.memmap(file, dtype, "r+", shape=(n_frames,))
