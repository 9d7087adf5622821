"""Results of a refinement: per cell, and per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.blending import SoftCells
from hf_plr.refinement.cooccurrence import CooccurrenceTable, iterate_chunks
from hf_plr.refinement.correspondence import ClusterEvents


@dataclass(frozen=True)
class CellRefinement:
    """Result of `PseudoLabelRefiner.refine_cells`; `labels[table.locate(previous, current)]` are those of samples.

    Attributes:
        table: the cells.
        labels: refined label per cell, -1 = noise, shape (cells,). Numbers persist: a cluster that continues a previous
            one (each the other's largest overlap) keeps its number. New ones, by size and then by first member, take
            the lowest numbers that no previous cluster had; after `continue_from` those from `next_number` on. Numbers
            may have gaps.
        confidence: fraction of each cell's soft label on its refined cluster, in [0, 1], 0 for noise, shape (cells,).
            With metric="coassociation" the mean co-association of a sample with the other members of its refined
            cluster: the weighted share of the labelings that have the two together.
        soft: soft labels of the cells.
        projection: previous clusters projected onto current ones, sparse, shape (K', K).
        events: events that lead from the previous to the refined clusters.
        changed_share: fraction of samples whose refined cluster does not continue their current one, in [0, 1]; with
            several levels that of the finest.
        exact: False if light cells were folded into similar ones, or joined clusters of others, as there were too
            many.
        finer: the finer levels of the agglomeration, each finer than the one before. A cluster of a level lies in one
            of the level before. A sample whose cluster is too small may be noise in a finer level alone. Numbers of a
            level are its own.
    """

    table: CooccurrenceTable
    labels: np.ndarray
    confidence: np.ndarray
    soft: SoftCells
    projection: sp.csr_array
    events: ClusterEvents
    changed_share: float
    exact: bool
    finer: tuple[CellRefinement, ...] = ()


class RefinementResult:
    """Result of `PseudoLabelRefiner.refine`.

    Attributes:
        labels: refined label per sample, -1 = noise, shape (N,), read-only. Numbers persist, see
            `CellRefinement.labels`.
        cells: the result per cell.
        finer: the finer levels with `n_levels` above 1, each finer than the one before, see `CellRefinement.finer`.
    """

    def __init__(self, labels: np.ndarray, cells: CellRefinement, labelings: tuple[np.ndarray, ...]):
        self.labels = labels
        self.cells = cells
        self.finer: tuple[RefinementResult, ...] = ()
        self._labelings = labelings

    def with_finer(self, finer: Sequence[RefinementResult]) -> RefinementResult:
        """The same with finer levels."""
        cells = replace(self.cells, finer=tuple(level.cells for level in finer))
        result = RefinementResult(self.labels, cells, self._labelings)
        result.finer = tuple(finer)
        return result

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
        """Clusters that were kept, split, merged, reshaped, born, or died."""
        return self.cells.events

    @property
    def changed_share(self) -> float:
        """Fraction of samples whose refined cluster does not continue their current one, in [0, 1]."""
        return self.cells.changed_share

    @property
    def exact(self) -> bool:
        """False if light cells were folded into similar ones, or joined clusters of others, as there were too many."""
        return self.cells.exact

    @cached_property
    def confidence(self) -> np.ndarray:
        """Confidence of each sample's refined label, in [0, 1], 0 for noise, shape (N,); see `CellRefinement`."""
        confidence = np.empty(len(self))
        for span in iterate_chunks(len(self)):
            confidence[span] = self.cells.confidence[self.cell_of_sample(span.start, span.stop)]
        return confidence

    def cell_of_sample(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Locate the cells of samples start to stop, shape (stop - start,)."""
        return self.table.locate(*(labels[start:stop] for labels in self._labelings))

    def soft_labels(self, start: int = 0, stop: int | None = None) -> sp.csr_array:
        """Compute soft labels of samples start to stop: sparse rows, shape (stop - start, columns).

        The columns are the current clusters in ascending order of ids; in the joint space the previous clusters follow,
        then those before, then those of the further labelings of each epoch. A sample without any label has an empty
        row.
        """
        return self.cells.soft.rows(self.cell_of_sample(start, stop))
