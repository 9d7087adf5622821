"""Validation of the features that clusterers take."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering.blocks import iterate_rows
from hf_plr.utils.distributed import gather_objects, locate_rows

BLOCK_ELEMENTS = 1 << 22


class NotFiniteError(ValueError):
    """Error of features that are NaN or infinite."""


def as_features(features: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Convert features of shape (N, D) to a tensor that shares their memory.

    Raises:
        ValueError: if they have another shape or are not numbers.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing is written
        tensor = torch.as_tensor(features)
    if tensor.ndim != 2:
        raise ValueError(f"features must have shape (N, D), not {tuple(tensor.shape)}")
    return tensor


def find_nonfinite_rows(features: torch.Tensor) -> torch.Tensor:
    """Find the rows of features (N, D) with NaN or infinite values; returns ascending positions on the CPU."""
    height = max(1, BLOCK_ELEMENTS // max(features.shape[1], 1))
    bad = [
        (~torch.isfinite(features[block]).all(dim=1)).nonzero().flatten().cpu() + block.start
        for block in iterate_rows(len(features), height)
    ]
    return torch.cat(bad) if bad else torch.empty(0, dtype=torch.int64)


def check_finite(features: torch.Tensor, name: str = "features", accelerator: Accelerator | None = None) -> None:
    """Reject features (N, D) with NaN or infinite values, on every process if one of them has some.

    Raises:
        NotFiniteError: with the number of such rows and the first of them.
    """
    start, _ = locate_rows(accelerator, len(features))
    bad = [
        row for rows in gather_objects(accelerator, (find_nonfinite_rows(features) + start).tolist()) for row in rows
    ]
    if bad:
        raise NotFiniteError(f"{name} of {len(bad)} samples are NaN or infinite, the first is sample {bad[0]}")
