"""Clusters of k-means that are left empty: which rows they get."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering.exact_sums import ClusterSums
from hf_plr.clustering.rows import Rows
from hf_plr.utils.distributed import gather_objects, locate_rows, sum_all


def refill_empty(
    sums: ClusterSums, rows: Rows, labels: torch.Tensor, scores: torch.Tensor, accelerator: Accelerator | None
) -> None:
    """Refill every empty cluster with the farthest sample that the largest clusters can spare."""
    empties, wanted = find_empty_clusters(sums)
    if not len(empties):
        return
    start, _ = locate_rows(accelerator, len(rows))
    clusters = labels.cpu().numpy()
    offered = np.flatnonzero(wanted[clusters])
    distances = rows.distances(scores).cpu().numpy()
    own = take_farthest(clusters[offered], distances[offered], start + offered, wanted)
    columns = [np.concatenate(parts) for parts in zip(*gather_objects(accelerator, own), strict=True)]
    from_clusters, _, positions = take_farthest(columns[0], columns[1], columns[2], wanted)
    local = positions - start
    is_own = (local >= 0) & (local < len(rows))
    moved_rows = torch.zeros(len(local), rows.width, device=rows.device)
    moved_rows[torch.from_numpy(is_own).to(rows.device)] = rows.take(torch.from_numpy(local[is_own]))
    moved_rows = sum_all(accelerator, moved_rows)
    move_to_empty(sums, moved_rows, from_clusters, empties)


def find_empty_clusters(sums: ClusterSums) -> tuple[np.ndarray, np.ndarray]:
    """Find the empty clusters, and how many rows of each cluster are wanted for them, shape (K,): of the largest.

    The empty clusters are in the order in which they get rows that are ordered by their clusters.
    """
    counts = sums.counts.cpu().numpy().copy()
    empties = np.flatnonzero(counts == 0)
    donors = np.empty_like(empties)
    for i, empty in enumerate(empties):
        donors[i] = counts.argmax()
        counts[donors[i]] -= 1
        counts[empty] += 1
    return empties[donors.argsort(kind="stable")], np.bincount(donors, minlength=len(counts))


def move_to_empty(sums: ClusterSums, rows: torch.Tensor, from_clusters: np.ndarray, empties: np.ndarray) -> None:
    """Move one row to each empty cluster.

    Args:
        sums: of all rows, changed in place.
        rows: the moved rows, shape (n, D), ordered by their clusters.
        from_clusters: their clusters, shape (n,).
        empties: the empty clusters, as `find_empty_clusters` orders them.
    """
    sums.add(rows, torch.from_numpy(from_clusters), sign=-1)
    sums.add(rows, torch.from_numpy(empties))


def take_farthest(
    clusters: np.ndarray, distances: np.ndarray, positions: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take the farthest samples of each cluster, `wanted` (K,) of them, ordered by cluster and from far to near."""
    order = np.lexsort((positions, -distances, clusters))
    ordered = clusters[order]
    ranks = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    taken = order[ranks < wanted[ordered]]
    return clusters[taken], distances[taken], positions[taken]
