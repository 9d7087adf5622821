"""What a stage of PLRTrainer with k-means costs one process, as formulas that follow the code.

N samples with D columns are shared by P processes, n = N / P each; there are K clusters and C occupied cells (pairs of
a previous and a current label). Features and what a pass of k-means needs are there for a process's own samples. Labels
are there for all samples on every process: training draws batches from the whole data set and looks up the targets of
any sample, and refinement compares whole labelings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hf_plr.clustering.exact_sums import BLOCK_ROWS
from hf_plr.clustering.kmeans import BLOCK_SCORES
from hf_plr.refinement.agglomeration import SMALL
from hf_plr.refinement.cooccurrence import COUNT_CHUNK, TABLE_SIZE

INT32, INT64, FLOAT32, FLOAT64 = 4, 8, 4, 8


@dataclass(frozen=True)
class Size:
    """How much there is: N, D, K, P and C.

    Attributes:
        samples, columns, clusters, processes: N, D, K and P.
        cells: C; None for seven a cluster, as where samples move between a cluster and the six beside it.
        block_scores: scores that a thread of k-means holds at once.
    """

    samples: int
    columns: int
    clusters: int
    processes: int
    cells: int | None = None
    block_scores: int = BLOCK_SCORES["cpu"]

    @property
    def rows(self) -> int:
        """Samples n of one process."""
        return -(-self.samples // self.processes)

    @property
    def n_cells(self) -> int:
        """C."""
        return 7 * self.clusters if self.cells is None else self.cells


# ---- bytes ---------------------------------------------------------------------------------------------------------


def between_stages(size: Size) -> dict[str, int]:
    """What a process keeps from one stage to the next."""
    n_all = size.samples
    return {
        # PseudoLabels: labels, previous_labels, raw_labels, targets and confidence. The refiner's last labels, the
        # sampler's targets and, on a CPU, the trainer's are the same arrays.
        "labels of all samples": (4 * INT32 + FLOAT32) * n_all,
        "labels of own samples": INT64 * size.rows,  # KMeans.labels_
        "centroids and prototypes": 2 * FLOAT32 * size.clusters * size.columns,
    }


def _block(size: Size) -> int:
    height = max(1, size.block_scores // max(size.clusters, size.columns))
    return FLOAT32 * min(size.rows, height) * size.clusters


def while_clustering(size: Size) -> dict[str, int]:
    """What is there while k-means assigns samples to centroids."""
    n, k_by_d = size.rows, size.clusters * size.columns
    return between_stages(size) | {
        "features": FLOAT32 * n * size.columns,
        # Norms and what rows are divided by; labels and scores of this pass and of the last; one temporary.
        "a pass over own samples": (2 * FLOAT32 + 2 * (INT64 + FLOAT32) + FLOAT32) * n,
        "a block of scores": _block(size),
        # Exact sums of this process and of all, the means in float64, new and transposed centroids; a block to add.
        "sums": (3 * FLOAT64 + 2 * FLOAT32) * k_by_d + FLOAT64 * min(n, BLOCK_ROWS) * size.columns,
    }


def while_refining(size: Size) -> dict[str, int]:
    """What is there while cells are agglomerated."""
    return between_stages(size) | {
        "features": FLOAT32 * size.rows * size.columns,
        # This epoch's raw and refined labels, and the refiner's own int64 copy of the raw ones.
        "new labels of all samples": (2 * INT32 + INT64) * size.samples,
        "agglomeration": 11 * min(size.n_cells, SMALL) ** 2,
    }


def while_labelling(size: Size) -> dict[str, int]:
    """What is there at the end of the stage: this epoch's labels are complete, the last ones are not yet gone."""
    chunk = 40 * min(size.samples, COUNT_CHUNK) + 30 * min((size.clusters + 1) ** 2, TABLE_SIZE)
    return between_stages(size) | {
        "features": FLOAT32 * size.rows * size.columns,
        # As while refining, without the refiner's copy, and confidence and targets.
        "new labels of all samples": (2 * INT32 + FLOAT32 + INT32) * size.samples,
        "counting": chunk,
    }


def while_training(size: Size) -> dict[str, int]:
    """What is there during an epoch beside model, optimizer and batches; drawing the order takes 16 bytes N more."""
    return between_stages(size) | {"order of training": INT64 * size.samples}


MOMENTS: dict[str, Callable[[Size], dict[str, int]]] = {
    "clustering": while_clustering,
    "refining": while_refining,
    "labelling": while_labelling,
    "training": while_training,
}


def peak_bytes(size: Size, *moments: str) -> int:
    """Bytes of one process at the largest of these moments; of all, if none is named."""
    return max(sum(MOMENTS[moment](size).values()) for moment in moments or MOMENTS)


# ---- seconds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second, or how long it takes for one thing, of one process.

    Attributes:
        products: floating-point operations a second, in products of features with centroids.
        scores: seconds to look at one score for the largest of a row.
        entries: seconds for one entry of the features: finite, centred, embedded, and added to the prototypes.
        sums: seconds to add one entry of the features to its cluster's exact sum.
        new_memory: seconds to touch one byte of new memory for the first time.
        counting: seconds to count one pair of labels.
        locating: seconds to look up the cell of one pair.
        cells: seconds to refine one cell.
        sending: seconds to send one byte to another process; 0 where waiting is not counted.
    """

    products: float
    scores: float
    entries: float
    sums: float
    new_memory: float
    counting: float
    locating: float
    cells: float
    sending: float = 0.0


def stage_seconds(size: Size, rates: Rates, passes: int) -> dict[str, float]:
    """Seconds of a stage without extraction, by part, with so many passes of k-means before the last assignment."""
    n, all_rows = size.rows, size.samples
    products = 2.0 * n * size.columns * size.clusters * (passes + 1)
    # The sums of a pass are reduced: each process sends and receives about twice its own.
    reduced = 2 * FLOAT64 * size.clusters * size.columns * passes if size.processes > 1 else 0
    gathered = (2 * INT32 + FLOAT32) * all_rows if size.processes > 1 else 0
    looked_at = n * size.clusters * (passes + 1) * rates.scores
    added = n * size.columns * rates.sums
    touched = (_block(size) + (INT64 + FLOAT32) * n) * (passes + 1) * rates.new_memory  # a pass has room of its own
    return {
        "embedding": n * size.columns * rates.entries,
        "k-means, products": products / rates.products,
        "k-means, the rest": looked_at + added + touched,
        # Refining counts and looks up all pairs on every process; agreement, confidence and targets are shared.
        "refinement, samples": (all_rows + n) * (rates.counting + rates.locating),
        "refinement, cells": size.n_cells * rates.cells,
        "between processes": (reduced + gathered) * rates.sending,
    }
