"""Decoded samples by number, in memory or in a file that all processes of a machine fill together."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

MARK = np.dtype(np.uint32)


class DecodedCache:
    """Bytes of decoded samples, each of a size that is known before it is decoded.

    Whoever decodes a sample writes it, in any order: processes of one run, their DataLoader workers, other runs. Beside
    the bytes lies a mark per sample, the checksum of its bytes, which is zero until they are written. A process trusts
    a sample after it has compared the two, once: so a kill at any moment, a crash of the machine or a damaged file
    leave samples that are decoded again, and never bytes that nobody has written.

    Use `in_memory` or `in_file`. Memory is shared with workers, forked or not where the system has files in memory
    (Linux), and written in no other file.

    Args:
        offsets: byte at which each of n samples begins, and behind them the end: n + 1 numbers, ascending.
        paths: files of the bytes and of the marks; None for memory.

    Attributes:
        paths: as given.
        content: all bytes, uint8 (size,), not to be written to.
    """

    def __init__(self, offsets: Sequence[int] | np.ndarray, paths: tuple[str, str] | None):
        self.offsets = offsets
        self.paths = paths
        size, n = int(offsets[-1]), len(offsets) - 1
        sizes = max(size, 1), max(n, 1) * MARK.itemsize
        self._files: list[int] | None = None  # of the bytes and of the marks
        if paths is not None:
            self._files = [_open(path, length) for path, length in zip(paths, sizes, strict=True)]
        elif hasattr(os, "memfd_create"):
            self._files = [os.memfd_create("decoded") for _ in sizes]
            for file, length in zip(self._files, sizes, strict=True):
                os.ftruncate(file, length)
        if self._files is None:
            maps = [mmap.mmap(-1, length) for length in sizes]
        else:
            maps = [mmap.mmap(file, 0, access=mmap.ACCESS_READ) for file in self._files]
        self.content = np.frombuffer(maps[0], np.uint8)[:size]
        self._marks = np.frombuffer(maps[1], MARK)[:n]
        self._trusted = np.zeros(n, np.bool_)
        self._is_full = False  # the disk

    @classmethod
    def in_memory(cls, offsets: Sequence[int] | np.ndarray) -> DecodedCache:
        """Make an empty cache in memory; pages are taken as they are written."""
        return cls(offsets, None)

    @classmethod
    def in_file(
        cls, folder: str | os.PathLike[str], name: str, key: str, offsets: Sequence[int] | np.ndarray
    ) -> DecodedCache:
        """Open the cache of this key, as it was left, or make an empty one.

        Args:
            folder: its folder, made if missing.
            name: how the names of its files begin.
            key: text that changes when the bytes would.
            offsets: as for the class.

        Raises:
            ValueError: if the disk has no room for it, naming the size.
        """
        size = int(offsets[-1])
        digest = hashlib.sha256(f"{key}|{len(offsets) - 1}|{size}".encode()).hexdigest()[:24]
        path = Path(folder) / f"{name}-{digest}.bytes"
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path, size)
        return cls(offsets, (str(path), str(path.with_suffix(".marks"))))

    @property
    def can_be_sent(self) -> bool:
        """True if processes that are not forked can open it."""
        return self._files is not None

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the same files in a process that is not forked, while this one lives.

        Raises:
            TypeError: if it is in memory that has no file.
        """
        if self._files is None:
            raise TypeError("a cache in memory cannot be sent to another process here")
        first, second = self.paths or (f"/proc/{os.getpid()}/fd/{file}" for file in self._files)
        return DecodedCache, (self.offsets, (first, second))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the end of Python, `os` may be gone
        for file in getattr(self, "_files", None) or ():
            close(file)

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """Find which of these samples (B,) are written: booleans (B,)."""
        for number in numbers[~self._trusted[numbers]].tolist():
            mark = int(self._marks[number])
            self._trusted[number] = mark != 0 and mark == _checksum(self.read(number))
        return self._trusted[numbers]

    def seems_complete(self, numbers: np.ndarray) -> bool:
        """True if all of these samples have a mark, whether or not it is right."""
        return bool(self._marks[numbers].all())

    def read(self, number: int) -> np.ndarray:
        """Bytes of a sample, uint8, not to be written to."""
        return self.content[int(self.offsets[number]) : int(self.offsets[number + 1])]

    def write(self, number: int, sample: np.ndarray) -> None:
        """Write a decoded sample, uint8 of its size; on a full disk a warning, and nothing is written any more."""
        start, stop = int(self.offsets[number]), int(self.offsets[number + 1])
        if len(sample) != stop - start:
            raise ValueError(f"sample {number} has {len(sample)} bytes, not {stop - start}")
        mark = _checksum(sample)
        if self._files is None:
            self.content[start:stop] = sample
            self._marks[number] = mark
        elif not self._is_full:
            try:  # a memory map would end the process where the disk is full
                _write(self._files[0], sample.data.cast("B"), start)
                _write(self._files[1], memoryview(MARK.type(mark).tobytes()), number * MARK.itemsize)
            except OSError as error:
                self._is_full = True
                logger.warning("No more decoded samples are kept: %s.", error)

    def remove(self) -> None:
        """Remove the files; processes that have them open go on."""
        for path in self.paths or ():
            Path(path).unlink(missing_ok=True)


def _checksum(sample: np.ndarray) -> int:
    return zlib.crc32(sample.data) or 1  # zero is for what is not written


def _open(path: str, size: int) -> int:
    """Open a file of this many bytes; what is missing is zeros that take no room."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if os.fstat(file).st_size != size:
        os.ftruncate(file, size)
    return file


def _write(file: int, data: memoryview, position: int) -> None:
    while len(data):
        written = os.pwrite(file, data, position)
        data, position = data[written:], position + written


def _check_room(path: Path, size: int) -> None:
    """Check that the disk has room for what is not written yet.

    Raises:
        ValueError: with the size and the room.
    """
    written = path.stat().st_blocks * 512 if path.exists() else 0
    needed, room = size - written, shutil.disk_usage(path.parent).free
    if needed > room:
        raise ValueError(
            f"{path.parent} has {room / 2**30:,.1f} GiB of room, but the decoded samples need "
            f"{needed / 2**30:,.1f} GiB more: name a folder on a larger disk, or none"
        )
