"""A small grid of settings for each peer, on one seed that nothing else uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.peers import PEERS, WITH_TEMPERATURE
from benchmarks.evidence.runs import Run, read_all
from benchmarks.evidence.ways import Peer

TASKS = ("digits", "cifar-5")  # one for each kind of model
SEED = 99
RATES = {"lr/3": 1 / 3, "lr": 1.0, "3lr": 3.0}
TEMPERATURES = (0.1, 0.2, 0.5)


def grid(tasks: tuple[str, ...] = TASKS) -> dict[Run, Peer]:
    """All runs of the grid, with their settings."""
    return {
        Run(task, label if objective not in WITH_TEMPERATURE else f"{label} t{temperature}", objective, SEED): Peer(
            objective, rate, temperature
        )
        for task in tasks
        for objective in PEERS
        for label, rate in RATES.items()
        for temperature in (TEMPERATURES if objective in WITH_TEMPERATURE else TEMPERATURES[:1])
    }


def merit(record: dict[str, Any]) -> float:
    """What settings are chosen by: the mean of centered kNN and linear probe."""
    scores = record["readout"]["centered"]
    return float(np.mean([scores["knn"], scores["linear"]]))


def report(paths: list[Path]) -> str:
    """A Markdown table: each setting's kNN and linear probe, the best of each peer and task in bold.

    Args:
        paths: files of results.
    """
    found = {run: record for run, record in read_all(paths).items() if run in grid()}
    rows = ["| data | peer | setting | kNN | linear | mean |", "|---" * 6 + "|"]
    for task, way in dict.fromkeys((run.task, run.way) for run in grid()):
        records = {run: record for run, record in found.items() if (run.task, run.way) == (task, way)}
        best = max(records, key=lambda run: merit(records[run]), default=None)
        for run, record in records.items():
            scores, bold = record["readout"]["centered"], "**" if run == best else ""
            cells = [task, way, f"{bold}{run.variation}{bold}"]
            cells += [f"{value:.3f}" for value in (scores["knn"], scores["linear"], merit(record))]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
