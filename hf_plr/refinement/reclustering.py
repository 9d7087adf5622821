"""Step 4: re-cluster the cells by their soft labels."""

from __future__ import annotations

from collections.abc import Sequence

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
    cuts: Sequence[Cut],
    min_size: int,
    max_cells: int,
) -> tuple[list[np.ndarray], bool]:
    """Give every cell one refined cluster at each level.

    Args:
        table: the cells; without any previous label they keep their current clusters.
        soft: soft labels of the cells.
        assignment: "hierarchical" agglomerates the cells, "argmax" takes the largest entry, "soft" and "current" keep
            the current cluster ("soft" takes noise back in where its largest entry is).
        metric: "euclidean" or "coassociation", distance of the agglomeration.
        linkage: linkage of the agglomeration.
        cuts: cuts through its tree, one per level, the coarsest first; more than one for "hierarchical" alone.
        min_size: size under which clusters become noise.
        max_cells: see `PseudoLabelRefiner`.

    Returns:
        Cluster per cell, -1 = noise, shape (cells,), of each level, and True if the clusters are exact. A cluster of a
        finer level lies in one of the coarser; one that is too small may be noise there alone.
    """
    is_exact = True
    if (table.codes[:, :-1] == NOISE).all():
        return [table.current] * len(cuts), is_exact
    if metric == "coassociation":
        levels, is_exact = _agglomerate_coassociation(table, soft, cuts)
    elif assignment == "hierarchical":
        levels, is_exact = _agglomerate_labelled(table, soft, linkage, cuts, max_cells)
    elif assignment == "argmax":
        levels = [argmax(soft)]
    elif assignment == "soft":
        levels = [keep_current(table, soft)]
    else:
        levels = [table.current]
    return [drop_small(cluster, table.counts, min_size) for cluster in levels], is_exact


def _agglomerate_coassociation(
    table: CooccurrenceTable, soft: SoftCells, cuts: Sequence[Cut]
) -> tuple[list[np.ndarray], bool]:
    """Agglomerate the cells in the order of their first members, which ids and order of labelings do not change."""
    order = np.argsort(table.first_member, kind="stable")
    levels, is_exact = agglomerate_coassociation(soft.select(order), table.counts[order], cuts)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return [cluster[place] for cluster in levels], is_exact


def _agglomerate_labelled(
    table: CooccurrenceTable, soft: SoftCells, linkage: str, cuts: Sequence[Cut], max_cells: int
) -> tuple[list[np.ndarray], bool]:
    """Agglomerate the cells that have a soft label; the others are noise."""
    is_labelled = soft.labelled
    if not is_labelled.any():
        return [np.full(len(table), NOISE)] * len(cuts), True
    if is_labelled.all():
        return _agglomerate(soft, table.counts, linkage, cuts, max_cells)
    labelled, is_exact = _agglomerate(soft.select(is_labelled), table.counts[is_labelled], linkage, cuts, max_cells)
    levels = []
    for found in labelled:
        cluster = np.full(len(table), NOISE)
        cluster[is_labelled] = found
        levels.append(cluster)
    return levels, is_exact


def _agglomerate(
    soft: SoftCells, counts: np.ndarray, linkage: str, cuts: Sequence[Cut], max_cells: int
) -> tuple[list[np.ndarray], bool]:
    if cuts[0].distance_threshold == 0.0 and soft.has_disjoint_parts:
        return [_number_distinct_rows(soft)], True
    return agglomerate(soft, counts, linkage, cuts, max_cells)


def _number_distinct_rows(soft: SoftCells) -> np.ndarray:
    """Number the distinct rows of joint soft labels; returns the number per cell, shape (cells,)."""
    codes = np.where(soft.shares_of_case[soft.case] > 0, soft.codes, NOISE)
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
