"""kNN classification: seconds and share of the machine's product rate, beside scikit-learn.

Both classify the same queries by the majority of 5 nearest samples of the same gallery, taking turns. Features are
Gaussian classes of unit length, float32. Ours also has the 20 neighbours of the weighted votes, from the same search,
and both votes are in its time; scikit-learn has its own brute-force search for 5. The rate of the machine is what torch
reaches, in the same turn, on nothing but the products of queries and gallery, in the blocks that the search takes.
Seconds of processors, of all threads together, compare the work where others share the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier

from hf_plr.clustering.neighbors import BLOCK_ELEMENTS, TILE_COLUMNS
from hf_plr.evaluation.neighbors import find_labeled_neighbors
from hf_plr.utils.precision import exact_products


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000, help="samples of the gallery (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=5_000, help="classified samples (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=384, help="columns of the features (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=100, help="number of classes (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="device of ours; scikit-learn runs on the CPU (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    args = parser.parse_args()
    result = compare(args.samples, args.queries, args.dimension, args.classes, args.turns, torch.device(args.device))
    if args.json:
        print(json.dumps(result))
        return
    for name in ("ours", "scikit_learn"):
        print(
            f"{name:<16}{result[f'{name}_seconds']:>9.3f} s{result[f'{name}_gflops']:>10.0f} GFLOP/s"
            f"   {result[f'{name}_share_of_rate']:.0%} of the rate   accuracy {result[f'{name}_accuracy']:.4f}"
        )
    print(f"{'products alone':<16}{result['rate_gflops']:>21.0f} GFLOP/s")
    print(f"speedup {result['speedup']}, {result['predicted_alike']:.4%} of the queries are predicted alike")


def compare(
    n_samples: int, n_queries: int, dimension: int, n_classes: int, turns: int, device: torch.device
) -> dict[str, Any]:
    """Figures of both ways by name; times are medians over the turns, ratios are formed inside each turn."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(n_classes, dimension, generator=generator)
    labels = torch.randint(n_classes, (n_samples + n_queries,), generator=generator)
    noise = torch.randn(n_samples + n_queries, dimension, generator=generator)
    features = torch.nn.functional.normalize(centers[labels] + 3.0 * noise, dim=1)
    gallery, queries = features[:n_samples].to(device), features[n_samples:].to(device)
    classes, true_classes = labels[:n_samples].numpy(), labels[n_samples:].numpy()

    def ours() -> np.ndarray:
        neighbors = find_labeled_neighbors(gallery, classes, queries)
        neighbors.vote_by_similarity()
        return neighbors.vote()

    def scikit_learn() -> np.ndarray:
        knn = KNeighborsClassifier(5, algorithm="brute").fit(features[:n_samples].numpy(), classes)
        return np.asarray(knn.predict(features[n_samples:].numpy()))

    operations = 2.0 * n_samples * n_queries * dimension / 1e9
    seconds: dict[str, list[float]] = {"ours": [], "scikit_learn": []}
    cpu_seconds: dict[str, list[float]] = {"ours": [], "scikit_learn": []}
    predicted: dict[str, np.ndarray] = {}
    rates: list[float] = []
    product_seconds(queries[:100], gallery)  # the first call decides about oneDNN
    for _ in range(turns):
        rates.append(operations / product_seconds(queries, gallery))
        for name, way in (("ours", ours), ("scikit_learn", scikit_learn)):
            started, started_cpu = time.perf_counter(), time.process_time()
            predicted[name] = way()
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(time.process_time() - started_cpu)
    result: dict[str, Any] = {
        "samples": n_samples,
        "queries": n_queries,
        "dimension": dimension,
        "classes": n_classes,
        "turns": turns,
        "rate_gflops": round(statistics.median(rates), 1),
    }
    for name, times in seconds.items():
        result[f"{name}_seconds"] = round(statistics.median(times), 3)
        result[f"{name}_cpu_seconds"] = round(statistics.median(cpu_seconds[name]), 3)
        result[f"{name}_gflops"] = round(operations / statistics.median(times), 1)
        shares = [operations / t / rate for t, rate in zip(times, rates, strict=True)]
        result[f"{name}_share_of_rate"] = round(statistics.median(shares), 3)
        result[f"{name}_accuracy"] = round(float((predicted[name] == true_classes).mean()), 4)
    ratios = [theirs / mine for theirs, mine in zip(seconds["scikit_learn"], seconds["ours"], strict=True)]
    return result | {
        "speedup": round(statistics.median(ratios), 2),
        "predicted_alike": float((predicted["ours"] == predicted["scikit_learn"]).mean()),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def product_seconds(queries: torch.Tensor, gallery: torch.Tensor) -> float:
    """Seconds of the products alone, in blocks of the size that the search takes."""
    width = min(len(gallery), TILE_COLUMNS)
    height = max(1, BLOCK_ELEMENTS // width)
    started = time.perf_counter()
    with exact_products(queries.device):
        for start in range(0, len(queries), height):
            for first in range(0, len(gallery), width):
                queries[start : start + height] @ gallery[first : first + width].T
    if queries.device.type == "cuda":
        torch.cuda.synchronize(queries.device)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
