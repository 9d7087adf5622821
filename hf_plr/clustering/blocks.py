"""Iteration over features in blocks: they may lie in a file that is larger than memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hf_plr.utils.threads import share_blocks

TILE_ROWS = 32  # a multiple of the rows that kernels take at once
LOWEST_BLOCKS = {"cpu": 16}  # rows from which on the kernel is one; some CPUs have others for up to three rows


def iterate_rows(n_rows: int, height: int) -> Iterator[slice]:
    """Iterate over slices of up to `height` rows that cover all rows."""
    for start in range(0, n_rows, height):
        yield slice(start, min(start + height, n_rows))


def pad_rows(block: torch.Tensor, height: int) -> torch.Tensor:
    """Add rows of zeros to a block of up to `height` rows, so that its products do not depend on their number.

    The kernel, and so the rounding, does: on CPUs for a few rows, elsewhere for any number.
    """
    missing = min(LOWEST_BLOCKS.get(block.device.type, height), height) - len(block)
    return torch.nn.functional.pad(block, (0, 0, 0, missing)) if missing > 0 else block


def pad_to_tiles(rows: torch.Tensor) -> torch.Tensor:
    """Add rows of zeros up to whole tiles, so that equal rows have equal products: kernels may round the last apart."""
    missing = -len(rows) % TILE_ROWS
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def find_largest_entry(features: torch.Tensor, height: int = 1 << 12) -> float:
    """Find the largest absolute value of features (N, D); 0 without rows."""
    largest: list[float] = []

    def find(spans: Iterator[slice]) -> None:
        for span in spans:
            block = features[span]  # whole numbers have no absolute value, or not each one
            largest.append((block if block.is_floating_point() else block.double()).abs().max().item())

    share_blocks(iterate_rows(len(features), height), features.device, find)
    return max(largest, default=0.0)
