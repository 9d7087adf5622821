"""Changes of the clusters between two stages, short enough for a page."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_plr.refinement import NOISE, ClusterEvent, CooccurrenceTable, cooccurrence
from hf_plr.refinement.correspondence import Overlaps, find_cluster_events

MAX_CHANGES = 24  # changes with details, the largest ones
MIN_EVENTS = 6  # with fewer changes than this, the largest clusters that were kept are shown too
MAX_CLUSTERS = 12  # clusters of one event per side
OTHERS = None  # any cluster that is not in an event


def cluster_flow(previous: np.ndarray, current: np.ndarray) -> dict[str, Any]:
    """Describe the changes of the clusters from one labeling to the next.

    Args:
        previous, current: labels of the same samples, -1 = noise, integers of shape (N,).

    Returns:
        "counts": number of events by kind. "events": the largest of them. "left_out": number of changes that are not
        among the events. An event has "kind", "samples", and "previous" and "current" as lists of (cluster, size).
        "new" are its clusters that were born or have a new number. "links" are lists of (from, to, samples), where -1
        is noise and None any cluster outside of the event. The links from a previous cluster add up to its size, and
        so do those to a current one.
    """
    table = cooccurrence(previous, current)
    overlaps = Overlaps.from_cells(
        table.previous, table.current, table.counts, len(table.previous_ids), len(table.current_ids)
    )
    events = find_cluster_events(overlaps, table.previous_ids, table.current_ids)
    changes = [event for event in events if event.kind != "kept"]
    kept = events.of_kind("kept")[: max(0, MIN_EVENTS - len(changes))]
    shown = [*changes[:MAX_CHANGES], *kept]
    return {
        "counts": events.counts(),
        "events": [_describe(event, table) for event in shown],
        "left_out": max(0, len(changes) - MAX_CHANGES),
    }


def _describe(event: ClusterEvent, table: CooccurrenceTable) -> dict[str, Any]:
    before, previous = _largest(event.previous, table.previous_ids, table.sizes(-2))
    after, current = _largest(event.current, table.current_ids, table.sizes(-1))
    known = set() if event.kind == "born" else set(table.previous_ids.tolist())
    return {
        "kind": event.kind,
        "samples": event.samples,
        "previous": previous,
        "current": current,
        "new": [cluster for cluster, _ in current if cluster not in known],
        "links": _links(before, after, table),
    }


def _largest(clusters: tuple[int, ...], ids: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
    """Select the largest of these clusters: their codes, and their (cluster, size), the largest first."""
    codes = np.searchsorted(ids, np.asarray(clusters, np.int64))
    codes = codes[np.argsort(-sizes[codes], kind="stable")][:MAX_CLUSTERS]
    return codes, [[int(ids[code]), int(sizes[code])] for code in codes]


def _links(before: np.ndarray, after: np.ndarray, table: CooccurrenceTable) -> list[list[int | None]]:
    leaving, arriving = np.isin(table.previous, before), np.isin(table.current, after)
    touched = np.flatnonzero(leaving | arriving)
    sums: dict[tuple[int | None, int | None], int] = {}
    for cell in touched.tolist():
        start = _end(int(table.previous[cell]), bool(leaving[cell]), table.previous_ids)
        end = _end(int(table.current[cell]), bool(arriving[cell]), table.current_ids)
        sums[start, end] = sums.get((start, end), 0) + int(table.counts[cell])
    return [[start, end, count] for (start, end), count in sorted(sums.items(), key=lambda link: -link[1])]


def _end(code: int, in_event: bool, ids: np.ndarray) -> int | None:
    if code == NOISE:
        return NOISE
    return int(ids[code]) if in_event else OTHERS
