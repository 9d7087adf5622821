"""Step 3: blend each sample's current cluster with what its previous cluster projects."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable


def blend_projected(table: CooccurrenceTable, projection: sp.csr_array, weight: float, noise: str) -> sp.csr_array:
    """Soft labels in the space of the current clusters, one row for each cell.

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
        weight: share of the current label, in [0, 1].
        noise: "project" or "drop".

    Returns:
        Sparse matrix of shape (cells, K).
    """
    projects = np.append(np.diff(projection.indptr) > 0, False)[table.previous]
    clustered = table.current != NOISE
    current_share = np.where(clustered, np.where(projects, weight, 1.0), 0.0)
    previous_share = np.where(projects, np.where(clustered, 1.0 - weight, float(noise == "project")), 0.0)
    onehot_current = onehot(table.current, len(table.current_ids))
    onehot_previous = onehot(np.where(projects, table.previous, NOISE), len(table.previous_ids))
    blended = scale_rows(onehot_current, current_share) + scale_rows(onehot_previous @ projection, previous_share)
    blended.eliminate_zeros()
    return sp.csr_array(blended)


def blend_joint(table: CooccurrenceTable, weight: float, noise: str) -> sp.csr_array:
    """Soft labels in the joint space: the current one-hot beside the previous one-hot.

    Unlike the projected space it treats a split and a merge alike: cells that differ in either label
    stay apart. With weight 0.5 its distances are those of co-association (evidence accumulation).

    Args:
        table: the cells.
        weight: share of the current label, in [0, 1]; the previous label has the rest.
        noise: "project" keeps the previous label of samples that are noise now, "drop" empties their rows.

    Returns:
        Sparse matrix of shape (cells, K + K').
    """
    kept = (table.current != NOISE) | (noise == "project")
    current = onehot(table.current, len(table.current_ids)) * weight
    previous = onehot(np.where(kept, table.previous, NOISE), len(table.previous_ids)) * (1.0 - weight)
    joint = sp.csr_array(sp.hstack([current, previous], format="csr"))
    joint.eliminate_zeros()
    return joint


def onehot(labels: np.ndarray, n_columns: int) -> sp.csr_array:
    """One row for each label; the row of a -1 is empty."""
    member = labels != NOISE
    indptr = np.concatenate([[0], np.cumsum(member)])
    return sp.csr_array((np.ones(int(member.sum())), labels[member], indptr), shape=(len(labels), n_columns))


def scale_rows(matrix: sp.csr_array, factors: np.ndarray) -> sp.csr_array:
    """Multiply row i by factors[i]."""
    return sp.csr_array(sp.diags_array(factors) @ matrix)
