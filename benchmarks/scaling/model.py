"""What stages of PLRTrainer with k-means cost one process in memory, as formulas that follow the code.

N samples with D columns are shared by P processes, n = N / P each. There is a labeling of K clusters. By default, with
a consensus, there are two finer ones of 2K and 4K, which are clustered, too, and beside the first an ensemble of
members with 2K clusters each votes. Nested levels are of as many clusters, in a tree that is made of a clustering into
4K and of the ensemble. Features and what a pass of k-means needs are there for a process's own samples. Labels are
there for the h samples that a process holds: with one label shard those of all (h = N), with several its own (h = n).
Refinement works on the C occupied cells of the co-occurrence table, which every process has in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from hf_plr.clustering.ensemble import FINER, FIT_SAMPLES_PER_CLUSTER, MEMBERS
from hf_plr.clustering.exact_sums import BLOCK_ROWS
from hf_plr.clustering.rows import BLOCK_SCORES
from hf_plr.clustering.whitening import FIT_ROWS, FIT_ROWS_PER_DIMENSION
from hf_plr.pseudo_labels.sampler import BLOCK as ORDER_BLOCK
from hf_plr.refinement.agglomeration import MAX_RELATED_PAIRS, SMALL
from hf_plr.refinement.agglomeration.coassociation import BLOCK, MAX_PAIRS
from hf_plr.refinement.cooccurrence import COUNT_CHUNK, TABLE_SIZE
from hf_plr.refinement.refiner import PRESETS
from hf_plr.training_args import AUTO_LABELINGS, CONSENSUS, NESTED

INT16, INT32, INT64, FLOAT32, FLOAT64 = 2, 4, 8, 4, 8
RELATED = 24  # pairs a cell, where each cluster projects onto itself and six beside it
LEFT_BY_A_ROUND = 0.6  # of the pairs, after the first round of merges: measured


@dataclass(frozen=True)
class Size:
    """How much there is.

    Attributes:
        samples, columns, clusters, processes: N, D, K and P.
        refinement: "consensus" beside two finer labelings, which the default is, or "nested", both in a whitened space;
            or "slr", which is one labeling of the centered features.
        label_shards: 1 where every process holds the labels of all samples, more where each holds its own.
        cells: C; None for seven a cluster, as where samples move between a cluster and the six beside it, and for a
            vote, whose fifteen labelings or more part nearly all samples, for one a sample.
        level_cells: cells of the first two labelings, of the first three and so on, all together; None for the most.
        chosen: cells that a vote agglomerates, where all have too many pairs; None for all.
        pairs: pairs of related cells; None for the most that a vote takes, and for 24 a cell without one.
        block_scores: scores that a thread of k-means holds at once.
    """

    samples: int
    columns: int
    clusters: int
    processes: int
    refinement: str = CONSENSUS
    label_shards: int = 1
    cells: int | None = None
    level_cells: int | None = None
    chosen: int | None = None
    pairs: int | None = None
    block_scores: int = BLOCK_SCORES["cpu"]

    @property
    def rows(self) -> int:
        """Samples n of one process."""
        return -(-self.samples // self.processes)

    @property
    def held(self) -> int:
        """Samples h whose labels a process holds."""
        return self.samples if self.label_shards == 1 else self.rows

    @property
    def is_nested(self) -> bool:
        """True if the labelings are levels of one tree."""
        return self.refinement == NESTED

    @property
    def is_voted(self) -> bool:
        """True if an ensemble votes."""
        return self.refinement in (CONSENSUS, NESTED)

    @property
    def is_whitened(self) -> bool:
        """True if clusters are sought in a space of its own; the trial decides, and nearly always so."""
        return self.is_voted

    @property
    def numbers(self) -> list[int]:
        """Clusters of each labeling."""
        return [self.clusters * 2**i for i in range(AUTO_LABELINGS if self.is_voted else 1)]

    @property
    def sought(self) -> list[int]:
        """Clusters of each k-means that starts from its last centroids."""
        return self.numbers[-1:] if self.is_nested else self.numbers

    @property
    def members(self) -> int:
        """Clusterings of the ensemble."""
        return MEMBERS if self.is_voted else 0

    @property
    def generations(self) -> int:
        """Epochs in the co-occurrence table of the first labeling."""
        return int(PRESETS[self.refinement].get("generations", 2))

    @property
    def full_stage(self) -> int:
        """Index of the first stage in which there are as many; at least the third, when k-means has settled."""
        return max(2, self.generations - 1)

    @property
    def member_clusters(self) -> int:
        """Clusters of each of these."""
        return FINER * self.clusters

    @property
    def member_rows(self) -> int:
        """Samples of all processes that a member is fitted on."""
        return min(self.samples, FIT_SAMPLES_PER_CLUSTER * self.member_clusters)

    @property
    def votes(self) -> int:
        """Labelings in the co-occurrence table of the first labeling."""
        return self.generations * (1 + self.members)

    @cached_property
    def n_cells(self) -> int:
        """C."""
        return self.cells or (self.samples if self.is_voted else min(self.samples, 7 * self.clusters))

    @property
    def n_pairs(self) -> int:
        """Pairs of related cells: for a vote of all in a cluster, or as many as it takes."""
        if self.pairs is not None:
            return self.pairs
        if self.is_voted:
            return min(MAX_PAIRS, self.n_cells**2 // self.clusters)
        return min(MAX_RELATED_PAIRS, RELATED * self.n_cells)

    def label_bytes(self, clusters: int) -> int:
        """Bytes of a label that comes from a clusterer, or of a target: shards keep small numbers in two."""
        return INT16 if self.label_shards > 1 and clusters <= 2**15 else INT32

    @property
    def clusters_bytes(self) -> int:
        """Bytes a sample of all clusterings of an epoch in the first labeling."""
        largest = max(self.sought[0], self.member_clusters if self.members else 0)
        return (1 + self.members) * self.label_bytes(largest)


Parts = dict[str, int]

# ---- bytes ---------------------------------------------------------------------------------------------------------


def between_stages(size: Size) -> Parts:
    """What a process keeps from one stage to the next."""
    # PseudoLabels: labels, previous_labels and confidence; targets, and raw_labels, which finer levels of a tree have
    # not. A refiner's last labels are the same arrays, but for a vote, which keeps the clusterings of past epochs.
    kept = sum(2 * INT32 + FLOAT32 + size.label_bytes(k) for k in size.numbers)
    kept += sum(size.label_bytes(k) for k in size.sought)
    history = (size.generations - 1) * size.clusters_bytes if size.is_voted else 0
    return {
        "labels of held samples": kept * size.held,
        "clusterings of past epochs": history * size.held,
        "labels of own samples": INT64 * size.rows * len(size.sought),  # KMeans.labels_
        "centroids and prototypes": FLOAT32 * (sum(size.sought) + sum(size.numbers)) * size.columns,
    }


def _rows_and_spaces(size: Size) -> int:
    return (2 if size.is_whitened else 1) * FLOAT32 * size.rows * size.columns


def _in_stage(size: Size, finished: int) -> Parts:
    """What is there for a whole stage, when so many of its labelings are finished."""
    # The trainer compares new labels of the first labeling with those before. Their `labels` are the new ones'
    # previous_labels; the other four arrays are there beside the new ones.
    before = INT32 + FLOAT32 + 2 * size.label_bytes(size.clusters) if finished else 0
    return between_stages(size) | {
        "features": _rows_and_spaces(size),
        "labels before, to compare": before * size.held,
    }


def while_whitening(size: Size) -> Parts:
    """What is there while a whitening is fitted: the rows that it is fitted on in float64, as drawn and centered."""
    drawn = min(size.samples, max(FIT_ROWS, FIT_ROWS_PER_DIMENSION * size.columns))
    return between_stages(size) | {
        "features": FLOAT32 * size.rows * size.columns,
        "whitening": 2 * FLOAT64 * drawn * size.columns,
    }


def _pass(size: Size, clusters: int, fitted: int) -> Parts:
    """What k-means needs for its own samples, with centroids fitted on so many samples of all processes."""
    n, k_by_d = size.rows, clusters * size.columns
    # Norms and what rows are divided by; labels and scores of this pass and of the last; one temporary.
    of_rows = (2 * FLOAT32 + 2 * (INT64 + FLOAT32) + FLOAT32) * n
    copied = 0
    if fitted < size.samples:  # the last pass is the only one over all samples; the fitted ones are copied, normalised
        of_rows = (2 * FLOAT32 + INT64 + 3 * FLOAT32) * n
        copied = FLOAT32 * -(-fitted // size.processes) * size.columns
    return {
        "a pass over own samples": of_rows,
        "samples that centroids are fitted on": copied,
        "a block of scores": block_bytes(size, clusters),
        # Exact sums of this process and of all, the means in float64, new and transposed centroids; a block to add.
        "sums": (3 * FLOAT64 + 2 * FLOAT32) * k_by_d + FLOAT64 * min(n, BLOCK_ROWS) * size.columns,
    }


def while_clustering(size: Size, labeling: int = 0) -> Parts:
    """What is there while a k-means assigns samples to its centroids; the first one by default."""
    # The last labeling's clusterings are there until this one's are.
    waiting = size.clusters_bytes * size.held if labeling == 1 else 0
    return (
        _in_stage(size, labeling)
        | {"clusterings of the last labeling": waiting}
        | _pass(size, size.sought[labeling], size.samples)
    )


def while_clustering_members(size: Size) -> Parts:
    """What is there while the last member of the ensemble clusters: the others' labels too."""
    done = INT32 * size.members * size.rows
    return (
        _in_stage(size, 0)
        | {"labels of members": done}
        | (_pass(size, size.member_clusters, size.member_rows) if size.members else {})
    )


