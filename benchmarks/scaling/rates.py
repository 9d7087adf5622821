"""What this machine does in a second, of one process and one thread, on one block of features and on drawn labels."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.scaling.model import Size
from hf_plr.clustering.checks import find_nonfinite_rows
from hf_plr.clustering.cluster_means import average_clusters
from hf_plr.clustering.exact_sums import ClusterSums
from hf_plr.features.centering import center_features
from hf_plr.pseudo_labels.sampler import ClusterSampler
from hf_plr.refinement import PseudoLabelRefiner, cooccurrence
from hf_plr.refinement.cooccurrence import iterate_chunks
from hf_plr.utils.precision import exact_products

GROUP_SIZE = 16  # samples of one cluster in a row, in the order of training


def feature_rates(size: Size) -> dict[str, float]:
    """Rates of what is done with features, on one block of them."""
    height = size.block_scores // max(size.clusters, size.columns)
    features = torch.nn.functional.normalize(torch.randn(height, size.columns), dim=1)
    centers = torch.nn.functional.normalize(torch.randn(size.clusters, size.columns), dim=1).T.contiguous()
    scores = torch.empty(height, size.clusters)
    best, labels = torch.empty(height), torch.empty(height, dtype=torch.int64)
    labels_of_sums = torch.randint(size.clusters, (height,))
    sums = ClusterSums(size.clusters, size.columns, height, 1.0, features.device)

    def embed() -> None:
        find_nonfinite_rows(features)
        average_clusters(center_features(features, out=features).rows, labels_of_sums, size.clusters)

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
        "sums": cpu_seconds(lambda: sums.add(features, labels_of_sums)) / features.numel(),
        "new_memory": max(first_touch, 0.0) / n_bytes,
    }


def label_rates(n_clusters: int, n_samples: int = 1 << 20) -> dict[str, float]:
    """Rates of refinement, on labels of which a tenth moves to one of the clusters beside."""
    rng = np.random.default_rng(0)
    previous = rng.integers(0, n_clusters, n_samples, dtype=np.int32)
    moved = (previous + rng.integers(-3, 4, n_samples, dtype=np.int32)) % n_clusters
    current = np.where(rng.random(n_samples) < 0.1, moved, previous)
    table = cooccurrence(previous, current)

    def locate() -> None:
        for part in iterate_chunks(n_samples):
            table.locate(previous[part], current[part])

    return {
        "counting": cpu_seconds(lambda: cooccurrence(previous, current)) / n_samples,
        "locating": cpu_seconds(locate) / n_samples,
        "cells": cpu_seconds(lambda: PseudoLabelRefiner().refine_cells(table), turns=1) / len(table),
    }


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
