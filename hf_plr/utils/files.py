"""Files that are whole or as they were before, and arrays in files without a name, which nothing leaves behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hf_plr.utils.shards import TEMPORARY

PREFIX = "hf-plr-"  # what names begin with while files have one


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside a file to write to; at the end of the context it takes the file's place.

    Each context has a path of its own, so that of several processes that write one file, the last one's is there as a
    whole. After an error the file is as it was before. A process that is killed leaves a file whose name ends in .tmp.

    Args:
        path: the file, in a folder that exists.

    Raises:
        OSError: if the file cannot be replaced.
    """
    # Processes of several machines, which may share the folder, can have the same number.
    temporary = Path(f"{os.fspath(path)}.{uuid.uuid4().hex[:12]}{TEMPORARY}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def allocate_array(
    shape: tuple[int, ...], dtype: npt.DTypeLike, folder: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """Allocate an array of zeros in a memory-mapped file without a name, which is freed also if the process is killed.

    Args:
        shape: shape of the array; one without entries lies in memory.
        dtype: type of its entries.
        folder: folder of the file, made if it is missing; None takes the system's temporary folder.

    Raises:
        OSError: if there is no room.
    """
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if n_bytes == 0:
        return np.empty(shape, dtype)
    folder = tempfile.gettempdir() if folder is None else folder
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix=PREFIX) as file:
        reserve(file.fileno(), n_bytes, folder)
        return np.memmap(file, dtype, "r+", shape=shape)


def reserve(file: int, n_bytes: int, folder: str | os.PathLike[str]) -> None:
    """Fill an open file with zeros that have room on the disk: else a process that writes to its map would be killed.

    Args:
        file: descriptor of the file, which is empty.
        n_bytes: its new size.
        folder: its folder, for messages.

    Raises:
        OSError: if there is no room.
    """
    if shutil.disk_usage(folder).free < n_bytes:  # asked first: some file systems fill the disk before they fail
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, which needs {n_bytes / 2**30:.2f} GiB", str(folder))
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, n_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # as file systems answer that have no such call
                raise OSError(error.errno, error.strerror, str(folder)) from error
    os.truncate(file, n_bytes)
