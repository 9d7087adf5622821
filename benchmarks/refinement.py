"""Seconds and memory of a refinement, against scipy's agglomeration of all samples where that is possible.

Labels lie in memory-mapped files, and every measurement runs in a process of its own. Memory is what the process adds
to its anonymous pages while it refines (so neither the label files nor what was loaded before counts), and
`beyond_table_mib` takes the co-occurrence table off. The full way writes a soft label for every sample and clusters
those rows with `scipy.cluster.hierarchy`; the two take turns.

With `--members M` it is a preset of M labelings an epoch: with "consensus" the first has the given number of clusters,
with "nested" four times as many, and each of the others twice as many, by cutting the true clusters at random places.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score

from benchmarks.measuring import PeakMemory, in_new_process
from hf_plr.refinement import PseudoLabelRefiner, agglomeration

FULL_LIMIT = 20_000  # samples; scipy holds two matrices of half of N squared
FINEST = 4  # times as many clusters has the first labeling of nested levels
EXACT_LIMIT = 20_000  # cells; up to here folding is compared with the exact answer
BLOCK = 1 << 20


def main() -> None:
    """Read the arguments, measure, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, help="number of samples (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=100, help="clusters in either epoch (default: %(default)s)")
    parser.add_argument("--churn", type=float, default=0.1, help="share that changes cluster (default: %(default)s)")
    parser.add_argument(
        "--kinds", nargs="+", default=["local", "uniform"], choices=["local", "uniform"],
        help="where changing samples go: to one of the six clusters beside their own, or anywhere",
    )  # fmt: skip
    parser.add_argument("--linkage", default="average", help="linkage (default: %(default)s)")
    parser.add_argument("--members", type=int, default=1, help="labelings an epoch, more for a consensus (default: 1)")
    parser.add_argument("--preset", default="consensus", choices=["consensus", "nested"], help="with --members")
    parser.add_argument("--turns", type=int, default=3, help="refinements to take the median of (default: %(default)s)")
    parser.add_argument("--directory", help="where to put the label files, 24 bytes a sample (default: temporary)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON and nothing else")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        for kind in args.kinds:
            if args.members > 1:
                results[kind] = measure_consensus(Path(folder), args, kind)
                continue
            write_labels(Path(folder), args.samples, args.clusters, args.churn, kind)
            results[kind] = measure(Path(folder), args)
    # The kind that training shows comes first; its figures are those of the run.
    first = results[args.kinds[0]]
    line = {
        "samples": args.samples, "clusters": args.clusters, "churn": args.churn, "linkage": args.linkage,
        "members": args.members,
        **first, "kinds": results, "numpy": np.__version__, "machine": platform.machine(),
    }  # fmt: skip
    print(json.dumps(line) if args.json else json.dumps(line, indent=2))


