"""Features as k-means reads them: block by block, against centroids and sums of clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from hf_plr.clustering.blocks import iterate_rows, pad_rows
from hf_plr.clustering.exact_sums import ClusterSums, count_block_rows
from hf_plr.utils.threads import share_blocks

BLOCK_SCORES = {"cpu": 1 << 20}  # scores that a thread holds at once, 4 MiB: they stay in a CPU's cache
OTHER_BLOCK_SCORES = 1 << 26
LARGEST_BLOCK_ROWS, LARGEST_DEVICE_BLOCK_ROWS = 1 << 14, 1 << 16


def compute_block_height(device: torch.device, n_columns: int) -> int:
    """Compute how many rows a device takes at once, where it needs memory for `n_columns` values per row."""
    largest = LARGEST_BLOCK_ROWS if device.type == "cpu" else LARGEST_DEVICE_BLOCK_ROWS
    return max(1, min(largest, BLOCK_SCORES.get(device.type, OTHER_BLOCK_SCORES) // n_columns))


Blocks = Iterator[tuple[slice, torch.Tensor]]


class Sliceable(Protocol):
    """Rows (N, D) of which some can be taken into memory.

    Attributes:
        width: columns D.
        device: device of the products.
    """

    width: int
    device: torch.device

    def __len__(self) -> int: ...

    def shift(self, points: torch.Tensor) -> torch.Tensor:
        """Points (n, D) relative to the origin of the rows, float32, on the device of the products."""

    def take(self, positions: torch.Tensor) -> torch.Tensor:
        """Take the rows at these ascending positions into memory, divided by their norms if clusters are spherical."""


class Rows:
    """Features (N, D) in blocks of float32, relative to `origin` (D,), divided by their norms where `unit` is True."""

    def __init__(
        self,
        features: torch.Tensor,
        unit: bool,
        device: str | torch.device | None,
        origin: torch.Tensor | None = None,
    ):
        self.features = features
        self.unit = unit
        self.width = features.shape[1]
        self.device = features.device if device is None else torch.device(device)
        is_precise = origin is not None and origin.dtype == torch.float64  # a device may have no float64
        self.origin = None if origin is None else origin.to(features.device if is_precise else self.device)
        self.norms = torch.empty(len(features), device=self.device)
        self.share_blocks(self._compute_norms)
        self._divisors = self.norms.clamp(min=1e-12)[:, None]

    def __len__(self) -> int:
        return len(self.features)

    def relative_to(self, origin: torch.Tensor | None) -> Rows:
        """The same features relative to another origin; these rows where it is theirs."""
        return self if origin is self.origin else Rows(self.features, self.unit, self.device, origin)

    def shift(self, points: torch.Tensor) -> torch.Tensor:
        """Points (n, D) relative to the origin, float32, on the device of the products."""
        if self.origin is not None and self.origin.dtype == torch.float64:  # float32 has no room for large offsets
            points = points.to(self.origin.device, torch.float64) - self.origin
            return points.to(self.device, torch.float32)
        points = points.to(self.device, torch.float32)
        return points if self.origin is None else points - self.origin

    def share_blocks(self, work: Callable[[Blocks], None], n_columns: int = 1) -> None:
        """Call `work` with slices and their rows, of a size for `n_columns` scores per row; on CPUs in several threads.

        Rows are not normalised. Zeros may follow the last ones, see `pad_rows`.
        """
        height = compute_block_height(self.device, max(n_columns, self.features.shape[1]))

        def read(spans: Iterator[slice]) -> None:
            work((span, self._read(span, height)) for span in spans)

        share_blocks(iterate_rows(len(self), height), self.device, read)

    def _read(self, span: slice, height: int) -> torch.Tensor:
        return pad_rows(self.shift(self.features[span]), height)

    def _compute_norms(self, blocks: Blocks) -> None:
        for span, block in blocks:
            self.norms[span] = torch.linalg.vector_norm(block, dim=1)[: span.stop - span.start]

    def normalize(self, span: slice, block: torch.Tensor) -> torch.Tensor:
        """Divide a block by the norms of its rows, where `unit` is True."""
        return block / self._divisors[span] if self.unit else block

    def take(self, positions: torch.Tensor) -> torch.Tensor:
        """Take the rows at these positions into memory, normalised."""
        rows = self.shift(self.features[positions.to(self.features.device)])
        return rows / self._divisors[positions.to(self.device)] if self.unit else rows

    def lengths(self) -> torch.Tensor:
        """Norms of the normalised rows, shape (N,)."""
        return self.norms / self._divisors[:, 0] if self.unit else self.norms

    def distances(self, scores: torch.Tensor) -> torch.Tensor:
        """Squared distances (N,) to the centers that have these scores."""
        return (self.lengths().square() - 2.0 * scores).clamp_(min=0.0)


def assign_rows(rows: Rows, centers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Assign each row to its nearest center, with the score x c - |c|^2 / 2.

    Returns:
        Labels, int64 (N,), and scores, float32 (N,), on the device of the products.
    """
    centers = centers.to(rows.device, torch.float32)
    columns = centers.T.contiguous()
    half_norms = 0.5 * centers.square().sum(dim=1)
    labels = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    best = torch.empty(len(rows), device=rows.device)

    def assign(blocks: Blocks) -> None:
        buffer = torch.empty(0, device=rows.device)
        for span, block in blocks:
            if len(buffer) < len(block):  # the first block is the largest
                buffer = torch.empty(len(block), len(centers), device=rows.device)
            scores = torch.mm(block, columns, out=buffer[: len(block)])[: span.stop - span.start]
            if not rows.unit:  # between unit centers, neither their norms nor the row's matter
                scores.sub_(half_norms)
            torch.max(scores, dim=1, out=(best[span], labels[span]))

    rows.share_blocks(assign, len(centers))
    if rows.unit:
        best.div_(rows.norms.clamp(min=1e-12)).sub_(half_norms[labels])
    return labels, best


def update_sums(sums: ClusterSums, rows: Rows, labels: torch.Tensor, labels_before: torch.Tensor | None) -> None:
    """Update sums of clusters: add all rows the first time, later move those whose label has changed."""
    if labels_before is None:

        def add(blocks: Blocks) -> None:
            for span, block in blocks:
                sums.add(rows.normalize(span, block[: span.stop - span.start]), labels[span])

        rows.share_blocks(add)
        return
    changed = (labels != labels_before).nonzero().flatten()

    def move(spans: Iterator[slice]) -> None:
        for span in spans:
            changed_rows = rows.take(changed[span])
            sums.add(changed_rows, labels_before[changed[span]], sign=-1)
            sums.add(changed_rows, labels[changed[span]])

    height = count_block_rows(rows.device, rows.features.shape[1])
    share_blocks(iterate_rows(len(changed), height), rows.device, move)
