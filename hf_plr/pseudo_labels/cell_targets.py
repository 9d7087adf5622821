"""Soft targets of refined labels in a file, by the occupied cells: written out per sample they would be far larger."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hf_plr.refinement import CellRefinement
from hf_plr.refinement.assignment import keep_current
from hf_plr.utils.files import replacing
from hf_plr.utils.serialization import read_tensors

CELL_TARGETS_FILE = "cell_targets.safetensors"
CELL_TARGETS_FORMAT = "hf-plr-cell-targets-1"


def write_cell_targets(folder: str | os.PathLike[str], cells: CellRefinement) -> None:
    """Write targets and soft targets per cell into a folder, as `SoftTargets.state_dict` names them.

    Args:
        folder: folder of the label files, whose column cell counts these cells.
        cells: a refinement with assignment "soft".
    """
    soft = cells.soft
    arrays = {
        "target": keep_current(cells.table, soft),
        "confidence": cells.confidence,
        "codes": soft.codes,
        "case": soft.case,
        "shares_of_case": soft.shares_of_case,
        "n_columns": np.array([soft.n_columns]),
    }
    for part, basis in enumerate(soft.bases):
        arrays |= {f"basis.{part}.{name}": getattr(basis, name) for name in ("data", "indices", "indptr")}
    stored = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with replacing(os.path.join(folder, CELL_TARGETS_FILE)) as temporary:
        save_file(stored, temporary, {"format": CELL_TARGETS_FORMAT})


def read_cell_targets(folder: str | os.PathLike[str]) -> dict[str, np.ndarray] | None:
    """Read the arrays of `write_cell_targets` by name; None if the folder has no such file.

    Raises:
        ValueError: if the file is damaged, naming it.
    """
    path = Path(folder) / CELL_TARGETS_FILE
    return read_tensors(path, CELL_TARGETS_FORMAT) if path.is_file() else None
