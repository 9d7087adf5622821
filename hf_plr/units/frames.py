"""Frames of recordings, batch by batch: they are never all in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from hf_plr.data.audio_store import AudioStore
from hf_plr.features.extractor import FeatureExtractor
from hf_plr.modality import AudioModality
from hf_plr.units.mfcc import N_COLUMNS, mfcc


class Frames:
    """Features of every frame of a store's recordings, MFCC or a layer's hidden states.

    Args:
        extractor: the backbone, which also splits batches and shares them among processes.
        store: the recordings.
        layer: 0 for the input of the first layer, and so on; None for 39 MFCC.

    Attributes:
        counts: frames of each recording, int64 (N,).
    """

    def __init__(self, extractor: FeatureExtractor, store: AudioStore, layer: int | None):
        modality = extractor.modality
        assert isinstance(modality, AudioModality)
        self.extractor = extractor
        self.modality = modality
        self.store = store
        self.layer = layer
        self.counts = count_frames(modality, store)

    @property
    def source(self) -> str:
        """Name of the features, for people."""
        return "MFCC" if self.layer is None else f"layer {self.layer}"

    @property
    def width(self) -> int:
        """Columns D of a frame."""
        return N_COLUMNS if self.layer is None else self.extractor.width

    def stream(self, positions: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield frames of the recordings at these positions, in their order: float32 (frames, D), on the device."""
        for rows, _ in self.stream_recordings(positions):
            yield rows

    def stream_recordings(self, positions: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield as `stream`, each time with the positions of the recordings, which are whole: int64 (B,), on the CPU.

        Batches of the same positions are the same for any number of processes, see `FeatureExtractor.local_slice`.
        """
        start = 0
        for batch in self.extractor.batches(self.store, positions):
            with self.extractor.evaluation_mode():
                hidden, n_frames = self._compute_batch(batch)
                is_frame = torch.arange(hidden.shape[1], device=hidden.device) < n_frames[:, None]
                rows = hidden[is_frame]
            stop = start + len(n_frames)
            yield rows, positions[start:stop]
            start = stop

    def _compute_batch(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        backbone = self.modality.frame_backbone
        if self.layer is not None:
            values = self.modality.waveforms(batch)
            return backbone.frames(self.extractor.model, values, batch["lengths"], layer=self.layer)
        rate = self.modality.format.sampling_rate
        values, lengths = batch["input_values"], batch["lengths"]
        return mfcc(values, lengths, rate, backbone.receptive_field, backbone.hop), backbone.n_frames(lengths)


def count_frames(modality: AudioModality, store: AudioStore) -> np.ndarray:
    """Count the frames that the backbone makes of each recording, int64 (N,)."""
    return modality.frame_backbone.n_frames(torch.from_numpy(store.lengths)).numpy().astype(np.int64)


def compute_frame_bounds(counts: np.ndarray) -> np.ndarray:
    """Compute the start of each recording's frames, and the end of the last: int64 (N + 1,)."""
    return np.fromiter(itertools.accumulate(counts.tolist(), initial=0), np.int64, len(counts) + 1)
