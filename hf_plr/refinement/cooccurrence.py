"""Step 1: count which previous and current cluster labels occur together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

NOISE = -1


@dataclass(frozen=True)
class CooccurrenceTable:
    """The occupied cells of the co-occurrence (contingency) table of two labelings.

    A *cell* is one pair (previous label, current label) that at least one sample has. Everything that
    refinement computes for a sample depends on its cell alone, so the cells, with their counts as
    weights, stand for all samples.

    Attributes:
        previous_ids: previous cluster ids as the caller wrote them, ascending, without noise; shape (K',).
        current_ids: current cluster ids, likewise; shape (K,).
        previous: position of each cell's previous cluster in `previous_ids`, -1 for noise; shape (cells,).
        current: position of each cell's current cluster in `current_ids`, -1 for noise; shape (cells,).
        counts: samples in each cell, at least 1; shape (cells,).
        first_member: smallest sample index in each cell; shape (cells,).
    """

    previous_ids: np.ndarray
    current_ids: np.ndarray
    previous: np.ndarray
    current: np.ndarray
    counts: np.ndarray
    first_member: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def previous_sizes(self) -> np.ndarray:
        """Samples of each previous cluster, those that are noise now included; shape (K',)."""
        return _sizes(self.previous, self.counts, len(self.previous_ids))

    @property
    def current_sizes(self) -> np.ndarray:
        """Samples of each current cluster, those that were noise before included; shape (K,)."""
        return _sizes(self.current, self.counts, len(self.current_ids))

    def matrix(self) -> sp.csr_array:
        """The counts without the noise cells, as a sparse matrix of shape (K', K)."""
        inside = (self.previous != NOISE) & (self.current != NOISE)
        shape = (len(self.previous_ids), len(self.current_ids))
        return sp.csr_array(
            (self.counts[inside].astype(np.float64), (self.previous[inside], self.current[inside])), shape=shape
        )


def cooccurrence(previous: np.ndarray, current: np.ndarray) -> tuple[CooccurrenceTable, np.ndarray]:
    """Count the cells of two labelings of the same samples.

    Args:
        previous: integer labels of shape (N,), -1 = noise.
        current: integer labels of shape (N,), -1 = noise.

    Returns:
        The table, and the cell of every sample as an integer array of shape (N,).

    Raises:
        ValueError: if the two labelings have different lengths.
    """
    if len(previous) != len(current):
        raise ValueError(f"previous has {len(previous)} labels but current has {len(current)}: they must match")
    previous_ids, previous_codes = _compact(previous)
    current_ids, current_codes = _compact(current)
    pair_codes = (previous_codes + 1) * (len(current_ids) + 1) + (current_codes + 1)
    cells, first_member, cell_of_sample, counts = np.unique(
        pair_codes, return_index=True, return_inverse=True, return_counts=True
    )
    table = CooccurrenceTable(
        previous_ids=previous_ids,
        current_ids=current_ids,
        previous=cells // (len(current_ids) + 1) - 1,
        current=cells % (len(current_ids) + 1) - 1,
        counts=counts,
        first_member=first_member,
    )
    return table, cell_of_sample


def _compact(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cluster ids that occur (ascending, noise left out) and every label as a position among them, -1 = noise."""
    ids = np.unique(labels)
    ids = ids[ids != NOISE]
    codes = np.searchsorted(ids, labels).astype(np.int64)
    codes[labels == NOISE] = NOISE
    return ids, codes


def _sizes(cluster: np.ndarray, counts: np.ndarray, n_clusters: int) -> np.ndarray:
    member = cluster != NOISE
    return np.bincount(cluster[member], weights=counts[member], minlength=n_clusters).astype(np.int64)
