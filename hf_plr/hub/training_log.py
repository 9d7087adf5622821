"""Table of a run for its model card: what each epoch learned from, and how it went."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_plr.report.summary import AGREEMENT, CHANGED, SCORE_PREFIX, STAGE_PREFIX, STAGE_SECONDS

MAX_ROWS = 20  # more epochs than this are shown evenly spaced, with the first and the last
LOSS, KNN = "loss", f"{SCORE_PREFIX}knn_accuracy"
COLUMNS = {  # by name in the log: title and format
    LOSS: ("loss", ".4g"),
    f"{STAGE_PREFIX}clusters": ("clusters", ",.0f"),
    f"{STAGE_PREFIX}units": ("units", ",.0f"),
    f"{STAGE_PREFIX}noise_share": ("in no cluster", ".1%"),
    CHANGED: ("changed by refinement", ".1%"),
    AGREEMENT: ("agreement", ".2f"),
    f"{STAGE_PREFIX}silhouette": ("silhouette", ".2f"),
    KNN: ("kNN accuracy", ".3f"),
}


def tabulate_log(log: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Tabulate the stages of a log: a header, and a row per stage that is shown; empty without a stage.

    Losses and scores are the last ones that were logged between a stage and the next. Columns without any value are
    left out, and missing values are empty.

    Args:
        log: log history of `Trainer`.
    """
    rows: list[dict[str, float]] = []
    for entry in log:
        if STAGE_SECONDS in entry:
            rows.append({"epoch": entry["epoch"], **{name: entry[name] for name in COLUMNS if name in entry}})
        elif rows:
            rows[-1] |= {name: entry[name] for name in (LOSS, KNN) if name in entry}
    if not rows:
        return []
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    header = ("epoch", *(COLUMNS[name][0] for name in names))
    shown = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_ROWS)).round().astype(int))
    cells = [_format(rows[position], names) for position in shown]
    return [header, *cells]


def _format(row: dict[str, float], names: list[str]) -> tuple[str, ...]:
    return (f"{row['epoch']:g}", *(format(row[name], COLUMNS[name][1]) if name in row else "" for name in names))
