"""Clustering by k-reciprocal neighbours: sparse (the package) against dense (the published way), alternately.

The dense way is written here after the published algorithm (Zhong et al., CVPR 2017, as Cluster Contrast released it):
one row of N weights a sample, an N x N matrix of Jaccard distances, scikit-learn's DBSCAN on it. Both get the same
neighbour lists. Features are Gaussian clusters of some 17 samples, the size of a Market-1501 identity.

With --copies the overlaps alone are computed of more samples, whose neighbourhoods are copies in a random order: the
time per sample should not grow with them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score

from benchmarks.measuring import PeakMemory, in_new_process
from hf_plr.clustering import ReciprocalDBSCAN
from hf_plr.clustering.jaccard import compute_overlaps, find_near_pairs, weigh_neighborhoods
from hf_plr.clustering.neighbors import find_nearest_neighbors
from hf_plr.clustering.reciprocal import cluster_by_density

DENSE_LIMIT = 20_000  # samples; the dense way holds three matrices of N squared


def main() -> None:
    """Read the arguments, measure, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=13_000, help="number of samples (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=384, help="columns of the features (default: %(default)s)")
    parser.add_argument("--eps", type=float, default=0.6, help="Jaccard distance (default: %(default)s)")
    parser.add_argument("--spread", type=float, default=0.9, help="spread of a cluster (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each way (default: %(default)s)")
    parser.add_argument("--copies", type=int, default=1, help="copies for the overlaps alone (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    args = parser.parse_args()
    size = (args.samples, args.dimension, args.eps, args.spread)
    line: dict[str, Any] = {"samples": args.samples, "dimension": args.dimension, "eps": args.eps}
    ways: dict[str, Callable[..., np.ndarray]] = {"sparse": cluster_sparsely}
    if args.samples <= DENSE_LIMIT:
        ways["dense"] = cluster_densely
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    labels: dict[str, np.ndarray] = {}
    for _ in range(args.turns):
        for name, way in ways.items():
            run = in_new_process(measure, way, False, *size)
            seconds[name].append(run["seconds"])
            labels[name] = run["labels"]
    peaks = {name: in_new_process(measure, way, True, *size)["peak_mib"] for name, way in ways.items()}
    for name in ways:
        line[f"{name}_seconds"] = float(np.median(seconds[name]))
        line[f"{name}_peak_mib"] = peaks[name]
    line["neighbor_seconds"] = in_new_process(search_seconds, *size)
    line["overlap_samples"] = args.samples * args.copies
    line["overlap_microseconds_a_sample"] = in_new_process(overlap_microseconds, *size, args.copies)
    line["clusters"] = int(labels["sparse"].max()) + 1
    line["noise"] = float((labels["sparse"] == -1).mean())
    if "dense" in ways:
        ratios = [dense / sparse for dense, sparse in zip(seconds["dense"], seconds["sparse"], strict=True)]
        line["speedup"] = round(float(np.median(ratios)), 1)
        line["speedup_min"], line["speedup_max"] = round(min(ratios), 1), round(max(ratios), 1)
        line["memory_ratio"] = round(peaks["dense"] / peaks["sparse"], 1)
        line["ari"] = adjusted_rand_score(labels["dense"], labels["sparse"])
        line["noise_equal"] = bool(((labels["dense"] == -1) == (labels["sparse"] == -1)).all())
    print(json.dumps(line) if args.json else json.dumps(line, indent=2))


def clustered_features(n_samples: int, dimension: int, spread: float) -> torch.Tensor:
    """Unit features, float32 of shape (N, D)."""
    generator = torch.Generator().manual_seed(0)
    n_clusters = max(1, n_samples // 17)
    centers = torch.randn(n_clusters, dimension, generator=generator)
    member = torch.randint(n_clusters, (n_samples,), generator=generator)
    features = centers[member] + spread * torch.randn(n_samples, dimension, generator=generator)
    return torch.nn.functional.normalize(features, dim=1)


def measure(
    way: Callable[..., np.ndarray], watch_memory: bool, n_samples: int, dimension: int, eps: float, spread: float
) -> dict[str, Any]:
    """Seconds or memory of one way, without the search for neighbours."""
    features = clustered_features(n_samples, dimension, spread)
    settings = ReciprocalDBSCAN(eps)
    neighbors = find_nearest_neighbors(features, settings.k1)
    memory = PeakMemory()
    with memory if watch_memory else contextlib.nullcontext():
        started = time.perf_counter()
        labels = way(features, neighbors, settings)
        seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 3), "peak_mib": memory.peak_mib, "labels": labels}


