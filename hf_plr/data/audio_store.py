"""Recordings of a data set as waveforms at one sampling rate, decoded once and ordered by length."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from hf_plr.data.audio_decoding import UnreadableRecording, decode_waveform, read_sampling_rate
from hf_plr.data.sample_store import SampleStore, select_undecoded, spread_rows


class AudioFormat:
    """Settings to decode recordings, as the model and its feature extractor require.

    Args:
        feature_extractor: any feature extractor of waveforms, such as `Wav2Vec2FeatureExtractor`.
        min_samples: smallest length that the model accepts (its receptive field), at least 1. Shorter recordings are
            followed by zeros.
        max_seconds: length to which longer recordings are cut; None leaves them whole.

    Attributes:
        sampling_rate: samples per second (Hz).
        do_normalize: whether the model expects zero mean and unit variance.
        min_samples, max_samples: bounds of a waveform's length; the second is None without `max_seconds`.

    Raises:
        ValueError: if the feature extractor has no sampling rate or makes spectrograms, or `max_seconds` is shorter
            than `min_samples`.
    """

    def __init__(self, feature_extractor: Any, min_samples: int, max_seconds: float | None = None):
        settings, name = vars(feature_extractor), type(feature_extractor).__name__
        if settings.get("sampling_rate") is None:
            raise ValueError(
                f"{name} has no sampling_rate: a feature extractor of waveforms is needed; use one such as "
                "Wav2Vec2FeatureExtractor"
            )
        for setting, expected in (("feature_size", 1), ("num_mel_bins", None)):
            if settings.get(setting) != expected:
                raise ValueError(
                    f"{name} makes spectrograms ({setting}={settings.get(setting)}), but the model takes "
                    "waveforms: use a feature extractor such as Wav2Vec2FeatureExtractor"
                )
        if min_samples < 1:
            raise ValueError(f"min_samples={min_samples} must be at least 1")
        self.sampling_rate = int(settings["sampling_rate"])
        self.do_normalize = bool(settings.get("do_normalize", False))
        self.min_samples = min_samples
        self.max_samples = None if max_seconds is None else round(max_seconds * self.sampling_rate)
        if self.max_samples is not None and self.max_samples < min_samples:
            raise ValueError(
                f"max_seconds={max_seconds} is too short: the model needs at least {min_samples} samples, "
                f"{min_samples / self.sampling_rate:.4f} seconds at {self.sampling_rate} Hz"
            )


class AudioStore(SampleStore):
    """Recordings of a data set by position: `{"index": int, "input_values": float32 (T,)}`, optionally with a label.

    Positions ascend by length, so that neighbours make batches with little padding. Every recording is decoded when the
    store is built, so an unreadable one stops the run before any long work. Waveforms are kept in memory, in 16 bits,
    if they fit into `cache_bytes`. Otherwise they are decoded again when needed, with the same values.

    Example:
        >>> from transformers import Wav2Vec2FeatureExtractor
        >>> from hf_plr.data.example_data import make_synthetic_recordings
        >>> audio_format = AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=8000), min_samples=400)
        >>> store = AudioStore(make_synthetic_recordings(n_per_class=1), "audio", audio_format)
        >>> len(store), sorted(store[0])
        (8, ['index', 'input_values'])

    Args:
        dataset: the data set; it is not changed.
        audio_column: its column of recordings.
        audio_format: settings to decode them.
        label_column: column of true labels for scoring, returned as "labels"; None leaves them out.
        label_names: see `encode_labels`.
        cache_bytes: memory for decoded waveforms; they are kept if all of them fit.
        skip_unreadable: leave unreadable recordings out with a warning, rather than raise.
        progress: show a progress bar.

    Attributes:
        rows: row of the data set at each position, by length and then ascending; shape (len(self),).
        lengths: samples of each position, ascending; int64 array of shape (len(self),).
        unreadable: rows that were left out.

    Raises:
        ValueError: if the data set is empty, no recording is readable, or an array has no sampling rate.
        UnreadableRecording: if a recording cannot be decoded, naming its row.
    """

    noun = "recording"
    input_name = "input_values"
    unreadable_error = UnreadableRecording
    decode_batch = 32  # their files are in memory together and may be long

    def __init__(
        self,
        dataset: Dataset,
        audio_column: str,
        audio_format: AudioFormat,
        label_column: str | None = None,
        label_names: dict[str, int] | None = None,
        cache_bytes: int = 2**31,
        skip_unreadable: bool = False,
        progress: bool = False,
    ):
        super().__init__(dataset, audio_column, label_column, label_names)
        self.audio_format = audio_format
        cache = _ClipCache(len(dataset), cache_bytes)
        self.unreadable = self._decode_all(cache.add, skip_unreadable, progress)
        rows = self._list_readable_rows(skip_unreadable)
        self.rows = rows[np.argsort(cache.lengths[rows], kind="stable")]
        self.lengths = cache.lengths[self.rows]
        self._cache = cache if cache.concatenate() else None

    def batch(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Load the recordings at these positions (B,).

        Returns:
            "index" (B,), "input_values" (B, T), float32 with zeros behind a recording's end, and "lengths" (B,), int64.
        """
        return {"index": positions} | _pad(self._load_inputs(self.rows[positions.numpy()]))

    @property
    def is_cached(self) -> bool:
        """True if the decoded waveforms are kept in memory."""
        return self._cache is not None

    def _load_inputs(self, rows: np.ndarray) -> list[torch.Tensor]:
        clips = self._decode_rows(rows) if self._cache is None else [self._cache.read(int(row)) for row in rows]
        return [clip.to_waveform() for clip in clips]

    def _decode_rows(self, rows: np.ndarray) -> list[_Clip]:
        audio_format = self.audio_format
        bounds = (audio_format.sampling_rate, audio_format.min_samples, audio_format.max_samples)
        return [
            _Clip.from_waveform(decode_waveform(value, int(row), *bounds))
            for value, row in zip(self._read_column(rows), rows, strict=True)
        ]


