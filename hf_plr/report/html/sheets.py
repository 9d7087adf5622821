"""Choice of the samples that a page shows: of every cluster, members of some, a random check, and dots of the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_plr.refinement import NOISE
from hf_plr.refinement.cooccurrence import Positions, as_int64, iterate_chunks, list_cluster_ids

MAX_SIZES = 2_000  # clusters whose size is shown
MAX_DOTS = 1_500
RANDOM_CHECK = 120
MAX_SHEETS = 60
MAX_CONTACT = 6  # members that represent a cluster in the contact sheet, where there is room
TYPICAL = 4  # members that represent a cluster in the random check
OVERSAMPLED = 4  # candidates for each place in the random check, as some are in no cluster
HASH = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a product with it is a permutation


@dataclass(frozen=True)
class Snapshot:
    """The labels of one stage: of N samples, or of the F frames of N recordings.

    Attributes:
        epoch: epoch, or round, that trains on them.
        labels: cluster of each sample or frame, -1 = noise, shape (N,) or (F,).
        previous: clusters at the stage before; None at the first stage, or if they are not known.
        confidence: in [0, 1], shape (N,); None for frames.
        bounds: first frame of each recording, and the end, shape (N + 1,); None for samples.
    """

    epoch: int
    labels: np.ndarray
    previous: np.ndarray | None = None
    confidence: np.ndarray | None = None
    bounds: np.ndarray | None = None


def map_positions(n_samples: int, seed: int) -> np.ndarray:
    """Draw up to 1,500 positions, ascending: the same at every stage of a run."""
    rng = np.random.default_rng([seed, 1])
    return np.sort(rng.choice(n_samples, min(n_samples, MAX_DOTS), replace=False))


def random_check(labels: np.ndarray, seed: int, size: int = RANDOM_CHECK) -> np.ndarray:
    """Draw positions uniformly, without replacement, from all samples that are in a cluster.

    Samples that stay in clusters stay in the check from stage to stage.
    """
    rng = np.random.default_rng([seed, 2])
    candidates = rng.choice(len(labels), min(len(labels), size * OVERSAMPLED), replace=False)
    check = candidates[labels[candidates] != NOISE][:size]
    if len(check) < size and len(candidates) < len(labels):
        clustered = np.flatnonzero(labels != NOISE)
        check = rng.choice(clustered, min(len(clustered), size), replace=False)
    return check


def cluster_table(snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tabulate the clusters: ids (K,), ascending, sizes (K,) and mean confidence (K,), 1 if there is none."""
    ids = list_cluster_ids(snapshot.labels)
    position = Positions(ids)
    sizes, sums = np.zeros(len(ids) + 1, np.int64), np.zeros(len(ids) + 1)
    for span in iterate_chunks(len(snapshot.labels)):  # memory-mapped labels are never copied as a whole
        code = position(as_int64(snapshot.labels[span]))
        sizes += np.bincount(code + 1, minlength=len(sizes))
        if snapshot.confidence is not None:
            sums += np.bincount(code + 1, snapshot.confidence[span], len(sums))
    mean = np.ones(len(ids)) if snapshot.confidence is None else sums[1:] / np.maximum(sizes[1:], 1)
    return ids, sizes[1:], mean


def size_table(snapshot: Snapshot) -> dict[str, Any]:
    """Tabulate the sizes of clusters as the page shows them.

    Returns:
        "clusters": (id, size, mean confidence) of the largest 2,000, the largest first; "of": number of clusters, and
        "median": their median size, rounded; "noise": number of samples or frames in none; "samples": number of all.
    """
    ids, sizes, confidence = cluster_table(snapshot)
    order = np.argsort(-sizes, kind="stable")[:MAX_SIZES]
    rows = zip(ids[order].tolist(), sizes[order].tolist(), np.round(confidence[order], 4).tolist(), strict=True)
    return {
        "clusters": [list(row) for row in rows],
        "of": len(ids),
        "median": round(float(np.median(sizes))) if len(sizes) else 0,
        "noise": len(snapshot.labels) - int(sizes.sum()),
        "samples": len(snapshot.labels),
    }


