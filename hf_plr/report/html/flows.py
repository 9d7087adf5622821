"""What became of the clusters between two stages, short enough for a page."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_plr.refinement import NOISE, ClusterEvent, CooccurrenceTable, cooccurrence
from hf_plr.refinement.correspondence import Overlaps, cluster_events

MAX_CHANGES = 24  # events that are told in full, the largest ones
MIN_EVENTS = 6  # with fewer changes than this, the largest clusters that were kept are told too
MAX_CLUSTERS = 12  # clusters of one event on either side
OTHERS = None  # stands for clusters that are not in an event


def cluster_flow(previous: np.ndarray, current: np.ndarray) -> dict[str, Any]:
    """What happened to the clusters from one labeling to the next.

    Args:
        previous, current: labels of the same samples, -1 = noise, integers of shape (N,).

    Returns:
        "counts": events of each kind. "events": the largest of them, each with "kind", "samples", "previous" and
        "current" as lists of (cluster, size), "new" (its clusters, if they were born, or those whose number is new) and
        "links" as lists of (from, to, samples), where -1 is noise and None any cluster outside of the event: the links
        that begin at a previous cluster add up to its size, and so do those that end at a current one. "left_out":
        changes that are not among the events.
    """
    table = cooccurrence(previous, current)
    overlaps = Overlaps.of_cells(
        table.previous, table.current, table.counts, len(table.previous_ids), len(table.current_ids)
    )
    events = cluster_events(overlaps, table.previous_ids, table.current_ids)
    changes = [event for event in events if event.kind != "kept"]
    kept = events.of_kind("kept")[: max(0, MIN_EVENTS - len(changes))]
    told = [*changes[:MAX_CHANGES], *kept]
    return {
        "counts": events.counts(),
        "events": [_told(event, table) for event in told],
        "left_out": max(0, len(changes) - MAX_CHANGES),
    }


def _told(event: ClusterEvent, table: CooccurrenceTable) -> dict[str, Any]:
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
    """Codes of the largest of these clusters, and their (cluster, size); both larger ones first."""
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


def _end(code: int, is_told: bool, ids: np.ndarray) -> int | None:
    if code == NOISE:
        return NOISE
    return int(ids[code]) if is_told else OTHERS
