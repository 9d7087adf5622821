"""Space in which frames are compared with centroids: standardised, and whitened."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering.blocks import iterate_rows
from hf_plr.clustering.exact_sums import ClusterSums, to_exact
from hf_plr.clustering.whitening import BLOCK_ROWS, Whitening, draw_rows_to_fit, iterate_products
from hf_plr.units.frames import Frames
from hf_plr.utils.distributed import run_on_main

SCALINGS = ("none", "global", "recording", "speaker")
STD_FLOOR = 0.1  # of a recording or speaker, as a part of that of all frames: a single frame has none
COLUMN_FLOOR = 1e-4  # of a column, as a part of the largest: a constant one stays constant
LARGEST = 64.0  # standard deviations; sums of frames within are exact without a pass for the largest
RECORDING_FRAMES = 1 << 20  # of one recording, whose sums are exact


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of groups of frames.

    Attributes:
        mean: float32 (G, D); zeros without frames.
        std: float32 (G, D), at least `STD_FLOOR`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def measure(cls, rows: torch.Tensor, groups: torch.Tensor, n_groups: int) -> Moments:
        """Measure the groups of rows (n, D), each of up to a million frames; groups are int64 (n,)."""
        sums = MomentSums(n_groups, rows.shape[1], RECORDING_FRAMES, rows.device)
        sums.add(rows, groups)
        return sums.moments(None)


class MomentSums:
    """Sums of frames and of their squares by group, equal in any order and over any number of processes.

    Args:
        n_groups: groups G.
        dimension: columns D.
        n_frames: largest number of frames, of all processes together.
        device: device of the frames.
    """

    def __init__(self, n_groups: int, dimension: int, n_frames: int, device: torch.device):
        self.device = device
        self._sums = ClusterSums(n_groups, dimension, n_frames, LARGEST, device)
        self._squares = ClusterSums(n_groups, dimension, n_frames, LARGEST**2, device)

    def add(self, rows: torch.Tensor, groups: torch.Tensor) -> None:
        """Add frames (n, D), within `LARGEST`, to groups (n,), -1 = none."""
        for span in iterate_rows(len(rows), BLOCK_ROWS):
            block = to_exact(rows[span])
            self._sums.add(block, groups[span])
            self._squares.add(block.square(), groups[span])

    def moments(self, accelerator: Accelerator | None) -> Moments:
        """Compute the moments of the frames of all processes."""
        means, squares = (sums.all_reduce(accelerator).means() for sums in (self._sums, self._squares))
        variances = (squares - means.square()).clamp(min=STD_FLOOR**2)
        return Moments(means.float().to(self.device), variances.sqrt().float().to(self.device))


@dataclass(frozen=True)
class FrameSpace:
    """Mapping of frames to the space of the centroids.

    A frame is standardised by mean and deviation of all frames ("global"), then of its recording's or its speaker's;
    then it is whitened as (f - origin) W. Speakers that are not known are standardised by recording.

    Source: van Niekerk, Nortje, Baas and Kamper, Interspeech 2021, on standardisation by speaker.

    Attributes:
        scaling: one of `SCALINGS`.
        mean, std: those of all frames, float32 (D,); None with scaling "none".
        origin, matrix: the whitening, float32 (D,) and (D, D); None without.
        speakers: moments of the known speakers, of frames that are standardised by `mean` and `std`.
    """

    scaling: str = "none"
    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None
    origin: torch.Tensor | None = None
    matrix: torch.Tensor | None = None
    speakers: Moments | None = None

    @property
    def is_identity(self) -> bool:
        """True if frames stay as they are."""
        return self.scaling == "none" and self.matrix is None

    def to(self, device: torch.device) -> FrameSpace:
        """Copy to a device, without speakers."""
        mean, std, origin, matrix = (
            None if value is None else value.to(device) for value in (self.mean, self.std, self.origin, self.matrix)
        )
        return FrameSpace(self.scaling, mean, std, origin, matrix)

    def with_speakers(self, frames: Frames, speakers: np.ndarray, accelerator: Accelerator) -> FrameSpace:
        """Measure the speakers of a store in a pass over its frames, shared among the processes.

        Args:
            frames: the frames.
            speakers: speaker of each recording, int64 (N,), -1 = unknown.
            accelerator: connects the processes; every process has all moments.
        """
        n_speakers = int(speakers.max(initial=-1)) + 1
        sums = MomentSums(n_speakers, frames.width, int(frames.counts.sum()), accelerator.device)
        local_slice = frames.extractor.local_slice(frames.store)
        for rows, positions in frames.stream_recordings(torch.arange(local_slice.start, local_slice.stop)):
            chosen = positions.numpy()
            groups = spread(speakers[chosen], frames.counts[chosen], rows.device)
            groups = groups.masked_fill(~torch.isfinite(rows).all(dim=1), -1)  # the stage reports these
            sums.add(self._standardize(rows), groups)
        return dataclasses.replace(self, speakers=sums.moments(accelerator))

    def map(self, rows: torch.Tensor, counts: np.ndarray, speakers: np.ndarray | None = None) -> torch.Tensor:
        """Map whole recordings' frames.

        Args:
            rows: frames, one recording after the other, float32 (n, D).
            counts: frames of each recording, int64 (B,).
            speakers: speaker of each, int64 (B,), as in `with_speakers`; None if none is known.

        Returns:
            float32 (n, D); `rows` themselves where frames stay as they are.
        """
        return self._whiten(self.scale(rows, counts, speakers))

    def scale(self, rows: torch.Tensor, counts: np.ndarray, speakers: np.ndarray | None = None) -> torch.Tensor:
        """Standardise frames without whitening; arguments as for `map`."""
        if self.scaling == "none":
            return rows
        rows = self._standardize(rows)
        if self.scaling == "global":
            return rows
        recordings = spread(np.arange(len(counts)), counts, rows.device)
        if self.speakers is None or speakers is None:
            moments = Moments.measure(rows, recordings, len(counts))
            return (rows - moments.mean[recordings]) / moments.std[recordings]
        known = spread(speakers, counts, rows.device)
        mean, std = self.speakers.mean[known], self.speakers.std[known]
        if (speakers < 0).any():
            moments, is_unknown = Moments.measure(rows, recordings, len(counts)), (known < 0)[:, None]
            mean = torch.where(is_unknown, moments.mean[recordings], mean)
            std = torch.where(is_unknown, moments.std[recordings], std)
        return (rows - mean) / std

    def _standardize(self, rows: torch.Tensor) -> torch.Tensor:
        """Standardise by all frames; no value is beyond `LARGEST`."""
        assert self.mean is not None
        assert self.std is not None
        return ((rows.float() - self.mean) / self.std).clamp(-LARGEST, LARGEST)

    def _whiten(self, rows: torch.Tensor) -> torch.Tensor:
        if self.matrix is None or self.origin is None:
            return rows
        whitened = torch.empty_like(rows, dtype=torch.float32)
        for span, product in iterate_products(rows, self.matrix, self.origin):
            whitened[span] = product
        return whitened


@dataclass(frozen=True)
class FrameSpaceFitter:
    """Fits a `FrameSpace` for a round.

    Attributes:
        scaling: one of `SCALINGS`.
        shrinkage: of the whitening, above 0, see `Whitening`; None for no whitening.
        speakers: speaker of each sample of the store, int64 (N,), -1 = unknown, for scaling "speaker"; recordings of
            segments, for "recording". None for other scalings, and for whole recordings that are scaled by themselves.
    """

    scaling: str = "none"
    shrinkage: float | None = None
    speakers: np.ndarray | None = None

    def fit(
        self, frames: Frames, drawn: Sequence[tuple[torch.Tensor, torch.Tensor]], accelerator: Accelerator
    ) -> tuple[FrameSpace, torch.Tensor]:
        """Fit the space on the frames that the centroids are fitted on.

        Args:
            frames: all frames; a pass over them measures the speakers.
            drawn: this process's batches of `Frames.stream_recordings`.
            accelerator: connects the processes, which have the same space.

        Returns:
            The space, and this process's drawn frames in it, float32 (n, D).
        """
        space = FrameSpace(self.scaling)
        device = accelerator.device
        if self.scaling != "none":
            raw = draw_rows_to_fit(join([rows for rows, _ in drawn], frames), accelerator)
            mean, std = run_on_main(accelerator, lambda: measure_columns(raw), "measuring the frames")
            space = dataclasses.replace(space, mean=mean, std=std).to(device)
        if self.speakers is not None:
            space = space.with_speakers(frames, self.speakers, accelerator)
        parts = [space.scale(rows, *self.describe(frames, positions)) for rows, positions in drawn]
        if self.shrinkage is not None:
            scaled, shrinkage = draw_rows_to_fit(join(parts, frames), accelerator), self.shrinkage
            origin, matrix = run_on_main(
                accelerator,
                lambda: (scaled.mean(dim=0).float(), Whitening(scaled).matrix(shrinkage)),
                "whitening the frames",
            )
            space = dataclasses.replace(space, origin=origin.to(device), matrix=matrix.to(device))
            parts = [space._whiten(part) for part in parts]
        return space, join(parts, frames)

    def describe(self, frames: Frames, positions: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Return frames and speakers of the recordings at these positions, as `FrameSpace.map` takes them."""
        chosen = positions.numpy()
        return frames.counts[chosen], None if self.speakers is None else self.speakers[chosen]