def cluster_sheets(snapshot: Snapshot, new: set[int], per_sheet: int, limit: int = MAX_SHEETS) -> list[dict[str, Any]]:
    """Choose members of some clusters: the largest, those that have just appeared, and the least confident.

    Args:
        snapshot: the labels.
        new: clusters that were not there at the stage before.
        per_sheet: members per sheet.
        limit: clusters with sheets.

    Returns:
        One dictionary per cluster, by size. "id", "size" and "confidence" (mean) describe the cluster, "why" gives the
        reasons for its sheets. "most" and "least" are positions by confidence without a common sample; ties are drawn.
        "changed" are drawn from the "n_changed" members that were elsewhere at the stage before.
    """
    ids, sizes, confidence = cluster_table(snapshot)
    reasons = _choose_clusters(ids, sizes, confidence, new, limit)
    chosen = np.array(sorted(reasons), np.int64)
    positions = np.flatnonzero(np.isin(snapshot.labels, ids[chosen]))
    positions = _by_confidence(snapshot, positions)
    bounds = np.searchsorted(snapshot.labels[positions], ids[chosen])
    sheets = []
    for code, members in zip(chosen.tolist(), np.split(positions, bounds[1:]), strict=True):
        changed = _changed_members(snapshot, members)
        half = min(per_sheet, (len(members) + 1) // 2)
        sheets.append(
            {
                "id": int(ids[code]),
                "size": int(sizes[code]),
                "confidence": round(float(confidence[code]), 4),
                "why": reasons[code],
                "most": members[:half].tolist(),
                "least": members[::-1][: min(per_sheet, len(members) - half)].tolist(),
                "changed": changed[np.argsort(_random_order(changed), kind="stable")][:per_sheet].tolist(),
                "n_changed": len(changed),
            }
        )
    return sorted(sheets, key=lambda sheet: -sheet["size"])


def typical_members(
    snapshot: Snapshot, clusters: np.ndarray, count: int = TYPICAL, excluded: np.ndarray | None = None
) -> dict[int, list[int]]:
    """Choose the most confident members of clusters, by cluster; ties are drawn.

    Args:
        snapshot: the labels.
        clusters: the clusters.
        count: members per cluster.
        excluded: positions that are not to be chosen; a cluster without any other member is left out.
    """
    chosen = np.empty(0, np.int64)
    for span in iterate_chunks(len(snapshot.labels)):  # the best so far against those of the next chunk
        found = span.start + np.flatnonzero(np.isin(snapshot.labels[span], clusters))
        found = found if excluded is None else np.setdiff1d(found, excluded)
        chosen = _by_confidence(snapshot, np.concatenate([chosen, found]))
        labels, starts = np.unique(snapshot.labels[chosen], return_index=True)
        rank = np.arange(len(chosen)) - np.repeat(starts, np.diff(starts, append=len(chosen)))
        chosen = chosen[rank < count]
    labels, starts = np.unique(snapshot.labels[chosen], return_index=True)
    members = np.split(chosen, starts[1:]) if len(labels) else []
    return {int(label): cluster.tolist() for label, cluster in zip(labels, members, strict=True)}


def contact_members(snapshot: Snapshot, room: int) -> dict[int, list[int]]:
    """Choose members of all clusters, by cluster: the most confident ones, equally many of each, up to six.

    Args:
        snapshot: the labels.
        room: members of all clusters together; if there are more clusters, the largest have one each.
    """
    ids, sizes, _ = cluster_table(snapshot)
    largest = ids[np.argsort(-sizes, kind="stable")[: min(room, MAX_SIZES)]]
    return typical_members(snapshot, largest, min(MAX_CONTACT, max(1, room // max(1, len(largest)))))


def _choose_clusters(
    ids: np.ndarray, sizes: np.ndarray, confidence: np.ndarray, new: set[int], limit: int
) -> dict[int, list[str]]:
    """Choose the clusters that get sheets: their codes, with the reasons."""
    by_size, by_confidence = np.argsort(-sizes, kind="stable"), np.argsort(confidence, kind="stable")
    appeared = [code for code in by_size.tolist() if int(ids[code]) in new]
    reasons: dict[int, list[str]] = {}
    for why, codes, room in (
        ("largest", by_size.tolist(), limit // 2),
        ("new", appeared, limit // 4),
        ("least confident", by_confidence.tolist(), limit // 4),
    ):
        for code in codes[:room]:
            reasons.setdefault(code, []).append(why)
    for code in by_size.tolist():
        if len(reasons) >= limit:
            break
        reasons.setdefault(code, [])
    return reasons


def _changed_members(snapshot: Snapshot, members: np.ndarray) -> np.ndarray:
    if snapshot.previous is None:
        return members[:0]
    return members[snapshot.previous[members] != snapshot.labels[members]]


def _by_confidence(snapshot: Snapshot, positions: np.ndarray) -> np.ndarray:
    """Sort positions by cluster, then by confidence, the most confident first; ties are drawn."""
    confidence = np.ones(len(positions)) if snapshot.confidence is None else snapshot.confidence[positions]
    return positions[np.lexsort((_random_order(positions), -confidence, snapshot.labels[positions]))]


def _random_order(positions: np.ndarray) -> np.ndarray:
    """Map each position to a number that orders them as if at random, the same at every stage."""
    with np.errstate(over="ignore"):
        mixed = (positions.astype(np.uint64) + np.uint64(1)) * HASH
        mixed ^= mixed >> np.uint64(31)
        return mixed * HASH
