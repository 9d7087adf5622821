"""What a refinement found: for cells, and for samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.blending import SoftCells
from hf_plr.refinement.cooccurrence import CooccurrenceTable, iterate_chunks
from hf_plr.refinement.correspondence import ClusterEvents


@dataclass(frozen=True)
class CellRefinement:
    """What `PseudoLabelRefiner.refine_cells` found; `labels[table.locate(previous, current)]` are those of samples.

    Attributes:
        table: the cells.
        labels: refined label of each cell, -1 = noise, shape (cells,). Numbers live on: a cluster that continues a
            previous one (each the other's largest overlap) keeps its number; new ones, by size and then by first
            member, take the lowest numbers that no previous cluster had. Numbers may have gaps.
        confidence: share of each cell's soft label that lies on its refined cluster, in [0, 1], 0 for noise, shape
            (cells,).
        soft: soft labels of the cells.
        projection: previous clusters projected onto current ones, sparse, shape (K', K).
        events: what became of the previous clusters, and where the refined ones come from.
        changed_share: share of the samples whose refined cluster does not continue their current cluster, in [0, 1].
        exact: False if so many cells were occupied that the lightest were folded into similar ones.
    """

    table: CooccurrenceTable
    labels: np.ndarray
    confidence: np.ndarray
    soft: SoftCells
    projection: sp.csr_array
    events: ClusterEvents
    changed_share: float
    exact: bool


class RefinementResult:
    """What `PseudoLabelRefiner.refine` found.

    Attributes:
        labels: refined label of every sample, -1 = noise, shape (N,), not to be written to. Numbers live on, see
            `CellRefinement.labels`.
        cells: the same for cells, with everything else that is known of them.
    """

    def __init__(self, labels: np.ndarray, cells: CellRefinement, labelings: tuple[np.ndarray, ...]):
        self.labels = labels
        self.cells = cells
        self._labelings = labelings

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        exact = "" if self.exact else ", not exact"
        return (
            f"RefinementResult({len(self):,} samples, {len(self.table):,} cells, "
            f"{self.changed_share:.1%} changed, {self.events!r}{exact})"
        )

    @property
    def table(self) -> CooccurrenceTable:
        """The occupied cells of the co-occurrence table."""
        return self.cells.table

    @property
    def projection(self) -> sp.csr_array:
        """Previous clusters projected onto current ones, both in ascending order of ids, sparse, shape (K', K)."""
        return self.cells.projection

    @property
    def events(self) -> ClusterEvents:
        """Which clusters were kept, split, merged, reshaped, born, or died."""
        return self.cells.events

    @property
    def changed_share(self) -> float:
        """Share of the samples whose refined cluster does not continue their current cluster, in [0, 1]."""
        return self.cells.changed_share

    @property
    def exact(self) -> bool:
        """False if so many cells were occupied that the lightest were folded into similar ones."""
        return self.cells.exact

    @cached_property
    def confidence(self) -> np.ndarray:
        """Share of each sample's soft label that lies on its refined cluster, in [0, 1], 0 for noise, shape (N,)."""
        confidence = np.empty(len(self))
        for span in iterate_chunks(len(self)):
            confidence[span] = self.cells.confidence[self.cell_of_sample(span.start, span.stop)]
        return confidence

    def cell_of_sample(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The cells of samples start to stop, looked up on demand, shape (stop - start,)."""
        return self.table.locate(*(labels[start:stop] for labels in self._labelings))

    def soft_labels(self, start: int = 0, stop: int | None = None) -> sp.csr_array:
        """Soft labels of samples start to stop, made on demand: sparse rows, shape (stop - start, columns).

        The columns are the current clusters in ascending order of ids; in the joint space the previous clusters follow,
        then those before. A sample without any label has an empty row.
        """
        return self.cells.soft.rows(self.cell_of_sample(start, stop))