def while_holding(size: Size) -> Parts:
    """What is there when the clusterings of the first labeling go to the processes that hold them."""
    # A list of labels, side by side, and with several processes or shards as they are held.
    copies = 2 * INT32 * (1 + size.members) * size.rows if size.members else INT32 * size.rows
    is_copied = size.label_shards > 1 or size.processes > 1
    return _in_stage(size, 0) | {
        "clusterings of own samples": copies,
        "clusterings of held samples": size.clusters_bytes * size.held if is_copied else 0,
    }


def _while_refining_first(size: Size) -> Parts:
    copied = 1 if size.is_voted else 0  # the refiner keeps its own
    levels = len(size.numbers) if size.is_nested else 1
    return _in_stage(size, 0) | {
        # This epoch's clusterings, the refiner's copy of them, and refined labels of each level.
        "new labels of held samples": (2 * size.clusters_bytes + INT32 * levels) * size.held,
        "cell by sample": INT32 * size.held * copied,
    }


def _table(size: Size) -> int:
    """The cells: codes, counts and first members; and where cells are found again, in a table that was counted here."""
    levels = size.level_cells or (size.votes - 1) * size.n_cells
    was_counted_here = size.label_shards == 1 or size.processes == 1
    found = INT64 * levels if was_counted_here and size.n_cells * size.clusters > TABLE_SIZE else 0
    return (INT32 * size.votes + 2 * INT64) * size.n_cells + found


