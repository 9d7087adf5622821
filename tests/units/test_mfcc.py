"""Cepstral coefficients against an independent computation, clip by clip."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from hf_plr.models.speech import SpeechBackbone, small_hubert
from hf_plr.units.mfcc import mfcc


def reference(waveform, rate, window, hop):
    """One clip by scipy and transformers' numpy spectrogram, deltas by a plain loop."""
    n_fft = 2 ** int(np.ceil(np.log2(window)))
    filters = mel_filter_bank(n_fft // 2 + 1, 23, 20.0, rate / 2, rate, None, "kaldi", True)
    log_mel = spectrogram(
        waveform.astype(np.float64),
        window_function(window, "hann"),
        frame_length=window,
        hop_length=hop,
        fft_length=n_fft,
        power=2.0,
        center=False,
        mel_filters=filters,
        mel_floor=1e-6,
        log_mel="log",
        dtype=np.float64,
    )
    coefficients = scipy.fft.dct(log_mel.T, type=2, norm="ortho", axis=1)[:, :13]
    slopes = deltas(coefficients)
    return np.concatenate([coefficients, slopes, deltas(slopes)], axis=1)


def deltas(frames):
    padded = np.concatenate([frames[:1]] * 4 + [frames] + [frames[-1:]] * 4)
    weights = np.arange(-4, 5)
    return np.stack([weights @ padded[t : t + 9] for t in range(len(frames))]) / (weights**2).sum()


@pytest.mark.parametrize(("rate", "window", "hop"), [(8_000, 205, 160), (16_000, 400, 160)])
def test_each_clip_equals_the_independent_computation(rate, window, hop):
    lengths = torch.tensor([rate, rate // 2 + 13, window])
    values = 0.3 * torch.randn(3, rate + 50)  # rubbish behind the ends
    found = mfcc(values, lengths, rate, window, hop)
    assert found.shape == (3, (rate + 50 - window) // hop + 1, 39)
    assert found.dtype is torch.float32
    for i, length in enumerate(lengths.tolist()):
        expected = reference(values[i, :length].numpy(), rate, window, hop)
        assert len(expected) == (length - window) // hop + 1
        np.testing.assert_allclose(found[i, : len(expected)], expected, atol=2e-3)
        assert (found[i, len(expected) :] == 0).all()


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=4), st.integers(0, 300))
def test_padding_changes_nothing(lengths, extra):
    values = torch.randn(len(lengths), max(lengths) + extra)
    together = mfcc(values, torch.tensor(lengths), 8_000, 205, 160)
    for i, length in enumerate(lengths):
        alone = mfcc(values[i : i + 1, :length], torch.tensor([length]), 8_000, 205, 160)
        assert alone.shape[1] == max(length - 205, 0) // 160 + 1
        torch.testing.assert_close(together[i, : alone.shape[1]], alone[0], atol=1e-4, rtol=1e-4)
        assert torch.isfinite(alone).all()


def test_frames_are_those_of_the_backbone():
    backbone = SpeechBackbone(small_hubert(16_000, hidden_size=32, num_hidden_layers=1))
    lengths = torch.arange(1, 4000, 37)
    values = torch.randn(len(lengths), 4000)
    coefficients = mfcc(values, lengths, 16_000, backbone.receptive_field, backbone.hop)
    assert torch.equal((coefficients != 0).any(dim=2).sum(dim=1), backbone.n_frames(lengths))


def test_a_steady_sound_has_no_slope_and_a_rising_one_has():
    period = torch.randn(160)  # the hop, so that all frames are equal
    steady = period.repeat(50)
    rising = steady * torch.exp(4 * torch.arange(8_000) / 8_000)
    found = mfcc(torch.stack([steady, rising]), torch.tensor([8_000, 8_000]), 8_000, 205, 160)
    assert found[0, :, 13:].abs().max() < 1e-3
    inner = found[1, 8:-8]
    slope = 2 * 4 * 160 / 8_000 * 23**0.5  # of log energy, the same in 23 filters
    torch.testing.assert_close(inner[:, 13], torch.full((len(inner),), slope), atol=1e-3, rtol=1e-3)
    assert inner[:, 14:].abs().max() < 1e-2
