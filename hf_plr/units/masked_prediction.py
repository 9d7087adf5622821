"""HuBERT's objective: predict the unit of frames that the model cannot see."""

from __future__ import annotations

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
        backbone_model: a bare backbone, as `load_speech_backbone` gives it.
        n_units: most units that there will be.
        projection_size: size of the space of the units' embeddings.
        temperature: divisor of the cosines, above 0.
        unmasked_weight: weight of the loss of the frames that are not masked; 0 leaves them out.

    Attributes:
        backbone: the backbone.
        speech: how it makes frames.
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

    def forward(
        self,
        values: torch.Tensor,
        lengths: torch.Tensor,
        masked: torch.Tensor,
        targets: torch.Tensor,
        present: torch.Tensor,
    ) -> torch.Tensor:
        """Mean loss of the masked frames that have a target, plus the weighted mean of the others that have one.

        Args:
            values: normalised waveforms, float32 of shape (B, T).
            lengths: samples of each clip, shape (B,).
            masked: frames that are hidden from the model, bool of shape (B, frames of T samples).
            targets: unit of each frame, int64 of the same shape, -1 = none (padding always has none).
            present: units in use, bool of shape (n_units,); every target is one of them.

        Returns:
            A scalar with a gradient for every parameter; a mean without frames counts as zero.

        Raises:
            ValueError: if a shape does not fit.
        """
        if present.shape != (len(self.units),):
            raise ValueError(f"present has shape {tuple(present.shape)} but n_units={len(self.units)}")
        if targets.shape != masked.shape:
            raise ValueError(f"targets have shape {tuple(targets.shape)} but masked has shape {tuple(masked.shape)}")
        hidden, _ = self.speech.frames(self.backbone, values, lengths, masked)
        has_target = targets >= 0
        loss = self._mean_loss(hidden, targets, has_target & masked, present)
        if self.unmasked_weight > 0.0:
            loss = loss + self.unmasked_weight * self._mean_loss(hidden, targets, has_target & ~masked, present)
        return loss

    def _mean_loss(
        self, hidden: torch.Tensor, targets: torch.Tensor, chosen: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        projected = self.projection(hidden[chosen])
        with torch.autocast(hidden.device.type, enabled=False):  # cosines in bf16 are too coarse to be divided by 0.1
            cosines = F.normalize(projected.float(), dim=1) @ F.normalize(self.units.float(), dim=1).T
            logits = (cosines / self.temperature).masked_fill(~present, -torch.inf)
            total = F.cross_entropy(logits, targets[chosen], reduction="sum")
        return total / max(len(logits), 1)


def count_spans(n_frames: int, probability: float, length: int) -> int:
    """How many spans `mask_spans` puts into a clip of so many frames, the random numbers that it needs for it."""
    return max(1, round(probability * n_frames / length))


def mask_spans(
    numbers: torch.Tensor, n_frames: torch.Tensor, probability: float, length: int, width: int | None = None
) -> torch.Tensor:
    """Mask spans of frames, each clip by its own random numbers and whatever batch it is in.

    A clip of n frames gets `count_spans(n, probability, length)` spans, each of `length` frames or n - 1 where that is
    less, with starts that are uniform over the clip. They may overlap, so that less than `probability` of the frames is
    masked. A clip of one frame is not masked, and no clip is masked as a whole: where its spans cover it, one frame is
    spared.

    Args:
        numbers: random numbers, uniform in [0, 1), shape (B, R): `uniform(index, seed, epoch, n=R)` with one R for all
            batches, at least the `count_spans` of the longest clip.
        n_frames: frames of each clip, shape (B,).
        probability: share of the frames that would be masked without overlaps, in (0, 1].
        length: frames of a span, at least 1.
        width: frames of the batch with its padding, None = those of its longest clip.

    Returns:
        Which frames are masked, bool of shape (B, width); padding is not.

    Raises:
        ValueError: if an argument is out of range, or there are too few numbers.
    """
    if not 0.0 < probability <= 1.0:
        raise ValueError(f"probability={probability} but it must be above 0 and at most 1")
    if length < 1:
        raise ValueError(f"length={length} but a span has at least 1 frame")
    width = int(n_frames.max()) if width is None else width
    needed = count_spans(width, probability, length)
    if numbers.shape[1] < needed:
        raise ValueError(
            f"numbers has {numbers.shape[1]} columns but {width} frames take {needed} spans: "
            f"draw them by uniform(index, seed, epoch, n={needed}) or more"
        )
    n = n_frames[:, None].to(torch.float64)  # products with float32 could round up to the next frame
    numbers = numbers.to(torch.float64)
    span = (n - 1).clamp(min=0, max=length)
    starts = (numbers[:, :needed] * (n - span + 1)).floor()
    counts = (probability * n / length).round().clamp(min=1)
    used = torch.arange(needed, device=numbers.device) < counts
    frame = torch.arange(width, device=numbers.device)
    in_span = (frame >= starts[:, :, None]) & (frame < (starts + span)[:, :, None]) & used[:, :, None]
    masked = in_span.any(dim=1)
    covered = (masked | (frame >= n)).all(dim=1, keepdim=True)
    spared = (numbers[:, -1:] * n).floor()
    return masked & ~(covered & (frame == spared))