def while_counting(size: Size) -> Parts:
    """What is there while the cells of the first labeling's table are counted."""
    is_dense = not size.is_voted and (size.clusters + 1) ** 2 <= TABLE_SIZE
    chunk = 40 * min(size.held, COUNT_CHUNK) + 30 * (size.clusters + 1) ** 2
    # Keys are sorted and looked up by bisection; new ones are inserted into a copy.
    sorted_chunk = 100 * min(size.held, COUNT_CHUNK) + (3 * INT64 + INT32 * size.votes) * size.n_cells
    return _while_refining_first(size) | {"table": _table(size), "counting": chunk if is_dense else sorted_chunk}


def while_adding_tables(size: Size) -> Parts:
    """What is there while the tables of all shards are added up: nothing, where a process counts all samples."""
    is_sum = size.label_shards > 1 and size.processes > 1
    # Of each cell: as it came, side by side with all others, in order, and compared with the one before.
    per_cell = (3 * INT64 + 4 * INT32 * size.votes + 2 * INT64) if is_sum else 0
    return _while_refining_first(size) | {"table": _table(size), "tables of shards": per_cell * size.n_cells}


def while_refining(size: Size) -> Parts:
    """What is there while the first labeling's cells are agglomerated."""
    if not size.is_voted:
        return _while_refining_first(size) | {
            "table": _table(size),
            "agglomeration": _linkage(size),
        }
    return _while_refining_first(size) | {
        "table": _table(size),
        "cells in order": (INT32 * size.votes + 5 * INT64) * size.n_cells,
        "agglomeration": max(_agglomeration(size).values()),
    }


