"""Does `hf-plr assign` notice a class that training never saw? One class is left out of training, each in its turn.

  python -m benchmarks.novelty --data DATA --starts STARTS --json novelty.jsonl
      every class of every task that is not there yet, each in a process of its own; data and starts are those of the
      evidence (`python -m benchmarks.evidence --help`)
  python -m benchmarks.novelty --summary novelty.jsonl
      the table

Each run trains by default on what is left of the task's training samples, writes its output folder as a recipe does,
and `hf_plr.assign` compares the test samples of the classes it knows, and all samples of the one left out, with it.
True labels take the class out and score; they do nothing else. With the same features: Euclidean and cosine distance to
the nearest training sample, and to the nearest of the K cluster means.

The spoken digits begin with a backbone whose frames were trained on all digits, without labels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, concatenate_datasets, load_dataset
from sklearn.metrics import roc_auc_score

import hf_plr
from benchmarks.evidence.runs import append_record, arguments_of, find_commit
from benchmarks.evidence.tasks import TASKS
from hf_plr import PLRTrainer
from hf_plr.clustering.novelty import KNOWN_CLUSTERS_FILE, KnownClusters
from hf_plr.trainer.progress_display import ProgressDisplay

LABELS = {"magnetic-tile": "label", "cifar-5": "label", "fsdd": "digit"}
LEFT_OUT: dict[str, tuple[int, ...]] = {  # magnetic tiles without a defect are never new
    "magnetic-tile": (0, 1, 2, 3, 5),
    "cifar-5": (0, 1, 2, 3, 4),
    "fsdd": (0, 4, 7),
}
DRAWN = {"cifar-5": 2_500}  # training samples that are drawn, of all classes
MOST_KEPT = {"cifar-5": 2_000}  # of those that are left
FALSE_ALARMS = 0.01
WAYS = ("novelty", "nearest sample", "nearest sample, cosine", "nearest mean", "nearest mean, cosine")


def main() -> None:
    """Run what is not there yet, then print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.novelty",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)")
    parser.add_argument("--starts", type=Path, default=Path("starts"), help="folder of starts (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of results, one line of JSON a run")
    parser.add_argument("--tasks", nargs="+", default=list(LEFT_OUT), choices=LEFT_OUT, help="default: all")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="only print the table of this file")
    parser.add_argument("--one", nargs=3, metavar=("TASK", "CLASS", "SEED"), help="carry out one run in this process")
    args = parser.parse_args()
    if args.summary:
        print(summarise(read(args.summary)))
    elif args.json is None:
        parser.error("--json is needed: the file of results")
    elif args.one:
        task, left_out, seed = args.one
        append_record(args.json, carry_out(task, int(left_out), int(seed), args.data, args.starts))
    else:
        for run in [(task, each, seed) for seed in range(args.seeds) for task in args.tasks for each in LEFT_OUT[task]]:
            if run not in {(record["task"], record["class"], record["seed"]) for record in read(args.json)}:
                command = [sys.executable, "-m", "benchmarks.novelty", "--data", args.data, "--starts", args.starts]
                subprocess.run([*map(str, command), "--json", str(args.json), "--one", *map(str, run)], check=True)
                print(json.dumps(read(args.json)[-1]), flush=True)
        print(summarise(read(args.json)))


