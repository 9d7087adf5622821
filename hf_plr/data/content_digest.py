"""Digests of samples by content, by which another run knows them whatever their rows and file names."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import numpy as np
from datasets import Dataset

from hf_plr.data.archives import open_binary
from hf_plr.data.sample_store import SampleStore

WHOLE_BYTES = 1 << 20  # of files up to this size all bytes count
BLOCK_BYTES = 1 << 16
BLOCKS = 16  # of larger files, evenly spaced, the first and the last bytes among them
READ_ROWS = 256  # whose values are in memory together
MOST_THREADS = 16  # they wait for disks
_archives = threading.Lock()  # whose files share one position


def digest_samples(store: SampleStore, positions: slice | np.ndarray) -> np.ndarray:
    """Digest the stored images or recordings at some positions of a store; segments of a recording have one digest.

    Args:
        store: the samples, all of which can be read.
        positions: n positions.

    Returns:
        64 bits of each, uint64 of shape (n,).

    Raises:
        OSError: if a file has gone.
    """
    rows, place = np.unique(store.rows[positions], return_inverse=True)
    return digest_rows(store.undecoded_column, rows)[place]


def digest_rows(column: Dataset, rows: np.ndarray) -> np.ndarray:
    """Digest the images or recordings in some rows of an undecoded column.

    Args:
        column: a data set of this column alone, as `select_undecoded` of hf_plr.data.sample_store returns it.
        rows: n rows.

    Returns:
        64 bits of each, uint64 of shape (n,).

    Raises:
        OSError: if a file has gone.
    """
    (name,) = column.column_names
    starts = range(0, len(rows), READ_ROWS)
    return digest_all(value for start in starts for value in column[rows[start : start + READ_ROWS].tolist()][name])


def digest_all(stored: Iterable[Any]) -> np.ndarray:
    """Digest n stored images or recordings, or files by their paths, a few at a time.

    Args:
        stored: as for `digest_content`.

    Returns:
        64 bits of each, uint64 of shape (n,).

    Raises:
        OSError: if a file has gone.
    """
    digests: list[int] = []
    with ThreadPoolExecutor(min(MOST_THREADS, 2 * (os.cpu_count() or 1))) as threads:
        waiting = iter(stored)
        while values := list(itertools.islice(waiting, READ_ROWS)):
            digests += threads.map(digest_content, values)
    return np.array(digests, np.uint64)


def digest_content(stored: Any) -> int:
    """Digest a stored image or recording to 64 bits.

    The name of a file does not count. Of more than 1 MiB the size and 16 blocks of 64 KiB count, evenly spaced.

    Args:
        stored: bytes, path, or an array with what belongs to it, as an undecoded column holds them.
    """
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(stored, str):
        stored = {"path": stored}
    if not isinstance(stored, dict):
        _add_array(digest, stored)
    elif stored.get("bytes") is not None:
        _add_bytes(digest, memoryview(stored["bytes"]))
    elif stored.get("path") is not None and stored.get("array") is None:
        path = str(stored["path"])
        with _archives if "://" in path else contextlib.nullcontext(), open_binary(path) as file:
            _add_file(digest, file)
    else:  # such as {"array": ..., "sampling_rate": ...}
        for name in sorted(set(stored) - {"path"}):
            digest.update(name.encode())
            _add_array(digest, stored[name])
    return int.from_bytes(digest.digest(), "big")


def format_digests(digests: np.ndarray) -> list[str]:
    """Write digests (n,) as 16 hexadecimal digits each."""
    return [f"{digest:016x}" for digest in digests.tolist()]


def parse_digests(texts: list[str]) -> np.ndarray:
    """Read the output of `format_digests`: uint64 of shape (n,).

    Raises:
        ValueError: if one of them is no such text.
    """
    return np.array([int(text, 16) for text in texts], np.uint64)


def _add_array(digest: Any, value: Any) -> None:
    array = np.asarray(value)
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())


def _add_bytes(digest: Any, content: memoryview) -> None:
    if len(content) <= WHOLE_BYTES:
        digest.update(content)
        return
    digest.update(str(len(content)).encode())
    for start in _spread_blocks(len(content)):
        digest.update(content[start : start + BLOCK_BYTES])


def _add_file(digest: Any, file: IO[bytes]) -> None:
    """Add a file, as `_add_bytes` adds its content."""
    head = file.read(WHOLE_BYTES + 1)
    if len(head) <= WHOLE_BYTES:
        digest.update(head)
        return
    size = file.seek(0, os.SEEK_END)
    digest.update(str(size).encode())
    for start in _spread_blocks(size):
        file.seek(start)
        digest.update(file.read(BLOCK_BYTES))


def _spread_blocks(size: int) -> list[int]:
    """Where the blocks of a large file of this size begin."""
    return [(size - BLOCK_BYTES) * block // (BLOCKS - 1) for block in range(BLOCKS)]