def _linkage(size: Size) -> int:
    """What average linkage needs: a matrix of distances, or where there are more cells their related pairs."""
    # Both ends of a pair and its distance; these from either end; the lowest of each end, and what counts as equal.
    related = (2 * INT64 + FLOAT64 + 2 * (3 * 8 + 5 * FLOAT64)) * size.n_pairs
    return related if size.n_cells > SMALL else 11 * size.n_cells**2


def _agglomeration(size: Size) -> Parts:
    """What a vote needs for its cells and pairs, in the moments of their agglomeration."""
    votes, cells, pairs = size.votes, size.n_cells, size.n_pairs
    chosen = size.chosen or cells
    own = INT32 * votes * chosen  # the codes of the chosen cells
    sums = (INT32 + FLOAT64) * pairs
    block = min(pairs, BLOCK)
    return {
        # Of each cell: clusters of each labeling, with a number; and the same by cluster.
        "estimating pairs": 2 * (INT32 + INT16) * votes * cells,
        # With two numbers that share the clusters, and one of them by cluster.
        "summing pairs": own + (2 * INT32 + 3 * FLOAT64) * votes * chosen + sums,
        # A block of rows, the names of both ends, products of weights; then means, the highest and where they are.
        "finding neighbours": own + sums + (INT32 + 4 * FLOAT64 + 3) * block,
        "merging": own + sums + int(LEFT_BY_A_ROUND * sums),
    }


def while_labelling(size: Size) -> Parts:
    """What is there when the last labeling gets its labels: its new ones are complete, the old ones not yet gone."""
    last = len(size.numbers) - 1
    clusters = size.numbers[last]
    label = size.label_bytes(clusters)
    # Clusters and refined labels, confidence and targets.
    new = 2 * label + INT32 + FLOAT32
    return _in_stage(size, last) | {
        "new labels of held samples": new * size.held,
        "targets of own samples": (INT32 * size.rows) if size.label_shards > 1 or size.processes > 1 else 0,
        "counting": 40 * min(size.held, COUNT_CHUNK) + 30 * min((clusters + 1) ** 2, TABLE_SIZE),
    }


def while_training(size: Size) -> Parts:
    """What is there during an epoch beside model, optimizer and batches.

    With one shard, drawing the order takes 16 bytes N more.
    """
    # A block of the order is there as Python's integers, whose lists take five times as much.
    order = INT64 * size.samples + 5 * INT64 * min(size.samples, ORDER_BLOCK)
    if size.label_shards > 1:
        order = INT32 * size.rows
    return between_stages(size) | {
        "targets of all labelings": INT32 * len(size.numbers) * size.held,  # side by side, as the loss looks them up
        "order of training": order,
    }


MOMENTS: dict[str, Callable[[Size], Parts]] = {
    "whitening": while_whitening,
    "clustering": while_clustering,
    "clustering 2K": lambda size: while_clustering(size, min(1, len(size.sought) - 1)),
    "clustering 4K": lambda size: while_clustering(size, len(size.sought) - 1),
    "members": while_clustering_members,
    "holding": while_holding,
    "counting": while_counting,
    "adding": while_adding_tables,
    "refining": while_refining,
    "labelling": while_labelling,
    "training": while_training,
}
MEASURED = {
    "clustering": ("whitening", "clustering", "clustering 2K", "clustering 4K", "members", "holding"),
    "labelling": ("counting", "adding", "refining", "labelling"),
    "training": ("training",),
}


def peak_bytes(size: Size, *moments: str) -> int:
    """Bytes of one process at the largest of these moments; of all, if none is named."""
    return max(sum(MOMENTS[moment](size).values()) for moment in moments or MOMENTS)


def block_bytes(size: Size, clusters: int) -> int:
    """Bytes of the scores that a thread of k-means holds at once."""
    height = max(1, size.block_scores // max(clusters, size.columns))
    return FLOAT32 * min(size.rows, height) * clusters
