"""Numbers of refined clusters, which persist from epoch to epoch, and events of the previous clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from hf_plr.refinement.agglomeration import measure_coassociation
from hf_plr.refinement.assignment import compute_confidence, map_columns
from hf_plr.refinement.blending import SoftCells
from hf_plr.refinement.cooccurrence import (
    NOISE,
    CooccurrenceTable,
    Positions,
    as_int64,
    cooccurrence,
    iterate_blocks,
    iterate_chunks,
    list_cluster_ids,
)
from hf_plr.refinement.correspondence import ClusterEvents, Overlaps, find_cluster_events, number_clusters
from hf_plr.refinement.result import CellRefinement

AddShards = Callable[[CooccurrenceTable], CooccurrenceTable]  # the sum of all shards' tables, from that of one


class ClusterNumbers:
    """Numbers of the clusters of one level, which persist from call to call.

    Args:
        last: labels of the last call, shape (N,); None before the first.
        next_number: above the numbers that clusters have had.
        reuses: True if a new cluster may have the number of one that has died.
        anchor: labels of an earlier run, whose numbers return to their samples, shape (N,); None without one.
    """

    def __init__(
        self,
        last: np.ndarray | None = None,
        next_number: int = 0,
        reuses: bool = True,
        anchor: np.ndarray | None = None,
    ):
        self.last = last
        self.next_number = next_number
        self.reuses = reuses
        self.anchor = anchor

    @property
    def first_new(self) -> int | None:
        """Number of the next new cluster; None for the lowest that is free."""
        return None if self.reuses else self.next_number

    @property
    def held(self) -> list[np.ndarray]:
        """Labels that later calls read, shape (N,) each."""
        return [labels for labels in (self.last, self.anchor) if labels is not None]

    def spread(
        self, cells: CellRefinement, labelings: tuple[np.ndarray, ...], out: np.ndarray, add_shards: AddShards
    ) -> CellRefinement:
        """Write the label of each sample to `out`, under the numbers of the last call; these labels are then the last.

        Args:
            cells: a refinement.
            labelings: what its table counts, each of shape (N,).
            out: integers of shape (N,).
            add_shards: adds the tables of the shards, if these labels are one.

        Returns:
            The refinement under these numbers.

        Raises:
            ValueError: if the labels do not fit into `out`.
        """
        _check_room(out, cells.labels)
        for span in iterate_chunks(len(out)):
            out[span] = cells.labels[cells.table.locate(*(labels[span] for labels in labelings))]
        if self.last is not None and self.last is not labelings[-2]:
            cells = continue_numbers(cells, self.last, out, add_shards, self.first_new)
        if self.anchor is not None:
            cells = return_numbers(cells, self.anchor, out, add_shards, self.next_number)
        self.last = out.view()
        self.last.flags.writeable = False
        self.next_number = max(self.next_number, int(cells.labels.max(initial=NOISE)) + 1)
        return cells


def keep_numbers(
    table: CooccurrenceTable,
    projection: sp.csr_array,
    soft: SoftCells,
    cluster: np.ndarray,
    is_exact: bool,
    keeps_columns: bool,
    metric: str,
    next_number: int | None = None,
) -> CellRefinement:
    """Number refined clusters so that one that continues a previous cluster keeps its number.

    Args:
        table: the cells.
        projection: output of `project`, shape (K', K).
        soft: soft labels of the cells.
        cluster: refined cluster of each cell, -1 = noise, shape (cells,).
        is_exact: True if no cells were folded into similar ones.
        keeps_columns: True if each refined cluster is one column of the soft labels.
        metric: with "coassociation" confidence is the mean co-association with the other members of the cluster.
        next_number: as for `number_clusters`.
    """
    column = cluster
    cluster, n_clusters = _compact(cluster)
    changed_share = _measure_change(table, cluster, n_clusters)
    if metric == "coassociation":
        confidences = measure_coassociation(soft, cluster, table.counts)
    else:
        membership = map_columns(column, cluster, soft.n_columns, n_clusters) if keeps_columns else None
        confidences = compute_confidence(soft, cluster, table.counts, membership)
    overlaps = Overlaps.from_cells(table.previous, cluster, table.counts, len(table.previous_ids), n_clusters)
    number, events = _identify(overlaps, table.previous_ids, cluster, table.first_member, next_number)
    return CellRefinement(
        table=table,
        labels=np.append(number, NOISE)[cluster],
        confidence=confidences,
        soft=soft,
        projection=projection,
        events=events,
        changed_share=changed_share,
        exact=is_exact,
    )


def continue_numbers(
    cells: CellRefinement,
    last: np.ndarray,
    labels: np.ndarray,
    add_shards: AddShards,
    next_number: int | None = None,
) -> CellRefinement:
    """Continue the numbers of refined labels that are not among the cells' labelings.

    Args:
        cells: a refinement.
        last: the last refined labels, shape (N,).
        labels: the new refined labels, shape (N,), renumbered in place.
        add_shards: adds the tables of the shards, if these labels are one.
        next_number: as for `number_clusters`.

    Raises:
        ValueError: if a number does not fit into the labels, before they are renumbered.
    """
    table = add_shards(cooccurrence(last, labels))
    ids = table.current_ids
    overlaps = Overlaps.from_cells(table.previous, table.current, table.counts, len(table.previous_ids), len(ids))
    position = Positions(ids)
    code = position(cells.labels)
    number, events = _identify(overlaps, table.previous_ids, code, cells.table.first_member, next_number)
    number_of_code = np.append(number, NOISE)
    _renumber(labels, position, number_of_code)
    return replace(cells, labels=number_of_code[code], events=events)


def return_numbers(
    cells: CellRefinement, anchor: np.ndarray, labels: np.ndarray, add_shards: AddShards, next_number: int
) -> CellRefinement:
    """Return the numbers of an earlier run to the clusters that hold its samples.

    From epoch to epoch a cluster may exchange its samples little by little, until its number stands for others. Here a
    cluster that is the mutual best overlap of one of the earlier run has its number, whatever it was called in between.
    A cluster that bears a number of the earlier run without being that gets a new one.

    Args:
        cells: a refinement.
        anchor: labels of the earlier run, -1 = none, shape (N,).
        labels: the new refined labels, shape (N,), renumbered in place.
        add_shards: adds the tables of the shards, if these labels are one.
        next_number: lowest number of a new cluster.

    Raises:
        ValueError: as `continue_numbers`.
    """
    table = add_shards(cooccurrence(anchor, labels))
    ids = table.current_ids
    overlaps = Overlaps.from_cells(table.previous, table.current, table.counts, len(table.previous_ids), len(ids))
    best = overlaps.find_mutual_best()
    number = np.where(np.isin(ids, table.previous_ids), NOISE, ids)
    number[overlaps.current[best]] = table.previous_ids[overlaps.previous[best]]
    nameless = np.flatnonzero(number == NOISE)
    number[nameless] = max(next_number, int(ids.max(initial=NOISE)) + 1) + np.arange(len(nameless))
    position, number_of_code = Positions(ids), np.append(number, NOISE)
    _renumber(labels, position, number_of_code)
    renamed = dict(zip(ids.tolist(), number.tolist(), strict=True))
    events = (replace(event, current=tuple(renamed[each] for each in event.current)) for event in cells.events)
    return replace(cells, labels=number_of_code[position(cells.labels)], events=ClusterEvents(events))


def _check_room(labels: np.ndarray, numbers: np.ndarray) -> None:
    """Refuse numbers that the type of these labels cannot hold: they would become other ones."""
    largest = int(numbers.max(initial=NOISE))
    if largest > np.iinfo(labels.dtype).max:
        raise ValueError(f"labels of {labels.dtype} cannot hold the cluster {largest}: use smaller numbers")


def _renumber(labels: np.ndarray, position: Positions, number_of_code: np.ndarray) -> None:
    """Renumber labels (N,) in place, by the number at the position of each."""
    _check_room(labels, number_of_code)
    for span in iterate_chunks(len(labels)):
        labels[span] = number_of_code[position(as_int64(labels[span]))]


def _identify(
    overlaps: Overlaps,
    previous_ids: np.ndarray,
    cluster: np.ndarray,
    first_member: np.ndarray,
    next_number: int | None,
) -> tuple[np.ndarray, ClusterEvents]:
    """Number the refined clusters and find their events; `cluster` and `first_member` are per cell."""
    first_of_cluster = np.full(len(overlaps.current_sizes) + 1, np.iinfo(np.int64).max)  # and of noise
    np.minimum.at(first_of_cluster, cluster, first_member)
    number = number_clusters(overlaps, previous_ids, first_of_cluster[:-1], next_number)
    return number, find_cluster_events(overlaps, previous_ids, number)


def _compact(cluster: np.ndarray) -> tuple[np.ndarray, int]:
    """Replace clusters of cells by positions among those that occur, -1 = noise; returns their number too."""
    ids = list_cluster_ids(cluster)
    return Positions(ids)(as_int64(cluster)).astype(np.int32), len(ids)


def _measure_change(table: CooccurrenceTable, cluster: np.ndarray, n_clusters: int) -> float:
    """Fraction of samples whose refined cluster is not the continuation of their current cluster."""
    overlaps = Overlaps.from_cells(cluster, table.current, table.counts, n_clusters, len(table.current_ids))
    matches = overlaps.find_mutual_best()
    continued = np.full(n_clusters + 1, NOISE - 1)
    continued[overlaps.previous[matches]] = overlaps.current[matches]
    continued[-1] = NOISE
    n_unchanged = sum(
        int(table.counts[b][continued[cluster[b]] == table.current[b]].sum()) for b in iterate_blocks(len(table))
    )
    return 1.0 - n_unchanged / int(table.counts.sum())
