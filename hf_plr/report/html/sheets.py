"""Which samples a page shows: members of clusters, a random check, and the dots of the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_plr.refinement import NOISE

MAX_SIZES = 2_000  # clusters whose size is shown

MAX_DOTS = 1_500
RANDOM_CHECK = 120
MAX_SHEETS = 60
TYPICAL = 4  # members that stand for a cluster in the random check
OVERSAMPLED = 4  # candidates for each place in the random check, as some are in no cluster
HASH = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a product with it is a permutation


@dataclass(frozen=True)
class Snapshot:
    """The labels of one stage: of N samples, or of the F frames of N recordings.

    Attributes:
        epoch: epoch, or round, that they train.
        labels: cluster of each sample or frame, -1 = noise, shape (N,) or (F,).
        previous: clusters at the stage before; None at the first, or if they are not known.
        confidence: in [0, 1], shape (N,); None for frames.
        bounds: where each recording's frames begin, and the end, shape (N + 1,); None for samples.
    """

    epoch: int
    labels: np.ndarray
    previous: np.ndarray | None = None
    confidence: np.ndarray | None = None
    bounds: np.ndarray | None = None


def map_positions(n_samples: int, seed: int) -> np.ndarray:
    """Up to 1,500 positions drawn at random, ascending: the same at every stage of a run."""
    rng = np.random.default_rng([seed, 1])
    return np.sort(rng.choice(n_samples, min(n_samples, MAX_DOTS), replace=False))


def random_check(labels: np.ndarray, seed: int, size: int = RANDOM_CHECK) -> np.ndarray:
    """Positions of a uniform random sample, without replacement, of all samples that are in a cluster.

    Samples that stay in clusters stay in the check from stage to stage.
    """
    rng = np.random.default_rng([seed, 2])
    drawn = rng.choice(len(labels), min(len(labels), size * OVERSAMPLED), replace=False)
    found = drawn[labels[drawn] != NOISE][:size]
    if len(found) < size and len(drawn) < len(labels):
        clustered = np.flatnonzero(labels != NOISE)
        found = rng.choice(clustered, min(len(clustered), size), replace=False)
    return found


def cluster_table(now: Snapshot) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of the clusters (K,), ascending, members of each (K,), and their mean confidence (K,), 1 if there is none."""
    inside = now.labels != NOISE
    ids, code, sizes = np.unique(now.labels[inside], return_inverse=True, return_counts=True)
    if now.confidence is None:
        return ids, sizes, np.ones(len(ids))
    sums = np.bincount(code, now.confidence[inside], len(ids))
    return ids, sizes, sums / np.maximum(sizes, 1)


def sizes_of(now: Snapshot) -> dict[str, Any]:
    """Sizes of clusters as the page shows them.

    Returns:
        "clusters": (id, size, mean confidence) of the largest 2,000, the largest first; "of": how many clusters there
        are; "noise": what is in none; "samples": all that was clustered.
    """
    ids, sizes, confidence = cluster_table(now)
    order = np.argsort(-sizes, kind="stable")[:MAX_SIZES]
    rows = zip(ids[order].tolist(), sizes[order].tolist(), np.round(confidence[order], 4).tolist(), strict=True)
    noise = int(np.count_nonzero(now.labels == NOISE))
    return {"clusters": [list(row) for row in rows], "of": len(ids), "noise": noise, "samples": len(now.labels)}


def cluster_sheets(now: Snapshot, new: set[int], per_sheet: int, limit: int = MAX_SHEETS) -> list[dict[str, Any]]:
    """Members of some clusters: of the largest, those that have just appeared, and the least confident.

    Args:
        now: the labels.
        new: clusters that were not there at the stage before.
        per_sheet: members on one sheet.
        limit: clusters with sheets.

    Returns:
        For each cluster, by size, "id", "size", "confidence" (mean), "why" it is among them, and positions: "most" and
        "least" confident, which have no sample in common (equal ones are drawn), and "changed", drawn from the
        "n_changed" members that were elsewhere at the stage before.
    """
    ids, sizes, confidence = cluster_table(now)
    reasons = _chosen(ids, sizes, confidence, new, limit)
    chosen = np.array(sorted(reasons), np.int64)
    positions = np.flatnonzero(np.isin(now.labels, ids[chosen]))
    positions = _by_confidence(now, positions)
    bounds = np.searchsorted(now.labels[positions], ids[chosen])
    sheets = []
    for code, members in zip(chosen.tolist(), np.split(positions, bounds[1:]), strict=True):
        changed = _changed(now, members)
        half = min(per_sheet, (len(members) + 1) // 2)
        sheets.append(
            {
                "id": int(ids[code]),
                "size": int(sizes[code]),
                "confidence": round(float(confidence[code]), 4),
                "why": reasons[code],
                "most": members[:half].tolist(),
                "least": members[::-1][: min(per_sheet, len(members) - half)].tolist(),
                "changed": changed[np.argsort(_drawn(changed), kind="stable")][:per_sheet].tolist(),
                "n_changed": len(changed),
            }
        )
    return sorted(sheets, key=lambda sheet: -sheet["size"])


def typical_members(now: Snapshot, wanted: np.ndarray, count: int = TYPICAL) -> dict[int, list[int]]:
    """The most confident members of clusters, by cluster; equal ones are drawn."""
    positions = np.flatnonzero(np.isin(now.labels, wanted))
    positions = _by_confidence(now, positions)
    labels, starts = np.unique(now.labels[positions], return_index=True)
    members = np.split(positions, starts[1:]) if len(labels) else []
    return {int(label): found[:count].tolist() for label, found in zip(labels, members, strict=True)}


def _chosen(
    ids: np.ndarray, sizes: np.ndarray, confidence: np.ndarray, new: set[int], limit: int
) -> dict[int, list[str]]:
    """Codes of the clusters that get sheets, and why."""
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


def _changed(now: Snapshot, members: np.ndarray) -> np.ndarray:
    if now.previous is None:
        return members[:0]
    return members[now.previous[members] != now.labels[members]]


def _by_confidence(now: Snapshot, positions: np.ndarray) -> np.ndarray:
    """Positions cluster by cluster, ascending, the most confident members first; equal ones are drawn."""
    confidence = np.ones(len(positions)) if now.confidence is None else now.confidence[positions]
    return positions[np.lexsort((_drawn(positions), -confidence, now.labels[positions]))]


def _drawn(positions: np.ndarray) -> np.ndarray:
    """A number for each position that orders them as if at random, the same at every stage."""
    with np.errstate(over="ignore"):
        mixed = (positions.astype(np.uint64) + np.uint64(1)) * HASH
        mixed ^= mixed >> np.uint64(31)
        return mixed * HASH
