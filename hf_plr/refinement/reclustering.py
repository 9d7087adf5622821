"""Step 4: re-cluster the cells by their soft labels."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.agglomeration import Cut, agglomerate
from hf_plr.refinement.assignment import argmax, drop_small, keep_current
from hf_plr.refinement.blending import SoftCells
from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable


def recluster(
    table: CooccurrenceTable, soft: SoftCells, assignment: str, linkage: str, cut: Cut, min_size: int, max_cells: int
) -> tuple[np.ndarray, bool]:
    """Give every cell one refined cluster.

    Args:
        table: the cells. Where no previous label is known, they keep their current clusters.
        soft: their soft labels.
        assignment: "hierarchical" agglomerates the cells, "argmax" takes the largest entry, "soft" and "current" keep
            the current cluster ("soft" takes noise back in where its largest entry is).
        linkage: of the agglomeration.
        cut: of its tree.
        min_size: smaller clusters become noise.
        max_cells: see `PseudoLabelRefiner`.

    Returns:
        The cluster of each cell, -1 = noise, shape (cells,), and whether it is exact.
    """
    is_exact = True
    if (table.codes[:, :-1] == NOISE).all():
        return table.current, is_exact
    if assignment == "hierarchical":
        cluster, is_exact = _agglomerate_labelled(table, soft, linkage, cut, max_cells)
    elif assignment == "argmax":
        cluster = argmax(soft)
    elif assignment == "soft":
        cluster = keep_current(table, soft)
    else:
        cluster = table.current
    return drop_small(cluster, table.counts, min_size), is_exact


def _agglomerate_labelled(
    table: CooccurrenceTable, soft: SoftCells, linkage: str, cut: Cut, max_cells: int
) -> tuple[np.ndarray, bool]:
    """Agglomerate the cells that have a soft label; the others are noise."""
    is_labelled = soft.labelled
    if not is_labelled.any():
        return np.full(len(table), NOISE), True
    if is_labelled.all():
        return _agglomerate(soft, table.counts, linkage, cut, max_cells)
    labelled, is_exact = _agglomerate(soft.select(is_labelled), table.counts[is_labelled], linkage, cut, max_cells)
    cluster = np.full(len(table), NOISE)
    cluster[is_labelled] = labelled
    return cluster, is_exact


def _agglomerate(
    soft: SoftCells, counts: np.ndarray, linkage: str, cut: Cut, max_cells: int
) -> tuple[np.ndarray, bool]:
    if cut.distance_threshold == 0.0 and soft.has_disjoint_parts:
        return _equal_rows(soft), True
    return agglomerate(soft, counts, linkage, cut, max_cells)


def _equal_rows(soft: SoftCells) -> np.ndarray:
    """A number for each distinct row of joint soft labels, shape (cells,)."""
    codes = np.where(soft.shares_of_case[soft.case] > 0, soft.codes, NOISE)
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
