"""Counts, positions and sums by integer keys, in little memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

BLOCK = 1 << 16  # entries that are summed together
TABLE_SIZE = 1 << 20  # keys below this are looked up in a table, others by bisection


class Positions:
    """Positions of keys in an ascending array.

    Args:
        keys: distinct integers from 0, ascending, shape (n,).
    """

    def __init__(self, keys: np.ndarray):
        self._keys: np.ndarray | None = None
        self._table: np.ndarray | None = None
        if len(keys) and keys[-1] >= TABLE_SIZE:
            self._keys = keys
        else:
            size = int(keys[-1]) + 1 if len(keys) else 0
            self._table = np.full(size + 1, -1, dtype=np.int32)  # the last entry is for all keys out of range
            self._table[keys] = np.arange(len(keys), dtype=np.int32)

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """Look up positions, int64 of the same shape, -1 for a key that is not there."""
        if self._table is not None:
            out_of_range = len(self._table) - 1
            clipped = np.minimum(keys.view(np.uint64), np.uint64(out_of_range))  # negative keys are huge as unsigned
            return self._table[clipped].astype(np.int64)
        assert self._keys is not None
        position = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        position[self._keys[position] != keys] = -1
        return position


class PairCounter:
    """Counter of integer keys in chunks, with the sample where each key occurs first.

    Args:
        n_keys: number of possible keys, which are 0 to n_keys - 1.
    """

    def __init__(self, n_keys: int):
        self._dense = n_keys <= TABLE_SIZE
        self._keys = np.empty(0, dtype=np.int64)  # of the entries of the other two; unused where dense
        self._counts = np.zeros(n_keys if self._dense else 0, dtype=np.int64)
        self._first = np.zeros_like(self._counts)

    def add(self, keys: np.ndarray, start: int) -> None:
        """Count the keys of the samples start, start + 1, ...; chunks come in ascending order."""
        if self._dense:
            counts = np.bincount(keys, minlength=len(self._counts))
            is_new = (self._counts == 0) & (counts > 0)
            self._counts += counts
            if is_new.any():
                sample = np.flatnonzero(is_new[keys])[::-1]  # reversed: the earliest is written last
                self._first[keys[sample]] = start + sample
            return
        chunk_keys, counts = np.unique(keys, return_counts=True)
        position = np.searchsorted(self._keys, chunk_keys)
        known = position < len(self._keys)
        known[known] = self._keys[position[known]] == chunk_keys[known]
        self._counts[position[known]] += counts[known]
        if known.all():
            return
        unknown_keys = chunk_keys[~known]
        sample = np.flatnonzero(Positions(unknown_keys)(keys) >= 0)
        new_keys, first = np.unique(keys[sample], return_index=True)
        self._keys = np.insert(self._keys, position[~known], new_keys)
        self._counts = np.insert(self._counts, position[~known], counts[~known])
        self._first = np.insert(self._first, position[~known], start + sample[first])

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys that occur, ascending, their counts, and the first sample of each."""
        if not self._dense:
            return self._keys, self._counts, self._first
        present = np.flatnonzero(self._counts)
        return present, self._counts[present], self._first[present]


def sum_entries(
    values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], mask: np.ndarray | None = None
) -> sp.csr_array:
    """Sum values by (row, column) into a sparse matrix; with a mask only those where it is True."""
    total = sp.csr_array(shape)
    for block in iterate_blocks(len(values)):
        chosen = slice(None) if mask is None else mask[block]
        entries = (values[block][chosen].astype(np.float64), (rows[block][chosen], columns[block][chosen]))
        total = total + sp.coo_array(entries, shape=shape).tocsr()
    return sp.csr_array(total)


def count_samples(cluster: np.ndarray, counts: np.ndarray, n_clusters: int) -> np.ndarray:
    """Count samples per cluster, shape (n_clusters,), from the cluster per cell, -1 = noise, and its samples."""
    total = np.zeros(n_clusters + 1)
    for block in iterate_blocks(len(cluster)):
        total += np.bincount(cluster[block] + 1, counts[block], n_clusters + 1)
    return total[1:].astype(np.int64)


def iterate_blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Iterate over slices that cover n entries, `size` at a time."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
