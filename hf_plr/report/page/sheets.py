"""Which samples a page shows: members of clusters, a random check, and the dots of the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_plr.refinement import NOISE

MAX_DOTS = 1_500
RANDOM_CHECK = 120
MAX_SHEETS = 60
TYPICAL = 4  # members that stand for a cluster in the random check
OVERSAMPLED = 4  # candidates for each place in the random check, as some are in no cluster
HASH = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a product with it is a permutation


@dataclass(frozen=True)
class Labeling:
    """The labels of all samples at one stage, each array of shape (N,).

    Attributes:
        labels: cluster of each sample, -1 = noise.
        previous: cluster at the stage before; None at the first.
        confidence: in [0, 1].
    """

    labels: np.ndarray
    previous: np.ndarray | None
    confidence: np.ndarray


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


def cluster_table(labeling: Labeling) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of the clusters (K,), ascending, members of each (K,), and their mean confidence (K,)."""
    inside = labeling.labels != NOISE
    ids, code, sizes = np.unique(labeling.labels[inside], return_inverse=True, return_counts=True)
    sums = np.bincount(code, labeling.confidence[inside], len(ids))
    return ids, sizes, sums / np.maximum(sizes, 1)


def cluster_sheets(labeling: Labeling, new: set[int], per_sheet: int, limit: int = MAX_SHEETS) -> list[dict[str, Any]]:
    """Members of some clusters: of the largest, those that have just appeared, and the least confident.

    Args:
        labeling: the labels.
        new: clusters that were not there at the stage before.
        per_sheet: members on one sheet.
        limit: clusters with sheets.

    Returns:
        For each cluster, by size, "id", "size", "confidence" (mean), "why" it is among them, and positions: "most" and
        "least" confident, which have no sample in common (equal ones are drawn), and "changed", drawn from the
        "n_changed" members that were elsewhere at the stage before.
    """
    ids, sizes, confidence = cluster_table(labeling)
    reasons = _chosen(ids, sizes, confidence, new, limit)
    chosen = np.array(sorted(reasons), np.int64)
    positions = np.flatnonzero(np.isin(labeling.labels, ids[chosen]))
    order = np.lexsort((_drawn(positions), -labeling.confidence[positions], labeling.labels[positions]))
    positions = positions[order]
    bounds = np.searchsorted(labeling.labels[positions], ids[chosen])
    sheets = []
    for code, members in zip(chosen.tolist(), np.split(positions, bounds[1:]), strict=True):
        changed = _changed(labeling, members)
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


def typical_members(labeling: Labeling, wanted: np.ndarray, count: int = TYPICAL) -> dict[int, list[int]]:
    """The most confident members of clusters, by cluster; equal ones are drawn."""
    positions = np.flatnonzero(np.isin(labeling.labels, wanted))
    order = np.lexsort((_drawn(positions), -labeling.confidence[positions], labeling.labels[positions]))
    positions = positions[order]
    labels, starts = np.unique(labeling.labels[positions], return_index=True)
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


def _changed(labeling: Labeling, members: np.ndarray) -> np.ndarray:
    if labeling.previous is None:
        return members[:0]
    return members[labeling.previous[members] != labeling.labels[members]]


def _drawn(positions: np.ndarray) -> np.ndarray:
    """A number for each position that orders them as if at random, the same at every stage."""
    with np.errstate(over="ignore"):
        mixed = (positions.astype(np.uint64) + np.uint64(1)) * HASH
        mixed ^= mixed >> np.uint64(31)
        return mixed * HASH
