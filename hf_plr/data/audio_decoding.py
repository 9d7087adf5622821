"""Decode a recording to a waveform of one channel at a given sampling rate."""

from __future__ import annotations

import contextlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr

from hf_plr.data.archives import open_binary
from hf_plr.data.audio_containers import HEAD_BYTES, name_container, open_container
from hf_plr.data.audio_containers import describe_unreadable as describe_unreadable
from hf_plr.data.unreadable import UnreadableSample

BLOCK_FRAMES = 1 << 16  # that are read at a time, to count them or to find the end
MOST_FRAMES = 1 << 32  # more are a header's way to say that it does not know, or damage
MOST_FRAMES_PER_BYTE = 128  # of a file: more is silence, or damage to the header, so that they are counted
MIN_RATE = 100  # samples per second (Hz) of a file
FORMATS = "wav, flac, ogg or mp3"
# Files in which libsndfile jumps to the very frame. In Ogg and MP3 it lands beside some, or decodes others.
SEEKABLE = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "ALAC_")


class UnreadableRecording(UnreadableSample):
    """A recording that cannot be decoded."""


def decode_waveform(
    value: Any, row: int, sampling_rate: int, min_samples: int = 1, max_samples: int | None = None
) -> np.ndarray:
    """Decode the value of a column to a waveform.

    Channels are averaged. Samples after `max_samples` are not decoded. A recording shorter than `min_samples` is
    followed by zeros.

    Args:
        value: bytes of a file, its path, a dictionary with "bytes" and "path" as `datasets.Audio(decode=False)` gives
            it, or one with "array" and "sampling_rate". Arrays are of shape (T,), (channels, T) or (T, channels): the
            shorter axis holds the channels. Integers are taken for 16 bits.
        row: row of the data set, for messages.
        sampling_rate: samples per second (Hz) of the waveform.
        min_samples: its smallest length, at least 1.
        max_samples: its largest length; None takes the whole recording.

    Returns:
        float32 array of shape (T,), usually in [-1, 1].

    Raises:
        UnreadableRecording: if it is missing, empty, cannot be decoded, or holds NaN or infinite samples.
        ValueError: if it is an array without sampling rate.
    """
    with open_recording(value, row) as reader:
        rate = reader.rate
        waveform = reader.read(count_stored_samples(max_samples, sampling_rate, rate))
    check_waveform(waveform, row)
    if rate != sampling_rate:
        waveform = soxr.resample(waveform, rate, sampling_rate, quality="HQ")
    return np.pad(waveform[:max_samples], (0, max(0, min_samples - len(waveform))))


def count_samples(value: Any, row: int, sampling_rate: int, max_samples: int | None = None) -> int:
    """Count the samples of a recording at a rate by its header, at least 1.

    One whose header tells none, or many more than a file of its size should hold, is decoded: nobody should make room
    for what a damaged header promises.

    Args:
        value, row, sampling_rate, max_samples: as for `decode_waveform`.

    Returns:
        Length of what `decode_waveform` gives without `min_samples`. A damaged file may have less.

    Raises:
        UnreadableRecording, ValueError: as `decode_waveform`, for what the header tells.
    """
    return read_length(value, row, sampling_rate, max_samples)[0]


def read_length(value: Any, row: int, sampling_rate: int, max_samples: int | None = None) -> tuple[int, int]:
    """Count samples as `count_samples`; also returns the samples per second (Hz) as they are stored."""
    with open_recording(value, row) as reader:
        rate, frames = reader.rate, reader.frames
        limit = count_stored_samples(max_samples, sampling_rate, rate)
        if frames is not None and limit is not None:
            frames = min(frames, limit)
        if frames is None or frames > MOST_FRAMES_PER_BYTE * count_bytes(value):
            frames = 0
            while len(block := reader.read(BLOCK_FRAMES)):
                frames += len(block)
                if limit is not None and frames >= limit:
                    break
    frames = frames if limit is None else min(frames, limit)
    if frames == 0:
        raise UnreadableRecording(f"recording {row} has no samples")
    total = count_resampled(frames, rate, sampling_rate)
    return (total if max_samples is None else min(total, max_samples)), rate


