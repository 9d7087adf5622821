"""Which scores without labels pick good checkpoints and settings, against those with labels, in 0.1's records."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.evidence.runs import Run, read_records
from hf_plr.training_args import LOWER_IS_BETTER

FIGURES = (
    "effective_rank",
    "silhouette",
    "size_entropy",
    "mean_confidence",
    "agreement_ari",
    "churn",
    "largest_share",
    "noise_share",
)
FIRST_EPOCH = 1  # the first one's labels have none before them


def select(paths: list[Path]) -> str:
    """Markdown table: a row for each score without labels, over all runs in these files that have scores by epoch."""
    records: dict[Run, dict[str, Any]] = {}
    for path in paths:
        records |= read_records(path)
    runs = {run: record for run, record in records.items() if record["score"] in record["epochs"][-1]}
    lost = {figure: _lost_by_run(runs, figure) for figure in FIGURES}
    last = np.array([_score(record)[-1] - max(_score(record)[FIRST_EPOCH:]) for record in runs.values()])
    lines = [
        f"{len(runs)} runs. Points below the best epoch, for the epoch that a score picks (the last epoch: "
        f"{100 * last.mean():+.1f}); and rank correlation of the last epoch's score with its downstream score among "
        "the settings and ways of one data set and seed.",
        "",
        "| picked by | points | correlation among settings |",
        "|---|---|---|",
    ]
    for figure in sorted(FIGURES, key=lambda name: -np.mean(lost[name])):
        across = _correlations(runs, figure)
        told = f"{np.mean(across):+.2f} ({len(across)} groups)" if across else ""
        lines.append(f"| {figure} | {100 * np.mean(lost[figure]):+.1f} | {told} |")
    return "\n".join(lines)


def _score(record: dict[str, Any]) -> list[float]:
    return [epoch[record["score"]] for epoch in record["epochs"]]


def _figure(epoch: dict[str, float], figure: str) -> float:
    """A figure, turned round where less of it is better; NaN where an epoch has none."""
    value = epoch.get(f"plr/{figure}", np.nan)
    return -value if figure in LOWER_IS_BETTER else value


def _lost_by_run(runs: dict[Run, dict[str, Any]], figure: str) -> list[float]:
    """Score of the epoch that the figure picks minus that of the best epoch, run by run."""
    lost = []
    for record in runs.values():
        epochs, scores = record["epochs"][FIRST_EPOCH:], _score(record)[FIRST_EPOCH:]
        values = [_figure(epoch, figure) for epoch in epochs]
        if np.isfinite(values).all():
            lost.append(scores[int(np.argmax(values))] - max(scores))
    return lost


def _correlations(runs: dict[Run, dict[str, Any]], figure: str) -> list[float]:
    """Spearman's correlation in each group of at least four runs that differ in setting or way."""
    groups: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for run, record in runs.items():
        groups[run.task, run.seed].append((_figure(record["epochs"][-1], figure), _score(record)[-1]))
    found = []
    for pairs in groups.values():
        values, scores = zip(*pairs, strict=True)
        if len(pairs) >= 4 and np.isfinite(values).all() and len(set(values)) > 1 and len(set(scores)) > 1:
            found.append(float(spearmanr(values, scores).statistic))
    return found
