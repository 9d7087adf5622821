"""All weights, adapters or upper layers: what does each cost and give on a pretrained DINOv2?

  python -m benchmarks.adaptation --data DATA --json adaptation.jsonl
      every way and seed that is not there yet, each in a process of its own; DATA has cifar-5 and dinov2-small-saliency
  python -m benchmarks.adaptation --summary adaptation.jsonl
      the table

The data, the start, the steps and the arguments are those of the evidence's task "cifar-5"; only what is trained, and
for adapters the rate, differs. True labels score and do nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.evidence.runs import append_record, arguments_of, find_commit, read_out_trainer, rounded
from benchmarks.evidence.tasks import TASKS
from hf_plr import PLRTrainer
from hf_plr.trainer.progress_display import ProgressDisplay

TASK = "cifar-5"
HALF = 6  # of the twelve layers of a DINOv2-small
FULL = "all weights"
WAYS: dict[str, dict[str, Any]] = {
    "start": {},
    FULL: {},
    "LoRA 16, rate x 1": {"lora": True},
    "LoRA 16, rate x 3": {"lora": True, "learning_rate": 1e-4},
    "LoRA 16, rate x 10": {"lora": True, "learning_rate": 3e-4},
    "LoRA 16, rate x 30": {"lora": True, "learning_rate": 1e-3},
    "upper half": {"freeze_layers": HALF},
    "layer decay 0.75": {"layer_decay": 0.75},
}
SCORES = ("knn", "linear", "nmi")
COSTS = ("trained_parameters", "seconds", "peak_gib")


def main() -> None:
    """Run what is not there yet, then print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adaptation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with the data (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file of results, one line of JSON a run")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (default: %(default)s)")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="only print the table of this file")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SEED"), help="carry out one run in this process")
    args = parser.parse_args()
    if args.summary:
        print(summarise(read(args.summary)))
    elif args.json is None:
        parser.error("--json is needed: the file of results")
    elif args.one:
        append_record(args.json, carry_out(args.one[0], int(args.one[1]), args.data))
    else:
        for seed in range(args.seeds):
            for way in WAYS:
                if (way, seed) not in read(args.json):
                    command = [sys.executable, "-m", "benchmarks.adaptation", "--data", args.data, "--json", args.json]
                    subprocess.run([*map(str, command), "--one", way, str(seed)], check=True)
                    print(f"{way}, seed {seed}: {rounded(read(args.json)[way, seed]['scores'])}", flush=True)
        print(summarise(read(args.json)))


def carry_out(way: str, seed: int, data: Path) -> dict[str, Any]:
    """Train, and return the record; the peak is that of this process, its data and libraries included."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    task = TASKS[TASK]
    with tempfile.TemporaryDirectory() as folder:
        args = arguments_of(task, folder, seed, WAYS[way], 1, 1.0)
        trainer: Any = task.make(PLRTrainer, args, seed, data, Path(folder))
        trainer.remove_callback(ProgressDisplay)
        started = time.perf_counter()
        if way != "start":
            trainer.train()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        trained = sum(each.numel() for each in trainer.student.parameters() if each.requires_grad)
        readout = read_out_trainer(trainer)["centered"]
    return {
        "way": way,
        "seed": seed,
        "scores": {name: round(readout[name], 4) for name in (*SCORES, "weighted_knn", "few")},
        "trained_parameters": 0 if way == "start" else trained,
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
        "steps": trainer.state.global_step,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": find_commit(),
    }


def read(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Records by way and seed; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {(record["way"], record["seed"]): record for record in records}


def summarise(records: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Write the table: means over seeds, and the mean of paired differences from all weights with their range."""
    lines = [
        "| trained | seeds | kNN | linear | NMI | parameters | seconds | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        own = {seed: record for (other, seed), record in records.items() if other == way}
        if not own:
            continue
        cells = []
        for score in SCORES:
            values = {seed: record["scores"][score] for seed, record in own.items()}
            cell = f"{np.mean(list(values.values())):.3f}"
            full = {seed: records[FULL, seed]["scores"][score] for seed in own if (FULL, seed) in records}
            differences = [values[seed] - full[seed] for seed in full]
            if way not in (FULL, "start") and differences:
                cell += f" ({np.mean(differences):+.3f}: {min(differences):+.3f} to {max(differences):+.3f})"
            cells.append(cell)
        parameters, seconds, peak = (np.mean([record[name] for record in own.values()]) for name in COSTS)
        lines.append(f"| {way} | {len(own)} | {' | '.join(cells)} | {parameters:,.0f} | {seconds:.0f} | {peak:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
