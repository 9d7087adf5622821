"""What makes a good tree of clusters? Its cut at the number of classes, by what the tree is made of.

  python -m benchmarks.hierarchy --output DIR --json hierarchy.jsonl
      digits and Fashion-MNIST, every seed that is not there yet
  python -m benchmarks.hierarchy --summary hierarchy.jsonl
      the table
  python -m benchmarks.hierarchy --scale
      seconds for a tree of 1,000 clusters and a cut of 1,000,000 samples

Each run trains with the task's arguments of `benchmarks.evidence` and the default method, and leaves in DIR what the
tree is made of, so that other ways can be compared later. Each line has clustering accuracy and NMI of ten clusters, of
every way. True labels score and do nothing else; a sample without a cluster counts as wrong.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from benchmarks.evidence.runs import append_record, find_commit
from benchmarks.evidence.tasks import TASKS, arguments_of
from hf_plr import PLRTrainer
from hf_plr.features.centering import center_features
from hf_plr.refinement import NOISE, cooccurrence
from hf_plr.refinement.cluster_tree import ClusterTree, compare_clusters, make_tree
from hf_plr.refinement.cluster_tree.likeness import measure_prototype_distances
from hf_plr.report.label_table import write_pseudo_labels
from hf_plr.report.level_table import write_level
from hf_plr.report.tree_file import read_tree, write_tree

CLASSES = 10
NAMES = ("digits", "fashion-mnist")
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the past
LABELINGS = 11  # that the default has at the end of a run
SCALE = (1_000, 1_000_000, 128)  # clusters, samples, dimensions


def main() -> None:
    """Run what is not there yet, then print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hierarchy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, help="folder for the runs; those that are there are not repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of results, one line of JSON a run")
    parser.add_argument("--tasks", nargs="*", default=NAMES, choices=NAMES, help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="(default: %(default)s)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="only print the table of this file")
    parser.add_argument("--scale", action="store_true", help="only measure seconds")
    args = parser.parse_args()
    if args.scale:
        print(json.dumps(measure_seconds(*SCALE)))
        return
    if args.summary:
        print(summarise(read(args.summary)))
        return
    if args.output is None or args.json is None:
        parser.error("--output and --json are needed: a folder for the runs and the file of results")
    for seed in args.seeds:
        for task in args.tasks:
            if (task, seed) not in read(args.json):
                append_record(args.json, carry_out(task, seed, args.output / f"{task}-{seed}.npz"))
    print(summarise(read(args.json)))


def carry_out(task: str, seed: int, path: Path) -> dict[str, Any]:
    """Train unless the run is there, and score; returns the record."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train(task, seed, path)
    with np.load(path) as arrays:
        found = score_ways(**arrays)
    return {"task": task, "seed": seed, **found, "commit": find_commit()}


def train(task: str, seed: int, path: Path) -> None:
    """Train, and leave what the tree is made of: see `score_ways`."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = TASKS[task].make(
            PLRTrainer, arguments_of(TASKS[task], folder, seed, {}), seed, Path(folder), Path(folder)
        )
        assert isinstance(trainer, PLRTrainer)
        trainer.train()
        assert trainer.evaluator is not None
        truth = trainer.evaluator.true_labels(trainer)
        features = center_features(trainer.extract_features().cpu())
    labeling = trainer.labelings[0]
    labels = labeling.pseudo_labels
    others = [*labeling.stage.refiner.history, labels.raw_labels, labels.previous_labels]
    ids = np.unique(labels.labels[labels.labels != NOISE])
    means = torch.from_numpy(average(features.rows.numpy(), labels.labels, ids))
    arrays: dict[str, Any] = {
        "labels": labels.labels,
        "others": np.stack(others),
        "truth": np.asarray(truth),
        "features": features.rows.numpy(),
        "in_space": trainer.cluster_space.map_means(means, features, trainer.accelerator).numpy(),
    }
    np.savez(path.with_name(f"{path.stem}.tmp.npz"), **arrays)
    path.with_name(f"{path.stem}.tmp.npz").replace(path)


