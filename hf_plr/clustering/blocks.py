"""Iteration over features in blocks: they may lie in a file that is larger than memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def iterate_rows(n_rows: int, height: int) -> Iterator[slice]:
    """Iterate over slices of up to `height` rows that cover all rows."""
    for start in range(0, n_rows, height):
        yield slice(start, min(start + height, n_rows))


def find_largest_entry(features: torch.Tensor, height: int = 1 << 14) -> float:
    """Find the largest absolute value of features (N, D); 0 without rows."""
    return max((features[block].abs().max().item() for block in iterate_rows(len(features), height)), default=0.0)
