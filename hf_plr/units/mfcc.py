"""Mel-frequency cepstral coefficients: the frame features of HuBERT's first round."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from transformers.audio_utils import mel_filter_bank

N_COEFFICIENTS = 13
N_COLUMNS = 3 * N_COEFFICIENTS  # with both deltas
N_MELS = 23
LOWEST_FREQUENCY = 20.0
FLOOR = 1e-6  # far below any recorded sound, so that digital silence is not an outlier
DELTA_REACH = 4  # frames to each side: a window of 9


@torch.no_grad()
def mfcc(values: torch.Tensor, lengths: torch.Tensor, sampling_rate: int, window: int, hop: int) -> torch.Tensor:
    """Compute 13 coefficients per frame, with their first and second deltas.

    Frame t covers the samples from t * hop to t * hop + window. These are the samples of a speech backbone's frame t if
    window and hop are its `receptive_field` and `hop`. Each frame is Hann-windowed. The log energies of 23 triangular
    mel filters from 20 Hz on (Kaldi's scale) go through an orthonormal DCT-II. Deltas are regressions over nine frames,
    where a clip's first and last frames are repeated. Padding changes nothing.

    Args:
        values: waveforms, float32 of shape (B, T).
        lengths: samples of each clip, shape (B,), at most T; clips shorter than the window count as followed by
            silence.
        sampling_rate: samples per second.
        window: samples of a frame.
        hop: samples from one frame to the next.

    Returns:
        Coefficients, deltas and second deltas: float32 of shape (B, frames, 39) on the same device, zero behind each
        clip's floor((length - window) / hop) + 1 own frames.
    """
    is_sample = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
    values = values.float().masked_fill(~is_sample, 0.0)
    values = F.pad(values, (0, max(0, window - values.shape[1])))
    n_frames = (lengths.to(torch.int64) - window).clamp(min=0) // hop + 1
    n_fft = 1 << (window - 1).bit_length()
    with torch.autocast(values.device.type, enabled=False):
        frames = values.unfold(1, window, hop) * torch.hann_window(window, device=values.device)
        power = torch.fft.rfft(frames, n_fft).abs().square()
        mel = power @ _make_mel_filters(sampling_rate, n_fft).to(values.device)
        coefficients = mel.clamp(min=FLOOR).log() @ _make_cosines().to(values.device)
    deltas = _compute_deltas(coefficients, n_frames)
    stacked = torch.cat([coefficients, deltas, _compute_deltas(deltas, n_frames)], dim=2)
    padding = torch.arange(stacked.shape[1], device=values.device) >= n_frames[:, None]
    return stacked.masked_fill(padding[:, :, None], 0.0)


def _compute_deltas(frames: torch.Tensor, n_frames: torch.Tensor) -> torch.Tensor:
    """Compute slopes of the regression over nine frames, by clip: frames (B, T, C) and own frames (B,) -> (B, T, C)."""
    position = torch.arange(frames.shape[1], device=frames.device)
    last = n_frames[:, None] - 1
    clip = torch.arange(len(frames), device=frames.device)[:, None]
    slopes = torch.zeros_like(frames)
    for step in range(1, DELTA_REACH + 1):
        after = torch.minimum(position + step, last)
        before = torch.minimum((position - step).clamp(min=0), last)
        slopes += step * (frames[clip, after] - frames[clip, before])
    return slopes / (2 * sum(step**2 for step in range(1, DELTA_REACH + 1)))


@functools.cache
def _make_mel_filters(sampling_rate: int, n_fft: int) -> torch.Tensor:
    """Make the mel filters, shape (n_fft / 2 + 1, 23)."""
    filters = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=N_MELS,
        min_frequency=LOWEST_FREQUENCY,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    return torch.from_numpy(filters).float()


@functools.cache
def _make_cosines() -> torch.Tensor:
    """Make the orthonormal DCT-II as a matrix of shape (23, 13)."""
    mel = torch.arange(N_MELS, dtype=torch.float64)[:, None]
    order = torch.arange(N_COEFFICIENTS, dtype=torch.float64)
    cosines = torch.cos(math.pi / N_MELS * (mel + 0.5) * order) * math.sqrt(2.0 / N_MELS)
    cosines[:, 0] /= math.sqrt(2.0)
    return cosines.float()
