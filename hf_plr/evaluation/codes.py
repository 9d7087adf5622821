"""Validation of numbers of classes, identities and cameras."""

from __future__ import annotations

from typing import Any

import numpy as np

UNKNOWN = -1
LARGEST = np.iinfo(np.int64).max


def validate_codes(name: str, values: Any, n: int) -> np.ndarray:
    """Validate numbers of n samples; returns them as int64 (n,), in which -1 is no other number.

    Raises:
        ValueError: if they are not n integers, naming them.
    """
    codes = np.asarray(values)
    if codes.shape != (n,) or codes.dtype.kind not in "iub":
        raise ValueError(f"{name} must be {n} integers, not {codes.dtype} of shape {codes.shape}")
    if codes.dtype == np.uint64 and len(codes) and codes.max() > LARGEST:
        raise ValueError(f"{name} must be {n} integers below 2**63: one is {codes.max()}")
    return codes.astype(np.int64)


def lift_classes(classes: np.ndarray) -> np.ndarray:
    """Number classes (N,) that may be any integers but -1, which is unknown, from 0 on: int64 (N,) without others."""
    lowest = classes.min(initial=UNKNOWN)
    return classes if lowest == UNKNOWN else np.where(classes == UNKNOWN, UNKNOWN, classes - lowest)
