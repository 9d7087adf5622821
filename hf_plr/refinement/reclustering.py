"""Step 4: re-cluster the cells by their soft labels."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.agglomeration import Cut, agglomerate, agglomerate_coassociation
from hf_plr.refinement.assignment import argmax, drop_small, keep_current
from hf_plr.refinement.blending import SoftCells
from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable


def recluster(
    table: CooccurrenceTable,
    soft: SoftCells,
    assignment: str,
    metric: str,
    linkage: str,
    cut: Cut,
    min_size: int,
    max_cells: int,
) -> tuple[np.ndarray, bool]:
    """Give every cell one refined cluster.

    Args:
        table: the cells; without any previous label they keep their current clusters.
        soft: soft labels of the cells.
        assignment: "hierarchical" agglomerates the cells, "argmax" takes the largest entry, "soft" and "current" keep
            the current cluster ("soft" takes noise back in where its largest entry is).
        metric: "euclidean" or "coassociation", distance of the agglomeration.
        linkage: linkage of the agglomeration.
        cut: cut through its tree.
        min_size: size under which clusters become noise.
        max_cells: see `PseudoLabelRefiner`.

    Returns:
        Cluster per cell, -1 = noise, shape (cells,), and True if the clusters are exact.
    """
    is_exact = True
    if (table.codes[:, :-1] == NOISE).all():
        return table.current, is_exact
    if metric == "coassociation":
        cluster, is_exact = _agglomerate_coassociation(table, soft, cut)
    elif assignment == "hierarchical":
        cluster, is_exact = _agglomerate_labelled(table, soft, linkage, cut, max_cells)
    elif assignment == "argmax":
        cluster = argmax(soft)
    elif assignment == "soft":
        cluster = keep_current(table, soft)
    else:
        cluster = table.current
    return drop_small(cluster, table.counts, min_size), is_exact


def _agglomerate_coassociation(table: CooccurrenceTable, soft: SoftCells, cut: Cut) -> tuple[np.ndarray, bool]:
    """Agglomerate the cells in the order of their first members, which ids and order of labelings do not change."""
    order = np.argsort(table.first_member, kind="stable")
    cluster = np.empty(len(table), dtype=np.int64)
    cluster[order], is_exact = agglomerate_coassociation(soft.select(order), table.counts[order], cut)
    return cluster, is_exact


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
        return _number_distinct_rows(soft), True
    return agglomerate(soft, counts, linkage, cut, max_cells)


def _number_distinct_rows(soft: SoftCells) -> np.ndarray:
    """Number the distinct rows of joint soft labels; returns the number per cell, shape (cells,)."""
    codes = np.where(soft.shares_of_case[soft.case] > 0, soft.codes, NOISE)
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
