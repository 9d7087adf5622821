"""A folder of JPEGs: seconds until the first training step, images a second, memory.

  python -m benchmarks.time_to_first_step --make FOLDER --images 200000
      makes the folder (`benchmarks.jpeg_folder`), in two minutes a core
  python -m benchmarks.time_to_first_step FOLDER --starts 2 --rates 4000 --json results.json

Each start is a process of its own, as a user's script is: it loads the folder, makes a trainer and trains until the
first step is done. Its parts follow each other: imports, loading the data set, making the trainer (which opens the
samples), what comes before the first stage (the pass over samples that nobody has decoded yet, whose features the stage
takes over), extraction, clustering, the rest of the stage, and the first batch with its step. A second start finds what
the first one has left in the caches of the output folder and of `datasets`; both find the files in the page cache.

The model is a small ViT at 64 px with patches of 16, so small that decoding takes most of the time; no decoded image
is kept (`image_cache_gib` 0). `benchmarks.loader_rates` measures images a second, for which views are not augmented,
so that the loops it is compared with do the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.jpeg_folder import make_jpeg_folder
from benchmarks.loader_model import BATCH_SIZE, IMAGE_SIZE, PATCH_SIZE
from benchmarks.measuring import TreeMemory


def main() -> None:
    """Read the arguments, make or measure, print."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="folder of JPEGs to measure on")
    parser.add_argument("--make", metavar="FOLDER", help="make a folder of JPEGs of 320 px, and nothing else")
    parser.add_argument("--images", type=int, default=200_000, help="images to make (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="processes that make them (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=1, help="starts, one after the other (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="workers of a start (default: the trainer's own default)")
    parser.add_argument("--rates", type=int, default=0, metavar="N", help="measure images a second on N images")
    parser.add_argument("--rate_workers", type=int, nargs="+", default=[0, 2], help="workers (default: 0 2)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each rate (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: the cores of this process)")
    parser.add_argument("--output_dir", help="output folder of the starts (default: a new one, removed afterwards)")
    parser.add_argument("--json", metavar="FILE", help="write everything to this file too")
    parser.add_argument("--is_start", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_jpeg_folder(args.make, args.images, args.processes)
        return
    if args.folder is None:
        parser.error("name a folder of JPEGs, or make one with --make")
    if args.is_start:
        print(json.dumps(start(args, started)))
        return
    result = measure(args)
    print(json.dumps(result, indent=2))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All that the arguments ask for."""
    result: dict[str, Any] = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "batch_size": BATCH_SIZE,
        "cores": count_cores(),
        "starts": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(args.starts):
            result["starts"].append(run_start(args.output_dir or temporary, args))
    if args.rates:
        from benchmarks.loader_rates import measure_rates

        use_threads(args)
        result["rates"] = measure_rates(args.folder, args.rates, args.rate_workers, args.turns)
    return result


def run_start(output_dir: str, args: argparse.Namespace) -> dict[str, Any]:
    """One start in a process of its own: its parts in seconds, and its memory."""
    command = [sys.executable, "-m", "benchmarks.time_to_first_step", args.folder, "--is_start"]
    command += ["--output_dir", output_dir]
    for name in ("workers", "threads"):
        if getattr(args, name) is not None:
            command += [f"--{name}", str(getattr(args, name))]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with TreeMemory(process.pid) as memory:
        output, _ = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        sys.exit(f"the start failed with {process.returncode}")
    parts = json.loads(output.splitlines()[-1])
    return parts | {"until_the_end": round(seconds, 1), "peak_mib": memory.peaks}


def start(args: argparse.Namespace, started: float) -> dict[str, Any]:
    """Load, make the trainer, train one step; seconds of each part."""
    import transformers

    from hf_plr import PLRTrainer, PLRTrainingArguments
    from hf_plr.data.loading import load_splits
    from hf_plr.models.vision import small_vit, small_vit_processor
    from hf_plr.trainer.progress_display import ProgressDisplay

    class Moments(transformers.TrainerCallback):
        """Notes when the stage begins and when the first step is done, which ends the run."""

        stage = first_step = 0.0

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.stage = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.first_step = time.perf_counter()
            control.should_training_stop = True
            control.should_save = control.should_log = False

        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = control.should_log = False

    transformers.logging.set_verbosity_error()
    use_threads(args)
    imported = time.perf_counter()
    images = load_splits(args.folder, kind="image")["train"]
    loaded = time.perf_counter()
    transformers.set_seed(0)
    arguments: dict[str, Any] = {} if args.workers is None else {"dataloader_num_workers": args.workers}
    moments = Moments()
    trainer = PLRTrainer(
        small_vit(IMAGE_SIZE, PATCH_SIZE),
        PLRTrainingArguments(
            args.output_dir,
            per_device_train_batch_size=BATCH_SIZE,
            image_cache_gib=0,
            report="no",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **arguments,
        ),
        images,
        processing_class=small_vit_processor(IMAGE_SIZE),
        callbacks=[moments],
    )
    trainer.remove_callback(ProgressDisplay)
    made = time.perf_counter()
    trainer.train()
    stage = next(entry for entry in trainer.state.log_history if "plr/seconds" in entry)
    seconds = {
        "imports": imported - started,
        "load_data": loaded - imported,
        "make_trainer": made - loaded,
        "until_first_stage": moments.stage - made,  # samples that nobody has decoded yet are, and their features kept
        "extract": stage["plr/seconds_extract"],
        "cluster": stage["plr/seconds_cluster"],
        "rest_of_stage": stage["plr/seconds"] - stage["plr/seconds_extract"] - stage["plr/seconds_cluster"],
        "first_batch_and_step": moments.first_step - moments.stage - stage["plr/seconds"],
        "until_first_step": moments.first_step - started,
    }
    return {
        "images": len(images),
        "workers": trainer.args.dataloader_num_workers,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def use_threads(args: argparse.Namespace) -> None:
    """Let torch have as many threads as asked for, or as there are cores, whatever OMP_NUM_THREADS says."""
    import torch

    torch.set_num_threads(args.threads or count_cores())


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    main()
