"""Exact nearest neighbours by blocked matrix products."""

from __future__ import annotations

import numpy as np
import torch

BLOCK_ELEMENTS = 1 << 24  # similarities that are held at once, 64 MiB


def nearest_neighbors(features: torch.Tensor, k: int) -> np.ndarray:
    """The k nearest neighbours of every sample by cosine, itself first.

    Args:
        features: float32 of unit length, shape (N, D), on any device.
        k: neighbours, the sample itself included, 1 to N.

    Returns:
        int32 of shape (N, k), nearest first.
    """
    n = len(features)
    result = np.empty((n, k), dtype=np.int32)
    height = max(1, BLOCK_ELEMENTS // n)
    for start in range(0, n, height):
        stop = min(start + height, n)
        similarities = features[start:stop] @ features.T
        rows = torch.arange(stop - start, device=features.device)
        similarities[rows, rows + start] = torch.inf  # before its duplicates
        result[start:stop] = similarities.topk(k, dim=1).indices.cpu().numpy()
    return result
