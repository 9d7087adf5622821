"""Memory for batches that is used again: fresh memory costs ten times the copy into it."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch

MOST_BUFFERS = 4  # a loader holds the next batch beside the one that is trained on


class BatchBuffers:
    """Buffers for batches of rows of one array; each is free again as soon as nothing refers to the batch in it."""

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=MOST_BUFFERS)

    def take(self, source: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """Copy these rows (B,) of an array (N, ...): shape (B, ...)."""
        buffer = self._find(len(rows), source)
        batch = buffer[: len(rows)]
        # The tensor's memory holds this very array, and so do all views of it. Counts of references differ by version.
        weakref.finalize(batch, self._free.append, buffer).atexit = False
        np.take(source, rows, axis=0, out=batch, mode="clip")  # checking rows would copy through another buffer
        return torch.from_numpy(batch)

    def _find(self, height: int, array: np.ndarray) -> np.ndarray:
        try:
            while len(buffer := self._free.pop()) < height:
                pass  # a smaller one is given up: larger ones serve all batches
        except IndexError:
            return np.empty((height, *array.shape[1:]), array.dtype)
        return buffer
