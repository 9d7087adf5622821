"""Reading of our safetensors files, and validation of arrays from files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

KINDS = {"integers": "iu", "floats": "f", "booleans": "b"}  # numpy's letters
LIMITS = {
    "integers": (np.iinfo(np.int64).min, np.iinfo(np.int64).max),
    "floats": (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)),
    "booleans": (0, 1),
}


@contextlib.contextmanager
def name_file_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file of the values in errors inside the context."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def validate_array(
    arrays: Mapping[str, Any],
    name: str,
    kind: str,
    shape: tuple[int | None, ...],
    lowest: float | None = None,
    highest: float | None = None,
) -> np.ndarray:
    """Validate an array by its name, and return it.

    Args:
        arrays: arrays by name.
        name: name of the array.
        kind: "integers" that int64 can hold, "floats" that are finite in float32, or "booleans".
        shape: its shape, with None for an axis of any length.
        lowest: smallest valid value.
        highest: largest valid value.

    Raises:
        ValueError: naming the array and its fault.
    """
    if name not in arrays:
        raise ValueError(f"{name!r} is missing")
    array = np.asarray(arrays[name])
    fits = len(shape) == array.ndim and all(a in (None, b) for a, b in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in KINDS[kind] or not fits:
        expected_shape = str(tuple("any" if n is None else n for n in shape)).replace("'", "")
        raise ValueError(
            f"{name!r} holds {array.dtype} of shape {array.shape}, expected {kind} of shape {expected_shape}"
        )
    if array.size:
        values = array.view(np.uint8) if kind == "booleans" else array  # a byte of 2 would be neither true nor false
        smallest, largest = values.min().item(), values.max().item()  # NaN if there is one
        low, high = (
            limit if bound is None else bound for limit, bound in zip(LIMITS[kind], (lowest, highest), strict=True)
        )
        if not (low <= smallest and largest <= high):
            raise ValueError(
                f"{name!r} holds values from {smallest} to {largest}, expected {kind} from {low} to {high}"
            )
    return array


def select_prefix(prefix: str, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Select the arrays whose names begin with a prefix, by the names without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def read_tensors(path: str | os.PathLike[str], file_format: str) -> dict[str, np.ndarray]:
    """Read arrays by name.

    Args:
        path: the file.
        file_format: required "format" of its metadata.

    Raises:
        ValueError: if the file is damaged or of another format, naming it.
    """
    return read_formatted(path, (file_format,))[1]


def read_formatted(path: str | os.PathLike[str], file_formats: Sequence[str]) -> tuple[str, dict[str, np.ndarray]]:
    """Read which of several formats a file has, and its arrays by name.

    Args:
        path: the file.
        file_formats: one of them must be the "format" of its metadata.

    Raises:
        ValueError: as `read_tensors`.
    """
    from safetensors import SafetensorError, safe_open  # the refiner needs only numpy and scipy

    try:
        with safe_open(path, framework="numpy") as file:
            stored_format = (file.metadata() or {}).get("format")
            arrays = {name: file.get_tensor(name) for name in file.keys()} if stored_format in file_formats else {}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:  # the last ones: types that numpy lacks
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    if stored_format not in file_formats:
        read = " and ".join(map(repr, file_formats))
        raise ValueError(f"{path} has format {stored_format!r}, this release reads {read}")
    return str(stored_format), arrays