def score_ways(
    labels: np.ndarray, others: np.ndarray, truth: np.ndarray, features: np.ndarray, in_space: np.ndarray
) -> dict[str, Any]:
    """Score ten clusters by every way.

    Args:
        labels: the run's last labels, -1 = noise, (N,).
        others: other labelings that the trainer has at the end of a run, (L, N).
        truth: true classes, (N,).
        features: centered, of unit length, (N, D).
        in_space: means of the clusters in the space of the clusters, ascending by label, (K, D).
    """
    ids, sizes = np.unique(labels[labels != NOISE], return_counts=True)
    tables = [cooccurrence(other, labels) for other in others]
    prototypes = {"prototypes": average(features, labels, ids), "prototypes in the clusters' space": in_space}
    ways = {"k-means of the features": KMeans(CLASSES, n_init=10, random_state=0).fit_predict(features)}
    for name, rows in prototypes.items():
        distances = measure_prototype_distances(rows)
        ways[f"average, {name}"] = cut(make_tree(ids, sizes, distances), labels)
        ward = ClusterTree.from_distances(ids, sizes, np.sqrt(2.0 * distances), "ward")
        ways[f"Ward, {name}"] = cut(ward, labels)
        for share in SHARES:
            tree = make_tree(ids, sizes, compare_clusters(rows, tables, share))
            ways["average, the past alone" if share == 1.0 else f"average, {name} and {share:g} of the past"] = cut(
                tree, labels
            )
    majority = np.zeros(len(labels), np.int64)  # the best that any cut could do with the clusters
    for label in ids:
        majority[labels == label] = np.bincount(truth[labels == label]).argmax()
    return {
        "clusters": len(ids),
        "scores": {way: score(truth, found) for way, found in ways.items()},
        "purity": round(float((majority == truth)[labels != NOISE].sum() / len(truth)), 4),
    }


def cut(tree: ClusterTree, labels: np.ndarray) -> np.ndarray:
    """Labels of the cut at the number of classes."""
    return tree.cut(min(CLASSES, len(tree))).apply(labels)


def average(features: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Directions of the means of clusters, (K, D)."""
    means = np.stack([features[labels == label].mean(axis=0) for label in ids])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def score(truth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Clustering accuracy by the best assignment, and NMI with noise as a cluster."""
    overlaps = np.zeros((truth.max() + 1, labels.max() + 1))
    np.add.at(overlaps, (truth[labels != NOISE], labels[labels != NOISE]), 1)
    accuracy = overlaps[linear_sum_assignment(overlaps, maximize=True)].sum() / len(truth)
    return {"accuracy": round(float(accuracy), 4), "nmi": round(normalized_mutual_info_score(truth, labels), 4)}


def measure_seconds(n_clusters: int, n_samples: int, width: int) -> dict[str, Any]:
    """Seconds of a tree, from prototypes and other labelings, and of a cut written to a file."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, n_clusters, n_samples).astype(np.int32)
    # Most samples have the same label elsewhere, the others one of a few that are near.
    others = [
        np.where(rng.random(n_samples) < 0.7, labels, (labels + rng.integers(0, 9, n_samples)) % n_clusters)
        for _ in range(LABELINGS)
    ]
    prototypes = rng.normal(size=(n_clusters, width))
    ids, sizes = np.unique(labels, return_counts=True)
    seconds: dict[str, Any] = {"clusters": n_clusters, "samples": n_samples}
    with tempfile.TemporaryDirectory() as folder:
        columns = {"label": labels, "previous_label": others[0], "confidence": np.ones(n_samples, np.float32)}
        write_pseudo_labels(f"{folder}/pseudo_labels.parquet", np.arange(n_samples), columns)
        clock = time.perf_counter()
        tables = [cooccurrence(other, labels) for other in others]
        seconds["tables"] = round(time.perf_counter() - clock, 2)
        clock = time.perf_counter()
        write_tree(folder, make_tree(ids, sizes, compare_clusters(prototypes, tables)))
        seconds["tree"] = round(time.perf_counter() - clock, 2)
        clock = time.perf_counter()
        write_level(folder, f"{folder}/ten.parquet", read_tree(folder).cut(CLASSES), {})
        seconds["cut"] = round(time.perf_counter() - clock, 2)
        seconds["tree.json KiB"] = round((Path(folder) / "tree.json").stat().st_size / 1024)
    return seconds


def read(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Records by task and seed; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(record["task"], record["seed"]): record for record in map(json.loads, lines)}


def summarise(records: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Write the table: a line per way, means over the seeds of each task."""
    tasks = sorted({task for task, _ in records})
    of_task = {task: [record for (name, _), record in sorted(records.items()) if name == task] for task in tasks}
    heads = [f"{task}, {measure} ({len(of_task[task])} seeds)" for task in tasks for measure in ("accuracy", "NMI")]
    lines = [f"| ten clusters by | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for way in dict.fromkeys(way for record in records.values() for way in record["scores"]):
        means = (
            f"{np.mean([record['scores'][way][measure] for record in of_task[task]]):.3f}"
            for task in tasks
            for measure in ("accuracy", "nmi")
        )
        lines.append(f"| {way} | {' | '.join(means)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
