"""What this machine does in a second, of one process and one thread, on blocks of features and on drawn labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.scaling.model import Size
from benchmarks.scaling.seconds import count_trials
from hf_plr.clustering.checks import find_nonfinite_rows
from hf_plr.clustering.ensemble import FINER, MEMBERS
from hf_plr.clustering.exact_sums import ClusterSums
from hf_plr.clustering.seeding import draw_seeds
from hf_plr.clustering.whitening import map_rows
from hf_plr.features.centering import center_features
from hf_plr.pseudo_labels.sampler import ClusterSampler
from hf_plr.refinement import PseudoLabelRefiner, cooccurrence
from hf_plr.refinement.agglomeration.related import RelatedClusters
from hf_plr.refinement.cooccurrence import CooccurrenceTable, iterate_chunks
from hf_plr.utils.precision import exact_products

GROUP_SIZE = 16  # samples of one cluster in a row, in the order of training
SEEDS = 512  # of a k-means++ that is timed: with few of them, starting takes most of the time
LARGE = 1_000  # clusters, so that the distances of their cells fit into no matrix
PARTED = 8  # directions by which members part the samples of a cluster


def measure_rates(size: Size) -> dict[str, float]:
    """All fields of `Rates` but `sending`."""
    return feature_rates(size) | label_rates(size.clusters) | consensus_rates(size.clusters)


def feature_rates(size: Size) -> dict[str, float]:
    """Rates of what is done with features, on one block of them."""
    height = size.block_scores // max(size.clusters, size.columns)
    features = torch.nn.functional.normalize(torch.randn(height, size.columns), dim=1)
    centers = torch.nn.functional.normalize(torch.randn(size.clusters, size.columns), dim=1).T.contiguous()
    scores = torch.empty(height, size.clusters)
    best, labels = torch.empty(height), torch.empty(height, dtype=torch.int64)
    labels_of_sums = torch.randint(size.clusters, (height,))
    sums = ClusterSums(size.clusters, size.columns, height, 1.0, features.device)
    matrix, mapped = torch.randn(size.columns, size.columns), torch.empty_like(features)
    sample = torch.randn(64 * SEEDS, size.columns)

    def embed() -> None:
        find_nonfinite_rows(features)
        center_features(features, out=features)

    with exact_products(features.device):
        of_products = cpu_seconds(lambda: torch.mm(features, centers, out=scores))
    of_scores = cpu_seconds(lambda: torch.max(scores, dim=1, out=(best, labels)))
    n_bytes = scores.nbytes

    def touch() -> None:
        torch.zeros(n_bytes, dtype=torch.uint8).add_(0)

    again = torch.zeros(n_bytes, dtype=torch.uint8)
    first_touch = cpu_seconds(touch) - cpu_seconds(lambda: again.add_(0))
    return {
        "products": 2.0 * height * size.columns * size.clusters / of_products,
        "scores": of_scores / scores.numel(),
        "entries": cpu_seconds(embed) / features.numel(),
        "mapped": cpu_seconds(lambda: map_rows(features, matrix, mapped)) / features.numel(),
        "sums": cpu_seconds(lambda: sums.add(features, labels_of_sums)) / features.numel(),
        "new_memory": max(first_touch, 0.0) / n_bytes,
        "trials": cpu_seconds(lambda: draw_seeds(sample, SEEDS, 0, None), turns=1)
        / (len(sample) * count_trials(SEEDS)),
    }


def label_rates(n_clusters: int, n_samples: int = 1 << 20) -> dict[str, float]:
    """Rates of refinement by projection, on labels of which a tenth moves to one of the clusters beside."""
    previous, current = draw_moved(n_clusters, n_samples)
    table = cooccurrence(previous, current)
    larger = cooccurrence(*draw_moved(LARGE, n_samples // 4))
    refiner = PseudoLabelRefiner()
    soft = refiner.refine_cells(larger).soft
    related = len(RelatedClusters(soft, larger.counts, "average")._first)
    return {
        "counting": cpu_seconds(lambda: cooccurrence(previous, current)) / n_samples,
        "locating": cpu_seconds(lambda: locate_all(table, previous, current)) / n_samples,
        "cells": cpu_seconds(lambda: refiner.refine_cells(table), turns=1) / len(table),
        "related": cpu_seconds(lambda: refiner.refine_cells(larger), turns=1) / max(related, 1),
    }


def draw_moved(n_clusters: int, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw previous and current labels, of which a tenth moves to one of the clusters beside."""
    rng = np.random.default_rng(0)
    previous = rng.integers(0, n_clusters, n_samples, dtype=np.int32)
    moved = (previous + rng.integers(-3, 4, n_samples, dtype=np.int32)) % n_clusters
    return previous, np.where(rng.random(n_samples) < 0.1, moved, previous)


def consensus_rates(n_clusters: int, n_samples: int = 1 << 16) -> dict[str, float]:
    """Rates of a consensus of fifteen labelings; each member parts all clusters in its own way."""
    rng = np.random.default_rng(0)
    n_clusters = min(n_clusters, n_samples // 256)  # so that a cluster has cells to agglomerate
    cluster = rng.integers(0, n_clusters, n_samples, dtype=np.int32)
    position = rng.normal(size=(n_samples, PARTED))
    refiner = PseudoLabelRefiner.from_preset("consensus")
    members = []
    for _ in range(refiner.generations * MEMBERS):
        direction = rng.normal(size=(n_clusters, PARTED))
        side = np.einsum("ij,ij->i", position, direction[cluster]) > 0
        members.append((FINER * cluster + side).astype(np.int32))
    labelings = [*members, *[cluster] * refiner.generations]
    table = cooccurrence(*labelings)
    n_labels = n_samples * len(labelings)
    # A cell of a cluster of its own has no pair but with itself.
    alone = np.arange(n_samples // 4, dtype=np.int32)
    apart = cooccurrence(*[alone] * len(labelings))
    of_cells = cpu_seconds(lambda: refiner.refine_cells(apart), turns=1) / len(apart)
    found = cpu_seconds(lambda: refiner.refine_cells(table), turns=1)
    return {
        "counting_votes": cpu_seconds(lambda: cooccurrence(*labelings), turns=1) / n_labels,
        "locating_votes": cpu_seconds(lambda: locate_all(table, *labelings), turns=1) / n_labels,
        "cells_of_votes": of_cells,
        "pairs": max(found - of_cells * len(table), 0.0) / count_pairs(table),
    }


def count_pairs(table: CooccurrenceTable) -> int:
    """Count pairs of cells that are together in the current clustering, each cell with itself among them."""
    return int((np.bincount(table.current).astype(np.int64) ** 2).sum())


def locate_all(table: CooccurrenceTable, *labelings: np.ndarray) -> None:
    """Locate the cells of all samples as refinement does, chunk by chunk."""
    for part in iterate_chunks(len(labelings[0])):
        table.locate(*(labels[part] for labels in labelings))


def order_seconds(n_clusters: int, n_samples: int = 1 << 20) -> float:
    """Seconds to draw an epoch's order, for each sample."""
    sampler = ClusterSampler(n_samples, GROUP_SIZE, seed=0)
    sampler.set_targets(np.random.default_rng(0).integers(0, n_clusters, n_samples, dtype=np.int32), epoch=0)
    return cpu_seconds(lambda: iter(sampler), turns=1) / n_samples


def cpu_seconds(work: Callable[[], Any], turns: int = 3) -> float:
    """Processor seconds of the fastest of some turns."""
    seconds = []
    for _ in range(turns):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)
