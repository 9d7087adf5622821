"""Where the units of frames can be heard."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_plr.refinement import NOISE

MAX_UNITS = 24
RECORDINGS = 4  # of each unit
LEAD = 0.25  # seconds of a clip before the unit


def unit_sheets(labels: np.ndarray, bounds: np.ndarray, seconds: np.ndarray) -> list[dict[str, Any]]:
    """Recordings of the largest units: those in which most frames are the unit's.

    Args:
        labels: unit of each frame, -1 = none, the recordings' frames one after the other, shape (F,).
        bounds: where each recording's frames begin, and the end, shape (N + 1,).
        seconds: length of each recording, shape (N,).

    Returns:
        For each unit "id", "size" (frames), and "most": keys of clips, a recording's position and the second from which
        the unit is heard soon.
    """
    units, sizes = np.unique(labels[labels != NOISE], return_counts=True)
    largest = np.argsort(-sizes, kind="stable")[:MAX_UNITS]
    sheets = []
    for unit, size in zip(units[largest].tolist(), sizes[largest].tolist(), strict=True):
        frames = np.flatnonzero(labels == unit)
        recording = np.searchsorted(bounds, frames, "right") - 1
        found, first, counts = np.unique(recording, return_index=True, return_counts=True)
        top = np.argsort(-counts, kind="stable")[:RECORDINGS]
        keys = []
        for position, frame in zip(found[top].tolist(), frames[first[top]].tolist(), strict=True):
            n_frames = int(bounds[position + 1] - bounds[position])
            second = (frame - int(bounds[position])) / n_frames * float(seconds[position])
            keys.append(f"{position}@{max(0.0, second - LEAD):.2f}")
        sheets.append(
            {"id": unit, "size": size, "confidence": None, "why": [], "most": keys, "least": [], "changed": []}
        )
    return sheets
