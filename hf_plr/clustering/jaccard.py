"""Jaccard distances between neighbourhoods of k-reciprocal neighbours (Zhong et al., CVPR 2017), sparse throughout."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

BLOCK_ELEMENTS = 1 << 20  # pairs of samples, or their products, in memory at once


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


def find_near_pairs(weights: sp.csr_array, eps: float) -> sp.csr_array:
    """Find pairs of samples whose Jaccard distance is at most eps: a sparse matrix of ones with the diagonal."""
    near = compute_jaccard_distances(weights, eps)
    near.data = np.ones(len(near.data), dtype=np.int8)
    return near


def compute_jaccard_distances(weights: sp.csr_array, eps: float) -> sp.csr_array:
    """Compute Jaccard distances of pairs of samples at most eps apart, with a stored diagonal of zeros.

    The distance is 1 - s / (2 - s), with s the sum of the smaller of both weights over all samples.

    Args:
        weights: output of `weigh_neighborhoods`, shape (N, N).
        eps: largest distance, in [0, 1]; pairs that share nothing are 1 apart.

    Returns:
        Sparse, float32 of shape (N, N).
    """
    n = weights.shape[0]
    least_overlap = 2.0 * (1.0 - eps) / (2.0 - eps)
    columns = sp.csr_array(weights.T)
    n_in_column = np.diff(columns.indptr)
    row = np.repeat(np.arange(n), np.diff(weights.indptr))
    products = np.cumsum(n_in_column[weights.indices])[weights.indptr[1:] - 1]
    all_rows, all_columns, all_distances = [], [], []
    height = max(1, BLOCK_ELEMENTS // n)
    start = 0
    while start < n:
        n_done = products[start - 1] if start else 0
        stop = max(start + 1, min(start + height, int(np.searchsorted(products, n_done + BLOCK_ELEMENTS, "right"))))
        entries = np.arange(weights.indptr[start], weights.indptr[stop])
        lengths = n_in_column[weights.indices[entries]]
        owner = np.repeat(np.arange(len(entries)), lengths)
        entry_of_pair = np.arange(len(owner)) + np.repeat(
            columns.indptr[weights.indices[entries]] - np.cumsum(lengths) + lengths, lengths
        )
        smaller = np.minimum(weights.data[entries][owner], columns.data[entry_of_pair])
        keys = (row[entries][owner] - start) * n + columns.indices[entry_of_pair]
        overlap = np.bincount(keys, smaller, (stop - start) * n).reshape(stop - start, n)
        is_near = overlap >= least_overlap
        overlap[np.arange(stop - start), np.arange(start, stop)] = 1.0
        is_near[np.arange(stop - start), np.arange(start, stop)] = True
        rows, near_columns = is_near.nonzero()
        shared = overlap[rows, near_columns]
        all_distances.append(np.clip(1.0 - shared / (2.0 - shared), 0.0, 1.0).astype(np.float32))
        all_rows.append((rows + start).astype(np.int32))
        all_columns.append(near_columns.astype(np.int32))
        start = stop
    positions = (np.concatenate(all_rows), np.concatenate(all_columns))
    return sp.csr_array(sp.coo_array((np.concatenate(all_distances), positions), shape=(n, n)))


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
