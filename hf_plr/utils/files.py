"""Arrays in files without a name, which are gone as soon as nothing refers to them."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import numpy.typing as npt


def allocate_array(
    shape: tuple[int, ...], dtype: npt.DTypeLike, folder: str | os.PathLike[str] | None = None, prefix: str = "labels-"
) -> np.ndarray:
    """Allocate an array of zeros in a memory-mapped file without a name, which is freed also if the process is killed.

    Args:
        shape: shape of the array; one without entries lies in memory.
        dtype: type of its entries.
        folder: folder of the file, made if it is missing; None takes the system's temporary folder.
        prefix: what the name begins with while the file has one.
    """
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if n_bytes == 0:
        return np.empty(shape, dtype)
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix=prefix) as file:
        file.truncate(n_bytes)
        return np.memmap(file, dtype, "r+", shape=shape)