def search_seconds(n_samples: int, dimension: int, eps: float, spread: float) -> float:
    """Seconds of the exact search for neighbours, which both ways need."""
    features = clustered_features(n_samples, dimension, spread)
    started = time.perf_counter()
    find_nearest_neighbors(features, ReciprocalDBSCAN(eps).k1)
    return round(time.perf_counter() - started, 3)


def overlap_microseconds(n_samples: int, dimension: int, eps: float, spread: float, copies: int) -> float:
    """Microseconds per sample of the comparison of neighbourhoods, of copies of the samples in random order."""
    features = clustered_features(n_samples, dimension, spread)
    settings = ReciprocalDBSCAN(eps)
    neighbors = find_nearest_neighbors(features, settings.k1)
    weights = weigh_neighborhoods(features, neighbors, settings.k1, settings.k2)
    order = np.random.default_rng(0).permutation(n_samples * copies)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    copied = sp.csr_array(sp.block_diag([weights] * copies, format="csr"))[order]
    copied = sp.csr_array((copied.data, place[copied.indices].astype(np.int32), copied.indptr), shape=copied.shape)
    copied.sort_indices()
    started = time.perf_counter()
    compute_overlaps(copied, eps)
    return round((time.perf_counter() - started) / len(order) * 1e6, 1)


def cluster_sparsely(features: torch.Tensor, neighbors: np.ndarray, settings: ReciprocalDBSCAN) -> np.ndarray:
    """What `ReciprocalDBSCAN` does after its search."""
    weights = weigh_neighborhoods(features, neighbors, settings.k1, settings.k2)
    near = find_near_pairs(compute_overlaps(weights, settings.eps), settings.eps)
    return cluster_by_density(near, settings.min_samples)[0]


def cluster_densely(features: torch.Tensor, neighbors: np.ndarray, settings: ReciprocalDBSCAN) -> np.ndarray:
    """The published algorithm with N x N matrices."""
    n, k1 = len(features), settings.k1
    half = int(np.around(k1 / 2)) + 1
    reciprocal = [_reciprocal(neighbors, i, k1) for i in range(n)]
    reciprocal_half = [_reciprocal(neighbors, i, half) for i in range(n)]
    weights = np.zeros((n, n), dtype=np.float32)
    for i in range(n):
        members = reciprocal[i]
        joined = [members]
        for candidate in reciprocal[i]:
            theirs = reciprocal_half[candidate]
            if len(np.intersect1d(theirs, reciprocal[i])) > 2 / 3 * len(theirs):
                joined.append(theirs)
        members = np.unique(np.concatenate(joined))
        distances = 2 - 2 * (features[members] @ features[i])
        weights[i, members] = torch.softmax(-distances, dim=0).numpy()
    if settings.k2 > 1:
        averaged = np.empty_like(weights)
        for i in range(n):
            averaged[i] = weights[neighbors[i, : settings.k2]].mean(axis=0)
        weights = averaged
    has_weight = [np.flatnonzero(weights[:, j]) for j in range(n)]
    jaccard = np.empty((n, n), dtype=np.float32)
    for i in range(n):
        overlap = np.zeros(n, dtype=np.float32)
        for j in np.flatnonzero(weights[i]):
            overlap[has_weight[j]] += np.minimum(weights[i, j], weights[has_weight[j], j])
        jaccard[i] = 1 - overlap / (2 - overlap)
    np.maximum(jaccard, 0, out=jaccard)
    return DBSCAN(eps=settings.eps, min_samples=settings.min_samples, metric="precomputed").fit_predict(jaccard)


def _reciprocal(neighbors: np.ndarray, i: int, k: int) -> np.ndarray:
    forward = neighbors[i, :k]
    return forward[(neighbors[forward, :k] == i).any(axis=1)]


if __name__ == "__main__":
    main()
