"""How far should features be whitened before they are compared? Trained by default, read out with several shrinkages.

  python -m benchmarks.whitened --data DATA --json whitened.jsonl
      every task and seed that is not there yet; DATA as for benchmarks.evidence
  python -m benchmarks.whitened --summary whitened.jsonl
      the table

True labels score and do nothing else.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.evidence.readout import fit_centering, fit_whitening, read_out
from benchmarks.evidence.runs import Run, append_record, extract_labelled, find_commit, read_records, rounded
from benchmarks.evidence.tasks import TASKS, arguments_of
from benchmarks.evidence.ways import AS_IT_IS, DEFAULT
from hf_plr import PLRTrainer
from hf_plr.trainer.progress_display import ProgressDisplay

SHRINKAGES = (10.0, 3.0, 1.0, 0.3, 0.1)
SPACES = {"centered": fit_centering} | {
    f"{shrinkage:g}": functools.partial(fit_whitening, shrinkage=shrinkage) for shrinkage in SHRINKAGES
}
SCORES = {"knn": "kNN (5)", "linear": "linear probe", "few": "10 labels a class", "nmi": "NMI of k-means"}
CHOSEN = ("digits", "fashion-mnist", "cifar-5", "magnetic-tile", "omniglot")


def main() -> None:
    """Run what is not there yet, then print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.whitened",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)")
    parser.add_argument(
        "--starts", type=Path, default=Path("out/evidence"), help="folder for trained starts (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of results, one line of JSON a run")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=CHOSEN, help="which (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="only print the table of this file")
    args = parser.parse_args()
    if args.summary:
        print(summarise(args.summary))
        return
    if args.json is None:
        parser.error("--json is needed: the file of results")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for seed in range(args.seeds):
        for task in args.tasks:
            if Run(task, AS_IT_IS, DEFAULT, seed) not in read_records(args.json):
                append_record(args.json, carry_out(task, seed, args.data, args.starts))
    print(summarise(args.json))


def carry_out(name: str, seed: int, data: Path, starts: Path) -> dict[str, Any]:
    """Train by default, and return the record of the read-outs."""
    task = TASKS[name]
    with tempfile.TemporaryDirectory() as folder:
        trainer = task.make(PLRTrainer, arguments_of(task, folder, seed, {}), seed, data, starts)
        trainer.remove_callback(ProgressDisplay)
        trainer.train()
        readout = read_out(*extract_labelled(trainer), spaces=SPACES)
    return {
        **{"task": name, "variation": AS_IT_IS, "way": DEFAULT, "seed": seed, "budget": 1},
        "readout": {space: rounded(scores) for space, scores in readout.items()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": find_commit(),
    }


def summarise(path: Path) -> str:
    """A row a score and task: means over seeds by shrinkage."""
    records = read_records(path)
    seeds = {task: sorted(run.seed for run in records if run.task == task) for task in CHOSEN}
    lines = [["score", "data", "centered", *(f"s = {shrinkage:g}" for shrinkage in SHRINKAGES), "seeds"]]
    lines.append(["---"] * len(lines[0]))
    for score, title in SCORES.items():
        for task, of_task in seeds.items():
            found = [records[Run(task, AS_IT_IS, DEFAULT, seed)]["readout"] for seed in of_task]
            if found and score in found[0]["centered"]:
                means = [f"{np.mean([readout[space][score] for readout in found]):.3f}" for space in SPACES]
                lines.append([title, task, *means, str(len(of_task))])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
