"""Constants that are copied to a device once, and not at every step: each copy from the host waits for a GPU."""

from __future__ import annotations

import functools

import torch


@functools.lru_cache(maxsize=64)
def make_constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Make a tensor of these values on a device; the same tensor for the same values, not to be changed."""
    with torch.inference_mode(False):  # else training could not use what the stage made first
        return torch.tensor(values, dtype=dtype, device=device)
