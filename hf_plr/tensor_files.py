"""Read the package's own safetensors files."""

from __future__ import annotations

import os

import numpy as np
from safetensors import SafetensorError, safe_open


def read_tensors(path: str | os.PathLike[str], file_format: str) -> dict[str, np.ndarray]:
    """Arrays by name.

    Args:
        path: the file.
        file_format: what its metadata must have as "format".

    Raises:
        ValueError: if the file is damaged or of another format, naming it.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            found = (file.metadata() or {}).get("format")
            arrays = {name: file.get_tensor(name) for name in file.keys()} if found == file_format else {}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:  # the last ones: types that numpy lacks
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    if found != file_format:
        raise ValueError(f"{path} has format {found!r}, this release reads {file_format!r}")
    return arrays
