"""Augmentation of waveforms in batches on the training device, the same for a clip whatever batch it is in.

The random numbers are those of `hf_plr.data.image_augmentation.uniform`: a function of (seed, epoch, sample index).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from hf_plr.utils.rng import uniform

AudioAugmentation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
SPEEDS = (0.9, 1.1)
MOST_SHIFTED = 0.10  # of the clip, to either side
GAINS = (-6.0, 6.0)  # dB
NOISE_RATIOS = (15.0, 40.0)  # signal to noise, dB
MOST_MASKED = 0.15  # of the clip


def no_augmentation(values: torch.Tensor, lengths: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Leave the waveforms as they are."""
    return values


def waveform_augmentation(values: torch.Tensor, lengths: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Small changes of speed (10%), place (10%) and loudness (6 dB), white noise (15 to 40 dB below), a silent span.

    What was said, and by whom, stays to be heard. Speed changes pitch too (linear interpolation); a clip keeps its
    length: its end is cut off or becomes silence. A shift moves the end to the start or the start to the end. The
    silent span is up to 15% of the clip.

    Args:
        values: waveforms, float32 of shape (B, T).
        lengths: samples of each clip, shape (B,), at most T.
        numbers: random numbers, uniform in [0, 1), shape (B, 16).

    Returns:
        Waveforms (B, T) with zeros behind each clip's end; a clip's result does not depend on the others, nor on the
        padding, up to rounding.
    """
    lengths = lengths[:, None].to(torch.int64).clamp(min=1)
    position = torch.arange(values.shape[1], device=values.device)
    padding = position >= lengths
    values = _resample(values.masked_fill(padding, 0.0), _between(SPEEDS, numbers[:, 0:1]))
    values = _rotate(values, lengths, numbers[:, 1:2]).masked_fill(padding, 0.0)
    values = values * 10 ** (_between(GAINS, numbers[:, 2:3]) / 20)
    power = values.square().sum(dim=1, keepdim=True) / lengths
    deviation = (power / 10 ** (_between(NOISE_RATIOS, numbers[:, 3:4]) / 10)).sqrt()
    values = values + deviation * _white_noise(numbers[:, 4:5], position)
    return values.masked_fill(padding | _span(lengths, numbers[:, 5:7], position), 0.0)


AUDIO_AUGMENTATIONS: dict[str, AudioAugmentation] = {"waveform": waveform_augmentation, "none": no_augmentation}


def _resample(values: torch.Tensor, speed: torch.Tensor) -> torch.Tensor:
    """Read waveforms (B, T), zero behind their ends, at `speed` (B, 1); zeros follow."""
    n = values.shape[1]
    # float32 cannot hold a place in a long clip to a fraction of a sample.
    place = torch.arange(n, dtype=torch.float64, device=values.device) * speed.to(torch.float64)
    left = place.floor()
    fraction = (place - left).to(values.dtype)
    left = left.long()
    padded = F.pad(values, (0, 1))
    before, after = padded.gather(1, left.clamp(max=n)), padded.gather(1, (left + 1).clamp(max=n))
    return before + (after - before) * fraction


def _rotate(values: torch.Tensor, lengths: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Shift each clip within itself; lengths and uniform are (B, 1). What is behind the end has no meaning."""
    shift = ((2.0 * uniform - 1.0) * MOST_SHIFTED * lengths).round().long()
    return values.gather(1, (torch.arange(values.shape[1], device=values.device) - shift) % lengths)


def _white_noise(uniform_number: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Noise (B, T) of unit variance, each value a function of its clip's number (B, 1) and its position (T,)."""
    key = (uniform_number * 2**24).long()  # the number has 24 bits
    index = (key << 32) + position
    return (2.0 * uniform(index.flatten(), 0, 0, n=1).view(index.shape) - 1.0) * 3.0**0.5


def _span(lengths: torch.Tensor, uniform: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Which samples a span of up to 15% of each clip covers: lengths (B, 1), uniform (B, 2) -> bool (B, T)."""
    width = (uniform[:, 0:1] * MOST_MASKED * lengths).long()
    start = (uniform[:, 1:2] * (lengths - width + 1)).long()
    return (position >= start) & (position < start + width)


def _between(ends: tuple[float, float], uniform: torch.Tensor) -> torch.Tensor:
    return ends[0] + (ends[1] - ends[0]) * uniform
