"""Lloyd's k-means: seconds a pass and share of the machine's product rate, beside scikit-learn and faiss.

All start from the same centroids and make the same number of passes over the same float32 features, taking turns; a
pass assigns every sample and moves the centroids. The rate of the machine is what torch reaches, in the same turn, on
nothing but the products of one pass (the better of its own routine and oneDNN's), in blocks shared out among threads as
KMeans does. faiss is measured where faiss-cpu is installed.

`--busy 1` keeps one core busy with another process for the time of the measurement. An operation that waits for all
threads then takes a time slice of the scheduler, however short it is. Compare the ratios, which are formed inside each
turn: seconds depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import sklearn.cluster
import threadpoolctl
import torch

from benchmarks.measuring import busy_cores
from hf_plr import KMeans
from hf_plr.clustering.blocks import iterate_rows
from hf_plr.clustering.rows import compute_block_height
from hf_plr.utils.precision import exact_products
from hf_plr.utils.threads import share_blocks


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000, help="number of samples (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=384, help="columns of the features (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=1000, help="number of clusters (default: %(default)s)")
    parser.add_argument("--passes", type=int, default=5, help="passes a turn (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="device of ours; the others run on the CPU (default: cpu)")
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy each (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    args = parser.parse_args()
    device = torch.device(args.device)
    with busy_cores(args.busy):
        result = compare(args.samples, args.dimension, args.clusters, args.passes, args.turns, device)
    result["busy"] = args.busy
    if args.json:
        print(json.dumps(result))
        return
    for name in ("ours", "ours_spherical", "scikit_learn", "faiss"):
        if f"{name}_seconds_a_pass" in result:
            print(
                f"{name:<16}{result[f'{name}_seconds_a_pass']:>9.3f} s a pass{result[f'{name}_gflops']:>10.0f} GFLOP/s"
                f"   {result[f'{name}_share_of_rate']:.0%} of the rate   inertia {result[f'{name}_inertia']:.6g}"
            )
    print(f"{'products alone':<16}{result['rate_gflops']:>31.0f} GFLOP/s")
    for name in ("scikit_learn", "faiss"):
        if f"speedup_over_{name}" in result:
            print(f"{result[f'speedup_over_{name}']:.2f} times as fast as {name}, {args.busy} cores kept busy")


def compare(
    n_samples: int, dimension: int, n_clusters: int, passes: int, turns: int, device: torch.device
) -> dict[str, Any]:
    """Figures of each way by name; times are medians over the turns, ratios are formed inside each turn."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(n_clusters, dimension, generator=generator)
    member = torch.randint(n_clusters, (n_samples,), generator=generator)
    features = torch.nn.functional.normalize(
        centers[member] + 1.5 * torch.randn(n_samples, dimension, generator=generator), dim=1
    )
    start = features[torch.randperm(n_samples, generator=generator)[:n_clusters]].clone()
    on_device = features.to(device)
    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(on_device, start, passes, spherical=False),
        "ours_spherical": lambda: ours(on_device, start, passes, spherical=True),
        "scikit_learn": lambda: scikit_learn(features.numpy(), start.numpy(), passes),
    }
    if importlib.util.find_spec("faiss") is not None:
        ways["faiss"] = lambda: faiss(features.numpy(), start.numpy(), passes)

    operations = 2.0 * n_samples * dimension * n_clusters / 1e9
    inertia: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    rates: list[float] = []
    for _ in range(turns):
        rates.append(operations / product_seconds(on_device, start.to(device)))
        for name, way in ways.items():
            before = time.perf_counter()
            inertia[name] = way()
            seconds[name].append((time.perf_counter() - before) / passes)
    result: dict[str, Any] = {
        "samples": n_samples,
        "dimension": dimension,
        "clusters": n_clusters,
        "passes": passes,
        "turns": turns,
        "rate_gflops": round(statistics.median(rates), 1),
    }
    for name, times in seconds.items():
        result[f"{name}_seconds_a_pass"] = round(statistics.median(times), 4)
        result[f"{name}_gflops"] = round(operations / statistics.median(times), 1)
        shares = [operations / t / rate for t, rate in zip(times, rates, strict=True)]
        result[f"{name}_share_of_rate"] = round(statistics.median(shares), 3)
        result[f"{name}_inertia"] = inertia[name]
    for name in ("scikit_learn", "faiss"):
        if name in seconds:
            ratios = [theirs / mine for theirs, mine in zip(seconds[name], seconds["ours"], strict=True)]
            result[f"speedup_over_{name}"] = round(statistics.median(ratios), 2)
    blas = [
        f"{each['internal_api']} {each.get('architecture', '')}".strip() for each in threadpoolctl.threadpool_info()
    ]
    return result | {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "blas": sorted(set(blas)),
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
    }


def ours(features: torch.Tensor, start: torch.Tensor, passes: int, spherical: bool) -> float:
    """Inertia after these passes, the last of which only assigns."""
    return KMeans(len(start), init=start, spherical=spherical, max_iter=passes - 1, tol=0.0).fit(features).inertia_


def scikit_learn(features: np.ndarray, start: np.ndarray, passes: int) -> float:
    """The same with scikit-learn, which also assigns once more at the end."""
    kmeans = sklearn.cluster.KMeans(
        len(start), init=start, n_init=1, max_iter=passes - 1, tol=0.0, algorithm="lloyd", copy_x=False
    )
    return float(kmeans.fit(features).inertia_)


def faiss(features: np.ndarray, start: np.ndarray, passes: int) -> float:
    """The same with faiss, without its default of at most 256 samples a centroid; it assigns in the end, too."""
    import faiss as faiss_library

    clustering = faiss_library.Clustering(features.shape[1], len(start))
    clustering.niter = passes - 1
    clustering.max_points_per_centroid = len(features)
    faiss_library.copy_array_to_vector(start.ravel(), clustering.centroids)
    index = faiss_library.IndexFlatL2(features.shape[1])
    clustering.train(features, index)
    distances, _ = index.search(features, 1)
    return float(distances.astype(np.float64).sum())


def product_seconds(features: torch.Tensor, centers: torch.Tensor) -> float:
    """Seconds of one pass's products alone, by the faster routine, in blocks of the size that KMeans takes."""
    columns = centers.T.contiguous()
    height = compute_block_height(features.device, max(centers.shape))

    def multiply(spans: Iterator[slice]) -> None:
        out = torch.empty(height, len(centers), device=features.device)
        for span in spans:
            torch.mm(features[span], columns, out=out[: span.stop - span.start])

    def products() -> float:
        before = time.perf_counter()
        share_blocks(iterate_rows(len(features), height), features.device, multiply)
        if features.device.type != "cpu":
            torch.cuda.synchronize(features.device)
        return time.perf_counter() - before

    own = min(products() for _ in range(2))
    with exact_products(features.device):
        return min(own, *(products() for _ in range(2)))


if __name__ == "__main__":
    main()