def count_bytes(value: Any) -> float:
    """Count the bytes of a stored recording; infinite for arrays, and for files elsewhere."""
    stored = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    if isinstance(stored, bytes):
        return len(stored)
    try:
        return os.stat(stored).st_size if isinstance(stored, (str, os.PathLike)) else math.inf
    except (OSError, ValueError):
        return math.inf


def count_resampled(frames: int, rate: int, sampling_rate: int) -> int:
    """Count the samples that soxr makes of `frames` at another rate, at least 1 for any."""
    divisor = math.gcd(rate, sampling_rate)
    down, up = rate // divisor, sampling_rate // divisor
    return (2 * frames * up + down) // (2 * down)


def check_waveform(waveform: np.ndarray, row: int) -> None:
    """Refuse a waveform (T,) without samples, or with NaN or infinite ones.

    Raises:
        UnreadableRecording: naming its row.
    """
    if len(waveform) == 0:
        raise UnreadableRecording(f"recording {row} has no samples")
    if not np.isfinite(waveform).all():
        raise UnreadableRecording(f"recording {row} holds samples that are NaN or infinite")


def read_sampling_rate(value: Any, row: int) -> int:
    """Read the samples per second (Hz) of a stored recording; arguments and errors as in `decode_waveform`."""
    with open_recording(value, row) as reader:
        return reader.rate


class Reader(Protocol):
    """Reader of a stored recording, forward from its first frame; channels are averaged.

    Attributes:
        rate: frames per second (Hz).
        frames: frames in all, by the header; None if it does not tell.
        can_seek: True if `seek` leads to the very frames that reading up to there would.
    """

    rate: int
    frames: int | None
    can_seek: bool

    def read(self, frames: int | None) -> np.ndarray:
        """Read the next frames, all of them for None: float32 (T,), fewer at the end."""

    def seek(self, frame: int) -> None:
        """Go to a frame, counted from the first."""


@contextlib.contextmanager
def open_recording(value: Any, row: int) -> Iterator[Reader]:
    """Open the value of a column; arguments and errors as in `decode_waveform`, also for errors while it is read."""
    if _is_array(value):
        yield _ArrayReader(value, row)
        return
    source = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    if not source:
        raise UnreadableRecording(f"recording {row} is missing")
    if isinstance(source, str) and "://" in source:
        source = _read_remote(source, row)
    if not isinstance(source, (bytes, str, os.PathLike)):
        raise UnreadableRecording(f"recording {row} is neither a file nor an array but of type {type(source).__name__}")
    container = None
    try:
        try:
            file = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
        except (soundfile.SoundFileError, TypeError):
            container = _find_container(value, source, row)
            if container is None:
                raise
        if container is None:
            with file:
                if file.samplerate < MIN_RATE:  # of a damaged header: resampling would take the memory
                    raise UnreadableRecording(f"recording {row} has {file.samplerate} samples a second")
                yield _FileReader(file)
        else:
            with open_container(source) as reader:
                yield reader
    except UnreadableRecording:
        raise
    # TypeError: no header. MemoryError: a damaged header that promises more samples than fit.
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, MemoryError) as error:
        reason = str(error)
        if isinstance(source, bytes) and isinstance(error, soundfile.LibsndfileError):
            reason = error.error_string  # bytes have no file name to report
        raise UnreadableRecording(f"recording {row} cannot be read as {container or FORMATS} ({reason})") from error


def _read_remote(address: str, row: int) -> bytes:
    """Read a file in an archive or elsewhere as a whole: such files cannot jump."""
    try:
        with open_binary(address) as file:
            return bytes(file.read())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UnreadableRecording(f"recording {row} cannot be read ({error})") from error


