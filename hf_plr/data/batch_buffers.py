"""Memory for batches that is used again: fresh memory costs ten times the copy into it."""

from __future__ import annotations

import sys

import numpy as np
import torch

MOST_BUFFERS = 4  # a loader holds the next batch beside the one that is trained on
FREE = 3  # references to a buffer that no batch is in: the list, a variable, and the argument of getrefcount


class BatchBuffers:
    """Buffers for batches of rows of one array; each is free again as soon as nothing refers to the batch in it."""

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []

    def take(self, source: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """Copy these rows (B,) of an array (N, ...): shape (B, ...)."""
        batch = self._find(len(rows), source)[: len(rows)]
        np.take(source, rows, axis=0, out=batch, mode="clip")  # checking rows would copy through another buffer
        return torch.from_numpy(batch)

    def _find(self, height: int, array: np.ndarray) -> np.ndarray:
        for buffer in self._buffers:
            if len(buffer) >= height and sys.getrefcount(buffer) <= FREE:
                return buffer
        buffer = np.empty((height, *array.shape[1:]), array.dtype)
        self._buffers = [*self._buffers, buffer][-MOST_BUFFERS:]
        return buffer
