"""How long the parts of a stage take one process, as formulas that follow the code, given what a machine does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scaling.model import FLOAT32, FLOAT64, INT32, INT64, Size, block_bytes
from hf_plr import KMeans
from hf_plr.clustering.whitening import FIT_ROWS, FIT_ROWS_PER_DIMENSION
from hf_plr.evaluation.scores import MAX_SAMPLES, RESTARTS
from hf_plr.refinement.agglomeration import SMALL

MAX_PASSES = KMeans(2).max_iter
STEPS_OF_PROBE = 300  # of its solver, at most
PASSES_OF_SCORES = 20  # of each of the k-means that score
CELL_BYTES = 2 * INT64  # beside the labels


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second, or how long it takes for one thing, of one process.

    Attributes:
        products: floating-point operations a second, in products of features with centroids.
        scores: seconds to look at one score for the largest of a row.
        entries: seconds for one entry of the features: finite, and centred.
        mapped: seconds for one entry of the features to be mapped into another space.
        sums: seconds to add one entry of the features to its cluster's exact sum.
        new_memory: seconds to touch one byte of new memory for the first time.
        trials: seconds of k-means++ for one sample and one candidate.
        counting: seconds to count one label of one sample, in a table of two labelings.
        locating: seconds to look up the cell of one label of one sample.
        cells: seconds to refine one cell by projection, where their distances fit into a matrix.
        related: seconds to refine one pair of related cells, where they do not.
        counting_votes, locating_votes: as counting and locating, in a table of a consensus, whose keys are bisected.
        cells_of_votes: seconds of a consensus for one cell, beside its pairs.
        pairs: seconds to agglomerate one pair of cells.
        sending: seconds to send one byte to another process; 0 where waiting is not counted.
    """

    products: float
    scores: float
    entries: float
    mapped: float
    sums: float
    new_memory: float
    trials: float
    counting: float
    locating: float
    cells: float
    related: float
    counting_votes: float
    locating_votes: float
    cells_of_votes: float
    pairs: float
    sending: float = 0.0


Seconds = dict[str, float]


def clusterings(size: Size) -> list[tuple[int, int]]:
    """Clusters of each clustering of a stage, and the samples of all processes that it is fitted on, in their order."""
    first, *finer = ((clusters, size.samples) for clusters in size.sought)
    return [first, *[(size.member_clusters, size.member_rows)] * size.members, *finer]


def stage_seconds(size: Size, rates: Rates, passes: Sequence[int] | int) -> Seconds:
    """Seconds of a stage without extraction, by part.

    Args:
        size: how much there is.
        rates: what the machine does in a second.
        passes: passes of each clustering before its last assignment; one number for all.
    """
    n, d = size.rows, size.columns
    all_clusterings = clusterings(size)
    passes = [passes] * len(all_clusterings) if isinstance(passes, int) else passes
    of_labelings = {"k-means, products": 0.0, "k-means, the rest": 0.0}
    of_members = {"members, products": 0.0, "members, the rest": 0.0}
    reduced = 0
    for i, ((clusters, fitted), turns) in enumerate(zip(all_clusterings, passes, strict=True)):
        target, name = (of_members, "members") if 0 < i <= size.members else (of_labelings, "k-means")
        products, rest = _clustering_seconds(size, rates, clusters, fitted, turns)
        target[f"{name}, products"] += products
        target[f"{name}, the rest"] += rest
        # The sums of a pass are reduced: each process sends and receives about twice its own.
        reduced += 2 * FLOAT64 * clusters * d * turns
    found = {"centering and means": n * d * (rates.entries + len(size.numbers) * rates.sums)}
    if size.is_whitened:
        drawn = min(size.samples, max(FIT_ROWS, FIT_ROWS_PER_DIMENSION * d))
        fit = 2 * 2.0 * drawn * d**2 / rates.products  # in float64, half as fast
        found["whitening"] = fit + n * d * rates.mapped
    found |= of_labelings | (of_members if size.members else {}) | _refinement_seconds(size, rates)
    sent = (reduced + _sent_labels(size)) if size.processes > 1 else 0
    return found | {"between processes": sent * rates.sending}


