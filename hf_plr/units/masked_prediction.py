"""HuBERT's objective: predict the unit of frames that the model cannot see."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from hf_plr.models.speech import SpeechBackbone


class UnitPredictor(nn.Module):
    """A speech backbone with the head that predicts units (Hsu et al., HuBERT, 2021).

    The loss is the cross-entropy of cosine / temperature between a frame's projection and the embeddings of all units
    in use. Sizes are fixed, so that the optimizer and DistributedDataParallel can be built before there are units.

    Args:
        backbone_model: a bare backbone, the output of `load_speech_backbone`.
        n_units: largest number of units.
        projection_size: size of the units' embeddings.
        temperature: divisor of the cosines, above 0.
        unmasked_weight: weight of the loss of the frames that are not masked; 0 leaves them out.

    Attributes:
        backbone: the backbone.
        speech: computes its frames.
    """

    def __init__(
        self,
        backbone_model: PreTrainedModel,
        n_units: int,
        projection_size: int = 256,
        temperature: float = 0.1,
        unmasked_weight: float = 0.0,
    ):
        super().__init__()
        self.backbone = backbone_model
        self.speech = SpeechBackbone(backbone_model)
        self.projection = nn.Linear(backbone_model.config.hidden_size, projection_size)
        self.units = nn.Parameter(torch.randn(n_units, projection_size) * projection_size**-0.5)
        self.temperature = temperature
        self.unmasked_weight = unmasked_weight

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Let the backbone compute activations anew in the backward pass; called by `Trainer`."""
        self.backbone.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Do the same by the name that transformers had for it before."""
        self.backbone.gradient_checkpointing_enable(**kwargs)

    def forward(
        self,
        values: torch.Tensor,
        lengths: torch.Tensor,
        mask: torch.Tensor,
        targets: torch.Tensor,
        present: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the mean loss of the masked frames with a target, plus the weighted mean of the others with one.

        Args:
            values: normalised waveforms, float32 of shape (B, T).
            lengths: samples of each clip, shape (B,).
            mask: frames that are hidden from the model, bool of shape (B, frames of T samples).
            targets: unit of each frame, int64 of the same shape, -1 = none (padding always has none).
            present: units in use, bool of shape (n_units,); every target is one of them.

        Returns:
            A scalar with a gradient for every parameter; a mean without frames counts as zero.

        Raises:
            ValueError: if a shape does not fit.
        """
        if present.shape != (len(self.units),):
            raise ValueError(f"present has shape {tuple(present.shape)} but n_units={len(self.units)}")
        if targets.shape != mask.shape:
            raise ValueError(f"targets have shape {tuple(targets.shape)} but mask has shape {tuple(mask.shape)}")
        hidden, _ = self.speech.frames(self.backbone, values, lengths, mask)
        has_target = targets >= 0
        loss = self._mean_loss(hidden, targets, has_target & mask, present)
        if self.unmasked_weight > 0.0:
            loss = loss + self.unmasked_weight * self._mean_loss(hidden, targets, has_target & ~mask, present)
        return loss

    def _mean_loss(
        self, hidden: torch.Tensor, targets: torch.Tensor, selection: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        chosen = selection.flatten().nonzero().squeeze(1)  # here the host waits for a GPU: it must know how many
        projected = self.projection(hidden.flatten(0, 1)[chosen])
        with torch.autocast(hidden.device.type, enabled=False):  # cosines in bf16 are too coarse to be divided by 0.1
            cosines = F.normalize(projected.float(), dim=1) @ F.normalize(self.units.float(), dim=1).T
            logits = (cosines / self.temperature).masked_fill(~present, -torch.inf)
            total = F.cross_entropy(logits, targets.flatten()[chosen], reduction="sum")
        return total / max(len(logits), 1)


def count_spans(n_frames: int, probability: float, length: int) -> int:
    """Count the spans that `mask_spans` puts into a clip of `n_frames`, which is also its number of random numbers."""
    return max(1, round(probability * n_frames / length))


def mask_spans(
    numbers: torch.Tensor, n_frames: torch.Tensor, probability: float, length: int, width: int | None = None
) -> torch.Tensor:
    """Mask spans of frames, each clip by its own random numbers, so that its batch does not matter.

    A clip of n frames gets `count_spans(n, probability, length)` spans of `length` frames, or n - 1 if that is less.
    Their starts are uniform over the clip. Spans may overlap, so that less than `probability` of the frames is masked.
    A clip of one frame is not masked. If spans cover a whole clip, one frame is spared.

    Args:
        numbers: random numbers, uniform in [0, 1), shape (B, R): `uniform(index, seed, epoch, n=R)` with one R for all
            batches, at least the `count_spans` of the longest clip.
        n_frames: frames of each clip, shape (B,).
        probability: fraction of the frames that would be masked without overlaps, in (0, 1].
        length: frames of a span, at least 1.
        width: frames of the batch with its padding, None = those of its longest clip, for which the host waits if they
            are on a GPU.

    Returns:
        Mask, bool of shape (B, width), True for masked frames; padding is not masked.

    Raises:
        ValueError: if an argument is out of range, or `numbers` has too few columns.
    """
    if not 0.0 < probability <= 1.0:
        raise ValueError(f"probability={probability} must be above 0 and at most 1")
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    width = int(n_frames.max()) if width is None else width
    n_spans = count_spans(width, probability, length)
    if numbers.shape[1] < n_spans:
        raise ValueError(
            f"numbers has {numbers.shape[1]} columns but {width} frames take {n_spans} spans: "
            f"draw them by uniform(index, seed, epoch, n={n_spans}) or more"
        )
    n = n_frames[:, None].to(torch.float64)  # products with float32 could round up to the next frame
    numbers = numbers.to(torch.float64)
    span = (n - 1).clamp(min=0, max=length)
    starts = (numbers[:, :n_spans] * (n - span + 1)).floor()
    counts = (probability * n / length).round().clamp(min=1)
    is_used = torch.arange(n_spans, device=numbers.device) < counts
    frame = torch.arange(width, device=numbers.device)
    in_span = (frame >= starts[:, :, None]) & (frame < (starts + span)[:, :, None]) & is_used[:, :, None]
    mask = in_span.any(dim=1)
    is_covered = (mask | (frame >= n)).all(dim=1, keepdim=True)
    spared_frame = (numbers[:, -1:] * n).floor()
    return mask & ~(is_covered & (frame == spared_frame))
