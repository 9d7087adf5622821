"""Which cluster of one labeling continues which cluster of another."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.cooccurrence import NOISE


def mutual_best(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of clusters that are each other's largest overlap.

    Args:
        a: cluster of each cell in the first labeling, -1 = noise, shape (cells,).
        b: cluster of each cell in the second labeling, likewise.
        counts: samples in each cell, shape (cells,).

    Returns:
        The clusters of the first and of the second labeling, pair by pair: two arrays of equal length, each
        cluster at most once. Equal overlaps are decided for the lower cluster number.
    """
    inside = (a != NOISE) & (b != NOISE)
    if not inside.any():
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    pairs, pair_of_cell = np.unique(np.stack([a[inside], b[inside]]), axis=1, return_inverse=True)
    overlap = np.bincount(pair_of_cell.ravel(), weights=counts[inside])
    best_for_a = _is_largest(pairs[0], pairs[1], overlap)
    best_for_b = _is_largest(pairs[1], pairs[0], overlap)
    chosen = best_for_a & best_for_b
    return pairs[0, chosen], pairs[1, chosen]


def _is_largest(cluster: np.ndarray, partner: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Mark, for each cluster, the pair with the largest overlap (ties: lowest partner)."""
    order = np.lexsort((partner, -overlap, cluster))
    first = np.ones(len(order), dtype=bool)
    first[1:] = cluster[order][1:] != cluster[order][:-1]
    largest = np.zeros(len(order), dtype=bool)
    largest[order[first]] = True
    return largest


def number_clusters(
    cluster: np.ndarray, previous: np.ndarray, previous_ids: np.ndarray, counts: np.ndarray, first_member: np.ndarray
) -> np.ndarray:
    """Give clusters numbers that live on from epoch to epoch.

    A cluster that is the mutual best overlap of a previous one takes over its number. The others, ordered by size
    (largest first) and then by first member, take the lowest numbers that are free.

    Args:
        cluster: cluster of each cell in any numbering, -1 = noise, shape (cells,).
        previous: position of each cell's previous cluster in `previous_ids`, -1 = noise, shape (cells,).
        previous_ids: numbers of the previous clusters, shape (K',).
        counts: samples in each cell, shape (cells,).
        first_member: smallest sample index in each cell, shape (cells,).

    Returns:
        The new number of each cell's cluster, -1 = noise, shape (cells,).
    """
    member = cluster != NOISE
    if not member.any():
        return np.full(len(cluster), NOISE, dtype=np.int64)
    found, code = np.unique(cluster[member], return_inverse=True)
    size = np.bincount(code, weights=counts[member])
    first = np.full(len(found), np.iinfo(np.int64).max)
    np.minimum.at(first, code, first_member[member])

    number = np.full(len(found), NOISE, dtype=np.int64)
    continuing, continued = mutual_best(code, previous[member], counts[member])
    number[continuing] = previous_ids[continued]
    new = np.flatnonzero(number == NOISE)
    new = new[np.lexsort((first[new], -size[new]))]
    free = np.setdiff1d(np.arange(len(found) + len(new)), number)
    number[new] = free[: len(new)]

    result = np.full(len(cluster), NOISE, dtype=np.int64)
    result[member] = number[code]
    return result
