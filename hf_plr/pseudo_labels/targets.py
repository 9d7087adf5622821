"""Targets of refined labels: of cells first, which are few, then of their samples."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement import NOISE, CellRefinement, RefinementResult
from hf_plr.refinement.assignment import keep_current
from hf_plr.refinement.blending import SoftCells
from hf_plr.refinement.cooccurrence import iterate_chunks


def measure_refinement(cells: CellRefinement, targets: np.ndarray, has_soft_targets: bool) -> dict[str, float]:
    """Metrics of a refinement from its cells, which are not kept, and their targets, shape (cells,)."""
    metrics = {
        "clusters_raw": float(len(cells.table.current_ids)),
        "changed_share": cells.changed_share,
        "mean_confidence": float(np.average(cells.confidence, weights=cells.table.counts)),
        **{kind: float(number) for kind, number in cells.events.counts().items()},
    }
    is_trained = targets != NOISE
    if has_soft_targets and is_trained.any():
        own_mass = np.average(cells.confidence[is_trained], weights=cells.table.counts[is_trained])
        metrics["soft_share"] = 1.0 - float(own_mass)
    return metrics


def make_hard_targets(refined: RefinementResult, min_confidence: float) -> tuple[np.ndarray, int, None]:
    """Make hard targets: prototype per cell, -1 = no loss, shape (cells,), and the number of prototypes."""
    cells = refined.cells
    is_trained = (cells.labels != NOISE) & (cells.confidence >= min_confidence)
    ids = np.unique(cells.labels[is_trained])
    return np.where(is_trained, np.searchsorted(ids, cells.labels), NOISE), len(ids), None


def make_soft_targets(refined: RefinementResult, min_confidence: float) -> tuple[np.ndarray, int, SoftCells]:
    """Make hard and soft targets per cell, over the clusters that have a confident member."""
    cells = refined.cells
    cluster, soft = keep_current(cells.table, cells.soft), cells.soft
    is_doubtful = cells.confidence < min_confidence
    if not is_doubtful.any():
        return cluster, soft.n_columns, soft
    cluster = np.where(is_doubtful, NOISE, cluster)
    ids = np.unique(cluster[cluster != NOISE])
    targets = np.where(cluster != NOISE, np.searchsorted(ids, cluster), NOISE)
    return targets, len(ids), soft.drop_cells(is_doubtful).select_columns(ids)


def spread_to_samples(refined: RefinementResult, part: slice, cell_values: list[np.ndarray]) -> list[np.ndarray]:
    """Spread values per cell, each of shape (cells,), to the samples of a part, each of shape (n,)."""
    sample_values = [np.empty(part.stop - part.start, values.dtype) for values in cell_values]
    for span in iterate_chunks(len(sample_values[0])):
        cell = refined.cell_of_sample(part.start + span.start, part.start + span.stop)
        for array, values in zip(sample_values, cell_values, strict=True):
            array[span] = values[cell]
    return sample_values
