"""Jaccard distances between neighbourhoods of k-reciprocal neighbours (Zhong et al., CVPR 2017), sparse throughout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch

from hf_plr.clustering.blocks import iterate_rows

BLOCK_ELEMENTS = 1 << 20  # pairs of samples, or their products, in memory at once
BLOCK_ROWS = 1 << 14  # rows of weights that are sorted at once
LIGHT = 0.3  # of the least overlap, at most, is in the weights that the search for near pairs leaves out
ROUNDING = 1e-9  # relative, far above that of sums in float64


def weigh_neighborhoods(features: torch.Tensor, neighbors: np.ndarray, k1: int, k2: int) -> sp.csr_array:
    """Weigh each sample's expanded k-reciprocal neighbourhood, with weights that add up to one.

    Args:
        features: float32 of unit length, shape (N, D).
        neighbors: nearest neighbours, itself first, shape (N, at least max(k1, k2, round(k1 / 2) + 1) or N).
        k1: number of nearest neighbours, which are reciprocal if both samples are among each other's. Reciprocal
            neighbours of these by half of k1 join if more than two thirds of them are reciprocal neighbours already.
        k2: number of nearest neighbours over which the weights are averaged.

    Returns:
        Sparse, shape (N, N); before averaging proportional to exp(-squared distance).
    """
    reciprocal = _find_reciprocal(neighbors[:, :k1])
    half_reciprocal = _find_reciprocal(neighbors[:, : count_half_neighbors(k1)])
    # shared[i, j]: half neighbours of j that are reciprocal neighbours of i already
    shared = (reciprocal @ half_reciprocal.T).multiply(reciprocal).tocoo()
    is_joining = shared.data > 2.0 / 3.0 * half_reciprocal.sum(axis=1)[shared.col]
    joining = sp.csr_array(
        sp.coo_array((shared.data[is_joining], (shared.row[is_joining], shared.col[is_joining])), shape=shared.shape)
    )
    expanded = sp.csr_array(reciprocal + joining @ half_reciprocal)
    expanded.sum_duplicates()
    row = np.repeat(np.arange(len(neighbors)), np.diff(expanded.indptr))
    expanded.data = np.exp(2.0 * _compute_cosines(features, row, expanded.indices) - 2.0)
    expanded.data /= np.add.reduceat(expanded.data, expanded.indptr[:-1])[row]
    if k2 > 1:
        expanded = _one_hot_rows(neighbors[:, :k2]) @ expanded / k2
    expanded.sort_indices()
    return sp.csr_array(expanded)


def compute_overlaps(weights: sp.csr_array, eps: float) -> sp.csr_array:
    """Compute the overlaps of neighbourhoods whose Jaccard distance is at most eps, each pair once.

    The overlap s is the sum of the smaller of both weights over all samples, and the distance is 1 - s / (2 - s). Few
    of the pairs that share anything overlap enough. They are found by a product of sparse matrices, since min(a, b) is
    at most sqrt(a b), without each sample's lightest neighbours, which cannot add more than their weights. Time per
    sample depends on its neighbours, not on N.

    Args:
        weights: output of `weigh_neighborhoods`, shape (N, N).
        eps: largest distance, in [0, 1]; pairs that share nothing are 1 apart.

    Returns:
        Sparse, float64 of shape (N, N), above the diagonal; overlaps of zero are stored if eps is 1.
    """
    n = weights.shape[0]
    least_overlap = _find_least_overlap(eps)
    rows, columns, overlaps = [], [], []
    for row, column in _iterate_candidates(weights, least_overlap):
        overlap = _compare_rows(weights, row, column)
        is_near = overlap >= least_overlap
        rows.append(row[is_near])
        columns.append(column[is_near])
        overlaps.append(overlap[is_near])
    positions = (np.concatenate(rows), np.concatenate(columns))
    upper = sp.csr_array(sp.coo_array((np.concatenate(overlaps), positions), shape=(n, n)))
    if least_overlap > 0.0:
        return upper
    above = np.triu_indices(n, 1)  # pairs that share nothing too
    positions = (above[0].astype(np.int32), above[1].astype(np.int32))
    return sp.csr_array(sp.coo_array((upper.toarray()[positions], positions), shape=(n, n)))


def find_near_pairs(overlaps: sp.csr_array, eps: float) -> sp.csr_array:
    """Find pairs of samples whose Jaccard distance is at most eps.

    Args:
        overlaps: output of `compute_overlaps` for this eps or a larger one, shape (N, N).
        eps: largest distance, in [0, 1].

    Returns:
        Sparse, int8 of shape (N, N): ones at the pairs in both orders, and on the diagonal.
    """
    pairs = overlaps.tocoo()
    is_near = pairs.data >= _find_least_overlap(eps)
    return _mirror(pairs.row[is_near], pairs.col[is_near], np.ones(is_near.sum(), np.int8), 1, overlaps.shape[0])


def compute_jaccard_distances(weights: sp.csr_array, eps: float) -> sp.csr_array:
    """Compute Jaccard distances of pairs of samples at most eps apart, with a stored diagonal of zeros.

    Args:
        weights, eps: as for `compute_overlaps`.

    Returns:
        Sparse, float32 of shape (N, N), symmetric.
    """
    pairs = compute_overlaps(weights, eps).tocoo()
    distances = np.clip(1.0 - pairs.data / (2.0 - pairs.data), 0.0, 1.0).astype(np.float32)
    return _mirror(pairs.row, pairs.col, distances, 0, weights.shape[0])


def count_half_neighbors(k1: int) -> int:
    """Count half of k1 neighbours as the published code rounds it, the sample itself included."""
    return int(np.around(k1 / 2)) + 1


def _one_hot_rows(neighbors: np.ndarray) -> sp.csr_array:
    """Matrix with ones at the neighbours of each sample, shape (N, N)."""
    n, k = neighbors.shape
    return sp.csr_array((np.ones(n * k), neighbors.ravel(), np.arange(n + 1) * k), shape=(n, n))


def _find_reciprocal(neighbors: np.ndarray) -> sp.csr_array:
    """Find pairs of samples that are each other's neighbours, as a matrix of ones."""
    one_way = _one_hot_rows(neighbors)
    return sp.csr_array(one_way.multiply(one_way.T))


