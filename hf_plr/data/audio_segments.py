"""Segments of long recordings, read one after the other or by seeking: no file is in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from hf_plr.data.audio_decoding import Reader, check_waveform, count_resampled, count_stored_samples, open_recording

BLOCK_FRAMES = 1 << 16  # that are read at a time where seeking is not exact; always the same, as MP3 depends on it
MARGIN = 256  # samples of the lower rate beside a segment, which the resampler needs for the samples at its border


@dataclass(frozen=True)
class Segmentation:
    """Rule that cuts a recording into segments, in samples at the model's rate.

    Segments begin every `hop` samples. A rest that no whole segment covers is a segment of its own if it has at least
    half a hop, and otherwise belongs to the segment before it. A recording of up to one and a half segments (without
    overlap) is therefore one sample, and no segment is shorter than half of the others.

    Attributes:
        length: samples of a segment.
        hop: samples from the begin of a segment to that of the next one.
    """

    length: int
    hop: int

    @classmethod
    def from_seconds(cls, seconds: float, overlap: float, sampling_rate: int, min_samples: int) -> Segmentation:
        """Make the rule from seconds.

        Args:
            seconds: length of a segment.
            overlap: seconds that neighbouring segments have in common, at least 0.
            sampling_rate: samples per second (Hz).
            min_samples: samples that the model needs.

        Raises:
            ValueError: if segments are shorter than that, or do not move on.
        """
        length = round(seconds * sampling_rate)
        if length < min_samples:
            raise ValueError(
                f"segment_seconds={seconds} is too short: the model needs at least {min_samples} samples, "
                f"{min_samples / sampling_rate:.4f} seconds at {sampling_rate} Hz"
            )
        hop = length - round(overlap * sampling_rate)
        if hop < 1:
            raise ValueError(f"segment_overlap={overlap} must be less than segment_seconds={seconds}")
        return cls(length, hop)

    def find_length(self, start: int, total: int) -> tuple[int, bool]:
        """Find the length of the segment at `start` in a recording of `total` samples, and whether it is the last."""
        rest = total - start - self.length
        is_last = rest <= 0 or 2 * rest < self.hop
        return (total - start if is_last else self.length), is_last

    def split(self, total: int) -> list[tuple[int, int]]:
        """Start and length of each segment of a recording of `total` samples, at least 1."""
        spans, start, is_last = [], 0, False
        while not is_last:
            length, is_last = self.find_length(start, total)
            spans.append((start, length))
            start += self.hop
        return spans


def iterate_segments(
    value: Any, row: int, sampling_rate: int, segmentation: Segmentation, max_samples: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Read a recording from its beginning and yield the start and the waveform (T,) of each segment, in samples.

    The waveform is that of the whole recording at these samples, up to rounding where it is resampled; a recording of
    one segment equals the output of `decode_waveform`. In memory are two segments.

    Args:
        value, row, sampling_rate, max_samples: as for `decode_waveform`.
        segmentation: the rule.

    Raises:
        UnreadableRecording, ValueError: as `decode_waveform`.
    """
    with open_recording(value, row) as reader:
        cutter = _Cutter(reader, row, sampling_rate, max_samples)
        start, is_last = 0, False
        while not is_last:
            ahead = start + segmentation.length + -(-segmentation.hop // 2)  # with this much more, it is not the last
            length, is_last = segmentation.find_length(start, cutter.count_samples(start, ahead))
            yield start, cutter.cut(start, length)
            start += segmentation.hop


def decode_segments(
    value: Any, row: int, sampling_rate: int, spans: Sequence[tuple[int, int]], max_samples: int | None = None
) -> list[np.ndarray]:
    """Decode some segments of a recording to what `iterate_segments` gives, reading no more than is needed.

    wav, flac and the like are read by seeking. Ogg, MP3 and other containers are read from their beginning to the last
    of these segments, as seeking in them is not exact.

    Args:
        value, row, sampling_rate, max_samples: as for `decode_waveform`.
        spans: start and length of each segment, in samples.

    Raises:
        UnreadableRecording, ValueError: as `decode_waveform`.
    """
    waveforms: dict[int, np.ndarray] = {}
    order = sorted(range(len(spans)), key=lambda i: spans[i])
    with open_recording(value, row) as reader:
        cutter = _Cutter(reader, row, sampling_rate, max_samples)
        for i in order:
            waveforms[i] = cutter.cut(*spans[i])
    return [waveforms[i] for i in range(len(spans))]


class _Cutter:
    """Cutter of segments at the model's rate, which must not begin before one that was cut."""

    def __init__(self, reader: Reader, row: int, sampling_rate: int, max_samples: int | None):
        self._row = row
        self._window = _Window(reader, count_stored_samples(max_samples, sampling_rate, reader.rate))
        self._max_samples = max_samples
        self._rates = reader.rate, sampling_rate
        divisor = math.gcd(*self._rates)
        self._down, self._up = reader.rate // divisor, sampling_rate // divisor
        is_resampled = reader.rate != sampling_rate
        self._margin = math.ceil(MARGIN * max(1.0, reader.rate / sampling_rate)) if is_resampled else 0

    def count_samples(self, start: int, enough: int) -> int:
        """Count the samples of the recording, or at least `enough` of them, keeping those from `start` on."""
        self._window.fill(self._find_first(start), -(-enough * self._down // self._up))
        if not self._window.has_ended:
            return enough
        total = count_resampled(self._window.stop, *self._rates)
        return total if self._max_samples is None else min(total, self._max_samples)

    def cut(self, start: int, length: int) -> np.ndarray:
        """Cut a segment: float32 (length,)."""
        first = self._find_first(start)
        stop = -(-(start + length) * self._down // self._up) + self._margin
        waveform = self._window.take(first, stop)
        check_waveform(waveform, self._row)
        if self._down != self._up:
            waveform = soxr.resample(waveform, *self._rates, quality="HQ")
        offset = start - first // self._down * self._up
        return waveform[offset : offset + length]

    def _find_first(self, start: int) -> int:
        """Find the stored frame to read from: at a multiple that keeps the grid of the resampled samples."""
        return max(0, (start * self._down // self._up - self._margin) // self._down * self._down)


class _Window:
    """Frames of a recording around a place that moves forward.

    Attributes:
        stop: frame behind the last one in the window.
        has_ended: True if no frames follow.
    """

    def __init__(self, reader: Reader, limit: int | None):
        self._reader = reader
        self._limit = limit
        self._frames = np.empty(0, np.float32)
        self.stop = 0
        self.has_ended = False

    def fill(self, first: int, stop: int) -> None:
        """Read up to `stop`, and forget what is before `first`."""
        if self._reader.can_seek and first > self.stop:
            self._reader.seek(first)
            self._frames, self.stop = self._frames[:0], first
        target = stop if self._limit is None else min(stop, self._limit)
        parts = [self._frames[max(0, len(self._frames) - (self.stop - first)) :]]
        while self.stop < target and not self.has_ended:
            wanted = target - self.stop if self._reader.can_seek else BLOCK_FRAMES
            block = self._reader.read(wanted)
            self.has_ended = len(block) < wanted
            if self._limit is not None and self.stop + len(block) >= self._limit:
                block, self.has_ended = block[: self._limit - self.stop], True
            self.stop += len(block)
            if self.stop > first:
                parts.append(block[max(0, len(block) - (self.stop - first)) :])
        self._frames = np.concatenate(parts)

    def take(self, first: int, stop: int) -> np.ndarray:
        """Return the frames from `first` to `stop`, fewer at the end."""
        self.fill(first, stop)
        begin = self.stop - len(self._frames)
        return self._frames[first - begin : max(0, stop - begin)] if first >= begin else self._frames[:0]
