"""Spectrograms of waveforms, made by a model's own feature extractor."""

from __future__ import annotations

import warnings
from typing import Any

import torch

LONGEST_FIELD = 0.2  # seconds: no extractor needs more for its first two frames


class SpectrogramInputs:
    """Inputs of a model of spectrograms, made of waveforms by its feature extractor.

    How frames lie in a clip is found by trials of the extractor, so that it may be of any class.

    Example:
        >>> from transformers import WhisperFeatureExtractor
        >>> inputs = SpectrogramInputs(WhisperFeatureExtractor(), "input_features")
        >>> inputs.receptive_field, inputs.hop, inputs.width
        (1, 160, 3000)

    Args:
        extractor: a feature extractor that makes spectrograms.
        input_name: name of the model's input.

    Attributes:
        sampling_rate: samples per second (Hz).
        receptive_field: samples of the shortest clip that has a frame.
        hop: samples from one frame to the next.
        width: frames to which every clip is padded or cut; None if batches are as wide as their longest clip.
        needs_mask: True if the extractor is asked for a mask of each clip's frames, whatever its own setting is.

    Raises:
        ValueError: if the extractor draws random numbers, makes something else, or its frames are not evenly spaced.
    """

    def __init__(self, extractor: Any, input_name: str):
        self.extractor = extractor
        self.input_name = input_name
        self.sampling_rate = int(extractor.sampling_rate)
        name = type(extractor).__name__
        if getattr(extractor, "dither", 0.0):
            raise ValueError(f"{name} adds noise at random (dither={extractor.dither}): load it with dither=0.0")
        self.receptive_field = self._find_length(1)
        self.hop = self._find_length(2) - self.receptive_field
        for n_frames in (3, 5):
            length = self.receptive_field + (n_frames - 1) * self.hop
            if (self._count(length), self._count(length - 1)) != (n_frames, n_frames - 1):
                raise ValueError(f"the frames of {name} are not evenly spaced: use another feature extractor")
        short, long = (self._make(n)[0].shape for n in (self.receptive_field, self.receptive_field + 2 * self.hop))
        self.width = self._count_padded(self.receptive_field) if short == long else None
        self.needs_mask = self.width is None and self._make(self.receptive_field)[1] is not None

    @property
    def longest(self) -> int | None:
        """Samples of the longest clip that is not cut; None if there is no such length."""
        return None if self.width is None else self.receptive_field - 1 + self.width * self.hop

    def __call__(self, values: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        """Make the inputs of a batch, without gradients, on the CPU and in float32 whatever the run allows.

        Args:
            values: waveforms, float32 of shape (B, T); values behind a clip's end are ignored.
            lengths: samples of each clip, shape (B,), at most T and at least `receptive_field`.

        Returns:
            What the model takes by name, of shape (B, ...), on the device of `values`.
        """
        waveforms = values.detach().float().cpu().numpy()
        clips = [waveform[:length] for waveform, length in zip(waveforms, lengths.tolist(), strict=True)]
        settings = {"return_attention_mask": True} if self.needs_mask else {}
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            made = self.extractor(clips, sampling_rate=self.sampling_rate, return_tensors="pt", **settings)
        return {name: value.to(values.device) for name, value in made.items()}

    def _make(self, length: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Make the spectrogram of a clip of noise, and the mask of its frames (1, frames) if there is one."""
        noise = torch.randn(length, generator=torch.Generator().manual_seed(length)).mul(0.1).numpy()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of a clip that is too short
            made = self.extractor(
                [noise], sampling_rate=self.sampling_rate, return_tensors="pt", return_attention_mask=True
            )
        return made[self.input_name], made.get("attention_mask")

    def _count(self, length: int) -> int:
        """Count the frames of a clip; 0 if it is too short."""
        try:
            values, mask = self._make(length)
        except (ValueError, RuntimeError, IndexError):
            return 0
        if mask is not None:
            return int(mask.sum()) if torch.isfinite(values).all() else 0
        return int((values != values[:, -1:]).any(dim=2).sum())  # a short clip ends with padding

    def _count_padded(self, length: int) -> int:
        values, mask = self._make(length)
        return values.shape[1] if mask is None else mask.shape[1]

    def _find_length(self, n_frames: int) -> int:
        """Find the samples of the shortest clip of so many frames."""
        low, high = 0, int(LONGEST_FIELD * self.sampling_rate)
        if self._count(high) < n_frames:
            raise ValueError(
                f"{type(self.extractor).__name__} makes no spectrograms of {high} samples to try a model with: "
                "use the feature extractor that is saved with the model"
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._count(middle) >= n_frames else (middle, high)
        return high


def makes_spectrograms(extractor: Any, input_name: str) -> bool:
    """Tell by a trial whether a feature extractor makes spectrograms for an input of this name, and not waveforms."""
    rate = getattr(extractor, "sampling_rate", None)
    if rate is None or input_name not in getattr(extractor, "model_input_names", ()):
        return False
    noise = torch.randn(int(LONGEST_FIELD * rate), generator=torch.Generator().manual_seed(0)).numpy()
    try:
        made = extractor([noise], sampling_rate=rate, return_tensors="pt")
    except Exception:  # any: it makes nothing
        return False
    return made[input_name].ndim == 3 and len(noise) not in made[input_name].shape
