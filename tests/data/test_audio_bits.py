"""Waveforms that are kept in 16 bits: exact where a file has no more, and otherwise scaled by their peak."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from transformers import Wav2Vec2FeatureExtractor

from hf_plr.data.audio_store import AudioFormat, AudioStore

RATE = 16_000


def encode(samples, kind="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, subtype, format=kind)
    return buffer.getvalue()


def open_store(files, seconds=None, **limits):
    form = AudioFormat(Wav2Vec2FeatureExtractor(sampling_rate=RATE), 400, segment_seconds=seconds)
    return AudioStore(Dataset.from_dict({"audio": files}), "audio", form, **limits)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("seconds", [None, 0.3])
def test_files_of_16_bits_at_the_rate_are_kept_bit_for_bit(tmp_path, kind, seconds):
    rng = np.random.default_rng(0)
    faint, loud = rng.integers(-3, 4, 9000), rng.integers(-(2**15), 2**15, 9000)
    loud[[5, 8000]] = -(2**15)
    files = [encode(each.astype(np.int16), kind=kind) for each in (faint, loud, np.zeros(9000))]
    for limits in ({"cache_bytes": 0}, {}, {"cache_dir": tmp_path}):
        store = open_store(files, seconds, **limits)
        for _ in range(2):
            for position, row in enumerate(store.rows.tolist()):
                stored = soundfile.read(io.BytesIO(files[row]), dtype="float32")[0]
                if seconds is not None:
                    start, end = (store.segments[position] * RATE).round().astype(int).tolist()
                    stored = stored[start:end]
                np.testing.assert_array_equal(store[position]["input_values"].numpy(), stored)


def test_what_16_bits_cannot_hold_is_scaled_by_its_peak():
    faint = (1e-3 * np.sin(np.arange(600))).astype(np.float32)
    half_steps = (np.round(faint * 2**16) / 2**16).astype(np.float32)
    above = np.array([1.0, -1.0] * 300, np.float32)  # 1 is a step more than 16 bits have
    huge = np.array([3e38, -1.0] * 300, np.float32)
    waveforms = [faint, half_steps, above, huge]
    store = open_store([encode(each, subtype="FLOAT") for each in waveforms])
    for position, row in enumerate(store.rows.tolist()):
        expected = waveforms[row]
        found = store[position]["input_values"].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=float(np.abs(expected).max()) / 65_000)
