"""Fingerprints of what short runs leave: sha256 of weights, labels, prototypes and scores, before and after a change.

    python -m benchmarks.fingerprint --output before.json            # at one commit
    python -m benchmarks.fingerprint --output after.json --compare before.json   # at another, on the same machine

Runs go through the recipes' command lines on one thread a process; those on Omniglot and FSDD need `--data`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

CHECKOUT = Path(__file__).resolve().parent.parent
DIGITS = ["recipes/vit_plr.py", "--num_train_epochs", "3", "--max_samples", "900", "--save_total_limit", "9"]
OMNIGLOT = [
    *("recipes/reid_plr.py", "--config", "recipes/configs/omniglot.yaml"),
    *("--source_epochs", "2", "--num_train_epochs", "3", "--steps_per_epoch", "6", "--max_samples", "600"),
    *("--clusterer", "dbscan", "--clusterer_kwargs", '{"eps": 0.5, "min_samples": 4, "k1": 20, "k2": 6}'),
]
FSDD = ["recipes/hubert_plr.py", "--max_samples", "160"]
RUNS: dict[str, list[str]] = {
    "digits auto": DIGITS,
    "digits slr": [*DIGITS, "--refinement", "slr"],
    "digits joint": [*DIGITS, "--refinement", "joint"],
    "digits none": [*DIGITS, "--refinement", "none"],
    "digits rlcc, EMA, features of the epoch": [
        *(*DIGITS, "--refinement", "rlcc", "--ema_decay", "0.9", "--feature_source", "epoch", "--score_every", "1"),
        *("--confidence_power", "1", "--min_confidence", "0.3", "--gradient_accumulation_steps", "2"),
    ],
    "digits reciprocal_hdbscan": [*DIGITS, "--clusterer", "reciprocal_hdbscan", "--num_train_epochs", "2"],
    "digits two processes": [*DIGITS, "--report", "no", "--per_device_train_batch_size", "64"],
    "digits resumed": DIGITS,
    "omniglot dbscan": OMNIGLOT,
    "fsdd utterances": [*FSDD, "--num_train_epochs", "2"],
    "fsdd frames": [*FSDD, "--objective", "frames", "--num_train_epochs", "3", "--relabel_every", "1"],
}


def main() -> None:
    """Run what is asked for and write or compare the fingerprints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file; runs that it has are not run again")
    parser.add_argument("--compare", type=Path, help="JSON file of another commit")
    parser.add_argument("--data", type=Path, help="folder with omniglot/ and fsdd/")
    parser.add_argument("--only", nargs="*", help="names of runs")
    args = parser.parse_args()
    found: dict[str, dict[str, str]] = json.loads(args.output.read_text()) if args.output.exists() else {}
    for name, command in RUNS.items():
        needs_data = name.startswith(("omniglot", "fsdd"))
        if name in found or (args.only and name not in args.only) or (needs_data and args.data is None):
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            run(name, [*command, *data_arguments(name, args.data), "--output_dir", str(out)], out)
            found[name] = fingerprint(out)
        args.output.write_text(json.dumps(found, indent=1))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    if args.compare is not None:
        sys.exit(compare(json.loads(args.compare.read_text()), found))


def data_arguments(name: str, data: Path | None) -> list[str]:
    """Arguments that name a run's data set."""
    if name.startswith("omniglot"):
        return ["--dataset_name", f"{data}/omniglot/target", "--source_dataset_name", f"{data}/omniglot/source"]
    return ["--dataset_name", f"{data}/fsdd"] if name.startswith("fsdd") else []


def run(name: str, command: list[str], out: Path) -> None:
    """Run a recipe; a resumed run goes on from the first checkpoint of a finished one."""
    if name == "digits resumed":
        launch(command)
        first = min(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        first.rename(out.parent / first.name)
        shutil.rmtree(out)
        out.mkdir()
        (out.parent / first.name).rename(out / first.name)
        launch([*command, "--resume_from_checkpoint"])
        return
    launch(command, n_processes=2 if name.endswith("two processes") else 1)


def launch(command: list[str], n_processes: int = 1) -> None:
    """Run a command of Python on one thread a process."""
    start = ["-m", "accelerate.commands.launch", "--config_file", "recipes/configs/accelerate/cpu_2.yaml"]
    before = [] if n_processes == 1 else start
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(CHECKOUT)}
    ended = subprocess.run(
        [sys.executable, *before, *command, "--cpu_threads", "1", "--use_cpu", "true"],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ended.stdout}\n{ended.stderr}")


def fingerprint(out: Path) -> dict[str, str]:
    """sha256 of everything that a run leaves and that its settings decide, by file."""
    found: dict[str, str] = {}
    for path in sorted(out.rglob("*")):
        if "checkpoint-" in str(path.relative_to(out)):
            continue
        if path.name in ("model.safetensors", "prototypes.safetensors", "centroids.safetensors"):
            found[str(path.relative_to(out))] = digest({k: np.asarray(v) for k, v in load_file(path).items()})
        elif path.name in ("pseudo_labels.parquet", "units.parquet"):
            found[str(path.relative_to(out))] = digest_table(pd.read_parquet(path))
        elif path.name == "metrics.json":
            scores = json.loads(path.read_text())["scores"]
            found[f"{path.relative_to(out)} scores"] = hashlib.sha256(
                json.dumps(scores, sort_keys=True).encode()
            ).hexdigest()
    return found


def digest(arrays: dict[str, np.ndarray]) -> str:
    """sha256 of arrays by name."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()


def digest_table(table: pd.DataFrame) -> str:
    """sha256 of a table's columns, some of which hold an array a row."""
    columns = {}
    for name in table:
        values = table[name]
        if name == "units":
            columns[name] = np.concatenate(values.to_list())
        elif values.dtype.kind in "iuf":
            columns[name] = values.to_numpy()
    return digest(columns)


def compare(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> int:
    """Print what is the same and what differs; returns the number of differences."""
    n_different = 0
    for name in before:
        if name not in after:
            print(f"{name}: not run")
            n_different += 1
            continue
        differing = [file for file in before[name] if before[name][file] != after[name].get(file)]
        n_different += len(differing)
        print(f"{name}: " + (f"DIFFERS in {', '.join(differing)}" if differing else f"same {len(before[name])} files"))
    return n_different


if __name__ == "__main__":
    main()
