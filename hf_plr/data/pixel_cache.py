"""Decoded images in memory-mapped files, which all processes of a machine and later runs share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


class PixelCache:
    """uint8 images of one shape in a file of their own, with the rows that could not be read.

    The file is named after the data set's fingerprint and the settings that decode its images. It is complete or does
    not exist. Nothing removes it: the next run reads it. Images that are replaced on disk are not noticed until the
    data set is loaded anew.

    Args:
        folder: folder of the files, made if missing.
        key: text that changes when the images would.
        shape: (N, C, H, W).
    """

    def __init__(self, folder: str | os.PathLike[str], key: str, shape: tuple[int, ...]):
        digest = hashlib.sha256(f"{key}|{shape}".encode()).hexdigest()[:24]
        self.shape = shape
        self.path = Path(folder) / f"images-{digest}.uint8"
        self._note_path = self.path.with_suffix(".json")
        # Processes of several machines, which may share the folder, can have the same number.
        self._temporary_path = self.path.with_suffix(f".{uuid.uuid4().hex}.tmp")

    def read(self) -> tuple[torch.Tensor, list[int]] | None:
        """Read the images, uint8 of `shape`, and the unreadable rows; None if they are missing or damaged."""
        if not self._note_path.exists() or not self.path.exists():
            return None
        unreadable = self._read_note()
        if unreadable is None or self.path.stat().st_size != int(np.prod(self.shape)):
            return None
        pixels = np.memmap(self.path, np.uint8, "c", shape=self.shape)  # writable for torch, never written to the file
        return torch.from_numpy(pixels), unreadable

    @contextlib.contextmanager
    def create(self) -> Iterator[torch.Tensor]:
        """Create the file of images, uint8 of `shape`, under its name when it is complete; an error removes it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield torch.from_numpy(np.memmap(self._temporary_path, np.uint8, "w+", shape=self.shape))
            os.replace(self._temporary_path, self.path)
        finally:
            self._temporary_path.unlink(missing_ok=True)

    def write_note(self, unreadable: list[int]) -> None:
        """Write the unreadable rows beside the file; without this note the file counts as missing."""
        temporary = self._temporary_path.with_suffix(".json.tmp")
        temporary.write_text(json.dumps({"unreadable": unreadable}), encoding="utf-8")
        os.replace(temporary, self._note_path)

    def _read_note(self) -> list[int] | None:
        """Read the unreadable rows, ascending; None if the note is damaged."""
        try:
            rows = json.loads(self._note_path.read_bytes())["unreadable"]
        except (ValueError, TypeError, LookupError, RecursionError):
            return None
        if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < self.shape[0] for row in rows):
            return None
        return sorted(set(rows))
