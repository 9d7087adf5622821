"""How many epochs should vote on the labels of one, and with which weights?

A task of `benchmarks.evidence` is trained once, and the rows that its stages cluster are kept. The same clusterings
of these rows are then refined anew in several ways: what differs is the refinement alone, which here has no say in the
training. Labels score what comes out, and the adjusted Rand index with the labels of the epoch before says how much
they settle.

  python -m benchmarks.epochs --task digits --epochs 30 --json FILE
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator

from benchmarks.evidence.runs import find_commit
from benchmarks.evidence.tasks import TASKS, arguments_of
from hf_plr import PLRTrainer, PseudoLabelRefiner
from hf_plr.clustering import as_clusterer, make_clusterers, make_ensemble
from hf_plr.evaluation.clusters import score_clusters
from hf_plr.pseudo_labels.stage import RefinementStage
from hf_plr.refinement import adjusted_rand
from hf_plr.training_args import AUTO_LABELINGS

WAYS: dict[str, dict[str, Any]] = {
    "consensus, 3 epochs alike": {"n_levels": 1, "generations": 3, "weight": None},
    "nested, 3 epochs alike": {"generations": 3, "weight": None},
    "nested, 5 epochs alike": {"weight": None},
    "nested, 5 epochs by agreement": {},
    "nested, 8 epochs alike": {"generations": 8, "weight": None},
    "nested, 8 epochs by agreement": {"generations": 8},
}
EARLY, LATE = slice(2, 7), slice(-5, None)  # epochs over which scores are averaged
SCORES = "purity", "pair_f1", "nmi"


def main() -> None:
    """Train, refine in all ways, print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.epochs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="digits", choices=list(TASKS), help="task (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of the training (default: %(default)s)")
    parser.add_argument("--clusters", type=int, help="number of clusters (default: that of the task)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with data (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line of JSON to this file")
    args = parser.parse_args()
    rows, truth, n_clusters = keep_rows(args.task, args.epochs, args.clusters, args.seed, args.data)
    found = compare(rows, truth, n_clusters, args.seed)
    print(f"{args.task}, {args.epochs} epochs, {len(truth):,} samples, {n_clusters} clusters\n")
    print(describe(found))
    if args.json is not None:
        record = {"task": args.task, "epochs": args.epochs, "seed": args.seed, "clusters": n_clusters, "ways": found}
        record |= {"torch": torch.__version__, "commit": find_commit()}
        with args.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def keep_rows(
    name: str, epochs: int, n_clusters: int | None, seed: int, data: Path
) -> tuple[list[torch.Tensor], np.ndarray, int]:
    """Train on a task with nested levels; returns the rows of each stage, true labels and the number of clusters."""
    kept: list[torch.Tensor] = []
    cluster = RefinementStage.cluster

    def keep(stage: RefinementStage, rows: torch.Tensor, epoch: int) -> np.ndarray:
        kept.append(rows.cpu().clone())
        return cluster(stage, rows, epoch)

    task = TASKS[name]
    changes: dict[str, Any] = {"num_train_epochs": epochs, "refinement": "nested"}
    changes |= {} if n_clusters is None else {"num_clusters": n_clusters}
    with tempfile.TemporaryDirectory() as folder:
        args = arguments_of(task, folder, seed, changes)
        trainer = task.make(PLRTrainer, args, seed, data, Path(folder))
        with mock.patch.object(RefinementStage, "cluster", keep):
            trainer.train()
        assert isinstance(trainer, PLRTrainer)
        assert trainer.evaluator is not None
        truth = trainer.evaluator.true_labels(trainer)
        found = trainer.labelings[0].stage.n_sought
        assert truth is not None
        assert found is not None
        return kept, truth, found


def compare(rows: list[torch.Tensor], truth: np.ndarray, n_clusters: int, seed: int) -> dict[str, dict[str, float]]:
    """Refine clusterings of the rows of each epoch in all ways; returns scores by way, see `follow`."""
    accelerator = Accelerator(cpu=True)
    coarsest, _, finest = make_clusterers(AUTO_LABELINGS, "kmeans", n_clusters, n_samples=len(truth), seed=seed)
    ensemble = make_ensemble(coarsest, len(truth), seed)
    assert ensemble is not None
    clusterings: dict[bool, list[np.ndarray]] = {True: [], False: []}  # beside members: the finest, or the coarsest
    for epoch, each in enumerate(rows):
        members = ensemble.fit_predict_shard(each, epoch, accelerator)
        for is_nested, clusterer in ((True, finest), (False, coarsest)):
            own = as_clusterer(clusterer).fit_predict_shard(each, accelerator)
            clusterings[is_nested].append(np.stack([np.asarray(own), *members], axis=1))
    found = {}
    for name, options in WAYS.items():
        refiner = PseudoLabelRefiner.from_preset("nested", **{"n_clusters": n_clusters, **options})
        found[name] = follow(refiner, clusterings[refiner.n_levels > 1], truth)
    return found


def follow(refiner: PseudoLabelRefiner, clusterings: list[np.ndarray], truth: np.ndarray) -> dict[str, float]:
    """Refine epoch by epoch; returns means of scores over early and over the last epochs, noise left out.

    "agreement" is the adjusted Rand index with the epoch before, of samples that are noise in neither.
    """
    labels = [refiner.refine(clusters).labels.copy() for clusters in clusterings]
    scored = []
    for before, now in zip([labels[0], *labels[:-1]], labels, strict=True):
        is_in, is_in_both = now >= 0, (now >= 0) & (before >= 0)
        scores = score_clusters(now[is_in], truth[is_in])
        agreement = adjusted_rand(before[is_in_both], now[is_in_both], np.ones(is_in_both.sum(), np.int64))
        scored.append({"agreement": agreement, **{name: scores[name] for name in SCORES}})
    return {
        f"{when}_{name}": round(float(np.mean([each[name] for each in scored[part]])), 4)
        for when, part in (("early", EARLY), ("late", LATE))
        for name in ("agreement", *SCORES)
    }


def describe(found: dict[str, dict[str, float]]) -> str:
    """A table of Markdown."""
    names = list(next(iter(found.values())))
    lines = [f"| way | {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * (1 + len(names)) + "|"]
    lines += [f"| {way} | {' | '.join(f'{scores[name]:.3f}' for name in names)} |" for way, scores in found.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
