"""Arrays in memory-mapped files without a name, which nothing leaves behind."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

import numpy as np
import numpy.typing as npt

PREFIX = "hf-plr-"  # what names begin with while files have one


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
