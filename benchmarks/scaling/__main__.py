"""Memory of a process and seconds of a stage as functions of samples, columns, clusters and processes.

A model made of formulas says what each process holds and how long each part takes. It is checked here: real stages
(whitening, k-means of all labelings and of the ensemble, refinement, prototypes, metrics) as PLRTrainer makes them run
on drawn features in fresh processes under torch.distributed (gloo), with one thread each. Memory is how far a process's
anonymous memory rises above what it had before the features were there, in three moments: while the clusterings are
made, while they become labels, and in training with the epoch's order drawn. Seconds are of the processor, so that
neither other work on the machine nor waiting counts; what the machine does in a second is measured in the same
processes, on one block of features and on drawn labels. Cells of the co-occurrence table, pairs of them, and passes of
k-means are counted in the run and given to the model.

  python -m benchmarks.scaling --json scaling.json
      measure the default, nested and slr, print what the model says beside it, and what limits a billion samples
      on 64 GPUs
  python -m benchmarks.scaling --no_measuring --paper 1e7 1024 5000 8 --refinements consensus --layers 24
      only the second, for another size: samples, columns, clusters and GPUs, and another backbone
  python -m benchmarks.scaling --stage 1e6 384 1500 1
      seconds of a stage by part on this machine, one thread a process: calculated from measured rates
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

from benchmarks.scaling.limits import describe, limits, select_shards
from benchmarks.scaling.model import MEASURED, Size, peak_bytes
from benchmarks.scaling.rates import measure_rates
from benchmarks.scaling.seconds import Rates, seeding_seconds, stage_seconds
from hf_plr.clustering.rows import OTHER_BLOCK_SCORES

REPOSITORY = Path(__file__).parents[2]
SMALL_CHUNK = str(1 << 16)
REFINEMENTS = "consensus", "nested", "slr"
PASSES = 15  # of each k-means of a stage, where none was run


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=25_000, help="smallest number of samples (default: %(default)s)")
    parser.add_argument("--growth", type=int, nargs="+", default=[1, 16], help="times these (default: 1 16)")
    parser.add_argument("--columns", type=int, default=64, help="columns of the features (default: %(default)s)")
    parser.add_argument("--clusters", type=int, default=200, help="number of clusters (default: %(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="processes (default: 1 2)")
    parser.add_argument(
        "--refinements",
        nargs="+",
        default=list(REFINEMENTS),
        choices=list(REFINEMENTS),
        help="a consensus beside two finer labelings, nested levels, or one labeling (default: all)",
    )
    parser.add_argument("--label_shards", type=int, nargs="+", default=[1, 8], help="label shards (default: 1 8)")
    parser.add_argument(
        "--paper", type=float, nargs=4, metavar=("N", "D", "K", "P"), default=[1e9, 768, 30_000, 64],
        help="samples, columns, clusters and GPUs that are only calculated (default: 1e9 768 30000 64)",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, help="layers of the backbone (default: those of the ViT of this width)")
    parser.add_argument(
        "--stage", type=float, nargs=4, metavar=("N", "D", "K", "P"),
        help="calculate the seconds of a stage of the default on this machine, and nothing else",
    )  # fmt: skip
    parser.add_argument("--no_measuring", action="store_true", help="only calculate")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one line of JSON to this file")
    args = parser.parse_args()
    if args.stage is not None:
        samples, columns, clusters, processes = map(int, args.stage)
        print(describe_stage(Size(samples, columns, clusters, processes)))
        return
    runs = []
    sizes = [
        Size(growth * args.samples, args.columns, args.clusters, processes, refinement, shards)
        for refinement in args.refinements
        for growth in args.growth
        for processes in args.processes
        for shards in args.label_shards
    ]
    if not args.no_measuring:
        print(f"{args.columns} columns, {args.clusters} clusters; measured / model, MiB of a process and its seconds\n")
        names = ["refinement", "samples", "processes", "label shards", *MEASURED, "seconds"]
        print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
        for size in sizes:
            runs.append(measure(size))
            print(table_row(runs[-1]), flush=True)
        print(f"\nthe same labels with any number of processes: {'yes' if same_labels(runs) else 'NO'}\n")
    samples, columns, clusters, processes = map(int, args.paper)
    calculated = []
    for refinement in args.refinements:
        shards = select_shards(samples, processes)
        size = Size(samples, columns, clusters, processes, refinement, shards, block_scores=OTHER_BLOCK_SCORES)
        calculated.append(limits(size, args.layers))
        print(describe(calculated[-1]), end="\n\n")
    if args.json is not None:
        line = {
            "columns": args.columns, "clusters": args.clusters, "runs": runs, "same_labels": same_labels(runs),
            "limits": calculated, "torch": torch.__version__,
        }  # fmt: skip
        args.json.write_text(json.dumps(line) + "\n", encoding="utf-8")


def measure(size: Size) -> dict[str, Any]:
    """One size on real processes, and what the model says of it: the most memory, and the mean of the seconds."""
    workers = run_workers(size)
    counted = workers[0]["counted"]
    size = replace(size, **counted)
    run: dict[str, Any] = {name: getattr(size, name) for name in ("refinement", "samples", "processes", "label_shards")}
    run |= {"counted": counted}
    for moment, of_model in MEASURED.items():
        run[f"{moment}_mib"] = round(max(worker["peak_mib"][moment] for worker in workers), 2)
        run[f"{moment}_mib_model"] = round(peak_bytes(size, *of_model) / 2**20, 2)
    stages = [worker["stage"] for worker in workers]
    modelled = [stage_seconds(size, Rates(**each["rates"]), each["stage"]["passes"]) for each in workers]
    parts = {part: sum(each[part] for each in modelled) / len(modelled) for part in modelled[0]}
    return run | {
        "seconds": round(sum(stage["seconds"] for stage in stages) / len(stages), 4),
        "seconds_model": round(sum(parts.values()), 4),
        "parts_model": parts,
        "seconds_on_clock": round(sum(stage["seconds_on_clock"] for stage in stages) / len(stages), 4),
        "passes": stages[0]["passes"],
        "rates": workers[0]["rates"],
        "labels": workers[0]["labels"],
    }


def run_workers(size: Size) -> list[dict[str, Any]]:
    """What each process of a measurement found, in process order."""
    # What is freed goes back at once, as it does with the arrays of a large run, which are allocated one by one.
    allocation = {"MALLOC_MMAP_THRESHOLD_": SMALL_CHUNK, "MALLOC_TRIM_THRESHOLD_": SMALL_CHUNK}
    with tempfile.TemporaryDirectory() as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--log-dir", folder, "--nproc-per-node"]
        worker = [size.processes, "-m", "benchmarks.scaling.worker", "--folder", folder]
        names = ("samples", "columns", "clusters", "refinement", "label_shards")
        sizes = [word for name in names for word in (f"--{name}", getattr(size, name))]
        run = subprocess.run(
            [sys.executable, *launcher, *map(str, [*worker, *sizes])],
            cwd=REPOSITORY,
            env={**os.environ, **allocation, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if run.returncode != 0:
            raise RuntimeError(f"the measurement of {size} failed:\n{run.stderr[-3000:]}")
        return [json.loads((Path(folder) / f"{index}.json").read_text()) for index in range(size.processes)]


def describe_stage(size: Size) -> str:
    """What a stage of this size takes on this machine, in words."""
    rates = Rates(**measure_rates(size))
    stage, seeding = stage_seconds(size, rates, PASSES), seeding_seconds(size, rates)
    lines = [
        f"{size.samples:,} samples, {size.columns} columns, {size.clusters:,} clusters, {size.processes} processes of "
        f"one thread, {PASSES} passes of each k-means, as many cells as samples (calculated)",
        "seconds of a stage without extraction",
        *(f"  {part:<42}{seconds:>12,.1f}" for part, seconds in stage.items()),
        f"  {'together':<42}{sum(stage.values()):>12,.1f}",
        "seconds of k-means++, at the first stage",
        *(f"  {part:<42}{seconds:>12,.1f}" for part, seconds in seeding.items()),
        f"MiB of a process at most: {peak_bytes(size) / 2**20:,.0f}",
    ]
    return "\n".join(lines)


def table_row(run: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [run["refinement"], f"{run['samples']:,}", str(run["processes"]), str(run["label_shards"])]
    for name in (*(f"{moment}_mib" for moment in MEASURED), "seconds"):
        measured, modelled = run[name], run[f"{name}_model"]
        digits = 1 if name.endswith("mib") else 2
        cells.append(f"{measured:.{digits}f} / {modelled:.{digits}f} = {measured / modelled:.2f}")
    return f"| {' | '.join(cells)} |"


def same_labels(runs: list[dict[str, Any]]) -> bool:
    """Whether runs of the same samples and preset ended with the same labels."""
    sizes = {(run["refinement"], run["samples"]) for run in runs}
    return len(sizes) == len({(run["refinement"], run["samples"], run["labels"]) for run in runs})


if __name__ == "__main__":
    main()
