"""Small pictures and sounds that stand for samples, as text that a page can hold."""

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
from hf_plr.data.sample_store import SampleStore, UnreadableSample

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
        known: previews that were made before, by key.
    """

    def __init__(self, store: SampleStore, known: dict[str, Preview] | None = None):
        self.store = store
        self._known: dict[str, Preview] = dict(known or {})
        self._failed: set[str] = set()

    def of(self, keys: Iterable[str], seconds: float | None = None) -> dict[str, Preview]:
        """Previews by key, in the order of the keys; one that cannot be made is left out.

        Args:
            keys: position of a sample, as text, for a sound with "@" and the second that its clip begins at.
            seconds: what is not there is made in about this time, and the rest left for later; None makes all.
        """
        started = time.perf_counter()
        found: dict[str, Preview] = {}
        for key in dict.fromkeys(keys):
            if key not in self._known and key not in self._failed:
                if seconds is not None and time.perf_counter() - started > seconds:
                    continue
                self._make(key)
            if key in self._known:
                found[key] = self._known[key]
        self._known = dict(found)
        return found

    def _make(self, key: str) -> None:
        position, _, second = key.partition("@")
        try:
            item = self.store[int(position)]
        except (UnreadableSample, OSError) as error:  # it could be read at the start
            logger.warning("The report shows no %s %s: %s", self.store.noun, position, error)
            self._failed.add(key)
            return
        values = item[self.store.input_name].numpy()
        if isinstance(self.store, AudioStore):
            self._known[key] = sound_preview(values, self.store.audio_format.sampling_rate, float(second or 0.0))
        else:
            self._known[key] = image_preview(values)


def image_preview(pixels: np.ndarray) -> Preview:
    """A JPEG of up to 64 pixels a side.

    Args:
        pixels: uint8 of shape (C, H, W), one or three channels.
    """
    array = np.clip(pixels, 0, 255).astype(np.uint8)
    image = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return {"image": _text(file)}


def sound_preview(waveform: np.ndarray, rate: int, second: float = 0.0) -> Preview:
    """A clip of 1.25 seconds and up to 8 kHz as FLAC, levelled, and its spectrogram as PNG.

    Args:
        waveform: float32 of shape (T,).
        rate: samples a second (Hz).
        second: where the clip begins.
    """
    first = min(round(second * rate), max(0, len(waveform) - 1))
    clip = waveform[first : first + round(CLIP_SECONDS * rate)]
    if rate > CLIP_RATE:
        clip, rate = soxr.resample(clip, rate, CLIP_RATE, quality="MQ"), CLIP_RATE
    peak = float(np.abs(clip).max()) if len(clip) else 0.0
    clip = clip * (CLIP_PEAK / peak) if peak > 0 else clip
    file = io.BytesIO()
    soundfile.write(file, clip, rate, format="FLAC", subtype="PCM_16")
    return {"image": _text(_drawn(spectrogram(clip))), "audio": _text(file)}


def spectrogram(clip: np.ndarray) -> np.ndarray:
    """Shades of a spectrogram from 0 (quiet) to 15, uint8 of shape (rows, columns), high frequencies first."""
    clip = np.pad(clip, (0, max(0, WINDOW - len(clip))))
    starts = np.linspace(0, len(clip) - WINDOW, COLUMNS).astype(np.int64)
    windows = clip[starts[:, None] + np.arange(WINDOW)] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(windows, axis=1)[:, 1:]) ** 2
    edges = np.linspace(0, power.shape[1], ROWS + 1).astype(np.int64)
    bands = np.add.reduceat(power, edges[:-1], axis=1)
    decibels = 10 * np.log10(bands + 1e-10)
    shades = (decibels - decibels.max() + RANGE_DB) / RANGE_DB * (SHADES - 1)
    return np.clip(np.rint(shades), 0, SHADES - 1).astype(np.uint8).T[::-1]


def _drawn(shades: np.ndarray) -> io.BytesIO:
    image = Image.fromarray(np.ascontiguousarray(shades)).convert("P")
    steps = np.linspace(0, len(PALETTE) - 1, SHADES)
    colours = np.stack([np.interp(steps, np.arange(len(PALETTE)), channel) for channel in zip(*PALETTE, strict=True)])
    image.putpalette(np.rint(colours.T).astype(np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", bits=4, optimize=False)
    return file


def _text(file: io.BytesIO) -> str:
    return base64.b64encode(file.getvalue()).decode("ascii")
