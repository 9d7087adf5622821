"""Norm of a speech transformer's first convolution, by clip: HuBERT base and wav2vec 2.0 base have such a norm.

Its activations are the largest of the model, 1.7 GB for 256 s of sound, and a GPU spends its time on reading and
writing them. So forward and backward pass are written by hand, in few passes over them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

BLOCK = 256  # frames whose mean and variance are taken at once
NO_FAST_WELFORD = ("cpu",)  # devices on which torch.var_mean takes twice as long as mean and norm


class ClipLengths:
    """Lengths of the current batch, read from its attention mask before each forward pass.

    Without an attention mask, the hooks and norms that read them change nothing.

    Args:
        receptive_field: samples that one frame sees.
        hop: samples from one frame to the next.

    Attributes:
        lengths: samples of each clip, int64 of shape (B,), or None.
    """

    def __init__(self, receptive_field: int, hop: int):
        self.receptive_field = receptive_field
        self.hop = hop
        self.lengths: torch.Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the lengths (a forward pre-hook of the model, with keywords)."""
        mask = kwargs.get("attention_mask")
        self.lengths = None if mask is None else mask.sum(dim=1)

    def zero_padding(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Set frames (B, C, T) behind each clip's own to zero, as at the end of a single clip (a forward hook)."""
        if self.lengths is None:
            return None
        n_frames = torch.div(self.lengths - self.receptive_field, self.hop, rounding_mode="floor") + 1
        return output.masked_fill(_mask_padding(n_frames, output.shape[2]), 0.0)


class ClipNorm(nn.GroupNorm):
    """Group norm with one channel per group, and with statistics over each clip's own frames.

    Args:
        norm: the group norm that it replaces, whose weights it takes over.
        clips: lengths of the current batch, in samples.
        kernel: samples that a frame of its input sees.
        stride: samples from one frame of its input to the next.
    """

    def __init__(self, norm: nn.GroupNorm, clips: ClipLengths, kernel: int, stride: int):
        super().__init__(norm.num_groups, norm.num_channels, norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.clips, self.kernel, self.stride = clips, kernel, stride
        self.train(norm.training)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalise hidden states (B, C, T); the result has the weights' dtype."""
        lengths = self.clips.lengths
        if lengths is None:
            return super().forward(hidden)
        n_frames = torch.div(lengths - self.kernel, self.stride, rounding_mode="floor") + 1
        return clip_norm(hidden, n_frames, self.weight, self.bias, self.eps)


def clip_norm(
    hidden: torch.Tensor, n_frames: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """Normalise each channel of each clip by its mean and variance over the clip's own frames.

    Frames behind the end are normalised by the same numbers, and have gradients too. Statistics are float32, and
    accurate for means far above the deviation. Gradients of gradients are not implemented.

    Args:
        hidden: floats of shape (B, C, T).
        n_frames: frames of each clip, integers of shape (B,), at most T; less than 1 counts as 1.
        weight: factor per channel, shape (C,).
        bias: summand per channel, shape (C,).
        eps: added to the variance, above 0.

    Returns:
        weight * (hidden - mean) / sqrt(variance + eps) + bias, in the dtype of `weight`, shape (B, C, T).
    """
    result: torch.Tensor = _ClipNormFunction.apply(hidden, n_frames.clamp(min=1), weight, bias, eps)
    return result


class _ClipNormFunction(torch.autograd.Function):
    """3 passes forward (6 on a CPU) and 9 backward over a float32 activation: a read and a write count as one each.

    Every channel of every clip is a channel of a batch norm with known statistics: one pass of that applies them, and
    one of its backward takes both sums over the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, n_frames: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> torch.Tensor:
        values = _at_least_float32(hidden)
        mean, variance = _compute_moments(values, n_frames)
        ctx.save_for_backward(hidden, n_frames, weight, mean, variance)
        ctx.eps = eps
        clips = (len(hidden), 1)
        factor, summand = weight.to(values.dtype).repeat(clips), bias.to(values.dtype).repeat(clips)
        return _apply_moments(values, mean, variance, factor, summand, eps).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, n_frames, weight, mean, variance = ctx.saved_tensors
        values = _at_least_float32(hidden)
        gradient = gradient.to(values.dtype)
        scale = torch.rsqrt(variance + ctx.eps) * weight.to(variance.dtype)
        # of the gradient times the normalised values, and of the gradient: over all frames, for all are normalised
        _, products, sums = torch.ops.aten.native_batch_norm_backward(
            _flatten_channels(gradient),
            _flatten_channels(values),
            scale.flatten(),  # unused, as it is only a factor of the first result
            mean.flatten(),
            variance.flatten(),
            None,
            None,
            False,
            ctx.eps,
            [False, True, True],
        )
        products, sums = products.view_as(mean), sums.view_as(mean)
        result = None
        if ctx.needs_input_grad[0]:
            # The statistics depend on a clip's own frames alone.
            share = -scale / n_frames[:, None]
            result = _apply_moments(values, mean, variance, share * products, share * sums, ctx.eps)
            result = result.masked_fill_(_mask_padding(n_frames, values.shape[2]), 0.0)
            result = result.addcmul_(gradient, scale[:, :, None]).to(hidden.dtype)
        return result, None, products.sum(dim=0).to(weight.dtype), sums.sum(dim=0).to(weight.dtype), None


def _compute_moments(values: torch.Tensor, n_frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute mean and variance of (B, C, T) over each clip's own frames, both (B, C).

    Blocks of frames that are all a clip's own have their moments taken where they lie, without a masked copy. The rest
    of its frames, less than a block, is gathered.
    """
    block = min(BLOCK, values.shape[2])
    n_blocks = values.shape[2] // block
    blocks = values[:, :, : n_blocks * block].unflatten(2, (n_blocks, block))
    if values.device.type in NO_FAST_WELFORD:
        block_mean = blocks.mean(dim=3)
        norm = torch.linalg.vector_norm(blocks - block_mean[..., None], dim=3)
        block_variance = norm.square() / block
    else:
        block_variance, block_mean = torch.var_mean(blocks, dim=3, correction=0)
    in_block = torch.arange(block, device=values.device)
    frame = (n_frames // block * block)[:, None] + in_block
    place = frame.clamp(max=values.shape[2] - 1)[:, None].expand(-1, values.shape[1], -1)
    rest = values.gather(2, place)
    behind = (frame >= n_frames[:, None])[:, None]
    not_whole = _mask_padding(n_frames // block, n_blocks)
    count = n_frames[:, None].to(values.dtype)

    def average(of_blocks: torch.Tensor, of_rest: torch.Tensor) -> torch.Tensor:
        total = of_blocks.masked_fill(not_whole, 0.0).sum(dim=2) * block + of_rest.masked_fill(behind, 0.0).sum(dim=2)
        return total / count

    mean = average(block_mean, rest)
    centre = mean[:, :, None]
    return mean, average(block_variance + (block_mean - centre).square(), (rest - centre).square())


def _apply_moments(
    values: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    factor: torch.Tensor,
    summand: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Compute factor * (values - mean) / sqrt(variance + eps) + summand: values (B, C, T), the others (B, C)."""
    moments = (mean.flatten(), variance.flatten(), factor.flatten(), summand.flatten())
    return F.batch_norm(_flatten_channels(values), *moments, training=False, eps=eps).view_as(values)


def _flatten_channels(values: torch.Tensor) -> torch.Tensor:
    """Take the channels of all clips as those of one: (B, C, T) -> (1, B * C, T)."""
    return values.reshape(1, -1, values.shape[2])


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _mask_padding(n_frames: torch.Tensor, width: int) -> torch.Tensor:
    """Mark those of `width` frames that lie behind a clip's own: bool of shape (B, 1, width)."""
    return (torch.arange(width, device=n_frames.device) >= n_frames[:, None])[:, None]
