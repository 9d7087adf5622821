"""Parts of step 4: hard labels without agglomeration; with and without it, small clusters and confidences."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.blending import SoftCells
from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable, count_samples, iterate_blocks

CLUSTERS = 128  # clusters whose samples are counted together
TIE = 1e-12  # entries of soft labels that differ by less count as equal


def argmax(soft: SoftCells) -> np.ndarray:
    """Column with the largest entry of each projected soft label, shape (cells,), -1 where there is none.

    Where several columns are largest, a cell keeps its current cluster, or stays noise.
    """
    current_weight, previous_weight = soft.shares(0), soft.shares(1)
    current = np.where(current_weight + previous_weight > 0, soft.codes[:, 0], NOISE)  # also of weight 0
    previous = np.where(previous_weight > 0, soft.codes[:, 1], NOISE)
    projection = soft.bases[1]
    largest, column, is_unique = _row_maxima(projection)
    current_entry = np.zeros(len(soft))
    labelled = np.flatnonzero((current != NOISE) & (previous != NOISE))
    if len(labelled):
        current_entry[labelled] = projection[previous[labelled], current[labelled]]
    projected = previous_weight * largest[previous]
    is_staying = current_weight + previous_weight * current_entry >= projected - TIE
    is_moving = (previous != NOISE) & ~is_staying & is_unique[previous]
    is_readmitted = (current == NOISE) & (projected > 0) & is_unique[previous]
    return np.where(is_moving | is_readmitted, column[previous], current)


def keep_current(table: CooccurrenceTable, soft: SoftCells) -> np.ndarray:
    """Keep the current cluster per cell; noise gets the column with the largest entry of its soft label, or -1.

    Args:
        table: the cells.
        soft: soft labels of the cells. Noise stays noise in the joint space, where other columns exist too.
    """
    is_noise = table.current == NOISE
    if not is_noise.any() or soft.n_columns != len(table.current_ids):
        return table.current
    return np.where(is_noise, argmax(soft), table.current)


def drop_small(cluster: np.ndarray, counts: np.ndarray, min_size: int) -> np.ndarray:
    """Drop clusters with fewer samples than `min_size`: they become noise; cluster and result of shape (cells,)."""
    is_small = np.append(count_samples(cluster, counts, int(cluster.max()) + 1) < min_size, False)
    return np.where(is_small[cluster], NOISE, cluster) if is_small.any() else cluster


def map_columns(column: np.ndarray, cluster: np.ndarray, n_columns: int, n_clusters: int) -> sp.csr_array:
    """Map columns to clusters where each cluster is one column: 0 or 1, shape (columns, clusters).

    Args:
        column: column that is the hard label of each cell, -1 = noise, shape (cells,).
        cluster: the same as a number from 0, shape (cells,).
        n_columns, n_clusters: number of columns and of clusters.
    """
    pairs = np.unique(np.stack([column, cluster], axis=1)[cluster != NOISE], axis=0)
    return sp.csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_columns, n_clusters))


def compute_confidence(
    soft: SoftCells, cluster: np.ndarray, counts: np.ndarray, membership: sp.csr_array | None = None
) -> np.ndarray:
    """Fraction of each cell's soft label on the columns of its hard label; in [0, 1], 0 for noise.

    A column belongs to the cluster whose samples have the largest part of it.

    Args:
        soft: soft labels of the cells.
        cluster: hard label of each cell, from 0, -1 = noise, shape (cells,).
        counts: samples in each cell, shape (cells,).
        membership: 1 where a column belongs to a cluster, else 0, shape (columns, clusters);
            computed from the samples by default.
    """
    result = np.zeros(len(soft))
    n_clusters = int(cluster.max(initial=NOISE)) + 1
    if n_clusters == 0:
        return result
    if membership is None:
        membership = _find_membership(soft, cluster, counts, n_clusters)
    membership_of_code = [sp.csr_array(basis @ membership) for basis in soft.bases]
    totals = [basis.sum(axis=1) for basis in soft.bases]
    for block in iterate_blocks(len(soft)):
        cells = block.start + np.flatnonzero(cluster[block] != NOISE)
        own_mass, total_mass = np.zeros(len(cells)), np.zeros(len(cells))
        for part, part_weights in enumerate(soft.shares_of_case[soft.case[cells]].T):
            used_cells = np.flatnonzero(part_weights > 0)
            codes, cell_weights = soft.codes[cells[used_cells], part], part_weights[used_cells]
            own_mass[used_cells] += cell_weights * membership_of_code[part][codes, cluster[cells[used_cells]]]
            total_mass[used_cells] += cell_weights * totals[part][codes]
        fraction = np.divide(own_mass, total_mass, out=np.zeros(len(cells)), where=total_mass > 0)
        result[cells] = np.clip(fraction, 0.0, 1.0)
    return result


def _find_membership(soft: SoftCells, cluster: np.ndarray, counts: np.ndarray, n_clusters: int) -> sp.csr_array:
    """Find the cluster that has most of each column, several if tied: 0 or 1, shape (columns, clusters)."""
    samples_of_code = []  # in blocks: the products of shares and counts would not fit for all cells
    for part, basis in enumerate(soft.bases):
        samples = sp.csr_array((n_clusters, basis.shape[0]))
        for block in iterate_blocks(len(soft)):
            cell_weights = soft.shares_of_case[soft.case[block], part]
            used = np.flatnonzero((cell_weights > 0) & (cluster[block] != NOISE))
            positions = (cluster[block][used], soft.codes[block, part][used])
            entries = ((cell_weights * counts[block])[used], positions)
            samples = samples + sp.coo_array(entries, shape=samples.shape).tocsr()
        samples_of_code.append(sp.csr_array(samples))

    def samples_in_columns(clusters: slice) -> sp.coo_array:
        parts = (samples[clusters] @ basis for samples, basis in zip(samples_of_code, soft.bases, strict=True))
        return sp.coo_array(sum(parts))

    largest = np.zeros(soft.n_columns)
    for clusters in iterate_blocks(n_clusters, CLUSTERS):
        entries = samples_in_columns(clusters)
        np.maximum.at(largest, entries.col, entries.data)
    columns, owners = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for clusters in iterate_blocks(n_clusters, CLUSTERS):
        entries = samples_in_columns(clusters)
        is_largest = entries.data >= largest[entries.col] * (1.0 - TIE)
        columns.append(entries.col[is_largest])
        owners.append(clusters.start + entries.row[is_largest])
    positions = (np.concatenate(columns), np.concatenate(owners))
    return sp.csr_array(sp.coo_array((np.ones(len(positions[0])), positions), shape=(soft.n_columns, n_clusters)))


def _row_maxima(matrix: sp.csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the largest entry per row, its column, and True if it is the only one; the last row is for the code -1."""
    n = matrix.shape[0]
    row = np.repeat(np.arange(n), np.diff(matrix.indptr))
    largest = np.zeros(n + 1)
    np.maximum.at(largest, row, matrix.data)
    largest_entries = np.flatnonzero(matrix.data >= largest[row] - TIE)
    column = np.full(n + 1, NOISE)
    column[row[largest_entries]] = matrix.indices[largest_entries]
    return largest, column, np.bincount(row[largest_entries], minlength=n + 1) == 1
