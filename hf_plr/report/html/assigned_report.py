"""What the page of an assigned data set shows: shares of known clusters, new patterns, shares over time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binom

from hf_plr.evaluation.proportions import wilson_interval
from hf_plr.refinement import NOISE
from hf_plr.report.assigned import SAME, AssignedSamples, compare_shares
from hf_plr.report.drift import TimeBins, homogeneity
from hf_plr.report.html.previews import Preview
from hf_plr.report.html.run_facts import as_line, current_time
from hf_plr.utils.versions import find_versions

FORMAT = "hf-plr-assigned-1"
MAX_CLUSTERS = 2_000  # whose shares are listed
MAX_PATTERNS = 20
MAX_OVER_TIME = 12  # clusters whose share is shown over time
WITH_MEMBERS = 30  # clusters whose members are shown
PATTERN_MEMBERS, LONE_MEMBERS, CLUSTER_MEMBERS = 8, 16, 4
SOUNDS = 2  # of sounds half as many are shown
BINS_OF_P = 20
SURE = 0.05
VERSIONED = ("hf-plr", "transformers", "torch", "datasets")


@dataclass(frozen=True)
class Shown:
    """Positions of the samples that a page shows, by what they stand for.

    Attributes:
        patterns: members of each proposed pattern, those nearest to no known cluster first.
        lone: new samples in no pattern, the most novel first.
        clusters: members of known clusters, the most similar first, by label.
    """

    patterns: list[list[int]]
    lone: list[int]
    clusters: dict[int, list[int]] = field(default_factory=dict)

    def list_keys(self) -> list[str]:
        """List all of them as text, the most important first, each once."""
        positions = [position for members in self.patterns for position in members]
        positions += [*self.lone, *(position for members in self.clusters.values() for position in members)]
        return [str(position) for position in dict.fromkeys(positions)]


def choose_shown(samples: AssignedSamples, labels: np.ndarray, sizes: np.ndarray, has_sounds: bool) -> Shown:
    """Choose the samples that a page shows.

    Of known clusters, members are shown of the 30 whose share differs most from that in training.

    Args:
        samples: the samples.
        labels: labels of the known clusters, ascending, (K,).
        sizes: training samples that are nearest to each of them, (K,): all, or drawn ones.
        has_sounds: True for sounds, of which half as many are shown.
    """
    part = SOUNDS if has_sounds else 1
    groups = [np.flatnonzero(samples.group == number) for number in range(min(samples.n_groups, MAX_PATTERNS))]
    lone = np.flatnonzero(samples.is_new & (samples.group == NOISE))
    counts = count_members(samples, labels)
    by_change = np.argsort(-np.abs(counts / max(counts.sum(), 1) - sizes / max(sizes.sum(), 1)), kind="stable")
    clusters: dict[int, list[int]] = {}
    for code in by_change[:WITH_MEMBERS].tolist():
        members = np.flatnonzero(~samples.is_new & (samples.nearest == labels[code]))
        clusters[int(labels[code])] = _largest(members, samples.similarity, CLUSTER_MEMBERS // part)
    return Shown(
        [_spread(members, samples.novelty, PATTERN_MEMBERS // part) for members in groups],
        _largest(lone, samples.novelty, LONE_MEMBERS // part),
        clusters,
    )


def count_members(samples: AssignedSamples, labels: np.ndarray) -> np.ndarray:
    """Count the samples that fit each known cluster, int64 (K,); labels are ascending, (K,)."""
    nearest = samples.nearest[~samples.is_new]
    return np.bincount(np.searchsorted(labels, nearest), minlength=len(labels))


def _largest(positions: np.ndarray, values: np.ndarray, count: int) -> list[int]:
    """Choose the positions with the largest values, the largest first."""
    chosen: list[int] = positions[np.argsort(-values[positions], kind="stable")[:count]].tolist()
    return chosen


def _spread(positions: np.ndarray, values: np.ndarray, count: int) -> list[int]:
    """Choose positions evenly by their values, from the largest to the smallest: what a group has in common."""
    order = positions[np.argsort(-values[positions], kind="stable")]
    chosen: list[int] = order[
        np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).astype(np.int64))
    ].tolist()
    return chosen


def assigned_report(
    samples: AssignedSamples,
    labels: np.ndarray,
    sizes: np.ndarray,
    *,
    shown: Shown,
    media: dict[str, Preview],
    media_types: dict[str, str],
    false_alarms: float,
    names: dict[int, str],
    times: TimeBins | None,
    words: dict[str, Any],
) -> dict[str, Any]:
    """Collect what the page shows, as JSON can hold it.

    Args:
        samples: the samples.
        labels: labels of the known clusters, ascending, (K,).
        sizes: training samples that are nearest to each of them, (K,): all, or drawn ones.
        shown: samples that are shown.
        media: previews by position, as text; those that could not be made are missing.
        media_types: types of their parts.
        false_alarms: share of samples of known clusters that may be taken for new.
        names: names of clusters, by label.
        times: bin of each sample's time, (n,) in place of rows; None without a column of times.
        words: title, model, noun, plural, and unreadable (a number).
    """
    counts = count_members(samples, labels)
    return {
        "format": FORMAT,
        "title": as_line(words["title"]),
        "run": {
            "noun": words["noun"],
            "plural": words["plural"],
            "members": words["plural"],
            "stage": "epoch",
            "samples": len(samples),
            "unreadable": int(words["unreadable"]),
            "model": as_line(words["model"]),
            "written": current_time(),
        },
        "false_alarms": false_alarms,
        "names": {str(label): as_line(name) for label, name in names.items()},
        "new": describe_new(int(samples.is_new.sum()), len(samples), false_alarms),
        "p_values": np.histogram(samples.p_value, BINS_OF_P, (0.0, 1.0))[0].tolist(),
        "clusters": _describe_clusters(samples, labels, sizes, counts, shown),
        "clusters_of": len(labels),
        "training_samples": int(sizes.sum()),
        "patterns": [_describe_pattern(samples, number, members) for number, members in enumerate(shown.patterns)],
        "patterns_of": samples.n_groups,
        "lone": {
            "size": int(np.count_nonzero(samples.is_new & (samples.group == NOISE))),
            "members": _keys(shown.lone),
        },
        "drift": None if times is None else describe_drift(samples, labels, times),
        "samples": {key: _describe_sample(samples, int(key)) for key in shown.list_keys()},
        "media": media,
        "media_types": media_types,
        "media_wanted": len(shown.list_keys()),
        "versions": find_versions(VERSIONED),
    }


def describe_new(count: int, total: int, false_alarms: float) -> dict[str, Any]:
    """Describe the number of new samples: the interval of their share, and what chance alone would give.

    Args:
        count: new samples.
        total: all samples, at least 1.
        false_alarms: share of samples of known clusters that are taken for new.

    Returns:
        "count"; "share" with its 95% interval from "low" to "high"; "expected", the mean of false alarms; and "usual",
        the number that samples of known clusters alone exceed in one of twenty data sets.
    """
    low, high = wilson_interval(count, total)
    return {
        "count": count,
        "share": round(count / total, 6),
        "low": round(float(low), 6),
        "high": round(float(high), 6),
        "expected": round(false_alarms * total, 2),
        "usual": int(binom.ppf(1 - SURE, total, false_alarms)),
    }


def _describe_clusters(
    samples: AssignedSamples, labels: np.ndarray, sizes: np.ndarray, counts: np.ndarray, shown: Shown
) -> list[dict[str, Any]]:
    """Describe known clusters: what surely grew or shrank first, then by the difference of the shares."""
    fits = ~samples.is_new
    sums = np.bincount(np.searchsorted(labels, samples.nearest[fits]), samples.similarity[fits], len(labels))
    flagged = np.bincount(np.searchsorted(labels, samples.nearest[~fits]), minlength=len(labels))
    rows = []
    for code, share in enumerate(compare_shares(sizes, counts)):
        mean = float(sums[code] / counts[code]) if counts[code] else None
        rows.append(
            {
                "id": int(labels[code]),
                "size": int(sizes[code]),
                "count": int(counts[code]),
                "new_near": int(flagged[code]),
                "similarity": None if mean is None else round(mean, 4),
                **share,
                "members": _keys(shown.clusters.get(int(labels[code]), [])),
            }
        )
    rows.sort(key=lambda row: (row["verdict"] == SAME, -abs(row["here"] - row["training"])))
    return rows[:MAX_CLUSTERS]


def _describe_pattern(samples: AssignedSamples, number: int, members: list[int]) -> dict[str, Any]:
    of_pattern = samples.group == number
    near, times_near = np.unique(samples.nearest[of_pattern], return_counts=True)
    order = np.argsort(-times_near, kind="stable")[:3]
    return {
        "number": number,
        "size": int(of_pattern.sum()),
        "near": [[int(near[code]), int(times_near[code])] for code in order],
        "similarity": round(float(samples.similarity[of_pattern].mean()), 4),
        "members": _keys(members),
    }


def _describe_sample(samples: AssignedSamples, position: int) -> list[Any]:
    """Row, label, nearest cluster, p-value and file of a sample; start and end in seconds follow for segments."""
    file = None if samples.files is None else as_line(samples.files[position])
    described = [
        int(samples.row[position]),
        int(samples.label[position]),
        int(samples.nearest[position]),
        round(float(samples.p_value[position]), 5),
        file,
    ]
    return described if samples.spans is None else described + samples.spans[position].tolist()


def describe_drift(samples: AssignedSamples, labels: np.ndarray, times: TimeBins) -> dict[str, Any]:
    """Describe shares over time: of new samples, of patterns, and of the clusters that change most.

    A share changes if a chi-square test over the bins says so at 0.05 / (K + 1): the chance that any of these is one by
    accident is below one in twenty.

    Args:
        samples: the samples.
        labels: labels of the known clusters, ascending, (K,).
        times: the bins, of each sample (n,).
    """
    n_bins = len(times.starts)
    known = times.bins >= 0
    totals = np.bincount(times.bins[known], minlength=n_bins)
    is_new = samples.is_new & known
    new = np.bincount(times.bins[is_new], minlength=n_bins)
    fits = ~samples.is_new & known
    code = np.searchsorted(labels, samples.nearest[fits])
    by_cluster = np.bincount(code * n_bins + times.bins[fits], minlength=len(labels) * n_bins).reshape(-1, n_bins)
    low, high = wilson_interval(new, totals)
    of_new = _p_value(homogeneity(new[None], totals)[0])
    p_values = homogeneity(by_cluster, totals - new)  # among those that fit: new ones make no cluster smaller
    order = np.lexsort((-by_cluster.sum(axis=1), np.nan_to_num(p_values, nan=2.0)))
    sure = SURE / (len(labels) + 1)
    groups = [
        np.bincount(times.bins[known & (samples.group == number)], minlength=n_bins).tolist()
        for number in range(min(samples.n_groups, MAX_PATTERNS))
    ]
    return {
        "column": as_line(times.column),
        "unit": times.unit,
        "starts": times.starts,
        "totals": totals.tolist(),
        "unknown": int(np.count_nonzero(~known)),
        "new": {
            "counts": new.tolist(),
            "low": np.round(low, 5).tolist(),
            "high": np.round(high, 5).tolist(),
            "p": of_new,
            "changes": of_new is not None and of_new < sure,
        },
        "patterns": groups,
        "clusters": [
            {
                "id": int(labels[position]),
                "counts": by_cluster[position].tolist(),
                "p": _p_value(p_values[position]),
                "changes": bool(p_values[position] < sure),
            }
            for position in order[:MAX_OVER_TIME].tolist()
        ],
        "n_changing": int(np.count_nonzero(p_values < sure)),
    }


def _p_value(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.3g}")


def _keys(positions: list[int]) -> list[str]:
    return [str(position) for position in positions]
