"""Features block by block: they may lie in a file, and a whole copy of them may not fit."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def iterate_rows(n_rows: int, height: int) -> Iterator[slice]:
    """Slices of up to `height` rows that cover all rows; none where there are no rows."""
    for start in range(0, n_rows, height):
        yield slice(start, min(start + height, n_rows))


def find_largest_entry(features: torch.Tensor, height: int = 1 << 14) -> float:
    """Largest absolute value of features (N, D), 0 without rows."""
    return max((features[where].abs().max().item() for where in iterate_rows(len(features), height)), default=0.0)
