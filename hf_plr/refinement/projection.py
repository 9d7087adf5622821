"""Step 2: learn how the previous clusters project onto the current ones."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.cooccurrence import CooccurrenceTable


def project(table: CooccurrenceTable, normalize: str = "row") -> sp.csr_array:
    """Projection of previous onto current clusters: intersection over union, normalised.

    `IoU[a, b] = C[a, b] / (n_a + m_b - C[a, b])`, with the co-occurrence counts C and the cluster sizes n
    (previous) and m (current). Source: "Pseudo-label Refinement for Improving Self-Supervised Learning
    Systems", arXiv 2410.14242 (our reading); RLCC (Zhang et al., CVPR 2021) normalises by row.

    Args:
        table: co-occurrence table of the two labelings.
        normalize: "row" lets every previous cluster spread one unit over the current clusters, "column"
            lets every current cluster collect one unit.

    Returns:
        Sparse matrix of shape (K', K) with entries in [0, 1]. A previous cluster whose samples are all
        noise now has an empty row.
    """
    iou = sp.coo_array(table.matrix())
    previous, current = iou.coords
    iou.data = iou.data / (table.previous_sizes[previous] + table.current_sizes[current] - iou.data)
    axis_codes, n_codes = (previous, iou.shape[0]) if normalize == "row" else (current, iou.shape[1])
    totals = np.bincount(axis_codes, weights=iou.data, minlength=n_codes)
    iou.data = iou.data / totals[axis_codes]
    return sp.csr_array(iou)
