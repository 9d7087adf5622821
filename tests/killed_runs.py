"""Kills a training run again and again until it is done: `killed_runs.py FOLDER KILLS`.

FOLDER gets whole.npz of an uninterrupted run, killed-0.npz, ... of runs that were killed, and kills.json. Children are
forked, so that importing everything is paid for once.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from runs import logged

from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.checkpoints import ASIDE, checkpoints_in
from hf_plr.data.loading import digits
from hf_plr.models.backbone import small_vit, small_vit_processor

MOMENTS = ("any", "stage", "save", "any", "save")


def train(out: Path, result: Path) -> None:
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
        disable_tqdm=True,
        use_cpu=True,
    )
    model = small_vit(16, 8, hidden_size=64, num_hidden_layers=2)
    data = digits().select(range(403))
    trainer = PLRTrainer(model, args, data, processing_class=small_vit_processor(16))
    relabel = trainer._relabel

    def announced(epoch: int) -> dict[str, float]:
        (out / "stage").touch()
        try:
            return relabel(epoch)
        finally:
            (out / "stage").unlink()

    trainer._relabel = announced
    out.mkdir(exist_ok=True)
    trainer.train(resume_from_checkpoint=bool(checkpoints_in(out)))
    arrays = {f"weights.{name}": value.numpy() for name, value in trainer.model.state_dict().items()}
    log = np.array(json.dumps(logged(trainer), sort_keys=True))
    np.savez(result.with_suffix(".tmp.npz"), log=log, **arrays, **trainer.run_state())
    os.replace(result.with_suffix(".tmp.npz"), result)


def start(out: Path, result: Path) -> int:
    """Train in a child; returns its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            train(out, result)
            code = 0
        finally:
            os._exit(code)
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
            steps = [int(path.name.split("-")[1]) for path in checkpoints_in(out)]
            done.append((moment, max(steps, default=0)))
            continue
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != 0:
            sys.exit(f"resuming after kills {done} failed with {code}")
        if len(done) < kills:
            finished += 1
    (folder / "kills.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
