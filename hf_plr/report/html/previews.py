"""Small images and sounds that represent samples, as text that a page can hold."""

from __future__ import annotations

import base64
import io
import logging
import time
from collections.abc import Iterable

import numpy as np
import soundfile
import soxr
from PIL import Image

from hf_plr.data.audio_store import AudioStore
from hf_plr.data.sample_store import SampleStore
from hf_plr.data.unreadable import UnreadableSample

logger = logging.getLogger(__name__)

Preview = dict[str, str]  # base64 by "image" and "audio"

MEDIA_TYPES = {"image": {"image": "image/jpeg"}, "recording": {"image": "image/png", "audio": "audio/flac"}}
THUMBNAIL = 64  # pixels of the longer side
JPEG_QUALITY = 82
CLIP_RATE = 8_000  # Hz, at most
CLIP_SECONDS = 1.25
CLIP_PEAK = 0.9
WINDOW, COLUMNS, ROWS = 256, 80, 48  # of a spectrogram
RANGE_DB = 65.0
SHADES = 16
PALETTE = ((12, 10, 42), (87, 24, 110), (187, 55, 84), (249, 142, 9), (252, 255, 190))  # from quiet to loud


class Previews:
    """Previews of a store's samples, each made once and kept as long as it is shown.

    Args:
        store: the samples.
        cached: previews that were made before, by key.
    """

    def __init__(self, store: SampleStore, cached: dict[str, Preview] | None = None):
        self.store = store
        self._cache: dict[str, Preview] = dict(cached or {})
        self._failed: set[str] = set()

    def make(self, keys: Iterable[str], seconds: float | None = None) -> dict[str, Preview]:
        """Make the previews of these keys, in their order; one that cannot be made is left out.

        Args:
            keys: position of each sample, as text; for a sound with "@" and the second at which its clip begins.
            seconds: time for new previews, about; those that do not fit are left for later. None makes all.
        """
        start = time.perf_counter()
        previews: dict[str, Preview] = {}
        for key in dict.fromkeys(keys):
            if key not in self._cache and key not in self._failed:
                if seconds is not None and time.perf_counter() - start > seconds:
                    continue
                self._add(key)
            if key in self._cache:
                previews[key] = self._cache[key]
        self._cache = dict(previews)
        return previews

    def _add(self, key: str) -> None:
        position, _, second = key.partition("@")
        try:
            item = self.store[int(position)]
        except (UnreadableSample, OSError) as error:  # readable at the start of the run, not any more
            logger.warning("The report shows no %s %s: %s", self.store.noun, position, error)
            self._failed.add(key)
            return
        values = item[self.store.input_name].numpy()
        if isinstance(self.store, AudioStore):
            self._cache[key] = sound_preview(values, self.store.audio_format.sampling_rate, float(second or 0.0))
        else:
            self._cache[key] = image_preview(values)


def image_preview(pixels: np.ndarray) -> Preview:
    """Make a JPEG of up to 64 pixels per side.

    Args:
        pixels: uint8 of shape (C, H, W); of more than three channels the first three are shown, of two the first.
    """
    array = np.clip(pixels, 0, 255).astype(np.uint8)
    image = Image.fromarray(array[0] if len(array) < 3 else np.ascontiguousarray(array[:3].transpose(1, 2, 0)))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return {"image": _base64(file)}


def sound_preview(waveform: np.ndarray, rate: int, second: float = 0.0) -> Preview:
    """Make a clip of 1.25 seconds and up to 8 kHz as FLAC, normalized, and its spectrogram as PNG.

    Args:
        waveform: float32 of shape (T,).
        rate: sampling rate (Hz).
        second: start of the clip.
    """
    first = min(round(second * rate), max(0, len(waveform) - 1))
    clip = waveform[first : first + round(CLIP_SECONDS * rate)]
    if rate > CLIP_RATE:
        clip, rate = soxr.resample(clip, rate, CLIP_RATE, quality="MQ"), CLIP_RATE
    peak = float(np.abs(clip).max()) if len(clip) else 0.0
    clip = clip * (CLIP_PEAK / peak) if peak > 0 else clip
    file = io.BytesIO()
    soundfile.write(file, clip, rate, format="FLAC", subtype="PCM_16")
    return {"image": _base64(_png(spectrogram(clip))), "audio": _base64(file)}


def spectrogram(clip: np.ndarray) -> np.ndarray:
    """Compute shades of a spectrogram, 0 (quiet) to 15: uint8 of shape (rows, columns), high frequencies first."""
    clip = np.pad(clip, (0, max(0, WINDOW - len(clip))))
    starts = np.linspace(0, len(clip) - WINDOW, COLUMNS).astype(np.int64)
    windows = clip[starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(windows, axis=1)[:, 1:]) ** 2
    edges = np.linspace(0, power.shape[1], ROWS + 1).astype(np.int64)
    bands = np.add.reduceat(power, edges[:-1], axis=1)
    decibels = 10 * np.log10(bands + 1e-10)
    shades = (decibels - decibels.max() + RANGE_DB) / RANGE_DB * (SHADES - 1)
    return np.clip(np.rint(shades), 0, SHADES - 1).astype(np.uint8).T[::-1]


def _png(shades: np.ndarray) -> io.BytesIO:
    image = Image.fromarray(np.ascontiguousarray(shades)).convert("P")
    steps = np.linspace(0, len(PALETTE) - 1, SHADES)
    colours = np.stack([np.interp(steps, np.arange(len(PALETTE)), channel) for channel in zip(*PALETTE, strict=True)])
    image.putpalette(np.rint(colours.T).astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", bits=4, optimize=False)
    return file


def _base64(file: io.BytesIO) -> str:
    return base64.b64encode(file.getvalue()).decode("ascii")
