"""A report of fixed labels, confidences and features, not of a training, so that it is the same on every processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hf_plr import PLRTrainer
from hf_plr.report.html.sheets import Snapshot

ROW_LENGTH = 15  # dots in a row of the map


def write_constructed_report(trainer: PLRTrainer, stages: list[list[int]]) -> dict[str, Any]:
    """Write the labels, `report.html` and `report.json` of a run whose stages have these labels.

    Args:
        trainer: a trainer that is not trained.
        stages: labels of every sample at each stage.

    Returns:
        What the page shows.
    """
    n_samples = len(stages[0])
    position = np.arange(n_samples)
    confidence = 0.5 + (position * 7 % 10) / 20
    grid = torch.from_numpy(np.stack([position % ROW_LENGTH, position // ROW_LENGTH / 2], axis=1))
    previous = None
    log: list[dict[str, Any]] = []
    for epoch, labels in enumerate(np.array(stages)):
        trainer.reporter.note_stage(Snapshot(epoch, labels, previous, confidence), grid, slice(0, n_samples))
        clusters = len(set(labels.tolist()))
        log.append({"epoch": epoch, "loss": 2.0 - epoch / 4, "plr/clusters": clusters, "plr/silhouette": 0.1 * epoch})
        previous = labels
    trainer.scores = {"before": {"knn_accuracy": 0.25}, "after": {"knn_accuracy": 0.75}}
    folder = Path(str(trainer.args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(
        {"index": position, "label": stages[-1], "previous_label": stages[-2], "confidence": confidence}
    )
    frame.to_parquet(folder / "pseudo_labels.parquet")
    trainer.reporter.write(trainer.summary(), log)
    return trainer.reporter.data(trainer.summary(), log)
