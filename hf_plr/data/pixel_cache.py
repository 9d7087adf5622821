"""Decoded images in memory-mapped files, which all processes of a machine and later runs share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


class PixelCache:
    """uint8 images of one shape in a file of their own, with the rows that could not be read.

    The file is named after the data set's fingerprint and the way in which its images are decoded, and is either whole
    or not there. Nothing removes it: it is for the next run, too. Images that were replaced on disk without loading the
    data set anew are not noticed.

    Args:
        folder: where the files lie; it is made if need be.
        key: text that changes when the images would.
        shape: (N, C, H, W).
    """

    def __init__(self, folder: str | os.PathLike[str], key: str, shape: tuple[int, ...]):
        digest = hashlib.sha256(f"{key}|{shape}".encode()).hexdigest()[:24]
        self.shape = shape
        self.path = Path(folder) / f"images-{digest}.uint8"
        self._note = self.path.with_suffix(".json")

    def read(self) -> tuple[torch.Tensor, list[int]] | None:
        """The images, uint8 of `shape`, and the rows that are unreadable; None if they are not there or damaged."""
        if not self._note.exists() or not self.path.exists():
            return None
        unreadable = self._noted()
        if unreadable is None or self.path.stat().st_size != int(np.prod(self.shape)):
            return None
        pixels = np.memmap(self.path, np.uint8, "c", shape=self.shape)  # writable for torch, never written to the file
        return torch.from_numpy(pixels), unreadable

    @contextlib.contextmanager
    def written(self) -> Iterator[torch.Tensor]:
        """Room for the images, uint8 of `shape`, in a file that gets its name at the end, or is removed on an error."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield torch.from_numpy(np.memmap(self._unfinished, np.uint8, "w+", shape=self.shape))
            os.replace(self._unfinished, self.path)
        finally:
            self._unfinished.unlink(missing_ok=True)

    def note(self, unreadable: list[int]) -> None:
        """Write down which rows could not be read; without this note the file counts as not there."""
        unfinished = self._unfinished.with_suffix(".json.tmp")
        unfinished.write_text(json.dumps({"unreadable": unreadable}), encoding="utf-8")
        os.replace(unfinished, self._note)

    def _noted(self) -> list[int] | None:
        """The rows that could not be read, ascending; None if the note is damaged."""
        try:
            rows = json.loads(self._note.read_bytes())["unreadable"]
        except (ValueError, TypeError, LookupError, RecursionError):
            return None
        if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < self.shape[0] for row in rows):
            return None
        return sorted(set(rows))

    @property
    def _unfinished(self) -> Path:
        return self.path.with_suffix(f".{os.getpid()}.tmp")
