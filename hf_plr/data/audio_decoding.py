"""Decode a recording to a waveform of one channel at a given sampling rate."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
import soxr

from hf_plr.data.sample_store import UnreadableSample

FORMATS = "wav, flac, ogg or mp3"


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
    if _is_array(value):
        rate = read_sampling_rate(value, row)
        waveform = _convert_array(value["array"], _count_stored_samples(max_samples, sampling_rate, rate), row)
    else:
        with _open_file(value, row) as file:
            rate = file.samplerate
            frames = _count_stored_samples(max_samples, sampling_rate, rate)
            waveform = file.read(-1 if frames is None else frames, dtype="float32", always_2d=True).mean(axis=1)
    if len(waveform) == 0:
        raise UnreadableRecording(f"recording {row} has no samples")
    if not np.isfinite(waveform).all():
        raise UnreadableRecording(f"recording {row} holds samples that are NaN or infinite")
    if rate != sampling_rate:
        waveform = soxr.resample(waveform, rate, sampling_rate, quality="HQ")
    return np.pad(waveform[:max_samples], (0, max(0, min_samples - len(waveform))))


def read_sampling_rate(value: Any, row: int) -> int:
    """Read the samples per second (Hz) of a stored recording; arguments and errors as in `decode_waveform`."""
    if not _is_array(value):
        with _open_file(value, row) as file:
            return file.samplerate
    rate = value.get("sampling_rate") if isinstance(value, dict) else None
    if rate is None:
        raise ValueError(
            f"recording {row} is an array whose sampling rate is missing: give "
            '{"array": samples, "sampling_rate": samples per second} or an audio file'
        )
    if not rate >= 1:
        raise UnreadableRecording(f"recording {row} has sampling_rate={rate}")
    return int(rate)


def _is_array(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("array") is not None
    return isinstance(value, (list, tuple, np.ndarray))


def _count_stored_samples(max_samples: int | None, sampling_rate: int, stored_rate: int) -> int | None:
    """Count the stored samples that make `max_samples` at `sampling_rate`."""
    return None if max_samples is None else -(-max_samples * stored_rate // sampling_rate)


def _convert_array(array: Any, frames: int | None, row: int) -> np.ndarray:
    try:
        samples = np.asarray(array)
        full_scale = 32768 if np.issubdtype(samples.dtype, np.integer) else 1
        if samples.ndim == 2:
            time_first = samples if samples.shape[0] >= samples.shape[1] else samples.T
            samples = time_first[:frames].mean(axis=1)
        if samples.ndim != 1:
            raise ValueError(f"it has {samples.ndim} axes")
        return samples[:frames].astype(np.float32) / np.float32(full_scale)
    except (ValueError, TypeError) as error:
        raise UnreadableRecording(
            f"recording {row} is not an array of numbers with one or two axes ({error})"
        ) from error


@contextlib.contextmanager
def _open_file(value: Any, row: int) -> Iterator[soundfile.SoundFile]:
    """Open an audio file; its errors, now or while it is read, become an `UnreadableRecording`."""
    source = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
    if not source:
        raise UnreadableRecording(f"recording {row} is missing")
    if not isinstance(source, (bytes, str, os.PathLike)):
        raise UnreadableRecording(f"recording {row} is neither a file nor an array but of type {type(source).__name__}")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            yield file
    # TypeError: no header. MemoryError: a damaged header that promises more samples than fit.
    except (soundfile.SoundFileError, OSError, TypeError, ValueError, MemoryError) as error:
        reason = str(error)
        if isinstance(source, bytes) and isinstance(error, soundfile.LibsndfileError):
            reason = error.error_string  # bytes have no file name to report
        raise UnreadableRecording(f"recording {row} cannot be read as {FORMATS} ({reason})") from error
