"""Memory of a process and seconds of a stage as functions of samples, columns, clusters and processes.

A model made of formulas says what each process holds and how long each part takes. It is checked here: real stages
(k-means, refinement, prototypes) run on drawn features in fresh processes under torch.distributed (gloo), with one
thread each. Memory is how far a process's anonymous memory rises above what it had before the features were there, in
three moments: while k-means runs, when the stage ends, and in training with the epoch's order drawn. Seconds are of
the processor, so that neither other work on the machine nor waiting counts; what the machine does in a second is
measured in the same processes, on one block of features and on drawn labels.

  python -m benchmarks.scaling --json scaling.json
      measure, print what the model says beside it, and what limits a billion samples on 64 GPUs: some minutes
  python -m benchmarks.scaling --no_measuring --paper 1e7 384 5000 8
      only the second, for another size: samples, columns, clusters and GPUs
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling.limits import describe, limits
from benchmarks.scaling.model import Rates, Size, peak_bytes, stage_seconds

REPOSITORY = Path(__file__).parents[2]
MOMENTS = {"clustering": ("clustering",), "labelling": ("refining", "labelling"), "training": ("training",)}
SMALL_CHUNK = str(1 << 16)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=25_000, help="smallest number of samples (default: %(default)s)")
    parser.add_argument("--growth", type=int, nargs="+", default=[1, 4, 16], help="times these (default: 1 4 16)")
    parser.add_argument("--columns", type=int, default=64, help="columns of the features (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=200, help="number of clusters (default: %(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="processes (default: 1 2)")
    parser.add_argument(
        "--paper", type=float, nargs=4, metavar=("N", "D", "K", "P"), default=[1e9, 768, 30_000, 64],
        help="samples, columns, clusters and GPUs that are only calculated (default: 1e9 768 30000 64)",
    )  # fmt: skip
    parser.add_argument("--no_measuring", action="store_true", help="only calculate")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one line of JSON to this file")
    args = parser.parse_args()
    runs = []
    sizes = [(growth * args.samples, processes) for processes in args.processes for growth in args.growth]
    if not args.no_measuring:
        print(f"{args.columns} columns, {args.clusters} clusters; measured / model, MiB of a process and its seconds\n")
        print("| samples | processes | clustering | labelling | training | seconds |\n|---|---|---|---|---|---|")
        for samples, processes in sizes:
            runs.append(measure(Size(samples, args.columns, args.clusters, processes)))
            print(table_row(runs[-1]), flush=True)
        print(f"\nthe same labels with any number of processes: {'yes' if same_labels(runs) else 'NO'}\n")
    samples, columns, clusters, processes = map(int, args.paper)
    calculated = limits(samples, columns, clusters, processes)
    print(describe(calculated))
    if args.json is not None:
        line = {
            "columns": args.columns, "clusters": args.clusters, "runs": runs, "same_labels": same_labels(runs),
            "limits": calculated, "torch": torch.__version__,
        }  # fmt: skip
        args.json.write_text(json.dumps(line) + "\n", encoding="utf-8")


def measure(size: Size) -> dict[str, Any]:
    """One size on real processes, and what the model says of it: the most memory, and the mean of the seconds."""
    workers = run_workers(size)
    size = replace(size, cells=workers[0]["cells"])
    run: dict[str, Any] = {"samples": size.samples, "processes": size.processes, "cells": size.cells}
    for moment, of_model in MOMENTS.items():
        run[f"{moment}_mib"] = round(max(worker["peak_mib"][moment] for worker in workers), 2)
        run[f"{moment}_mib_model"] = round(peak_bytes(size, *of_model) / 2**20, 2)
    stages = [
        (stage, stage_seconds(size, Rates(**worker["rates"]), stage["passes"]))
        for worker in workers
        for stage in worker["stages"]
    ]
    parts = {part: sum(modelled[part] for _, modelled in stages) / len(stages) for part in stages[0][1]}
    return run | {
        "seconds": round(sum(stage["seconds"] for stage, _ in stages) / len(stages), 4),
        "seconds_model": round(sum(parts.values()), 4),
        "parts_model": parts,
        "seconds_on_clock": round(sum(stage["seconds_on_clock"] for stage, _ in stages) / len(stages), 4),
        "passes": [stage["passes"] for stage in workers[0]["stages"]],
        "rates": workers[0]["rates"],
        "labels": workers[0]["labels"],
    }


def run_workers(size: Size) -> list[dict[str, Any]]:
    """What each process of a measurement found, in process order."""
    # What is freed goes back at once, as it does with the arrays of a large run, which are allocated one by one.
    allocation = {"MALLOC_MMAP_THRESHOLD_": SMALL_CHUNK, "MALLOC_TRIM_THRESHOLD_": SMALL_CHUNK}
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--log-dir", folder, "--nproc-per-node"]
        worker = [str(size.processes), "-m", "benchmarks.scaling.worker", "--folder", folder]
        sizes = ["--samples", size.samples, "--columns", size.columns, "--clusters", size.clusters]
        run = subprocess.run(
            [sys.executable, *launcher, *worker, *map(str, sizes)],
            cwd=REPOSITORY,
            env={**os.environ, **allocation, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if run.returncode != 0:
            raise RuntimeError(f"the measurement of {size} failed:\n{run.stderr[-3000:]}")
        return [json.loads((Path(folder) / f"{index}.json").read_text()) for index in range(size.processes)]


def table_row(run: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [f"{run['samples']:,}", str(run["processes"])]
    for name in (*(f"{moment}_mib" for moment in MOMENTS), "seconds"):
        measured, modelled = run[name], run[f"{name}_model"]
        digits = 1 if name.endswith("mib") else 2
        cells.append(f"{measured:.{digits}f} / {modelled:.{digits}f} = {measured / modelled:.2f}")
    return f"| {' | '.join(cells)} |"


def same_labels(runs: list[dict[str, Any]]) -> bool:
    """Whether runs of the same samples ended with the same labels."""
    return len({run["samples"] for run in runs}) == len({(run["samples"], run["labels"]) for run in runs})


if __name__ == "__main__":
    main()