def write_labels(folder: Path, n_samples: int, n_clusters: int, churn: float, kind: str) -> None:
    """Write previous.npy and current.npy: labels of two epochs between which a share of the samples moves."""
    rng = np.random.default_rng(0)
    arrays = [
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.int64, (n_samples,))
        for name in ("previous", "current")
    ]
    for start in range(0, n_samples, BLOCK):
        n = min(BLOCK, n_samples - start)
        previous = rng.integers(0, n_clusters, n)
        elsewhere = rng.integers(0, n_clusters, n) if kind == "uniform" else previous + rng.integers(-3, 4, n)
        current = np.where(rng.random(n) < churn, elsewhere % n_clusters, previous)
        for array, labels in zip(arrays, (previous, current), strict=True):
            array[start : start + n] = labels


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of one kind of churn."""
    full_is_possible = args.samples <= FULL_LIMIT
    ours: list[dict[str, Any]] = []
    full: list[dict[str, Any]] = []
    for _ in range(args.turns):
        ours.append(in_new_process(refine, folder, args.linkage, False))
        if full_is_possible:
            full.append(in_new_process(cluster_all_samples, folder, args.linkage))
    watched = in_new_process(refine, folder, args.linkage, True)  # watching memory takes time
    times = {name: statistics.median(run[name] for run in ours) for name in ("seconds", "first_seconds")}
    result = {**watched, **times}
    result["beyond_table_mib"] = round(result["peak_mib"] - result["table_mib"], 1)
    if full_is_possible:
        ratios = [slow["seconds"] / fast["seconds"] for slow, fast in zip(full, ours, strict=True)]
        result["full_seconds"] = statistics.median(run["seconds"] for run in full)
        result["full_peak_mib"] = full[0]["peak_mib"]
        result["speedup"] = round(statistics.median(ratios), 1)
        result["speedup_min"], result["speedup_max"] = round(min(ratios), 1), round(max(ratios), 1)
        result["memory_ratio"] = round(full[0]["peak_mib"] / max(result["peak_mib"], 0.1), 1)
        result["same_partition"] = full[0]["same_partition"]
    if result["exact"] and result["cells"] <= EXACT_LIMIT:
        result |= in_new_process(fold_anyway, folder, args.linkage)
    return result


def refine(folder: Path, linkage_name: str, watch_memory: bool) -> dict[str, Any]:
    """One refinement of labels in memory-mapped files, its labels written to another."""
    labels = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("previous", "current")]
    outputs = [
        np.lib.format.open_memmap(folder / f"refined.{i}.npy", "w+", np.int64, labels[0].shape) for i in range(2)
    ]
    memory = PeakMemory()
    seconds = []
    for _ in range(1 if watch_memory else 2):  # a process that has just begun is slower
        refiner = PseudoLabelRefiner(linkage=linkage_name, min_cluster_size=1)
        refiner.refine(labels[0], out=outputs[0])
        with memory if watch_memory else contextlib.nullcontext():
            started = time.perf_counter()
            result = refiner.refine(labels[1], out=outputs[1])
            seconds.append(time.perf_counter() - started)
    table = result.table
    return {
        "seconds": round(seconds[-1], 4),
        "first_seconds": round(seconds[0], 4),
        "peak_mib": memory.peak_mib,
        "table_mib": round((table.codes.nbytes + table.counts.nbytes + table.first_member.nbytes) / 2**20, 1),
        "cells": len(table),
        "exact": result.exact,
    }


def cluster_all_samples(folder: Path, linkage_name: str) -> dict[str, Any]:
    """The same on the soft label of every sample, with scipy, and whether the partitions are the same."""
    labels = [np.load(folder / f"{name}.npy") for name in ("previous", "current")]
    refiner = PseudoLabelRefiner(linkage=linkage_name, min_cluster_size=1)
    refiner.refine(labels[0])
    result = refiner.refine(labels[1])
    rows = result.soft_labels().toarray()
    with PeakMemory() as memory:
        started = time.perf_counter()
        expected = fcluster(linkage(rows, linkage_name), len(result.table.current_ids), "maxclust")
        seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 3),
        "peak_mib": memory.peak_mib,
        "same_partition": bool(adjusted_rand_score(expected, result.labels) == 1.0),
    }


def fold_anyway(folder: Path, linkage_name: str) -> dict[str, Any]:
    """Agreement (adjusted Rand) of a refinement that folds its cells to an eighth with the exact one."""
    labels = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("previous", "current")]
    refiners = [PseudoLabelRefiner(linkage=linkage_name, min_cluster_size=1) for _ in range(2)]
    for refiner in refiners:
        refiner.refine(labels[0])
    exact = refiners[0].refine(labels[1])
    refiners[1].max_cells = max(len(exact.table) // 8, 3 * len(exact.table.current_ids) // 2)
    agglomeration.MAX_RELATED_PAIRS = 0  # take the cheap exact way away
    folded = refiners[1].refine(labels[1])
    agreement = adjusted_rand_score(exact.labels, folded.labels)
    return {"folded_to": refiners[1].max_cells, "folded_agreement": round(agreement, 4)}


def measure_consensus(folder: Path, args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Figures of the refinement of several labelings an epoch, when there are all epochs."""
    options = {"n_clusters": args.clusters} if args.preset == "nested" else {}
    n_epochs = PseudoLabelRefiner.from_preset(args.preset, **options).generations
    pieces = [FINEST if args.preset == "nested" else 1] + [2] * (args.members - 1)
    write_members(folder, args.samples, args.clusters, args.churn, kind, pieces, n_epochs)
    ours = [in_new_process(refine_members, folder, args.preset, options, n_epochs, False) for _ in range(args.turns)]
    watched = in_new_process(refine_members, folder, args.preset, options, n_epochs, True)
    times = {name: statistics.median(run[name] for run in ours) for name in ("seconds", "processor_seconds")}
    return {**watched, **times}


def write_members(
    folder: Path, n_samples: int, n_clusters: int, churn: float, kind: str, pieces: list[int], n_epochs: int
) -> None:
    """Write truth.npy, epoch.0.npy and so on of shape (N, M): copies of the truth from which samples stray.

    Each cluster of the truth is cut into as many pieces as a member has.
    """
    rng = np.random.default_rng(0)
    truth, place = rng.integers(0, n_clusters, n_samples), rng.random(n_samples)
    np.save(folder / "truth.npy", truth)
    for epoch in range(n_epochs):
        labels = np.empty((n_samples, len(pieces)), dtype=np.int32)
        for member, n_pieces in enumerate(pieces):
            reach = rng.integers(0, n_clusters, n_samples) if kind == "uniform" else rng.integers(-3, 4, n_samples)
            cluster = np.where(rng.random(n_samples) < churn, (truth + reach) % n_clusters, truth)
            labels[:, member] = n_pieces * cluster
            for bounds in rng.random((n_pieces - 1, n_clusters)):
                labels[:, member] += place > bounds[cluster]
        np.save(folder / f"epoch.{epoch}.npy", labels)


def refine_members(
    folder: Path, preset: str, options: dict[str, Any], n_epochs: int, watch_memory: bool
) -> dict[str, Any]:
    """The last refinement of members, with its confidence, and how well it and its first member match the truth."""
    names = ["truth", *(f"epoch.{epoch}" for epoch in range(n_epochs))]
    truth, *epochs = (np.load(folder / f"{name}.npy") for name in names)
    refiner = PseudoLabelRefiner.from_preset(preset, **options)
    for labels in epochs[:-1]:
        refiner.refine(labels)
    memory = PeakMemory()
    with memory if watch_memory else contextlib.nullcontext():
        started, processor_started = time.perf_counter(), time.process_time()
        result = refiner.refine(epochs[-1])
        seconds, processor_seconds = time.perf_counter() - started, time.process_time() - processor_started
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor_seconds, 2),
        "peak_mib": memory.peak_mib,
        "cells": len(result.table),
        "exact": result.exact,
        "rand_of_first_member": round(adjusted_rand_score(truth, epochs[-1][:, 0]), 4),
        "rand_of_consensus": round(adjusted_rand_score(truth, result.labels), 4),
    }


if __name__ == "__main__":
    main()
