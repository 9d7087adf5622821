"""How much clusters are like each other: by their prototypes, and by where their members were before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.cooccurrence import CooccurrenceTable

PAST_SHARE = 0.75  # docs/explanation/hierarchy.md has the measurements
DECIMALS = 6  # of distances: differences below are of rounding


def compare_clusters(
    prototypes: np.ndarray, tables: Sequence[CooccurrenceTable] = (), past_share: float = PAST_SHARE
) -> np.ndarray:
    """Measure the distances of K clusters, for a tree by average linkage.

    Args:
        prototypes: direction of each cluster in the space in which clusters were sought, (K, D); one of zeros has no
            direction, and is at a distance of 1 from all.
        tables: co-occurrence of other labelings of the samples, such as those of earlier epochs, with the clusters,
            each with the K clusters as its current labeling. A labeling that has the same clusters, or that was given
            before, adds nothing and is left out.
        past_share: weight of these beside the prototypes, in [0, 1].

    Returns:
        Distances from 0, symmetric, float64 (K, K).
    """
    distances = measure_prototype_distances(prototypes)
    telling = _select_telling(tables)
    if telling:
        distances = (1.0 - past_share) * distances + past_share * measure_membership_distances(telling)
    return np.round(distances, DECIMALS)


def measure_prototype_distances(prototypes: np.ndarray) -> np.ndarray:
    """Measure 1 - cosine between the rows of (K, D), in [0, 2], float64 (K, K)."""
    rows = np.asarray(prototypes, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return _mirror(1.0 - rows @ rows.T, 2.0)


def measure_membership_distances(tables: Sequence[CooccurrenceTable]) -> np.ndarray:
    """Measure how little the members of clusters shared other clusters, in [0, 1], float64 (K, K).

    In one labeling, two clusters share sum_j sqrt(p_j q_j), where p_j and q_j are the fractions of their members that
    were in cluster j (the Bhattacharyya coefficient): 1 if both were divided alike, 0 if none had members of both.
    Members that were noise do not count. The distance is 1 minus the mean over the labelings; where all members of a
    cluster were noise in one, it has no part in the mean (the geometric one of the numbers of labelings of both).

    Args:
        tables: each of another labeling (previous) with the K clusters (current), at least one.
    """
    blocks = []
    for table in tables:
        counts = table.matrix().tocsc().astype(np.float64)
        totals = np.asarray(counts.sum(axis=0)).ravel()
        counts.data = np.sqrt(counts.data / np.repeat(totals, np.diff(counts.indptr)))
        blocks.append(counts)
    profiles = sp.csc_array(sp.vstack(blocks, format="csc"))
    shared = (profiles.T @ profiles).toarray()
    n_labelings = shared.diagonal().round()  # in which a cluster has members
    return _mirror(1.0 - shared / np.sqrt(np.maximum(np.outer(n_labelings, n_labelings), 1.0)), 1.0)


def _mirror(distances: np.ndarray, largest: float) -> np.ndarray:
    """Make distances symmetric in every bit, within 0 and `largest`, with zeros on the diagonal."""
    distances = np.clip((distances + distances.T) / 2.0, 0.0, largest)
    np.fill_diagonal(distances, 0.0)
    return distances


def _select_telling(tables: Sequence[CooccurrenceTable]) -> list[CooccurrenceTable]:
    """Select tables whose labelings differ from the clusters and from each other, and have any."""
    telling: dict[tuple[bytes, ...], CooccurrenceTable] = {}
    for table in tables:
        matrix = table.matrix()
        is_same = matrix.nnz == matrix.shape[0] == matrix.shape[1] == len(table)
        if matrix.nnz and not is_same:
            telling.setdefault(tuple(array.tobytes() for array in (*table.ids, table.codes, table.counts)), table)
    return list(telling.values())