def collate_recordings(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack items of an `AudioStore` to a batch: the keys of `AudioStore.batch`, and "labels" if items have them."""
    batch = {"index": torch.tensor([item["index"] for item in items])} | _pad([item["input_values"] for item in items])
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch


def read_sampling_rates(dataset: Dataset, audio_column: str, n_samples: int = 256) -> list[int]:
    """Read the samples per second (Hz) of up to `n_samples` recordings, evenly spaced, without unreadable ones.

    Raises:
        ValueError: if none of them can be read, or an array has no sampling rate.
    """
    column = select_undecoded(dataset, audio_column)
    selected = spread_rows(len(dataset), n_samples)
    rates: list[int] = []
    for rows in np.array_split(selected, range(AudioStore.decode_batch, len(selected), AudioStore.decode_batch)):
        for row, value in zip(rows.tolist(), column[rows.tolist()][audio_column], strict=True):
            try:
                rates.append(read_sampling_rate(value, row))
            except UnreadableRecording:
                continue
    if not rates:
        raise ValueError(f"none of {len(selected)} recordings can be read: use other files of wav, flac, ogg or mp3")
    return rates


class _Clip(NamedTuple):
    """A waveform in 16 bits: samples x scale."""

    samples: torch.Tensor  # int16 (T,)
    scale: float  # peak / 32767, exact in float32; 0 for silence

    @classmethod
    def from_waveform(cls, waveform: np.ndarray) -> _Clip:
        scale = np.abs(waveform).max() / np.float32(32767)
        if scale < np.finfo(np.float32).tiny:  # a division would overflow
            return cls(torch.zeros(len(waveform), dtype=torch.int16), 0.0)
        return cls(torch.from_numpy(np.rint(waveform / scale).astype(np.int16)), float(scale))

    def to_waveform(self) -> torch.Tensor:
        return self.samples.float() * self.scale


class _ClipCache:
    """Cache of clips by row of the data set, in one tensor, while they fit into `max_bytes`, and the lengths of all."""

    def __init__(self, n_rows: int, max_bytes: int):
        self.lengths = np.zeros(n_rows, dtype=np.int64)
        self._scales = np.zeros(n_rows, dtype=np.float32)
        self._starts = np.zeros(n_rows, dtype=np.int64)
        self._capacity = max_bytes // 2
        self._used = 0
        self._chunks: list[torch.Tensor] = []
        self._samples = torch.empty(0, dtype=torch.int16)

    def add(self, rows: np.ndarray, clips: list[_Clip]) -> None:
        for row, (samples, scale) in zip(rows, clips, strict=True):
            self.lengths[row], self._scales[row], self._starts[row] = len(samples), scale, self._used
            self._used += len(samples)
        if self._used <= self._capacity:
            self._chunks.append(torch.cat([clip.samples for clip in clips]))
        else:
            self._chunks.clear()

    def concatenate(self) -> bool:
        """Join all clips, so that they can be read; returns False if they do not fit."""
        if self._used > self._capacity:
            return False
        self._samples = torch.empty(self._used, dtype=torch.int16)
        end = self._used
        while self._chunks:  # from the end, freeing each: all of it in memory twice might be too much
            chunk = self._chunks.pop()
            self._samples[end - len(chunk) : end] = chunk
            end -= len(chunk)
        return True

    def read(self, row: int) -> _Clip:
        start = self._starts[row]
        return _Clip(self._samples[start : start + self.lengths[row]], float(self._scales[row]))


def _pad(waveforms: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "input_values": pad_sequence(waveforms, batch_first=True),
        "lengths": torch.tensor([len(waveform) for waveform in waveforms]),
    }