def carry_out(name: str, left_out: int, seed: int, data: Path, starts: Path) -> dict[str, Any]:
    """Train without a class, assign, and return the record."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    started = time.perf_counter()
    label = LABELS[name]
    splits = load_dataset(str(data / name))
    train, test = splits["train"], splits["test"]
    if name in DRAWN:
        train = train.shuffle(seed=0).select(range(DRAWN[name]))
    class_name = train.features[label].int2str(left_out)
    known_test = _select(test, label, left_out, False)
    new = concatenate_datasets([_select(split, label, left_out, True) for split in (train, test)])
    with tempfile.TemporaryDirectory() as folder:
        out, filtered = Path(folder) / "out", Path(folder) / "data"
        (filtered / name).mkdir(parents=True)
        kept = _select(train, label, left_out, False)
        kept = kept.select(draw_kept(len(kept), MOST_KEPT.get(name, len(kept))))
        kept.to_parquet(filtered / name / "train.parquet")
        known_test.to_parquet(filtered / name / "test.parquet")
        (filtered / "dinov2-small-saliency").symlink_to((data / "dinov2-small-saliency").absolute())
        task = TASKS[name]
        args = arguments_of(task, str(out), seed, {})
        trainer: Any = task.make(PLRTrainer, args, seed, filtered, starts)
        trainer.remove_callback(ProgressDisplay)
        trainer.train()
        trainer.save_model()
        trainer.save_labels(str(out))
        trainer.publisher.write_metrics(time.perf_counter() - started)
        shown = concatenate_datasets([known_test, new]).remove_columns(label)
        table = hf_plr.assign(out, shown, false_alarms=FALSE_ALARMS).table.to_pandas()
        known = KnownClusters.load(out / KNOWN_CLUSTERS_FILE)
        train_features, features = (
            _extract(trainer, trainer.train_dataset),
            _extract(trainer, trainer.open_samples(shown)),
        )
    is_new = np.arange(len(shown)) >= len(known_test)
    scores = {"novelty": table["novelty"].to_numpy(), **baselines(train_features, features, known, trainer)}
    flagged = (table["label"] == hf_plr.refinement.NOISE).to_numpy()
    classes = np.concatenate([known_test[label], new[label]])
    return {
        "task": name,
        "class": left_out,
        "class_name": class_name,
        "seed": seed,
        "samples": {"train": len(train_features), "known": int((~is_new).sum()), "new": int(is_new.sum())},
        "clusters": len(known.labels),
        "auroc": {way: round(float(roc_auc_score(is_new, values)), 4) for way, values in scores.items()},
        "false_alarms": int(flagged[~is_new].sum()),
        "noticed": int(flagged[is_new].sum()),
        "groups": score_groups(table["group"].to_numpy(), classes, left_out),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": find_commit(),
    }


def draw_kept(n_rows: int, n: int) -> np.ndarray:
    """Draw at most `n` of `n_rows` rows, ascending: the records are of these, whatever other draws become."""
    return np.sort(np.random.default_rng(0).permutation(n_rows)[:n])


def _select(split: Dataset, label: str, left_out: int, inside: bool) -> Dataset:
    """The samples of the class that is left out, or all others."""
    return split.select(np.flatnonzero((np.array(split[label]) == left_out) == inside))


def _extract(trainer: PLRTrainer, store: Any) -> torch.Tensor:
    """Features (n, D) in the order of the data set."""
    return trainer.extract_features(store).float().cpu()[torch.from_numpy(np.argsort(store.rows))]


def baselines(
    train: torch.Tensor, features: torch.Tensor, known: KnownClusters, trainer: PLRTrainer
) -> dict[str, np.ndarray]:
    """Distances (n,) of features (n, D) to the nearest training feature and cluster mean, by the name of the way."""
    assert trainer.pseudo_labels is not None
    labels = torch.from_numpy(trainer.pseudo_labels.labels[np.argsort(trainer.train_dataset.rows)])
    means = torch.stack([train[labels == label].mean(dim=0) for label in known.labels.tolist()])
    train_directions, directions = (
        torch.nn.functional.normalize(rows - known.center, dim=1) for rows in (train, features)
    )
    return {
        "nearest sample": torch.cdist(features, train).amin(dim=1).numpy(),
        "nearest sample, cosine": -(directions @ train_directions.T).amax(dim=1).numpy(),
        "nearest mean": torch.cdist(features, means).amin(dim=1).numpy(),
        "nearest mean, cosine": -(directions @ known.prototypes.T).amax(dim=1).numpy(),
    }


def score_groups(group: np.ndarray, classes: np.ndarray, left_out: int) -> dict[str, Any]:
    """Score the proposed groups.

    Args:
        group: number of the group per sample, -1 = none, shape (n,).
        classes: true class per sample, shape (n,).
        left_out: the class that is new.

    Returns:
        "number", "samples" in them, "purity" (the share of samples of their group's most frequent class; None without
        groups), and "new" (the share of samples of the class that is new).
    """
    grouped = group >= 0
    n = int(grouped.sum())
    largest = [np.bincount(classes[group == each]).max() for each in np.unique(group[grouped])]
    return {
        "number": len(largest),
        "samples": n,
        "purity": round(float(sum(largest)) / n, 4) if n else None,
        "new": round(float((classes[grouped] == left_out).mean()), 4) if n else None,
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Records; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def summarise(records: list[dict[str, Any]]) -> str:
    """Write the table: a row a class, a mean a task."""
    names = [
        "new class",
        "samples",
        *(f"AUROC: {way}" for way in WAYS),
        "false alarms",
        "noticed",
        "groups: purity, new",
    ]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for task in LEFT_OUT:
        rows = sorted((row for row in records if row["task"] == task), key=lambda row: (row["class"], row["seed"]))
        lines += [_format(row["class_name"] + " of " + task, [row]) for row in rows]
        if rows:
            lines.append(_format(f"**{task}**", rows))
    return "\n".join(lines)


def _format(name: str, rows: list[dict[str, Any]]) -> str:
    known, new = (sum(row["samples"][each] for row in rows) for each in ("known", "new"))
    false, noticed = (sum(row[each] for row in rows) for each in ("false_alarms", "noticed"))
    grouped = [row["groups"] for row in rows if row["groups"]["samples"]]
    n = sum(each["samples"] for each in grouped)
    number = sum(each["number"] for each in grouped)
    shares = [sum(each[share] * each["samples"] for each in grouped) / n if n else None for share in ("purity", "new")]
    cells = [
        f"{known} + {new}",
        *(f"{np.mean([row['auroc'][way] for row in rows]):.3f}" for way in WAYS),
        f"{false / known:.1%}",
        f"{noticed / new:.0%}",
        f"{number}: {shares[0]:.2f}, {shares[1]:.2f}" if n else "none",
    ]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
