"""Examples of units of frames: clips in which they can be heard."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_plr.report.html.sheets import Snapshot, cluster_table

MAX_UNITS = 24
RECORDINGS = 4  # of each unit
LEAD = 0.25  # seconds before the unit in a clip


def unit_sheets(labels: np.ndarray, bounds: np.ndarray, seconds: np.ndarray) -> list[dict[str, Any]]:
    """Choose recordings of the largest units: those with the most frames of the unit.

    Args:
        labels: unit of each frame, -1 = none, recording after recording, shape (F,).
        bounds: first frame of each recording, and the end, shape (N + 1,).
        seconds: length of each recording, shape (N,).

    Returns:
        One dictionary per unit: "id", "size" (frames), and "most", the keys of clips. A key is a recording's position
        and a second just before the unit.
    """
    units, sizes, _ = cluster_table(Snapshot(0, labels))
    largest = np.argsort(-sizes, kind="stable")[:MAX_UNITS]
    sheets = []
    for unit, size in zip(units[largest].tolist(), sizes[largest].tolist(), strict=True):
        frames = np.flatnonzero(labels == unit)
        recording = np.searchsorted(bounds, frames, "right") - 1
        recordings, first, counts = np.unique(recording, return_index=True, return_counts=True)
        top = np.argsort(-counts, kind="stable")[:RECORDINGS]
        keys = []
        for position, frame in zip(recordings[top].tolist(), frames[first[top]].tolist(), strict=True):
            n_frames = int(bounds[position + 1] - bounds[position])
            second = (frame - int(bounds[position])) / n_frames * float(seconds[position])
            keys.append(f"{position}@{max(0.0, second - LEAD):.2f}")
        sheets.append(
            {"id": unit, "size": size, "confidence": None, "why": [], "most": keys, "least": [], "changed": []}
        )
    return sheets
