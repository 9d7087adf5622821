"""Assigned samples that are made up, not computed, so that they are the same on every processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from hf_plr.jobs.assignment import AssignedData
from hf_plr.report.assigned import AssignedSamples
from hf_plr.report.drift import TimeBins
from hf_plr.report.html.assigned_report import assigned_report, choose_shown
from hf_plr.report.html.previews import MEDIA_TYPES, image_preview

FALSE_ALARMS = 0.01


def construct_samples(n: int = 600, n_clusters: int = 8, n_patterns: int = 2, seed: int = 0) -> AssignedSamples:
    """Samples of clusters 0, 2, 4, ... of which later ones have more and more of the last, and new ones."""
    rng = np.random.default_rng(seed)
    later = np.linspace(0.0, 1.0, n)
    code = np.where(rng.random(n) < 0.3 * later, n_clusters - 1, rng.integers(0, n_clusters, n))
    is_new = rng.random(n) < 0.02 + 0.15 * later * (n_patterns > 0)
    group = np.where(is_new & (rng.random(n) < 0.8), rng.integers(0, max(n_patterns, 1), n) if n_patterns else -1, -1)
    ids, counts = np.unique(group[group >= 0], return_counts=True)
    number = np.full(n_patterns + 1, -1)
    number[ids[np.argsort(-counts, kind="stable")]] = np.arange(len(ids))
    p_value = np.where(is_new, rng.uniform(0.001, FALSE_ALARMS, n), rng.uniform(FALSE_ALARMS, 1.0, n))
    return AssignedSamples(
        row=np.arange(n),
        is_new=is_new,
        nearest=2 * code,
        similarity=np.where(is_new, 0.2, 0.8).astype(np.float32) + rng.uniform(0, 0.1, n).astype(np.float32),
        second=2 * ((code + 1) % n_clusters),
        second_similarity=np.full(n, 0.1, np.float32),
        novelty=(1 - p_value).astype(np.float32),
        p_value=p_value,
        group=number[group],
        files=[f"camera/{i:04d}.png" for i in range(n)],
    )


def construct_assignment(
    pixels: np.ndarray,
    n_clusters: int = 8,
    n_patterns: int = 2,
    names: dict[int, str] | None = None,
    has_times: bool = True,
    title: str = "photos of this week",
) -> tuple[AssignedData, AssignedSamples]:
    """Assign made-up samples.

    Args:
        pixels: an image per sample, uint8 (N, H, W).
        n_clusters: known clusters.
        n_patterns: new patterns.
        names: names of clusters.
        has_times: True for 24 weeks of samples.
        title: name of the data set.
    """
    samples = construct_samples(len(pixels), n_clusters, n_patterns)
    labels = 2 * np.arange(n_clusters)
    sizes = np.full(n_clusters, 100)
    times = None
    if has_times:
        starts = [str(np.datetime64("2026-06-01") + 7 * i) for i in range(24)]
        times = TimeBins("taken", np.arange(len(samples)) * 24 // len(samples), starts, "week")
    shown = choose_shown(samples, labels, sizes, has_sounds=False)
    words: dict[str, Any] = {"title": title, "model": "out", "noun": "image", "plural": "images", "unreadable": 0}
    report = assigned_report(
        samples,
        labels,
        sizes,
        shown=shown,
        media={key: image_preview(pixels[int(key)][None]) for key in shown.list_keys()},
        media_types=MEDIA_TYPES["image"],
        false_alarms=FALSE_ALARMS,
        names=names or {},
        times=times,
        words=words,
    )
    return AssignedData(pa.table({"index": samples.row, "label": samples.label}), report), samples