def _clustering_seconds(size: Size, rates: Rates, clusters: int, fitted: int, passes: int) -> tuple[float, float]:
    """Seconds of products, and of everything else, of one clustering; its last pass is over all samples."""
    rows, n = fitted / size.processes, size.rows
    looked_at = (rows * passes + n) * clusters
    products = 2.0 * looked_at * size.columns / rates.products
    # A pass has room of its own for a block of scores, labels and scores. All rows are added once, later those that
    # move, about as many again.
    room = (block_bytes(size, clusters) + (INT64 + FLOAT32) * rows) * (passes + 1)
    return products, looked_at * rates.scores + 2 * rows * size.columns * rates.sums + room * rates.new_memory


def _refinement_seconds(size: Size, rates: Rates) -> Seconds:
    """Seconds to refine the first labeling, to number and look up all, and to compare them."""
    held, n = size.held, size.rows
    pair = rates.counting + rates.locating
    # Finer labelings are counted against their last ones; the stage's metrics compare each process's own samples.
    others = (len(size.numbers) - 1) * (held + n) * pair + (1 + len(size.numbers) - 1) * n * rates.counting
    if not size.is_voted:
        return {
            "refinement, samples": (held + n) * pair + others,
            "refinement, cells": (size.n_pairs * rates.related if size.n_cells > SMALL else size.n_cells * rates.cells),
        }
    # Labels that continue are counted once more, to keep their numbers. Each level of a tree looks up its own.
    levels = len(size.numbers) if size.is_nested else 1
    votes = size.votes * (held * rates.counting_votes + levels * (held + n) * rates.locating_votes)
    return {
        "consensus, samples": votes + held * pair,
        "consensus, cells": size.n_cells * rates.cells_of_votes + size.n_pairs * rates.pairs,
        "finer labelings, and metrics": others,
    }


def _sent_labels(size: Size) -> int:
    """Bytes that a process sends or receives of labels, or with shards of their tables."""
    if size.label_shards > 1:
        return (INT32 * size.votes + CELL_BYTES) * size.n_cells
    of_finer = (INT32 * 2 + FLOAT32) * (len(size.numbers) - 1)
    return (size.clusters_bytes + INT32 + FLOAT32 + of_finer) * size.samples


def seeding_seconds(size: Size, rates: Rates) -> Seconds:
    """Seconds of k-means++ at the first stage, by number of clusters; members start from samples drawn at random."""
    found = {}
    for clusters in size.sought:
        sample = min(size.samples, KMeans(clusters)._seeding_samples()) / size.processes
        found[f"k-means++, {clusters:,} clusters"] = sample * count_trials(clusters) * rates.trials
    return found


def count_trials(clusters: int) -> int:
    """Count the candidates of k-means++: 2 + log K for each of K seeds."""
    return clusters * (2 + int(math.log(clusters)))


def scoring_seconds(size: Size, rates: Rates, tested: int, classes: int, probe_products: float) -> Seconds:
    """Seconds of one evaluation with a test split, after the features of both are there.

    Args:
        size: how much there is; all samples are the gallery, of which each process has its own.
        rates: what the machine does in a second.
        tested: test samples of all processes.
        classes: number of classes.
        probe_products: floating-point operations a second of the processor of the main process, which fits the probe.
    """
    cosines = float(tested) * size.rows
    assigned = float(tested) / size.processes * classes * PASSES_OF_SCORES * RESTARTS
    sample = min(tested, KMeans(classes)._seeding_samples()) / size.processes
    probed = min(size.samples, MAX_SAMPLES)
    return {
        "kNN": 2.0 * cosines * size.columns / rates.products + cosines * rates.scores,
        "k-means of the test split, ten starts": (
            2.0 * assigned * size.columns / rates.products
            + assigned * rates.scores
            + RESTARTS * sample * count_trials(classes) * rates.trials
        ),
        # The solver multiplies the samples by the weights and back, in float64.
        "linear probe, at most": 2 * 2 * 2.0 * STEPS_OF_PROBE * probed * size.columns * classes / probe_products,
    }
