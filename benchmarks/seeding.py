"""Greedy k-means++: seconds and potential beside scikit-learn's, on the same sample.

The sample is what KMeans would draw for its seeds: 64 rows per cluster, fewer with very many clusters. Both ways try
as many candidates per seed, take turns, and have the same number of threads. The potential is the mean squared distance
of the sample to its closest seed. Features have unit length: Gaussian blobs, as many as clusters, or columns whose
variance falls like 1, 1/2, 1/3 ... as that of a network's features.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import threadpoolctl
import torch
from sklearn.cluster import kmeans_plusplus

from hf_plr import KMeans
from hf_plr.clustering.seeding import draw_seeds

FEATURES = ("blobs", "power-law")
BLOCK_ROWS = 1 << 12


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000, help="number of samples (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=384, help="columns of the features (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=700, help="number of clusters (default: %(default)s)")
    parser.add_argument("--features", choices=FEATURES, default="blobs", help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="device of ours; scikit-learn runs on the CPU (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    args = parser.parse_args()
    result = compare(args.samples, args.dimension, args.clusters, args.features, args.turns, torch.device(args.device))
    if args.json:
        print(json.dumps(result))
        return
    print(f"{result['sample']} of {args.samples} samples x {args.dimension}, {args.clusters} clusters, {args.features}")
    for name in ("ours", "scikit_learn"):
        print(f"{name:<14}{result[f'{name}_seconds']:>10.2f} s   potential {result[f'{name}_potential']:.6g}")
    print(f"{'speedup':<14}{result['speedup']:>10.1f}     potential {result['potential_ratio']:.4f} of scikit-learn's")


def compare(
    n_samples: int, dimension: int, n_clusters: int, kind: str, turns: int, device: torch.device
) -> dict[str, Any]:
    """Figures of both ways by name: medians over the turns, each with a seed of its own; ratios inside each turn."""
    size = min(n_samples, KMeans(n_clusters)._seeding_samples())
    order = torch.randperm(n_samples, generator=torch.Generator().manual_seed(1))
    sample = make_features(n_samples, dimension, n_clusters, kind)[order[:size]]
    on_device = sample.to(device)
    ways: dict[str, Callable[[int], torch.Tensor]] = {
        "ours": lambda seed: draw_seeds(on_device, n_clusters, seed, None).cpu(),
        "scikit_learn": lambda seed: seed_by_scikit_learn(sample.numpy(), n_clusters, seed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    potentials: dict[str, list[float]] = {name: [] for name in ways}
    draw_seeds(on_device[: 2 * n_clusters], min(n_clusters, 20), 0, None)  # the first products set up their library
    for seed in range(turns):
        for name, way in ways.items():
            before = time.perf_counter()
            seeds = way(seed)
            seconds[name].append(time.perf_counter() - before)
            potentials[name].append(mean_distance(sample, seeds))
    result: dict[str, Any] = {
        "samples": n_samples,
        "dimension": dimension,
        "clusters": n_clusters,
        "features": kind,
        "sample": size,
        "turns": turns,
    }
    for name in ways:
        result[f"{name}_seconds"] = round(statistics.median(seconds[name]), 3)
        result[f"{name}_potential"] = statistics.median(potentials[name])
    result["speedup"] = round(median_ratio(seconds["scikit_learn"], seconds["ours"]), 2)
    result["potential_ratio"] = round(median_ratio(potentials["ours"], potentials["scikit_learn"]), 4)
    return result | {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}


def make_features(n_samples: int, dimension: int, n_clusters: int, kind: str) -> torch.Tensor:
    """Unit features, float32 of shape (N, D)."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n_samples, dimension, generator=generator)
    if kind == "blobs":
        centers = torch.randn(n_clusters, dimension, generator=generator)
        member = torch.randint(n_clusters, (n_samples,), generator=generator)
        features.mul_(0.5).add_(centers[member])
    else:
        features.div_(torch.arange(1, dimension + 1).sqrt())
    return torch.nn.functional.normalize(features, dim=1)


def seed_by_scikit_learn(sample: np.ndarray, n_clusters: int, seed: int) -> torch.Tensor:
    """Seeds (K, D) by scikit-learn, with as many threads as torch has."""
    with threadpoolctl.threadpool_limits(torch.get_num_threads()):
        seeds, _ = kmeans_plusplus(sample, n_clusters, random_state=seed)
    return torch.from_numpy(seeds)


def mean_distance(sample: torch.Tensor, seeds: torch.Tensor) -> float:
    """Mean squared distance of unit rows to their closest unit seed, on the CPU."""
    columns = seeds.T.contiguous()
    total = sum(
        float((2.0 - 2.0 * (sample[start : start + BLOCK_ROWS] @ columns).max(dim=1)[0]).double().sum())
        for start in range(0, len(sample), BLOCK_ROWS)
    )
    return total / len(sample)


def median_ratio(values: list[float], others: list[float]) -> float:
    """Median of the ratios, turn by turn."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


if __name__ == "__main__":
    main()