def measure_columns(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure mean and standard deviation of the columns of rows (n, D), float64; returns float32 (D,) each."""
    std = rows.std(dim=0, correction=0)
    largest = float(std.max())
    return rows.mean(dim=0).float(), std.clamp(min=COLUMN_FLOOR * largest if largest > 0 else 1.0).float()


def number_speakers(speakers: np.ndarray) -> np.ndarray:
    """Number the speakers of recordings, any integers (N,), from 0 on: int64 (N,), -1 for those below 0 (unknown)."""
    known = np.unique(speakers[speakers >= 0])
    return np.where(speakers < 0, -1, np.searchsorted(known, speakers)).astype(np.int64)


def number_recordings(rows: np.ndarray, speakers: np.ndarray | None) -> np.ndarray:
    """Number what the frames of segments are standardised by: their speaker, or if it is unknown their recording.

    Args:
        rows: recording of each segment, int64 (N,).
        speakers: output of `number_speakers`, (N,); None if no speaker is known.

    Returns:
        int64 (N,), as `number_speakers` gives them, none of them unknown.
    """
    if speakers is None:
        return number_speakers(rows)
    return number_speakers(np.where(speakers < 0, speakers.max(initial=-1) + 1 + rows, speakers))


def spread(values: np.ndarray, counts: np.ndarray, device: torch.device) -> torch.Tensor:
    """Give each frame its recording's value: int64 (n,) on the device."""
    return torch.from_numpy(np.repeat(values, counts)).to(device)


def join(parts: list[torch.Tensor], frames: Frames) -> torch.Tensor:
    """Join parts of frames to float32 (n, D), also if there are none."""
    return torch.cat(parts) if parts else torch.empty(0, frames.width, device=frames.extractor.accelerator.device)
