"""What became of the clusters of one run in the next, whose samples are others in part."""

from __future__ import annotations

import numpy as np

from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable, count_samples
from hf_plr.refinement.correspondence import ClusterEvents, Overlaps, find_cluster_events

STRAYS = 10  # fewer than a tenth of a cluster do not continue it


def find_run_events(table: CooccurrenceTable, previous_ids: np.ndarray) -> ClusterEvents:
    """Find the events that lead from the clusters of one run to those of the next.

    They are those between two epochs, of the samples that both runs have. Besides, a few known samples among many new
    ones do not make a cluster the continuation of theirs: they link the two only if they are at least a tenth of the
    previous cluster's known samples, or more than half of all samples of the current one. A cluster of new samples is
    born, and one whose samples were all removed died.

    Args:
        table: (label in the run before, label now) of all samples; -1 before for new samples and noise.
        previous_ids: labels of all clusters of the run before, ascending, shape (K',).
    """
    n_current = len(table.current_ids)
    place = np.append(np.searchsorted(previous_ids, table.previous_ids), NOISE)[table.previous]
    is_known = place != NOISE
    overlaps = Overlaps.from_cells(
        place[is_known], table.current[is_known], table.counts[is_known], len(previous_ids), n_current
    )
    all_sizes = count_samples(table.current, table.counts, n_current)
    links = (STRAYS * overlaps.counts >= overlaps.previous_sizes[overlaps.previous]) | (
        2 * overlaps.counts > all_sizes[overlaps.current]
    )
    kept = Overlaps(
        overlaps.previous[links],
        overlaps.current[links],
        overlaps.counts[links],
        overlaps.previous_sizes,
        overlaps.current_sizes,
    )
    return find_cluster_events(kept, previous_ids, table.current_ids)
