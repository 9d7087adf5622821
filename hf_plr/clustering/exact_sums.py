"""Sums of features by cluster that are equal in any order: on any device, over any number of processes."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator

import torch
from accelerate import Accelerator

from hf_plr.clustering.blocks import find_largest_entry, iterate_rows
from hf_plr.utils.distributed import locate_rows, max_all, sum_all
from hf_plr.utils.threads import share_blocks

BLOCK_ROWS = 1 << 12  # rows that a CPU's thread adds
CACHED_ENTRIES = 1 << 17  # a CPU's thread converts so many at once, 1 MiB of float64
DEVICE_ENTRIES = 1 << 25  # other devices so many, 256 MiB: the start of a kernel takes as long as 100,000 of them


def get_exact_device(device: torch.device) -> torch.device:
    """Get the device for sums of what lies on `device`: the CPU where that has no float64, as Apple's GPUs."""
    return torch.device("cpu") if device.type == "mps" else device


def count_block_rows(device: torch.device, dimension: int) -> int:
    """Count the rows (n, D) that are best added at once on a device."""
    return BLOCK_ROWS if device.type == "cpu" else max(1, DEVICE_ENTRIES // max(dimension, 1))


def to_exact(values: torch.Tensor) -> torch.Tensor:
    """Convert to float64, on the CPU where the device has none."""
    return values.to(get_exact_device(values.device)).double()


class ClusterSums:
    """Sums and counts of rows by cluster.

    Entries are rounded to a grid so coarse that no sum of them can round in float64: 2**-32 of the largest entry with a
    million samples, finer than the precision of float32 features. Additions are exact, so that their order does not
    matter, which differs between devices and numbers of processes. Added rows can be removed without a trace.

    Args:
        n_clusters: number of clusters K.
        dimension: columns D of the features.
        n_samples: largest number of rows, of all processes together.
        largest: bound of the entries' absolute values; 1 for unit rows.
        device: device of the rows; the sums are on the CPU where it has no float64.

    Attributes:
        sums: float64, shape (K, D).
        counts: int64, shape (K,).
    """

    def __init__(self, n_clusters: int, dimension: int, n_samples: int, largest: float, device: torch.device):
        device = get_exact_device(device)
        self._sums = torch.zeros(n_clusters + 1, dimension, dtype=torch.float64, device=device)  # the last is for noise
        self._counts = torch.zeros(n_clusters + 1, dtype=torch.int64, device=device)
        self._lock = threading.Lock()
        grid = math.ceil(math.log2(max(n_samples, 1) * largest)) - 52 if largest > 0 else 0
        self._shift = 1.5 * 2.0 ** (grid + 52)  # adding it leaves no bits below the grid

    @property
    def sums(self) -> torch.Tensor:
        """Sums of the rows of each cluster, (K, D)."""
        return self._sums[:-1]

    @property
    def counts(self) -> torch.Tensor:
        """Numbers of rows in each cluster, (K,)."""
        return self._counts[:-1]

    def add(self, rows: torch.Tensor, labels: torch.Tensor, sign: int = 1) -> None:
        """Add rows (n, D) to the clusters of labels (n,), -1 = none; with sign -1 remove them.

        Several threads may add at once.
        """
        device = self._sums.device
        block_rows = count_block_rows(device, rows.shape[1])

        def add(spans: Iterator[slice]) -> None:
            height = min(len(rows), block_rows)  # a training step sums one small batch
            if device.type == "cpu":
                height = min(height, max(1, CACHED_ENTRIES // max(rows.shape[1], 1)))
            buffer = torch.empty(height, rows.shape[1], dtype=torch.float64, device=device)
            for span in spans:
                for part in iterate_rows(span.stop - span.start, height):
                    self._add_block(rows[span][part], labels[span][part], sign, buffer)

        shared_device = rows.device if device.type == "cpu" else device
        share_blocks(iterate_rows(len(rows), block_rows), shared_device, add)

    def _add_block(self, rows: torch.Tensor, labels: torch.Tensor, sign: int, buffer: torch.Tensor) -> None:
        device = self._sums.device
        block = buffer[: len(rows)].copy_(rows.to(device))
        block.add_(self._shift).sub_(self._shift)
        clusters = labels.to(device) % len(self._counts)  # -1 is the last
        signs = torch.full_like(clusters, sign, dtype=torch.int64)
        with self._lock:
            self._sums.index_add_(0, clusters, block, alpha=sign)
            self._counts.index_add_(0, clusters, signs)

    def all_reduce(self, accelerator: Accelerator | None) -> ClusterSums:
        """Sum over all processes, into a copy."""
        total = copy.copy(self)
        total._sums = sum_all(accelerator, self._sums.clone())
        total._counts = sum_all(accelerator, self._counts.clone())
        return total

    def means(self) -> torch.Tensor:
        """Mean of each cluster in float64, shape (K, D); zeros where there is no row."""
        return self.sums / self.counts.clamp(min=1)[:, None]


def average_rows(
    rows: torch.Tensor, accelerator: Accelerator | None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Average the rows (n, D) of all processes: floats (D,), exact, and so the same for any number of processes."""
    largest = max_all(accelerator, find_largest_entry(rows))
    sums = ClusterSums(1, rows.shape[1], locate_rows(accelerator, len(rows))[1], largest, rows.device)
    sums.add(rows, torch.zeros(len(rows), dtype=torch.int64, device=rows.device))
    return sums.all_reduce(accelerator).means()[0].to(dtype).to(rows.device)
