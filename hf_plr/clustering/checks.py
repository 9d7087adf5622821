"""Validation of the features that clusterers take."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering.blocks import iterate_rows
from hf_plr.utils.distributed import gather_objects, locate_rows

BLOCK_ELEMENTS = 1 << 22


class NotFiniteError(ValueError):
    """Error of features that are NaN or infinite."""


def as_features(features: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Convert features of shape (N, D) to a tensor without a gradient that shares their memory.

    Raises:
        ValueError: if they have another shape or are not numbers.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing is written
        if not isinstance(features, torch.Tensor):
            # Tables lie in memory by columns, and products of such rows have other bits.
            features = features if isinstance(features, np.ndarray) else np.ascontiguousarray(features)
            if features.dtype.kind not in "fiub":
                raise ValueError(f"features are no numbers, but {features.dtype}")
            features = _as_torch_takes_them(features)
        tensor = torch.as_tensor(features).detach()
    if tensor.ndim != 2:
        raise ValueError(f"features must have shape (N, D), not {tuple(tensor.shape)}")
    return tensor


def _as_torch_takes_them(array: np.ndarray) -> np.ndarray:
    """The array in the machine's byte order, of a type and with strides that torch has; itself where it is so."""
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array) if min(array.strides, default=0) < 0 else array


def find_nonfinite_rows(features: torch.Tensor) -> torch.Tensor:
    """Find the rows of features (N, D) with NaN or infinite values; returns ascending positions on the CPU."""
    return _find_rows(features, lambda block: ~torch.isfinite(block).all(dim=1))


def find_too_long_rows(features: torch.Tensor) -> torch.Tensor:
    """Find the rows of features (N, D) whose length float32 cannot hold; returns ascending positions on the CPU."""
    return _find_rows(features, lambda block: ~torch.isfinite(torch.linalg.vector_norm(block.float(), dim=1)))


def _find_rows(features: torch.Tensor, is_bad: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    height = max(1, BLOCK_ELEMENTS // max(features.shape[1], 1))
    bad = [
        is_bad(features[block]).nonzero().flatten().cpu() + block.start for block in iterate_rows(len(features), height)
    ]
    return torch.cat(bad) if bad else torch.empty(0, dtype=torch.int64)


def check_finite(features: torch.Tensor, name: str = "features", accelerator: Accelerator | None = None) -> None:
    """Reject features (N, D) with NaN or infinite values, on every process if one of them has some.

    Raises:
        NotFiniteError: with the number of such rows and the first of them.
    """
    _reject(find_nonfinite_rows(features), len(features), f"{name} of {{}} samples are NaN or infinite", accelerator)


def check_lengths(features: torch.Tensor, name: str = "features", accelerator: Accelerator | None = None) -> None:
    """Reject finite features (N, D) whose lengths are infinite in float32, on every process if one of them has some.

    Raises:
        NotFiniteError: with the number of such rows and the first of them.
    """
    bad = find_too_long_rows(features)
    _reject(bad, len(features), f"{name} of {{}} samples are too large for float32", accelerator)


def _reject(bad: torch.Tensor, n_rows: int, message: str, accelerator: Accelerator | None) -> None:
    start, _ = locate_rows(accelerator, n_rows)
    rows = [row for part in gather_objects(accelerator, (bad + start).tolist()) for row in part]
    if rows:
        raise NotFiniteError(f"{message.format(len(rows))}, the first is sample {rows[0]}")
