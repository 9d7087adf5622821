"""Start the recipes as a user does, in a folder of their own, and read what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from safetensors.numpy import load_file

from benchmarks.gpu_check.findings import CHECKOUT, Bench
from benchmarks.gpu_check.machine import usable_cores
from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE
from hf_plr.report.file_names import METRICS_FILE

WATCHED_RECIPE = Path(__file__).with_name("watched_recipe.py")
CONFIGS = CHECKOUT / "recipes" / "configs" / "accelerate"
LAUNCHERS_OWN = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_")
LAST_CHARACTERS = 4000  # of an output; a launcher's own traceback has 2,000
OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


class LaunchError(RuntimeError):
    """A process that should have succeeded has not."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        status: its exit status, below 0 for a signal.
        output: what it printed, errors included.
        seconds: how long it took.
    """

    status: int
    output: str
    seconds: float


def run(
    command: Sequence[object], timeout: float, variables: Mapping[str, str] | None = None, fails: bool = False
) -> Ended:
    """Run a command from the checkout, without the network and without what a launcher of this process has set.

    Args:
        command: the program and its arguments.
        timeout: seconds; all processes that it has started end with it.
        variables: more environment variables.
        fails: it is to end by an error or a signal.

    Raises:
        LaunchError: if it takes longer, or ends otherwise than it should; with the end of its output.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(LAUNCHERS_OWN) and name not in OF_A_LAUNCH
    }
    path = os.pathsep.join(filter(None, [str(CHECKOUT), inherited.get("PYTHONPATH")]))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": path}
    words = [str(word) for word in command]
    started = time.perf_counter()
    process = subprocess.Popen(
        words,
        cwd=CHECKOUT,
        env={**inherited, **offline, **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        end_tree(process.pid)
        output, _ = process.communicate()
        raise LaunchError(f"no end after {timeout:.0f} s: {' '.join(words)}\n{output[-LAST_CHARACTERS:]}") from error
    except BaseException:
        end_tree(process.pid)
        raise
    ended = Ended(process.returncode, output, time.perf_counter() - started)
    if (ended.status != 0) != fails:
        raise LaunchError(f"ended with {ended.status}: {' '.join(words)}\n{output[-LAST_CHARACTERS:]}")
    return ended


def end_tree(pid: int) -> None:
    """Kill a process and all that descends from it."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)


def launch(
    bench: Bench,
    script: Path | str,
    *arguments: object,
    launcher: Sequence[object] = ("--num_processes", 1, "--num_machines", 1, "--dynamo_backend", "no"),
    timeout: float = 300.0,
    variables: Mapping[str, str] | None = None,
    fails: bool = False,
    own_arguments: Sequence[object] | None = None,
) -> Ended:
    """Run a script under `accelerate launch`.

    Args:
        bench: where.
        script: the script.
        *arguments: its arguments.
        launcher: arguments of the launcher.
        timeout, variables, fails: as for `run`.
        own_arguments: what the script gets for this device; by default what keeps a recipe on the CPU in a dry run.
    """
    command: list[object] = [sys.executable, "-m", "accelerate.commands.launch", *launcher]
    if "--mixed_precision" not in launcher:
        command += ["--mixed_precision", "no"]
    if own_arguments is None:
        own_arguments = [] if bench.is_gpu else ["--use_cpu", "true", "--cpu_threads", 1]
    return run([*command, script, *arguments, *own_arguments], timeout, variables, fails)


def launch_recipe(
    bench: Bench,
    recipe: str,
    out: Path,
    *arguments: object,
    watch: Mapping[str, object] | None = None,
    **options: Any,
) -> Ended:
    """Run a recipe of the checkout into a folder.

    Args:
        bench: where.
        recipe: its name, such as vit_plr.
        out: the folder.
        *arguments: further arguments.
        watch: what `watched_recipe.py` does beside it, as arguments of its `Watch`; None runs the recipe itself.
        **options: as for `launch`.
    """
    script: list[object] = [CHECKOUT / "recipes" / f"{recipe}.py"]
    if watch is not None:
        script = [WATCHED_RECIPE, json.dumps(dict(watch)), *script]
    return launch(
        bench, str(script[0]), *script[1:], *arguments, "--disable_tqdm", "true", "--output_dir", out, **options
    )


def concurrent_launches(bench: Bench) -> int:
    """Launches that this machine carries at a time."""
    return max(1, min(4, usable_cores() // 3))


# ---- what a run leaves ---------------------------------------------------------------------------------------------


def read_labels(out: Path) -> pd.DataFrame:
    """The pseudo-labels, one row a sample in the order of the data."""
    return pd.read_parquet(out / PSEUDO_LABELS_FILE)


def differing_share(first: Path, second: Path, column: str = "label") -> float:
    """Share of the samples whose labels differ."""
    return share(read_labels(first)[column].to_numpy(), read_labels(second)[column].to_numpy())


def share(first: np.ndarray, second: np.ndarray) -> float:
    """Share of the positions where two arrays differ; 1 if they have other shapes."""
    return float((first != second).mean()) if first.shape == second.shape else 1.0


def read_metrics(out: Path) -> dict[str, Any]:
    """Scores and settings of the run."""
    metrics: dict[str, Any] = json.loads((out / METRICS_FILE).read_text())
    return metrics


def read_weights(out: Path) -> dict[str, np.ndarray]:
    """The weights of the backbone that was saved."""
    return load_file(out / "model.safetensors")


def largest_difference(first: Path, second: Path) -> float:
    """Largest difference of a weight between two runs."""
    ours, theirs = read_weights(first), read_weights(second)
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


def same_bytes(first: Path, second: Path, *names: str) -> bool:
    """True if these files are equal."""
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
