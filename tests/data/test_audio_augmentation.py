"""Augmented waveforms: each change by itself, and nothing from the batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.data.audio_augmentation import (
    AUDIO_AUGMENTATIONS,
    FAINTEST,
    fill_silence,
    waveform_augmentation,
)
from hf_plr.utils.rng import uniform

# Numbers that change nothing audible: speed 1, no shift, 0 dB, least noise (40 dB), no span.
STILL = [0.5, 0.5, 0.5, 1 - 2**-24, 0.25, 0.0, 0.0]


def numbers(n=1, **changed):
    names = ["speed", "shift", "gain", "noise", "key", "span", "start"]
    row = torch.tensor([changed.get(name, still) for name, still in zip(names, STILL, strict=True)] + [0.5] * 9)
    return row.expand(n, -1)


def tone(n, period=100):
    return torch.sin(2 * torch.pi * torch.arange(n) / period)[None]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5), st.integers(0, 500), st.integers(0, 9))
def test_a_clip_depends_on_its_own_numbers_only(lengths, extra, epoch):
    values = torch.randn(len(lengths), max(lengths) + extra)  # rubbish behind the ends
    drawn = uniform(torch.arange(len(lengths)), 1, epoch)
    together = waveform_augmentation(values, torch.tensor(lengths), drawn)
    assert together.shape == values.shape
    assert together.dtype is torch.float32
    for i, length in enumerate(lengths):
        alone = waveform_augmentation(values[i : i + 1, :length], torch.tensor([length]), drawn[i : i + 1])
        torch.testing.assert_close(together[i, :length], alone[0], atol=1e-5, rtol=1e-5)
        assert (together[i, length:] == 0).all()


def test_numbers_in_the_middle_leave_the_clip_nearly_as_it_is():
    values = tone(4000)
    out = waveform_augmentation(values, torch.tensor([4000]), numbers())
    error = (out - values).square().mean() / values.square().mean()
    assert 10 * math.log10(error) == pytest.approx(-40.0, abs=0.3)


@pytest.mark.parametrize(("number", "decibels"), [(0.0, -6.0), (1 - 2**-24, 6.0)])
def test_gain_keeps_polarity(number, decibels):
    values = tone(4000)
    out = waveform_augmentation(values, torch.tensor([4000]), numbers(gain=number))
    ratio = (out * values).sum() / values.square().sum()
    assert 20 * math.log10(ratio) == pytest.approx(decibels, abs=0.05)


def test_noise_is_white_and_belongs_to_the_clip():
    values = tone(40_000).expand(2, -1)
    drawn = numbers(2, noise=0.0).clone()
    drawn[1, 4] += 2**-24
    noise = waveform_augmentation(values, torch.tensor([40_000, 40_000]), drawn) - values
    for clip in noise:
        assert 10 * math.log10(clip.square().mean() / 0.5) == pytest.approx(-15.0, abs=0.2)
        spectrum = torch.fft.rfft(clip).abs().square()[1:].view(10, -1).mean(dim=1)
        assert spectrum.max() / spectrum.min() < 1.3
        assert abs(clip.mean()) < 0.01
    assert torch.corrcoef(noise)[0, 1].abs() < 0.03


@pytest.mark.parametrize(("number", "shift"), [(0.0, -400), (0.75, 200), (1 - 2**-24, 400)])
def test_shifts_go_round_within_the_clip(number, shift):
    values = torch.zeros(1, 5000)
    values[0, :4000] = torch.linspace(-1, 1, 4000)
    out = waveform_augmentation(values, torch.tensor([4000]), numbers(shift=number))
    expected = values[0, :4000].roll(shift)
    assert (out[0, :4000] - expected).abs().max() < 0.02
    assert (out[0, 4000:] == 0).all()


@pytest.mark.parametrize(("number", "speed"), [(0.0, 0.9), (1 - 2**-24, 1.1)])
def test_speed_moves_what_was_said_and_keeps_the_length(number, speed):
    time = torch.arange(160_000)
    values = torch.sin(time * 0.05)[None]
    out = waveform_augmentation(values, torch.tensor([160_000]), numbers(speed=number))[0]
    said = int(160_000 / speed) if speed > 1 else 160_000
    expected = torch.sin(time[:said].double() * 0.05 * speed)
    assert (out[: said - 2] - expected[: said - 2]).abs().max() < 0.03
    assert (out[said + 2 :]).abs().max() < 0.03 if speed > 1 else True


def test_spans_are_silent_and_at_most_fifteen_percent():
    drawn = uniform(torch.arange(200), 0, 0)
    out = waveform_augmentation(
        torch.ones(200, 1000), torch.full((200,), 1000), drawn.clone().index_fill_(1, torch.tensor(0), 0.5)
    )
    silent = out == 0
    shares = silent.float().mean(dim=1)
    assert 0.13 < shares.max() <= 0.15
    assert shares.min() < 0.02
    edges = (silent[:, 1:] != silent[:, :-1]).sum(dim=1)
    assert edges.max() <= 2  # one span
    out = waveform_augmentation(tone(1000), torch.tensor([1000]), numbers(span=1 - 2**-24, start=1 - 2**-24))
    assert (out[0, 851:] == 0).all()


def test_none_changes_nothing():
    values = torch.randn(2, 50)
    assert AUDIO_AUGMENTATIONS["none"](values, torch.tensor([50, 20]), torch.rand(2, 16)) is values
    assert AUDIO_AUGMENTATIONS["waveform"] is waveform_augmentation


def test_only_clips_of_silence_are_filled_and_no_padding():
    values = torch.zeros(5, 300)
    values[0, 20] = 1e-9
    values[4] = 0.25
    values[1, 150:] = 0.5  # behind its end
    lengths = torch.tensor([300, 150, 100, 0, 300])
    filled = fill_silence(values, lengths)
    assert torch.equal(filled[[0, 3]], values[[0, 3]])
    assert (filled[1, 150:] == 0.5).all()
    assert (filled[1, :100] == filled[2, :100]).all(), "whatever it lies beside"
    assert (filled[2, 100:] == 0).all()
    assert 0 < filled[2, :100].abs().max() < 2 * FAINTEST
    torch.testing.assert_close(filled[4, :100] - 0.25, filled[2, :100], atol=1e-7, rtol=0)
    assert filled[2, :100].std() == pytest.approx(FAINTEST, rel=0.2)


def test_silence_stays_silent():
    assert (waveform_augmentation(torch.zeros(3, 400), torch.tensor([400, 7, 0]), torch.rand(3, 16)) == 0).all()