def _is_array(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("array") is not None
    return isinstance(value, (list, tuple, np.ndarray))


def count_stored_samples(max_samples: int | None, sampling_rate: int, stored_rate: int) -> int | None:
    """Count the stored samples that make `max_samples` at `sampling_rate`; None for None."""
    return None if max_samples is None else -(-max_samples * stored_rate // sampling_rate)


class _FileReader:
    """Reader of a file that libsndfile has opened."""

    def __init__(self, file: soundfile.SoundFile):
        self._file = file
        self.rate = int(file.samplerate)
        self.frames = int(file.frames) if file.frames <= MOST_FRAMES else None
        self.can_seek = file.seekable() and file.format != "OGG" and file.subtype.startswith(SEEKABLE)

    def read(self, frames: int | None) -> np.ndarray:
        if frames is None and not self._file.seekable():  # soundfile finds the end of no such file
            blocks = [self.read(BLOCK_FRAMES)]
            while len(blocks[-1]):
                blocks.append(self.read(BLOCK_FRAMES))
            return np.concatenate(blocks)
        stored = self._file.read(-1 if frames is None else frames, dtype="float32", always_2d=True)
        waveform: np.ndarray = stored.mean(axis=1)
        return waveform

    def seek(self, frame: int) -> None:
        self._file.seek(frame)


class _ArrayReader:
    """Reader of an array in the data set."""

    can_seek = True

    def __init__(self, value: Any, row: int):
        self.rate = _check_rate(value, row)
        self._array, self._row, self._position = value["array"], row, 0
        self.frames: int | None = None  # one of its axes, if it has two

    def read(self, frames: int | None) -> np.ndarray:
        try:
            self._array = np.asarray(self._array)
            stop = None if frames is None else self._position + frames
            waveform = _convert_array(self._array, slice(self._position, stop))
        except (ValueError, TypeError) as error:
            raise UnreadableRecording(
                f"recording {self._row} is not an array of numbers with one or two axes ({error})"
            ) from error
        self._position += len(waveform)
        return waveform

    def seek(self, frame: int) -> None:
        self._position = frame


def _check_rate(value: Any, row: int) -> int:
    rate = value.get("sampling_rate") if isinstance(value, dict) else None
    if rate is None:
        raise ValueError(
            f"recording {row} is an array whose sampling rate is missing: give "
            '{"array": samples, "sampling_rate": samples per second} or an audio file'
        )
    if not rate >= 1:
        raise UnreadableRecording(f"recording {row} has sampling_rate={rate}")
    return int(rate)


def _convert_array(samples: np.ndarray, frames: slice) -> np.ndarray:
    """Convert some frames of an array to float32, one channel."""
    full_scale = 32768 if np.issubdtype(samples.dtype, np.integer) else 1
    if samples.ndim == 2:
        time_first = samples if samples.shape[0] >= samples.shape[1] else samples.T
        chosen = time_first[frames].mean(axis=1)
    elif samples.ndim == 1:
        chosen = samples[frames]
    else:
        raise ValueError(f"it has {samples.ndim} axes")
    return chosen.astype(np.float32) / np.float32(full_scale)


def _find_container(value: Any, source: bytes | str | os.PathLike[str], row: int) -> str | None:
    """Name the container of a file that libsndfile does not open; None if it is of no known kind.

    Raises:
        UnreadableRecording: if there is no decoder for it.
    """
    if isinstance(source, bytes):
        head = source[:HEAD_BYTES]
    elif os.path.isfile(source):
        with open(source, "rb") as file:
            head = file.read(HEAD_BYTES)
    else:
        return None
    path = value.get("path") if isinstance(value, dict) else None if isinstance(source, bytes) else source
    suffix = Path(path).suffix if path else ""
    needed = describe_unreadable(head, suffix)
    if needed is not None:
        raise UnreadableRecording(f"recording {row} cannot be read: {needed}")
    return name_container(head, suffix)
