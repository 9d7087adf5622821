"""Exact nearest neighbours by blocked matrix products."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.precision import fast_fp32_products
from hf_plr.processes import gather_rows

BLOCK_ELEMENTS = 1 << 24  # similarities that are held at once, 64 MiB


def nearest_neighbors(features: torch.Tensor, k: int, accelerator: Accelerator | None = None) -> np.ndarray:
    """The k nearest neighbours of every sample by cosine, itself first.

    Args:
        features: float32 of unit length, shape (N, D), on any device; all samples, on every process.
        k: neighbours, the sample itself included, 1 to N.
        accelerator: shares the search with other processes: each looks for its part of the samples, in blocks that are
            the same for any number of processes.

    Returns:
        int32 of shape (N, k), nearest first, on every process.
    """
    n = len(features)
    height = max(1, BLOCK_ELEMENTS // n)
    starts = range(0, n, height)
    if accelerator is not None:
        share = -(-len(starts) // accelerator.num_processes)
        starts = starts[accelerator.process_index * share :][:share]
    found = torch.empty(0, k, dtype=torch.int32)
    if len(starts):
        found = torch.empty(min(starts[-1] + height, n) - starts[0], k, dtype=torch.int32)
    with fast_fp32_products():
        for start in starts:
            stop = min(start + height, n)
            similarities = features[start:stop] @ features.T
            rows = torch.arange(stop - start, device=features.device)
            similarities[rows, rows + start] = torch.inf  # before its duplicates
            found[start - starts[0] : stop - starts[0]] = similarities.topk(k, dim=1).indices.to("cpu", torch.int32)
    return gather_rows(accelerator, found).numpy()
