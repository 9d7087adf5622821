"""Augmentation of waveforms in batches on the training device, the same for a clip in any batch.

The random numbers are those of `hf_plr.utils.rng.uniform`: a function of (seed, epoch, sample index).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from hf_plr.utils.rng import uniform

AudioAugmentation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
SPEEDS = (0.9, 1.1)
MAX_SHIFT = 0.10  # of the clip, to either side
GAINS = (-6.0, 6.0)  # dB
NOISE_RATIOS = (15.0, 40.0)  # signal to noise, dB
MAX_SPAN = 0.15  # of the clip
FAINTEST = 2.0**-15  # the smallest step of 16 bits


def no_augmentation(values: torch.Tensor, lengths: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Leave the waveforms as they are."""
    return values


def waveform_augmentation(values: torch.Tensor, lengths: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Change speed (10%), position (10%) and loudness (6 dB), add white noise (15 to 40 dB below) and a silent span.

    Words and speaker stay recognisable. Speed changes pitch too (linear interpolation). A clip keeps its length: its
    end is cut off or becomes silence. A shift moves the end to the start or the start to the end. The silent span is
    up to 15% of the clip.

    Args:
        values: waveforms, float32 of shape (B, T).
        lengths: samples of each clip, shape (B,), at most T.
        numbers: random numbers, uniform in [0, 1), shape (B, 16).

    Returns:
        Waveforms (B, T) with zeros behind each clip's end. Up to rounding, a clip's result depends neither on the
        other clips nor on the padding.
    """
    lengths = lengths[:, None].to(torch.int64).clamp(min=1)
    position = torch.arange(values.shape[1], device=values.device)
    padding = position >= lengths
    values = _resample(values.masked_fill(padding, 0.0), _scale_to(SPEEDS, numbers[:, 0:1]))
    values = _rotate(values, lengths, numbers[:, 1:2]).masked_fill(padding, 0.0)
    values = values * 10 ** (_scale_to(GAINS, numbers[:, 2:3]) / 20)
    power = values.square().sum(dim=1, keepdim=True) / lengths
    deviation = (power / 10 ** (_scale_to(NOISE_RATIOS, numbers[:, 3:4]) / 10)).sqrt()
    values = values + deviation * _draw_white_noise(numbers[:, 4:5], position)
    return values.masked_fill(padding | _mask_span(lengths, numbers[:, 5:7], position), 0.0)


AUDIO_AUGMENTATIONS: dict[str, AudioAugmentation] = {"waveform": waveform_augmentation, "none": no_augmentation}


def fill_silence(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Add noise of one step of 16 bits, the same to all, to clips of one value throughout; others stay as they are.

    A model that normalises the channels of each frame divides the gradient of such a clip by the root of its epsilon in
    every layer: 300 for each, so that the clip alone decides a step, or its gradient is infinite.

    Args:
        values: waveforms (B, T).
        lengths: samples of each clip, shape (B,), at most T; what follows stays as it is.
    """
    position = torch.arange(values.shape[1], device=values.device)
    is_sample = position < lengths[:, None]
    is_silent = ((values == values[:, :1]) | ~is_sample).all(dim=1, keepdim=True)
    noise = FAINTEST * _draw_white_noise(torch.zeros(1, 1, device=values.device), position)
    return torch.where(is_silent & is_sample, values + noise.to(values.dtype), values)


def _resample(values: torch.Tensor, speed: torch.Tensor) -> torch.Tensor:
    """Read waveforms (B, T), zero behind their ends, at `speed` (B, 1); zeros follow."""
    n = values.shape[1]
    # float32 cannot hold a position in a long clip to a fraction of a sample.
    position = torch.arange(n, dtype=torch.float64, device=values.device) * speed.to(torch.float64)
    left = position.floor()
    fraction = (position - left).to(values.dtype)
    left = left.long()
    padded = F.pad(values, (0, 1))
    left_value, right_value = padded.gather(1, left.clamp(max=n)), padded.gather(1, (left + 1).clamp(max=n))
    return left_value + (right_value - left_value) * fraction


def _rotate(values: torch.Tensor, lengths: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Shift each clip within itself; lengths and numbers are (B, 1). Values behind the end have no meaning."""
    shift = ((2.0 * numbers - 1.0) * MAX_SHIFT * lengths).round().long()
    return values.gather(1, (torch.arange(values.shape[1], device=values.device) - shift) % lengths)


def _draw_white_noise(number: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Draw noise (B, T) of unit variance, each value a function of its clip's number (B, 1) and its position (T,)."""
    key = (number * 2**24).long()  # the number has 24 bits
    index = (key << 32) + position
    return (2.0 * uniform(index.flatten(), 0, 0, n=1).view(index.shape) - 1.0) * 3.0**0.5


def _mask_span(lengths: torch.Tensor, numbers: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Mark the samples in a span of up to 15% of each clip: lengths (B, 1), numbers (B, 2) -> bool (B, T)."""
    width = (numbers[:, 0:1] * MAX_SPAN * lengths).long()
    start = (numbers[:, 1:2] * (lengths - width + 1)).long()
    return (position >= start) & (position < start + width)


def _scale_to(bounds: tuple[float, float], numbers: torch.Tensor) -> torch.Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * numbers
