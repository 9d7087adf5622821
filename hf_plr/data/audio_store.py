"""Recordings of a data set as waveforms at one sampling rate, decoded once and ordered by length."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from hf_plr.data.audio_decoding import UnreadableRecording, decode_waveform, read_sampling_rate
from hf_plr.data.audio_segments import Segmentation, decode_segments, iterate_segments
from hf_plr.data.sample_store import SKIP_HINT, SampleStore, select_undecoded, spread_rows
from hf_plr.utils.progress import track

MUCH_LONGER = 10  # times the median length, from where on a recording is warned of


class AudioFormat:
    """Settings to decode recordings, as the model and its feature extractor require.

    Args:
        feature_extractor: any feature extractor of waveforms, such as `Wav2Vec2FeatureExtractor`, or of spectrograms if
            the model takes them.
        min_samples: smallest length that the model accepts (its receptive field), at least 1. Shorter recordings are
            followed by zeros.
        max_seconds: length to which longer recordings are cut; None leaves them whole.
        segment_seconds: length of the segments that recordings are cut into, each a sample; None for whole recordings.
            With `max_seconds` the beginning of a recording is cut into segments.
        segment_overlap: seconds that neighbouring segments have in common.
        takes_waveforms: whether the model takes waveforms, not spectrograms that the feature extractor makes of them.

    Attributes:
        sampling_rate: samples per second (Hz).
        do_normalize: whether the model expects waveforms of zero mean and unit variance.
        min_samples, max_samples: bounds of a recording's length; the second is None without `max_seconds`.
        segmentation: the rule that cuts recordings, None for whole ones.

    Raises:
        ValueError: if the feature extractor has no sampling rate or makes spectrograms, `max_seconds` or
            `segment_seconds` is shorter than `min_samples`, segments overlap by their whole length, or `max_seconds` is
            not longer than `segment_seconds`.
    """

    def __init__(
        self,
        feature_extractor: Any,
        min_samples: int,
        max_seconds: float | None = None,
        segment_seconds: float | None = None,
        segment_overlap: float = 0.0,
        takes_waveforms: bool = True,
    ):
        settings, name = vars(feature_extractor), type(feature_extractor).__name__
        if settings.get("sampling_rate") is None:
            raise ValueError(
                f"{name} has no sampling_rate: a feature extractor of waveforms is needed; use one such as "
                "Wav2Vec2FeatureExtractor"
            )
        for setting, expected in (("feature_size", 1), ("num_mel_bins", None)):
            if takes_waveforms and settings.get(setting) != expected:
                raise ValueError(
                    f"{name} makes spectrograms ({setting}={settings.get(setting)}), but the model takes "
                    "waveforms: use a feature extractor such as Wav2Vec2FeatureExtractor"
                )
        if min_samples < 1:
            raise ValueError(f"min_samples={min_samples} must be at least 1")
        self.sampling_rate = int(settings["sampling_rate"])
        self.do_normalize = takes_waveforms and bool(settings.get("do_normalize", False))
        self.min_samples = min_samples
        self.max_samples = None if max_seconds is None else round(max_seconds * self.sampling_rate)
        if self.max_samples is not None and self.max_samples < min_samples:
            raise ValueError(
                f"max_seconds={max_seconds} is too short: the model needs at least {min_samples} samples, "
                f"{min_samples / self.sampling_rate:.4f} seconds at {self.sampling_rate} Hz"
            )
        self.segmentation: Segmentation | None = None
        if segment_seconds is not None:
            self.segmentation = Segmentation.from_seconds(
                segment_seconds, segment_overlap, self.sampling_rate, min_samples
            )
            if self.max_samples is not None and self.max_samples <= self.segmentation.length:
                raise ValueError(
                    f"segment_seconds={segment_seconds} has no effect: max_seconds={max_seconds} leaves nothing longer"
                )


class AudioStore(SampleStore):
    """Recordings of a data set by position: `{"index": int, "input_values": float32 (T,)}`, optionally with a label.

    Positions ascend by length, so that neighbours make batches with little padding. Every recording is decoded when the
    store is built, so an unreadable one stops the run before any long work. Waveforms are kept in memory, in 16 bits,
    if they fit into `cache_bytes`. Otherwise they are decoded again when needed, with the same values.

    Where `audio_format` has a segmentation, every segment of a recording is a sample, with the label of the recording.
    Recordings are then read segment by segment. One that turns out to be damaged is left out as a whole.

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
        segments: start and end in seconds of each position, float64 (len(self), 2); None where recordings are whole.
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
        clips = _ClipCache(cache_bytes)
        is_cut = audio_format.segmentation is not None
        self.unreadable = (
            self._cut_all(clips, skip_unreadable, progress)
            if is_cut
            else self._decode_all(clips.add, skip_unreadable, progress)
        )
        self._list_readable_rows(skip_unreadable)
        lengths, rows = np.array(clips.lengths, np.int64), np.array(clips.rows, np.int64)
        self._clips = np.argsort(lengths, kind="stable")  # number of the clip at each position
        self.rows, self.lengths = rows[self._clips], lengths[self._clips]
        if is_cut:
            self._spans = np.array(clips.spans, np.int64).reshape(-1, 2)[self._clips]  # start and length, in samples
            self.segments = np.cumsum(self._spans, axis=1) / audio_format.sampling_rate
        self._cache = clips if clips.concatenate() else None

    def batch(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """Load the recordings at these positions (B,).

        Returns:
            "index" (B,), "input_values" (B, T), float32 with zeros behind a recording's end, and "lengths" (B,), int64.
        """
        return {"index": positions} | _pad(self._load_inputs(positions.numpy()))

    @property
    def is_cached(self) -> bool:
        """True if the decoded waveforms are kept in memory."""
        return self._cache is not None

    def describe_long(self) -> str | None:
        """Describe recordings that are much longer than the rest, and the arguments that help; None without any."""
        seconds = self.lengths / self.audio_format.sampling_rate
        median = float(np.median(seconds))
        n_long = int(np.count_nonzero(seconds > MUCH_LONGER * median))
        if n_long == 0:
            return None
        verb = "is" if n_long == 1 else "are"
        return (
            f"{n_long:,} of {len(seconds):,} recordings {verb} longer than {MUCH_LONGER} times the median "
            f"({median:.3g} s), the longest {seconds[-1]:.4g} s: --segment_seconds S cuts them into samples, "
            "--max_seconds S takes their beginnings"
        )

    def _load_inputs(self, positions: np.ndarray) -> list[torch.Tensor]:
        if self._cache is not None:
            clips = [self._cache.read(int(clip)) for clip in self._clips[positions]]
        elif self.segments is None:
            clips = self._decode_rows(self.rows[positions])
        else:
            clips = self._decode_segments(positions)
        return [clip.to_waveform() for clip in clips]

    def _decode_rows(self, rows: np.ndarray) -> list[_Clip]:
        audio_format = self.audio_format
        bounds = (audio_format.sampling_rate, audio_format.min_samples, audio_format.max_samples)
        return [
            _Clip.from_waveform(decode_waveform(value, int(row), *bounds))
            for value, row in zip(self._read_column(rows), rows, strict=True)
        ]

    def _decode_segments(self, positions: np.ndarray) -> list[_Clip]:
        """Decode segments, all of a recording while it is open."""
        form = self.audio_format
        clips: dict[int, _Clip] = {}
        for row in np.unique(self.rows[positions]):
            chosen = positions[self.rows[positions] == row]
            (value,) = self._read_column(np.array([row]))
            spans = [tuple(span) for span in self._spans[chosen].tolist()]
            waveforms = decode_segments(value, int(row), form.sampling_rate, spans, form.max_samples)
            clips |= dict(zip(chosen.tolist(), map(self._make_clip, waveforms), strict=True))
        return [clips[position] for position in positions.tolist()]

    def _cut_all(self, clips: _ClipCache, skip_unreadable: bool, progress: bool) -> list[int]:
        """Read every recording, segment by segment, into `clips`; returns the unreadable rows."""
        form, unreadable = self.audio_format, []
        assert form.segmentation is not None
        n = len(self._column)
        for row in track(range(n), f"Reading {self.noun}s", n, progress):
            before = clips.mark()
            (value,) = self._read_column(np.array([row]))
            try:
                for start, waveform in iterate_segments(
                    value, row, form.sampling_rate, form.segmentation, form.max_samples
                ):
                    clips.add(np.array([row]), [self._make_clip(waveform)])
                    clips.spans.extend((start, len(waveform)))
            except UnreadableRecording as error:
                if not skip_unreadable:
                    raise UnreadableRecording(f"{error}{self._locate(row, str(error))}. {SKIP_HINT}") from error
                clips.return_to(before)
                unreadable.append(row)
        return unreadable

    def _make_clip(self, waveform: np.ndarray) -> _Clip:
        return _Clip.from_waveform(np.pad(waveform, (0, max(0, self.audio_format.min_samples - len(waveform)))))


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
    first_error: UnreadableRecording | None = None
    for rows in np.array_split(selected, range(AudioStore.decode_batch, len(selected), AudioStore.decode_batch)):
        for row, value in zip(rows.tolist(), column[rows.tolist()][audio_column], strict=True):
            try:
                rates.append(read_sampling_rate(value, row))
            except UnreadableRecording as error:
                first_error = first_error or error
    if not rates:
        raise ValueError(f"none of {len(selected)} recordings can be read; the first: {first_error}")
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
    """Cache of clips by their number, in one tensor, while they fit into `max_bytes`.

    Attributes:
        rows: row of the data set of each clip.
        lengths: samples of each clip.
        spans: start and length in its recording of each clip that is a segment, one after the other, without padding.
    """

    def __init__(self, max_bytes: int):
        self.rows, self.lengths, self.spans = array("q"), array("q"), array("q")
        self._scales, self._starts = array("f"), array("q")
        self._capacity = max_bytes // 2
        self._used = 0
        self._is_full = False
        self._chunks: list[torch.Tensor] = []
        self._samples = torch.empty(0, dtype=torch.int16)

    def add(self, rows: np.ndarray, clips: list[_Clip]) -> None:
        for row, (samples, scale) in zip(rows, clips, strict=True):
            self.rows.append(int(row))
            self.lengths.append(len(samples))
            self._scales.append(scale)
            self._starts.append(self._used)
            self._used += len(samples)
        self._is_full = self._is_full or self._used > self._capacity
        if self._is_full:
            self._chunks.clear()
        else:
            self._chunks.append(torch.cat([clip.samples for clip in clips]))

    def mark(self) -> tuple[int, int, int]:
        """Return what `return_to` takes to forget the clips that follow."""
        return len(self.rows), len(self._chunks), self._used

    def return_to(self, mark: tuple[int, int, int]) -> None:
        """Forget the clips that were added since `mark`."""
        n_clips, n_chunks, self._used = mark
        del self._chunks[n_chunks:], self.spans[2 * n_clips :]
        for values in (self.rows, self.lengths, self._scales, self._starts):
            del values[n_clips:]

    def concatenate(self) -> bool:
        """Join all clips, so that they can be read; returns False if they do not fit."""
        if self._is_full:
            return False
        self._samples = torch.empty(self._used, dtype=torch.int16)
        end = self._used
        while self._chunks:  # from the end, freeing each: all of it in memory twice might be too much
            chunk = self._chunks.pop()
            self._samples[end - len(chunk) : end] = chunk
            end -= len(chunk)
        return True

    def read(self, clip: int) -> _Clip:
        start = self._starts[clip]
        return _Clip(self._samples[start : start + self.lengths[clip]], self._scales[clip])


def _pad(waveforms: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        "input_values": pad_sequence(waveforms, batch_first=True),
        "lengths": torch.tensor([len(waveform) for waveform in waveforms]),
    }
