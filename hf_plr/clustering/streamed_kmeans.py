"""k-means over rows that are read block by block, as often as needed: memory holds a block and the centroids.

The arithmetic is that of `KMeans`. Sums over samples are exact, so that it gives the centroids and labels of one call
with all rows in memory. It needs no memory per sample, and in return computes every sum anew in each iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from hf_plr.clustering.blocks import find_largest_entry
from hf_plr.clustering.empty_clusters import find_empty_clusters, move_to_empty, take_farthest
from hf_plr.clustering.exact_sums import ClusterSums, to_exact
from hf_plr.clustering.kmeans import KMeans
from hf_plr.clustering.rows import Rows, assign_rows, update_sums
from hf_plr.utils.precision import exact_products
from hf_plr.utils.threads import block_threads


class RowStream(Protocol):
    """Rows (N, D) that can be read again and again.

    Attributes:
        width: columns D.
        device: device of the blocks.
    """

    width: int
    device: torch.device

    def __len__(self) -> int:
        """Number of rows N."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Iterate over blocks, float32 of shape (n, D), always the same ones in the same order."""

    def take(self, positions: torch.Tensor) -> torch.Tensor:
        """Read the rows at these ascending positions, float32 of shape (m, D)."""


@torch.no_grad()
def fit_stream(kmeans: KMeans, stream: RowStream) -> None:
    """Fit k-means on a stream of rows: sets `cluster_centers_` and `n_iter_`, and neither `labels_` nor `inertia_`.

    With `fit_samples` these are in memory, and the stream is only read to draw samples from it.

    Args:
        kmeans: the estimator; its `device` must be that of the stream.
        stream: finite rows.

    Raises:
        ValueError: as `KMeans.fit`.
    """
    kmeans.check_arguments()
    total = len(stream)
    if kmeans.n_clusters > total:
        raise ValueError(f"n_clusters={kmeans.n_clusters} but there are {total} samples")
    positions = kmeans.draw_fit_positions(total)
    rows = _StreamedRows(stream, kmeans.spherical)
    with block_threads(rows.device), exact_products(rows.device):
        centers = kmeans.init_centers(rows, 0, total)
        if positions is not None:
            sample = Rows(rows.take(positions), kmeans.spherical, rows.device)
            kmeans.cluster_centers_ = kmeans.iterate_rows(sample, centers)
            return
        if not kmeans.spherical:
            rows.origin = rows.average()
            centers = centers - rows.origin
        largest, squares = rows.measure()

        def sum_clusters(centers: torch.Tensor) -> ClusterSums:
            sums = ClusterSums(kmeans.n_clusters, rows.width, total, largest, rows.device)
            for _, block in rows.blocks():
                update_sums(sums, block, assign_rows(block, centers)[0], None)
            _refill_empty(sums, rows, centers)
            return sums

        centers = kmeans.iterate_centers(sum_clusters, centers, squares, total)
        kmeans.cluster_centers_ = centers if rows.origin is None else centers + rows.origin


class _StreamedRows:
    """Rows of a stream in blocks, relative to `origin`, divided by their norms where `unit` is True."""

    def __init__(self, stream: RowStream, unit: bool):
        self.stream = stream
        self.unit = unit
        self.width = stream.width
        self.device = stream.device
        self.origin: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.stream)

    def blocks(self) -> Iterator[tuple[int, Rows]]:
        """Iterate over the position of the first row of each block, and the block."""
        start = 0
        for block in self.stream:
            yield start, Rows(block, self.unit, self.device, self.origin)
            start += len(block)

    def shift(self, points: torch.Tensor) -> torch.Tensor:
        points = points.to(self.device, torch.float32)
        return points if self.origin is None else points - self.origin

    def take(self, positions: torch.Tensor) -> torch.Tensor:
        rows = Rows(self.stream.take(positions), self.unit, self.device, self.origin)
        return rows.take(torch.arange(len(rows)))

    def average(self) -> torch.Tensor:
        """Average all rows as `average_rows` does: float32 (D,)."""
        largest = max(find_largest_entry(block) for block in self.stream)
        sums = ClusterSums(1, self.width, len(self), largest, self.device)
        for block in self.stream:
            sums.add(block, torch.zeros(len(block), dtype=torch.int64, device=self.device))
        return sums.means()[0].float().to(self.device)

    def measure(self) -> tuple[float, float]:
        """Measure the largest length of a row, and the sum of squared lengths."""
        largest, squares = 0.0, 0.0
        for _, block in self.blocks():
            largest = max(largest, float(block.lengths().max()))
            squares += float(to_exact(block.lengths()).square().sum())
        return largest, squares


def _refill_empty(sums: ClusterSums, rows: _StreamedRows, centers: torch.Tensor) -> None:
    """Refill every empty cluster with the farthest sample that the largest clusters can spare, by one more pass."""
    empties, wanted = find_empty_clusters(sums)
    if not len(empties):
        return
    clusters, distances, positions = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)
    for start, block in rows.blocks():
        labels, scores = assign_rows(block, centers)
        own = labels.cpu().numpy()
        offered = np.flatnonzero(wanted[own])
        clusters, distances, positions = take_farthest(
            np.concatenate([clusters, own[offered]]),
            np.concatenate([distances, block.distances(scores).cpu().numpy()[offered]]),
            np.concatenate([positions, start + offered]),
            wanted,
        )
    order = np.argsort(positions)
    moved = rows.take(torch.from_numpy(positions[order]))[torch.from_numpy(np.argsort(order)).to(rows.device)]
    move_to_empty(sums, moved, clusters, empties)
