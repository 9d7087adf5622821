"""Soft targets of all samples, by their cells of the co-occurrence table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from hf_plr.refinement.blending import SoftCells
from hf_plr.utils.serialization import validate_array


class SparseTargets(NamedTuple):
    """Soft targets of a batch: row i is the sum over w of shares[i, w] at columns[i, w]; a row of zeros has no loss.

    Attributes:
        columns: clusters, int64 of shape (B, W); one may stand in a row more than once.
        shares: their shares, at least 0, float32 of shape (B, W).
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

    def to(self, device: torch.device) -> SoftTargetTable:
        """Copy to a device, for look-ups by batches that are there."""
        return SoftTargetTable(self, device)

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
    """Soft targets of all samples on a device, where a batch is looked up without waiting for it.

    Kept by cell, as factors: 4 bytes per sample, and 8 bytes per cluster and cluster that its most scattered one
    projects onto.

    Args:
        targets: the soft targets.
        device: where to.
    """

    def __init__(self, targets: SoftTargets, device: torch.device):
        cells = targets.cells
        self._cell = torch.from_numpy(targets.cell).to(device)
        self._codes = torch.from_numpy(np.ascontiguousarray(np.maximum(cells.codes, 0))).to(device)
        self._case = torch.from_numpy(cells.case.astype(np.int32)).to(device)
        self._shares_of_case = torch.from_numpy(cells.shares_of_case.astype(np.float32)).to(device)
        self._bases = [_pad_rows(basis, device) for basis in cells.bases]

    def rows(self, index: torch.Tensor) -> SparseTargets:
        """Look up the soft targets at positions (B,), on their device."""
        cell = self._cell[index]
        codes, shares = self._codes[cell], self._shares_of_case[self._case[cell]]
        parts = [
            (columns[codes[:, part]], values[codes[:, part]] * shares[:, part, None])
            for part, (columns, values) in enumerate(self._bases)
            if len(columns)  # without clusters, every share is 0
        ]
        columns, values = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
        return SparseTargets(columns.long(), values)


def _pad_rows(basis: sp.csr_array, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad a sparse matrix's rows with entries of 0 in column 0: columns, int32, and values, float32, both (K, W)."""
    lengths = np.diff(basis.indptr)
    shape = (len(lengths), int(lengths.max(initial=0)))
    place = np.repeat(np.arange(len(lengths)), lengths), np.arange(basis.nnz) - np.repeat(basis.indptr[:-1], lengths)
    columns, values = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    columns[place], values[place] = basis.indices, basis.data
    return torch.from_numpy(columns).to(device), torch.from_numpy(values).to(device)


def _validate_basis(state: dict[str, np.ndarray], name: str, n_columns: int) -> sp.csr_array:
    data = validate_array(state, f"{name}.data", "floats", (None,), 0.0)
    indices = validate_array(state, f"{name}.indices", "integers", (len(data),), 0, n_columns - 1)
    indptr = validate_array(state, f"{name}.indptr", "integers", (None,), 0, len(data))
    if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(data) or (np.diff(indptr) < 0).any():
        raise ValueError(f"'{name}.indptr' is damaged: it does not ascend from 0 to the number of entries")
    return sp.csr_array((data, indices, indptr), shape=(len(indptr) - 1, n_columns))
