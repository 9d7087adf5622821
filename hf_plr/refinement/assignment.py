"""Step 4 without agglomeration: the largest entry of a soft label, and how sure a hard label is."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.blending import SoftCells
from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable
from hf_plr.refinement.lookup import count_samples, iterate_blocks

CLUSTERS = 128  # clusters whose samples are counted in all columns together
TIE = 1e-12  # entries of soft labels that differ by less count as equal


def argmax(soft: SoftCells) -> np.ndarray:
    """The column with the largest entry of each projected soft label, shape (cells,), -1 where there is none.

    Where several columns are largest, a cell stays where it is: in its current cluster, or noise.
    """
    current_share, previous_share = soft.shares(0), soft.shares(1)
    current = np.where(current_share > 0, soft.codes[:, 0], NOISE)
    previous = np.where(previous_share > 0, soft.codes[:, 1], NOISE)
    projection = soft.bases[1]
    largest, column, is_unique = _row_maxima(projection)
    in_current = np.zeros(len(soft))
    both = np.flatnonzero((current != NOISE) & (previous != NOISE))
    if len(both):
        in_current[both] = projection[previous[both], current[both]]
    projected = previous_share * largest[previous]
    stays = current_share + previous_share * in_current >= projected - TIE
    moves = (previous != NOISE) & ~stays & is_unique[previous]
    taken_back = (current == NOISE) & (projected > 0) & is_unique[previous]
    return np.where(moves | taken_back, column[previous], current)


def keep_current(table: CooccurrenceTable, soft: SoftCells) -> np.ndarray:
    """Each cell's current cluster; for noise the column with the largest entry of its soft label, -1 if there is none.

    Args:
        table: the cells.
        soft: their soft labels. In the joint space, where not every column is a current cluster, noise stays noise.
    """
    is_noise = table.current == NOISE
    if not is_noise.any() or soft.n_columns != len(table.current_ids):
        return table.current
    return np.where(is_noise, argmax(soft), table.current)


def drop_small(cluster: np.ndarray, counts: np.ndarray, min_size: int) -> np.ndarray:
    """Make noise of the clusters with fewer samples than `min_size`; cluster and result have shape (cells,)."""
    is_small = np.append(count_samples(cluster, counts, int(cluster.max()) + 1) < min_size, False)
    return np.where(is_small[cluster], NOISE, cluster) if is_small.any() else cluster


def map_columns(column: np.ndarray, cluster: np.ndarray, n_columns: int, n_clusters: int) -> sp.csr_array:
    """Which column belongs to which cluster where each cluster is one column: 0 or 1, shape (columns, clusters).

    Args:
        column: column that is the hard label of each cell, -1 = noise, shape (cells,).
        cluster: the same as a number from 0, shape (cells,).
        n_columns, n_clusters: how many there are of each.
    """
    pairs = np.unique(np.stack([column, cluster], axis=1)[cluster != NOISE], axis=0)
    return sp.csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_columns, n_clusters))


def confidence(
    soft: SoftCells, cluster: np.ndarray, counts: np.ndarray, homes: sp.csr_array | None = None
) -> np.ndarray:
    """Share of each cell's soft label that lies on columns which belong to its hard label; in [0, 1], 0 for noise.

    A column belongs to the cluster whose samples have the largest part of it.

    Args:
        soft: soft labels of the cells.
        cluster: hard label of each cell, from 0, -1 = noise, shape (cells,).
        counts: samples in each cell, shape (cells,).
        homes: which columns belong to which cluster, 0 or 1, shape (columns, clusters); by default that is found.
    """
    result = np.zeros(len(soft))
    n_clusters = int(cluster.max(initial=NOISE)) + 1
    if n_clusters == 0:
        return result
    if homes is None:
        homes = _homes(soft, cluster, counts, n_clusters)
    homes_of_code = [sp.csr_array(basis @ homes) for basis in soft.bases]
    totals = [basis.sum(axis=1) for basis in soft.bases]
    for block in iterate_blocks(len(soft)):
        cells = block.start + np.flatnonzero(cluster[block] != NOISE)
        on_cluster, total = np.zeros(len(cells)), np.zeros(len(cells))
        for part, shares_of_part in enumerate(soft.shares_of_case[soft.case[cells]].T):
            used = np.flatnonzero(shares_of_part > 0)
            codes, shares = soft.codes[cells[used], part], shares_of_part[used]
            on_cluster[used] += shares * homes_of_code[part][codes, cluster[cells[used]]]
            total[used] += shares * totals[part][codes]
        result[cells] = np.clip(np.divide(on_cluster, total, out=np.zeros(len(cells)), where=total > 0), 0.0, 1.0)
    return result


def _homes(soft: SoftCells, cluster: np.ndarray, counts: np.ndarray, n_clusters: int) -> sp.csr_array:
    """Which cluster has most of each column, several if tied: 0 or 1, shape (columns, clusters)."""
    samples_of_code = []  # in blocks: the products of shares and counts would not fit for all cells
    for part, basis in enumerate(soft.bases):
        samples = sp.csr_array((n_clusters, basis.shape[0]))
        for block in iterate_blocks(len(soft)):
            shares = soft.shares_of_case[soft.case[block], part]
            used = np.flatnonzero((shares > 0) & (cluster[block] != NOISE))
            places = (cluster[block][used], soft.codes[block, part][used])
            samples = samples + sp.coo_array(((shares * counts[block])[used], places), shape=samples.shape).tocsr()
        samples_of_code.append(sp.csr_array(samples))

    def samples_in_columns(clusters: slice) -> sp.coo_array:
        parts = (samples[clusters] @ basis for samples, basis in zip(samples_of_code, soft.bases, strict=True))
        return sp.coo_array(sum(parts))

    largest = np.zeros(soft.n_columns)
    for clusters in iterate_blocks(n_clusters, CLUSTERS):
        there = samples_in_columns(clusters)
        np.maximum.at(largest, there.col, there.data)
    columns, homes = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for clusters in iterate_blocks(n_clusters, CLUSTERS):
        there = samples_in_columns(clusters)
        at_home = there.data >= largest[there.col] * (1.0 - TIE)
        columns.append(there.col[at_home])
        homes.append(clusters.start + there.row[at_home])
    places = (np.concatenate(columns), np.concatenate(homes))
    return sp.csr_array(sp.coo_array((np.ones(len(places[0])), places), shape=(soft.n_columns, n_clusters)))


def _row_maxima(matrix: sp.csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest entry of each row, its column, and whether it is the only one; then a row for the code -1."""
    n = matrix.shape[0]
    row = np.repeat(np.arange(n), np.diff(matrix.indptr))
    largest = np.zeros(n + 1)
    np.maximum.at(largest, row, matrix.data)
    at_top = np.flatnonzero(matrix.data >= largest[row] - TIE)
    column = np.full(n + 1, NOISE)
    column[row[at_top]] = matrix.indices[at_top]
    return largest, column, np.bincount(row[at_top], minlength=n + 1) == 1
