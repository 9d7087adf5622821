"""The levels of a run: cuts through its tree whose numbers live on in the runs that continue it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hf_plr.refinement.cluster_tree.level import Level
from hf_plr.refinement.cluster_tree.tree import ClusterTree
from hf_plr.refinement.cooccurrence import NOISE, CooccurrenceTable
from hf_plr.refinement.correspondence import Overlaps

Numbers = Mapping[int, int]  # number of the level's cluster that each cluster is in, by its label


@dataclass(frozen=True)
class KnownLevels:
    """What a run takes over from the levels of the run before.

    Attributes:
        table: co-occurrence of the clusters of the run before (previous) with those of this one (current).
        numbers: of each level of the run before, by its number of clusters.
        next_number: smallest number that neither a cluster nor a level's cluster has had by then.
    """

    table: CooccurrenceTable
    numbers: Mapping[int, Numbers] = field(default_factory=dict)
    next_number: int = 0


def make_levels(
    tree: ClusterTree, wanted: Sequence[int] | None = None, known: KnownLevels | None = None, next_number: int = 0
) -> tuple[dict[int, Level], int]:
    """Cut a tree into levels, whose clusters keep the numbers that they had in the run before.

    A level's cluster that is the mutual best overlap of one of the same level in the run before has its number. Another
    one has the label of its most senior cluster among those that are new in this run, or else a new number. So no
    number of a level is given twice over runs that continue each other. A level that the run before did not have takes
    its numbers from the tree: each the label of its most senior cluster.

    Args:
        tree: the tree of K clusters.
        wanted: number of clusters of each level, each at least 1 and once; more than K are left out. None takes those
            of the run before, and without any the numbers that `ClusterTree.choose_levels` chooses.
        known: the levels of the run before; None for a first run.
        next_number: lowest number of a level's cluster that can have none of its clusters' labels.

    Returns:
        Level by its number of clusters, the fewest first, and the lowest number after all that were given.
    """
    sought = list(wanted) if wanted is not None else [] if known is None else list(known.numbers)
    if wanted is None and not any(n <= len(tree) for n in sought):
        sought = tree.choose_levels()
    levels = {n: tree.cut(n) for n in sorted(sought) if n <= len(tree)}
    for n, level in levels.items():
        if known is not None and n in known.numbers:
            levels[n], next_number = _keep_numbers(level, known, known.numbers[n], next_number)
    return levels, next_number


def _keep_numbers(level: Level, known: KnownLevels, before: Numbers, next_number: int) -> tuple[Level, int]:
    """Number the clusters of a level as those of the run before that they continue."""
    parts, code = np.unique(level.numbers, return_inverse=True)
    overlaps, ids = _count_overlaps(level, known.table, before, parts)
    best = overlaps.find_mutual_best()
    number = np.full(len(parts), NOISE, np.int64)
    number[overlaps.current[best]] = ids[overlaps.previous[best]]
    for label, part in zip(level.labels.tolist(), code.tolist(), strict=True):  # the most senior first
        if number[part] == NOISE and label >= known.next_number:
            number[part] = label
    for part in dict.fromkeys(code.tolist()):
        if number[part] == NOISE:
            number[part], next_number = next_number, next_number + 1
    return replace(level, numbers=number[code]), next_number


def _count_overlaps(
    level: Level, table: CooccurrenceTable, before: Numbers, parts: np.ndarray
) -> tuple[Overlaps, np.ndarray]:
    """Count what the clusters of a level share with those of the run before, which have the numbers returned."""
    ids = np.array(sorted(set(before.values())), np.int64)
    of_previous = np.array([before.get(label, NOISE) for label in table.previous_ids.tolist()], np.int64)
    place = np.where(of_previous == NOISE, NOISE, np.searchsorted(ids, of_previous))
    of_current = np.searchsorted(parts, level.apply(table.current_ids))
    cells = np.append(place, NOISE)[table.previous], np.append(of_current, NOISE)[table.current]
    return Overlaps.from_cells(*cells, table.counts, len(ids), len(parts)), ids