def _compute_cosines(features: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Compute inner products of pairs of rows, shape (pairs,)."""
    result = np.empty(len(rows))
    height = max(1, BLOCK_ELEMENTS // features.shape[1])
    for start in range(0, len(rows), height):
        pair = (torch.as_tensor(ends[start : start + height].astype(np.int64)) for ends in (rows, columns))
        first, second = (features[ends.to(features.device)] for ends in pair)
        result[start : start + height] = (first * second).sum(dim=1).double().cpu().numpy()
    return result


def _find_least_overlap(eps: float) -> float:
    """Find the overlap of two neighbourhoods that are eps apart, less what rounding may take from a sum of weights."""
    return (1.0 - ROUNDING) * 2.0 * (1.0 - eps) / (2.0 - eps)


def _iterate_candidates(weights: sp.csr_array, least_overlap: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over blocks of pairs (rows, columns), row before column, with all that overlap by `least_overlap`.

    What is left out of both samples' weights adds at most twice its sum. The geometric means of the others must add the
    rest. The smaller the least overlap, the more pairs pass, and the less is left out.
    """
    left_out = LIGHT * min(1.0, 2.0 * least_overlap) * least_overlap
    roots = _drop_light(weights, left_out)
    roots.data = np.sqrt(roots.data)
    columns = sp.csr_array(roots.T)
    products = np.cumsum(np.diff(columns.indptr)[roots.indices])
    products = np.concatenate([[0], products])[roots.indptr]
    least_bound = (1.0 - ROUNDING) * (least_overlap - 2.0 * left_out)
    start, n = 0, weights.shape[0]
    while start < n:
        stop = int(np.searchsorted(products, products[start] + BLOCK_ELEMENTS, "right")) - 1
        stop = max(start + 1, min(stop, n))
        bounds = roots[start:stop] @ columns
        chosen = np.flatnonzero(bounds.data >= least_bound)
        row = np.searchsorted(bounds.indptr, chosen, "right") - 1 + start
        column = bounds.indices[chosen]
        is_upper = row < column
        yield row[is_upper].astype(np.int32), column[is_upper].astype(np.int32)
        start = stop


def _drop_light(weights: sp.csr_array, most: float) -> sp.csr_array:
    """Drop the lightest weights of each row that add up to `most` or less."""
    counts, kept = np.zeros(weights.shape[0], np.int64), []
    for block in iterate_rows(weights.shape[0], BLOCK_ROWS):
        first, last = weights.indptr[block.start], weights.indptr[block.stop]
        data = weights.data[first:last]
        row = np.repeat(np.arange(block.stop - block.start), np.diff(weights.indptr[block.start : block.stop + 1]))
        order = np.argsort(2.0 * row + data)  # by row, then by weight, which is at most 1
        sums = np.cumsum(data[order])
        before_row = np.concatenate([[0.0], sums])[weights.indptr[block] - first]
        is_kept = np.empty(len(data), bool)
        is_kept[order] = sums - before_row[row] > most
        counts[block] = np.bincount(row[is_kept], minlength=block.stop - block.start)
        kept.append(np.flatnonzero(is_kept) + first)
    entries = np.concatenate(kept)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(weights.indptr.dtype)
    return sp.csr_array((weights.data[entries], weights.indices[entries], indptr), shape=weights.shape)


def _compare_rows(weights: sp.csr_array, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Compute the overlaps of pairs of rows, shape (pairs,), added up in the order of the samples."""
    overlaps = np.empty(len(rows))
    height = max(1, BLOCK_ELEMENTS // max(1, int(np.diff(weights.indptr).max())))
    for block in iterate_rows(len(rows), height):
        smaller = weights[rows[block]].minimum(weights[columns[block]])
        pair = np.repeat(np.arange(block.stop - block.start), np.diff(smaller.indptr))
        overlaps[block] = np.bincount(pair, smaller.data, block.stop - block.start)
    return overlaps


def _mirror(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, diagonal: int, n: int) -> sp.csr_array:
    """Symmetric matrix of values above its diagonal, with a stored diagonal, shape (n, n)."""
    ids = np.arange(n, dtype=rows.dtype)
    positions = (np.concatenate([rows, columns, ids]), np.concatenate([columns, rows, ids]))
    data = np.concatenate([values, values, np.full(n, diagonal, values.dtype)])
    return sp.csr_array(sp.coo_array((data, positions), shape=(n, n)))
