"""Soft targets of all samples, by their cells of the co-occurrence table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.blending import SoftCells
from hf_plr.utils.serialization import validate_array


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


def _validate_basis(state: dict[str, np.ndarray], name: str, n_columns: int) -> sp.csr_array:
    data = validate_array(state, f"{name}.data", "floats", (None,), 0.0)
    indices = validate_array(state, f"{name}.indices", "integers", (len(data),), 0, n_columns - 1)
    indptr = validate_array(state, f"{name}.indptr", "integers", (None,), 0, len(data))
    if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != len(data) or (np.diff(indptr) < 0).any():
        raise ValueError(f"'{name}.indptr' is damaged: it does not ascend from 0 to the number of entries")
    return sp.csr_array((data, indices, indptr), shape=(len(indptr) - 1, n_columns))
