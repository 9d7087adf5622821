"""Kills a training run again and again until it is done: `killed_runs.py FOLDER KILLS`.

FOLDER gets whole.npz of an uninterrupted run, killed-0.npz, ... of runs that were killed, and kills.json; worker.npz of
a run whose data-loading workers were killed, and worker-died.txt with its error. Children are forked, so that importing
everything is paid for once.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import multiprocessing
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import TrainerCallback

from helpers.runs import logged
from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.data.example_data import digits
from hf_plr.models.vision import small_vit, small_vit_processor
from hf_plr.trainer.checkpoints.finding import list_checkpoints
from hf_plr.trainer.checkpoints.writing import ASIDE

MOMENTS = ("any", "stage", "save", "any", "save")


class KillWorkers(TrainerCallback):
    """Kills the processes that load data."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 9:
            for worker in multiprocessing.active_children():
                worker.kill()


def train(out: Path, result: Path, workers_die: bool = False) -> None:
    """Train from where the run in `out` ended, and write the outcome to `result`."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.set_seed(0)
    args = PLRTrainingArguments(
        str(out),
        num_train_epochs=4,
        per_device_train_batch_size=32,
        num_clusters=12,
        save_strategy="steps",
        save_steps=3,
        dataloader_num_workers=2 if workers_die else 0,
        disable_tqdm=True,
        use_cpu=True,
    )
    model = small_vit(16, 8, hidden_size=64, num_hidden_layers=2)
    data = digits().select(range(403))
    callbacks = [KillWorkers()] if workers_die else []
    trainer = PLRTrainer(model, args, data, processing_class=small_vit_processor(16), callbacks=callbacks)
    refresh_labels = trainer.refresh_labels

    def announced(epoch: int) -> None:
        (out / "stage").touch()
        try:
            refresh_labels(epoch)
        finally:
            (out / "stage").unlink()

    trainer.refresh_labels = announced
    out.mkdir(exist_ok=True)
    trainer.train(resume_from_checkpoint=bool(list_checkpoints(out)))
    arrays = {f"weights.{name}": value.numpy() for name, value in trainer.model.state_dict().items()}
    log = np.array(json.dumps(logged(trainer), sort_keys=True))
    np.savez(result.with_suffix(".tmp.npz"), log=log, **arrays, **trainer.run_state())
    os.replace(result.with_suffix(".tmp.npz"), result)


def start(out: Path, result: Path, workers_die: bool = False) -> int:
    """Train in a child; returns its number."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            train(out, result, workers_die)
        except BaseException:
            (out.parent / f"{out.name}-died.txt").write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    return child


def wait_until(moment: str, out: Path, child: int, draw: random.Random, seconds: float) -> bool:
    """Wait for a moment to kill at; returns False if the child is done before."""
    until = time.monotonic() + draw.uniform(0.1, 0.9) * seconds
    sign = {"stage": out / "stage", "save": out / ASIDE}.get(moment)
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until and (sign is None or sign.exists()):
            time.sleep(0.0 if sign is None else draw.uniform(0.0, 0.01))
            return True
        time.sleep(0.0005)
    return False


def main(folder: Path, kills: int) -> None:
    """Run without interruption, then with kills."""
    started = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(start(folder / "whole", folder / "whole.npz"), 0)[1]) == 0
    seconds = time.monotonic() - started
    draw = random.Random(0)
    done: list[tuple[str, int]] = []
    finished = 0
    while len(done) < kills or not (folder / f"killed-{finished}.npz").exists():
        out, result = folder / f"killed-{finished}", folder / f"killed-{finished}.npz"
        child = start(out, result)
        moment = MOMENTS[len(done) % len(MOMENTS)]
        if len(done) < kills and wait_until(moment, out, child, draw, seconds):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            (out / "stage").unlink(missing_ok=True)
            steps = [int(path.name.split("-")[1]) for path in list_checkpoints(out)]
            done.append((moment, max(steps, default=0)))
            continue
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0:
            sys.exit(f"resuming after kills {done} failed with {code}")
        if len(done) < kills:
            finished += 1
    (folder / "kills.json").write_text(json.dumps(done))
    for workers_die in (True, False):
        child = start(folder / "worker", folder / "worker.npz", workers_die)
        if (os.waitpid(child, 0)[1] != 0) != workers_die:
            sys.exit(f"a run whose workers {'die' if workers_die else 'live'} ended otherwise")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
