"""Step 3: blend the current cluster of each cell with the projection of its previous one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable
from hf_plr.refinement.generations import share_among_parts

BLOCK = 128  # cells whose rows are computed together


@dataclass(frozen=True)
class SoftCells:
    """Soft labels of all cells, kept as factors: row i is the sum over parts p of share[i, p] * bases[p][codes[i, p]].

    One part is the current cluster, the others are the previous ones. Written out, the rows would not fit into memory
    where many cells project onto many clusters. The shares of a cell are those of its case, such as a cell without a
    current label.

    Attributes:
        codes: row of each part's basis, without meaning where the share is 0; shape (cells, parts).
        case: row of `shares_of_case` per cell, shape (cells,).
        shares_of_case: weight of each part, at least 0; shape (cases, parts).
        bases: sparse matrices of shape (clusters of the part, columns).
    """

    codes: np.ndarray
    case: np.ndarray
    shares_of_case: np.ndarray
    bases: tuple[sp.csr_array, ...]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def n_columns(self) -> int:
        """Number of columns of the soft labels."""
        return self.bases[0].shape[1]

    @property
    def has_disjoint_parts(self) -> bool:
        """True in the joint space, where each cluster of each part has a column of its own."""
        return sum(basis.shape[0] for basis in self.bases) == self.n_columns

    @property
    def labelled(self) -> np.ndarray:
        """True for cells that have any label, bool of shape (cells,)."""
        has_label: np.ndarray = np.any(self.shares_of_case > 0, axis=1)
        return has_label[self.case]

    def shares(self, part: int) -> np.ndarray:
        """Weight of one part per cell, shape (cells,)."""
        return self.shares_of_case[self.case, part]

    def select(self, cells: np.ndarray | slice) -> SoftCells:
        """Select some of the cells."""
        return SoftCells(self.codes[cells], self.case[cells], self.shares_of_case, self.bases)

    def drop_cells(self, cells: np.ndarray) -> SoftCells:
        """Empty the rows of some cells, given as a bool array of shape (cells,)."""
        n_cases, n_parts = self.shares_of_case.shape
        case = np.where(cells, n_cases, self.case).astype(np.min_scalar_type(n_cases))
        return SoftCells(self.codes, case, np.vstack([self.shares_of_case, np.zeros(n_parts)]), self.bases)

    def select_columns(self, chosen: np.ndarray) -> SoftCells:
        """Select some of the columns, so that rows may add up to less than one."""
        bases = tuple(sp.csr_array(basis[:, chosen]) for basis in self.bases)
        return SoftCells(self.codes, self.case, self.shares_of_case, bases)

    def rows(self, cells: np.ndarray | slice = slice(None)) -> sp.csr_array:
        """Soft labels of some cells, sparse, shape (cells, columns)."""
        chosen = self.select(cells)
        total = sp.csr_array((len(chosen), self.n_columns))
        for part, basis in enumerate(self.bases):
            total = total + _weighted_onehot(chosen.codes[:, part], chosen.shares(part), basis.shape[0]) @ basis
        total.eliminate_zeros()
        total.sort_indices()
        return sp.csr_array(total)

    def inner_products(self, vectors: np.ndarray) -> np.ndarray:
        """Inner products of vectors with all rows, in O(cells + entries of the bases) per vector.

        Args:
            vectors: shape (n, columns).

        Returns:
            Shape (n, cells).
        """
        total = np.zeros((len(vectors), len(self)))
        for part, basis in enumerate(self.bases):
            if basis.shape[0]:
                shares = self.shares(part)
                basis_products = np.ascontiguousarray((basis @ vectors.T).T)
                products = basis_products.take(np.where(shares > 0, self.codes[:, part], 0), axis=1)
                products *= shares
                total += products
        return total

    def squared_norms(self) -> np.ndarray:
        """Squared norm of every row, shape (cells,)."""
        norms = np.empty(len(self))
        for start in range(0, len(self), BLOCK):
            rows = self.rows(slice(start, start + BLOCK))
            norms[start : start + BLOCK] = rows.multiply(rows).sum(axis=1)
        return norms


def blend(
    table: CooccurrenceTable,
    projection: sp.csr_array,
    weight: float | str | None,
    space: str,
    noise: str,
    generations: int,
) -> SoftCells:
    """Blend the current labels with the projection of the previous ones, or with these in the joint space.

    Args:
        table: the cells.
        projection: output of `project`, shape (K', K).
        weight: fraction of the current label, in [0, 1], None for an equal part of every generation; in the joint space
            also "agreement", see `share_among_parts`.
        space: "projected", "joint", or "current" for the current labels alone.
        noise: "project" or "drop".
        generations: number of epochs in the table.
    """
    if space == "current":
        return keep_current_labels(table)
    if space == "joint":
        return blend_joint(table, weight, noise, generations)
    return blend_projected(table, projection, 1.0 / generations if weight is None else float(weight), noise)


def blend_projected(table: CooccurrenceTable, projection: sp.csr_array, weight: float, noise: str) -> SoftCells:
    """Blend labels in the space of the current clusters.

    | current | previous | row |
    |---------|----------|-----|
    | b       | a        | weight * onehot(b) + (1 - weight) * projection[a] |
    | b       | noise    | onehot(b) |
    | noise   | a        | projection[a] if noise is "project", empty if "drop" |
    | noise   | noise    | empty |

    A previous cluster with an empty projection row counts as noise.

    Args:
        table: the cells.
        projection: output of `project`, shape (K', K).
        weight: fraction of the current label, in [0, 1].
        noise: "project" or "drop".

    Returns:
        Soft labels with K columns.
    """
    has_projection = np.append(np.diff(projection.indptr) > 0, False)[table.previous]
    noise_weights = [0.0, 1.0] if noise == "project" else [0.0, 0.0]
    return SoftCells(
        codes=table.codes[:, :-3:-1],
        case=(2 * (table.current != NOISE) + has_projection).astype(np.uint8),
        shares_of_case=np.array([[0.0, 0.0], noise_weights, [1.0, 0.0], [weight, 1.0 - weight]]),
        bases=(sp.csr_array(sp.eye_array(len(table.current_ids))), projection),
    )


def blend_joint(
    table: CooccurrenceTable, weight: float | str | None, noise: str, generations: int | None = None
) -> SoftCells:
    """Blend labels in the joint space: the current one-hot beside those of the previous generations.

    The joint space treats a split and a merge alike: cells that differ in any label stay apart. With weight
    1 / generations its squared distances are 2 / generations times one minus the co-association, as in evidence
    accumulation (Fred and Jain 2005).

    Args:
        table: the cells of two or more labelings.
        weight: see `share_among_parts`.
        noise: "project" keeps the other labels of samples that are noise now, "drop" empties their rows.
        generations: number of epochs, by default one per labeling. With several labelings per epoch the table has
            the further ones first, in the order of epochs, and the current clusterings of all epochs last.

    Returns:
        Soft labels whose columns are the current clusters, the previous ones, those before, ..., then those of the
        further labelings, latest epoch first.
    """
    shares = share_among_parts(table, weight, generations or table.codes.shape[1])
    case, is_labelled = _find_cases(table)
    if noise == "drop":
        is_labelled[~is_labelled[:, 0]] = False
    n_clusters = [len(ids) for ids in table.ids[::-1]]
    starts = np.cumsum([0, *n_clusters])
    bases = tuple(
        sp.csr_array(sp.eye_array(n, starts[-1], k=start)) for n, start in zip(n_clusters, starts[:-1], strict=True)
    )
    return SoftCells(table.codes[:, ::-1], case, is_labelled * shares, bases)


def _find_cases(table: CooccurrenceTable) -> tuple[np.ndarray, np.ndarray]:
    """Find the combinations of parts with a label that occur, in time and memory linear in the cells.

    Returns:
        Case per cell, shape (cells,), and True where a part has a label, bool of shape (cases, parts).
    """
    case = np.zeros(len(table), dtype=np.uint8)
    is_labelled = np.zeros((1, 0), dtype=bool)
    for codes in table.codes.T[::-1]:
        case = 2 * case.astype(np.min_scalar_type(2 * len(is_labelled))) + (codes != NOISE)
        occurring = np.flatnonzero(np.bincount(case, minlength=2 * len(is_labelled)))
        position = np.zeros(2 * len(is_labelled), dtype=np.min_scalar_type(len(occurring)))
        position[occurring] = np.arange(len(occurring))
        case = position[case]
        is_labelled = np.column_stack([is_labelled[occurring // 2], occurring % 2 == 1])
    return case, is_labelled


def keep_current_labels(table: CooccurrenceTable) -> SoftCells:
    """Keep the current labels as soft labels: no refinement."""
    one_hot = sp.csr_array(sp.eye_array(len(table.current_ids)))
    case = (table.current != NOISE).astype(np.uint8)
    return SoftCells(table.codes[:, -1:], case, np.array([[0.0], [1.0]]), (one_hot,))


def _weighted_onehot(codes: np.ndarray, weights: np.ndarray, n_columns: int) -> sp.csr_array:
    """Make one row per code with its weight in that column; the row of a weight of zero is empty."""
    is_member = weights > 0
    indptr = np.concatenate([[0], np.cumsum(is_member)])
    return sp.csr_array((weights[is_member], codes[is_member], indptr), shape=(len(codes), n_columns))
