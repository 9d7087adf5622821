"""Do numbers live on from run to run? Digits: 900 of them first, then all 1,797 by `--continue_from`.

  python -m benchmarks.continued --output DIR --json continued.jsonl
      every seed that is not there yet: four runs of the recipe with its defaults, on one thread each
  python -m benchmarks.continued --summary continued.jsonl
      the table

Per seed there are four runs: on 900 digits; continued with all; a run on all that knows nothing of the first, with
another seed; and a run on all with as many steps as the first two together. Of the first 900 samples, those of a
continued run keep a label if the number is the same. Clusters of the run that knows nothing have other numbers: it gets
the best assignment of its clusters to those of the first run (Hungarian algorithm on the 900), which nobody has
who does not keep both. True labels score and do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from benchmarks.evidence.runs import append_record, find_commit
from hf_plr.refinement import NOISE, cooccurrence
from hf_plr.refinement.run_events import find_run_events

CHECKOUT = Path(__file__).resolve().parent.parent
RECIPE = CHECKOUT / "recipes" / "vit_plr.py"
FIRST_SAMPLES, ALL_SAMPLES, EPOCHS = 900, 1797, 30
OTHER_SEED = 1000  # added for the run that knows nothing of the first
WAYS = ("first", "continued", "independent", "one run of as many steps")


def main() -> None:
    """Run what is not there yet, then print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.continued",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, help="folder for the runs; those that are finished there are not repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of results, one line of JSON a seed")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="(default: %(default)s)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="only print the table of this file")
    args = parser.parse_args()
    if args.summary:
        print(summarise(read(args.summary)))
        return
    if args.output is None or args.json is None:
        parser.error("--output and --json are needed: a folder for the runs and the file of results")
    for seed in args.seeds:
        if seed not in read(args.json):
            append_record(args.json, carry_out(args.output / f"seed-{seed}", seed))
    print(summarise(read(args.json)))


def carry_out(folder: Path, seed: int) -> dict[str, Any]:
    """Carry out the four runs of a seed; returns the record."""
    part, steps = ["--max_samples", str(FIRST_SAMPLES)], str(EPOCHS * (1 + FIRST_SAMPLES / ALL_SAMPLES))
    seconds = [
        train(folder / "first", seed, *part),
        train(folder / "continued", seed, "--continue_from", str(folder / "first")),
        train(folder / "independent", seed + OTHER_SEED),
        train(folder / "one", seed, "--num_train_epochs", steps),
    ]
    labels = {name: read_labels(folder / name) for name in ("first", "continued", "independent")}
    metrics = [
        json.loads((folder / name / "metrics.json").read_text()) for name in ("first", "continued", "independent")
    ]
    metrics.append(json.loads((folder / "one" / "metrics.json").read_text()))
    return {
        "seed": seed,
        "clusters": {name: int(each[each != NOISE].nunique()) for name, each in labels.items()},
        "kept_samples": {
            "continued": keep_numbers(labels["first"], labels["continued"]),
            "independent": match_by_hungarian(labels["first"], labels["independent"]),
        },
        "kept_clusters": {name: keep_clusters(labels["first"], labels[name]) for name in ("continued", "independent")},
        "knn": {
            way: round(each["scores"]["after"]["knn_accuracy"], 4) for way, each in zip(WAYS, metrics, strict=True)
        },
        "label_accuracy": {
            way: round(each["epochs"][-1]["score/pseudo_label_accuracy"], 4)
            for way, each in zip(WAYS, metrics, strict=True)
        },
        "steps": {way: each["steps"] for way, each in zip(WAYS, metrics, strict=True)},
        "seconds": {way: round(each, 1) for way, each in zip(WAYS, seconds, strict=True)},
        "commit": find_commit(),
    }


def train(folder: Path, seed: int, *arguments: str) -> float:
    """Run the recipe, unless it has finished there; returns the seconds, 0 if it had."""
    if (folder / "metrics.json").exists():
        return 0.0
    command = [sys.executable, RECIPE, "--output_dir", folder, "--seed", seed, "--overwrite", "--cpu_threads", 1]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    words = [*map(str, command), "--report", "no", "--save_strategy", "no", "--disable_tqdm", "true", *arguments]
    run = subprocess.run(words, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{words} failed: {run.stderr[-3000:]}")
    return time.perf_counter() - started


def read_labels(folder: Path) -> pd.Series:
    """Labels of a run by row of the data."""
    return pd.read_parquet(folder / "pseudo_labels.parquet").set_index("index")["label"]


def keep_numbers(first: pd.Series, other: pd.Series) -> float:
    """Share of the samples of the first run, those in clusters, that have the same number in the other."""
    first = first[first != NOISE]
    return round(float((first == other.loc[first.index]).mean()), 4)


def match_by_hungarian(first: pd.Series, other: pd.Series) -> float:
    """Share that has the same number under the best assignment of the other run's clusters to those of the first."""
    first = first[first != NOISE]
    overlaps = pd.crosstab(first, other.loc[first.index].rename("other")).drop(columns=NOISE, errors="ignore")
    rows, columns = linear_sum_assignment(overlaps.to_numpy(), maximize=True)
    return round(float(overlaps.to_numpy()[rows, columns].sum() / len(first)), 4)


def keep_clusters(first: pd.Series, other: pd.Series) -> float:
    """Share of the first run's clusters that go on as one, by the events between the runs."""
    before = first.reindex(other.index, fill_value=NOISE)
    ids = np.unique(first[first != NOISE])
    events = find_run_events(cooccurrence(before.to_numpy(), other.to_numpy()), ids)
    return round(events.counts()["kept"] / len(ids), 4)


def read(path: Path) -> dict[int, dict[str, Any]]:
    """Records by seed; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {record["seed"]: record for record in map(json.loads, lines)}


def summarise(records: dict[int, dict[str, Any]]) -> str:
    """Write the tables: of numbers and of scores, a line per seed and their means."""
    rows = list(records.values())
    lines = [
        "| seed | samples, continued | samples, independent (Hungarian) | clusters, continued | independent |",
        "|---|---|---|---|---|",
    ]
    names = [(kind, run) for kind in ("kept_samples", "kept_clusters") for run in ("continued", "independent")]
    table = np.array([[row[kind][run] for kind, run in names] for row in rows]).reshape(len(rows), len(names))
    lines += _format_rows(records, table)
    lines += ["", f"| seed | {' | '.join(f'kNN, {way}' for way in WAYS)} |", f"|---|{'---|' * len(WAYS)}"]
    lines += _format_rows(records, np.array([[row["knn"][way] for way in WAYS] for row in rows]).reshape(-1, len(WAYS)))
    return "\n".join(lines)


def _format_rows(records: dict[int, dict[str, Any]], table: np.ndarray) -> list[str]:
    lines = [f"| {seed} | {' | '.join(f'{x:.3f}' for x in row)} |" for seed, row in zip(records, table, strict=True)]
    return [*lines, f"| mean | {' | '.join(f'{x:.3f}' for x in table.mean(axis=0))} |"] if len(table) else lines


if __name__ == "__main__":
    main()
