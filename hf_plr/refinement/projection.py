"""Step 2: project the previous clusters onto the current ones."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.special import softmax

from hf_plr.refinement.cooccurrence import CooccurrenceTable, iterate_blocks

BLOCK = 256  # previous clusters that are normalised together


def project(
    table: CooccurrenceTable, normalize: str = "row", centroid_cosines: np.ndarray | None = None
) -> sp.csr_array:
    """Project previous onto current clusters: intersection over union, normalised.

    `IoU[a, b] = C[a, b] / (n_a + m_b - C[a, b])`, with the co-occurrence counts C and the cluster sizes n
    (previous) and m (current). Source: "Pseudo-label Refinement for Improving Self-Supervised Learning
    Systems", arXiv 2410.14242 (our reading); RLCC (Zhang et al., CVPR 2021) normalises by row.

    Args:
        table: co-occurrence table of the labelings, of which the last two count.
        normalize: "row" for rows (previous clusters) that add up to one, "column" for columns (current clusters).
        centroid_cosines: lets similar previous clusters share their projections, see `spread_over_similar`.

    Returns:
        Sparse matrix of shape (K', K) with entries in [0, 1]. A previous cluster whose samples are all
        noise now has an empty row.

    Raises:
        ValueError: for another `normalize`, or cosines that `spread_over_similar` refuses.

    Example:
        >>> from hf_plr.refinement import cooccurrence
        >>> project(cooccurrence([0, 0, 1, 1], [5, 5, 5, 7])).toarray().round(2).tolist()
        [[1.0, 0.0], [0.33, 0.67]]
    """
    if normalize not in ("row", "column"):
        raise ValueError(f"normalize={normalize!r} is unknown: use row or column")
    iou = table.matrix()
    previous_sizes, current_sizes = table.sizes(-2), table.sizes(-1)
    totals = np.zeros(iou.shape[0 if normalize == "row" else 1])
    for rows in iterate_blocks(iou.shape[0], BLOCK):
        previous, entries = _locate_entries(iou, rows)
        current = iou.indices[entries]
        iou.data[entries] /= previous_sizes[previous] + current_sizes[current] - iou.data[entries]
        totals += np.bincount(previous if normalize == "row" else current, iou.data[entries], len(totals))
    for rows in iterate_blocks(iou.shape[0], BLOCK):
        previous, entries = _locate_entries(iou, rows)
        iou.data[entries] /= totals[previous if normalize == "row" else iou.indices[entries]]
    return iou if centroid_cosines is None else spread_over_similar(iou, centroid_cosines)


def _locate_entries(matrix: sp.csr_array, rows: slice) -> tuple[np.ndarray, slice]:
    """Locate the entries of some rows of a matrix; returns their rows, and their slice of its data."""
    row = np.repeat(np.arange(rows.start, rows.stop), np.diff(matrix.indptr[rows.start : rows.stop + 1]))
    return row, slice(matrix.indptr[rows.start], matrix.indptr[rows.stop])


def spread_over_similar(
    projection: sp.csr_array, cosines: np.ndarray, fraction: float = 0.1, scale: float = 30.0
) -> sp.csr_array:
    """Spread projections over similar clusters: Q P with Q = (1 - fraction) I + fraction softmax(scale cosines).

    RLCC (Zhang et al., CVPR 2021) mixes each sample's previous label with a softmax over its cosines to the previous
    centroids, with these two constants. Here the centroid stands for its samples, so that a soft label depends on the
    pair of labels alone.

    Args:
        projection: output of `project`, shape (K', K).
        cosines: cosines between the centroids of the previous clusters, in ascending order of ids, shape (K', K').
        fraction: fraction that goes to similar clusters, in [0, 1].
        scale: inverse temperature of the softmax.

    Returns:
        Sparse matrix of shape (K', K). Rows that were empty stay so.

    Raises:
        ValueError: if the cosines have another shape, or are outside [-1, 1].
    """
    cosines = np.asarray(cosines, dtype=np.float64)
    n_previous = projection.shape[0]
    if cosines.shape != (n_previous, n_previous):
        raise ValueError(
            f"centroid_cosines has shape {cosines.shape}, but there are {n_previous} previous clusters: "
            f"expected ({n_previous}, {n_previous})"
        )
    if not (np.abs(cosines) <= 1.0 + 1e-6).all():
        raise ValueError("centroid_cosines must be finite and in [-1, 1]")
    has_projection = np.diff(projection.indptr) > 0
    if not has_projection.any():
        return projection
    mixing = fraction * softmax(np.where(has_projection[None, :], scale * cosines, -np.inf), axis=1)
    np.fill_diagonal(mixing, mixing.diagonal() + 1.0 - fraction)
    mixing[~has_projection] = 0.0
    return sp.csr_array(sp.csr_array(mixing) @ projection)
