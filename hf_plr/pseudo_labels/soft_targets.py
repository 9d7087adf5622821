"""Soft targets of all samples, by their cells of the co-occurrence table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from hf_plr.refinement.blending import SoftCells
from hf_plr.utils.serialization import validate_array


class SparseTargets(NamedTuple):
    """Soft targets of a batch in L labelings: of sample i and labeling l, the sum over w of shares at columns.

    Attributes:
        columns: clusters, int64 of shape (B, L, W); those of all labelings have different numbers, and one may stand in
            a row more than once.
        shares: their shares, at least 0, float32 of shape (B, L, W); a row of zeros has no loss.
    """

    columns: torch.Tensor
    shares: torch.Tensor


@dataclass(frozen=True)
class SoftTargets:
    """Soft targets per sample: distributions over all clusters.

    Attributes:
        cells: soft targets per cell, kept as factors, as written out they might not fit into memory.
        cell: cell per sample, int32 of shape (N,).
    """

    cells: SoftCells
    cell: np.ndarray

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Compute the soft targets at positions (B,), float32 of shape (B, n_clusters).

        Rows of samples that are left out, and of noise without a previous cluster, are zero.
        """
        rows: np.ndarray = self.cells.rows(self.cell[index]).astype(np.float32).toarray()
        return rows

    def state_dict(self) -> dict[str, np.ndarray]:
        """State as arrays by name."""
        soft = self.cells
        state = {
            "cell": self.cell,
            "codes": np.ascontiguousarray(soft.codes),
            "case": soft.case,
            "shares_of_case": soft.shares_of_case,
        }
        for part, basis in enumerate(soft.bases):
            state |= {f"basis.{part}.{name}": getattr(basis, name) for name in ("data", "indices", "indptr")}
        return state

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray], n_samples: int, n_clusters: int) -> SoftTargets:
        """Restore the output of `state_dict`.

        Raises:
            ValueError: if an array is missing, damaged, or does not fit these numbers, naming it.
        """
        codes = validate_array(state, "codes", "integers", (None, None), -1)
        n_cells, n_parts = codes.shape
        if n_parts == 0:
            raise ValueError("'codes' is damaged: it has no parts")
        cell = validate_array(state, "cell", "integers", (n_samples,), 0, n_cells - 1)
        shares = validate_array(state, "shares_of_case", "floats", (None, n_parts), 0.0, 1.0)
        case = validate_array(state, "case", "integers", (n_cells,), 0, len(shares) - 1)
        bases = tuple(_validate_basis(state, f"basis.{part}", n_clusters) for part in range(n_parts))
        for part, basis in enumerate(bases):
            used_codes = codes[shares[case, part] > 0, part]
            if len(used_codes) and not (used_codes.min() >= 0 and used_codes.max() < basis.shape[0]):
                raise ValueError(
                    f"'codes' is damaged: part {part} has {basis.shape[0]} clusters, not {used_codes.max() + 1}"
                )
        return cls(SoftCells(codes, case, shares, bases), cell)


class SoftTargetTable:
    """Soft targets of all samples in L labelings on a device, where a batch is looked up without waiting for it.

    Kept by cell, as factors: 4 bytes per sample and labeling, and 8 bytes per cluster and cluster that the most
    scattered one projects onto.

    Args:
        labelings: soft targets of each labeling, which have equally many parts.
        starts: number of the first cluster of each, where clusters of all labelings are counted on.
        device: where to.
    """

    def __init__(self, labelings: Sequence[SoftTargets], starts: Sequence[int], device: torch.device):
        all_cells = [targets.cells for targets in labelings]
        n_parts = len(all_cells[0].bases)
        first_cells = np.cumsum([0, *(len(cells) for cells in all_cells)])
        cell = np.stack([targets.cell + first for targets, first in zip(labelings, first_cells[:-1], strict=True)], 1)
        first_rows = np.cumsum([[0] * n_parts] + [[basis.shape[0] for basis in cells.bases] for cells in all_cells], 0)
        codes = [np.maximum(cells.codes, 0) + rows for cells, rows in zip(all_cells, first_rows[:-1], strict=True)]
        shares = [cells.shares_of_case[cells.case] for cells in all_cells]
        bases = [_pad_rows([cells.bases[part] for cells in all_cells], starts) for part in range(n_parts)]
        self._cell = torch.from_numpy(cell.astype(np.int32)).to(device)
        self._codes = torch.from_numpy(np.concatenate(codes).astype(np.int32)).to(device)
        self._shares = torch.from_numpy(np.concatenate(shares).astype(np.float32)).to(device)
        self._bases = [
            (torch.from_numpy(columns).to(device), torch.from_numpy(values).to(device)) for columns, values in bases
        ]

    def rows(self, index: torch.Tensor) -> SparseTargets:
        """Look up the soft targets at positions (B,), on their device."""
        cell = self._cell[index]
        codes, shares = self._codes[cell].unbind(2), self._shares[cell].split(1, dim=2)
        columns = [columns[code] for (columns, _), code in zip(self._bases, codes, strict=True)]
        values = [values[code] * share for (_, values), code, share in zip(self._bases, codes, shares, strict=True)]
        return SparseTargets(torch.cat(columns, dim=2).long(), torch.cat(values, dim=2))


def _pad_rows(bases: Sequence[sp.csr_array], starts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Stack the rows of several matrices, padded with entries of 0 in column 0, and a row of these alone.

    Args:
        bases: sparse, shape (K, columns) each.
        starts: added to the columns of each.

    Returns:
        Columns, int32, and values, float32, both of shape (all K + 1, W).
    """
    lengths = np.concatenate([*(np.diff(basis.indptr) for basis in bases), [0]])
    columns = np.concatenate([basis.indices + start for basis, start in zip(bases, starts, strict=True)])
    entry = np.arange(len(columns)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = np.repeat(np.arange(len(lengths)), lengths), entry
    shape = (len(lengths), int(lengths.max()))
    padded_columns, padded_values = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    padded_columns[place] = columns
    padded_values[place] = np.concatenate([basis.data for basis in bases])
    return padded_columns, padded_values


def _validate_basis(state: dict[str, np.ndarray], name: str, n_columns: int) -> sp.csr_array:
    data = validate_array(state, f"{name}.data", "floats", (None,), 0.0)
    indices = validate_array(state, f"{name}.indices", "integers", (len(data),), 0, n_columns - 1)
    indptr = validate_array(state, f"{name}.indptr", "integers", (None,), 0, len(data))
    if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(data) or (np.diff(indptr) < 0).any():
        raise ValueError(f"'{name}.indptr' is damaged: it does not ascend from 0 to the number of entries")
    return sp.csr_array((data, indices, indptr), shape=(len(indptr) - 1, n_columns))
