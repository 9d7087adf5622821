"""Output folders at the end of a line of runs: made-up labels, names, history, report and card, without a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from hf_plr.hub.people_card import BEGIN, END
from hf_plr.report.audit import Marks, estimate_error_rate
from hf_plr.report.html.earlier_runs import render_again, report_of
from hf_plr.report.run_history import DataChange, RunAudit, RunEntry, RunEvents, RunHistory

NOISE = 11  # samples of every run that are in no cluster
RUN_NAMES = ("line-3-january", "february", "march", "april", "may_with_a_second_camera", "june", "july", "august")
WRONG = (9, 4, 6, 5, 3, 8, 2, 3)  # of 120 marked samples, by run


def make_history(n_runs: int, n_clusters: int) -> RunHistory:
    """Make a history in which clusters grow, and in every run one of twenty is born, dies, splits and merges.

    Args:
        n_runs: number of runs, up to 8; all but the second one were audited.
        n_clusters: clusters of the first run, at least 3.
    """
    rng = np.random.default_rng(0)
    sizes = {label: int(size) for label, size in enumerate(rng.gamma(2.0, 60.0, n_clusters) + 8)}
    next_number = n_clusters
    runs: list[RunEntry] = []
    for i in range(n_runs):
        data = events = None
        if i:
            before = list(sizes)
            sizes = {label: int(size * rng.uniform(0.8, 1.45)) + 1 for label, size in sizes.items()}
            order = [int(label) for label in rng.permutation(before)]
            died, split, born, merged = [], [], [], []
            for _ in range(max(1, n_clusters // 20)):
                died.append(order.pop())
                del sizes[died[-1]]
                parent = order.pop()
                sizes[parent], sizes[next_number] = sizes[parent] - sizes[parent] // 3, sizes[parent] // 3 + 1
                split.append((parent, (parent, next_number)))
                born.append(next_number + 1)
                sizes[next_number + 1] = int(rng.gamma(2.0, 50.0) + 5)
                next_number += 2
                if len(order) > 3:
                    taken, gone = order.pop(), order.pop()
                    sizes[taken] += sizes.pop(gone)
                    merged.append(((taken, gone), taken))
            kept = tuple((label,) for label in order)
            events = RunEvents(kept, tuple(split), tuple(merged), (), tuple(born), tuple(died))
            n_before, n_now = runs[-1].samples, sum(sizes.values()) + NOISE
            known = min(n_before, n_now) - 3
            data = DataChange(known, n_now - known, n_before - known)
        n_samples = sum(sizes.values()) + NOISE
        audit = make_audit(WRONG[i], dict.fromkeys(list(sizes)[:30], (4, 1)), n_samples - NOISE)
        written = f"2026-0{i + 1}-01T09:30:00+00:00"
        entry = (f"id{i}", RUN_NAMES[i], written, n_samples, NOISE, dict(sizes), data, events)
        runs.append(RunEntry(*entry, None if i == 1 else audit))
    return RunHistory(next_number, tuple(runs))


def make_audit(wrong: int, clusters: dict[int, tuple[int, int]], population: int, marked: int = 120) -> RunAudit:
    """Make an audit of 120 samples."""
    marks = Marks(np.arange(marked), np.zeros(marked, int), np.arange(marked) < wrong, np.ones(marked, bool))
    rate = estimate_error_rate(marks, np.zeros(population, int))
    assert rate is not None
    return RunAudit(marked, wrong, rate.low, rate.high, population, "2026-09-03T09:00:00+00:00", clusters)


def write_run(folder: Path, history: RunHistory) -> Path:
    """Write labels, history, metrics, report and card of the history's last run into a folder."""
    folder.mkdir(parents=True)
    history.write(folder)
    sizes = history.runs[-1].clusters
    labels = np.concatenate([*(np.full(size, label) for label, size in sizes.items()), np.full(NOISE, -1)])
    files = [f"{i:06d}.png" for i in range(len(labels))]
    frame = {"index": np.arange(len(labels)), "file": files, "label": labels}
    pd.DataFrame({**frame, "previous_label": labels, "confidence": 0.75}).to_parquet(folder / "pseudo_labels.parquet")
    metrics = {"scores": {}, "epochs": [], "settings": {}, "versions": {}, "samples": len(labels)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "report.json").write_text(json.dumps(report_of(folder)))
    (folder / "README.md").write_text(f"# A card\n\n{BEGIN}\n{END}\n\nThe rest.\n")
    render_again(folder)
    return folder
