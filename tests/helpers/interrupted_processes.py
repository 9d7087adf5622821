"""Under `accelerate launch`: whole runs against runs that SIGTERM interrupts in one of the processes.

`interrupted_processes.py FOLDER` trains each of SETTINGS without interruption, with one, and from where that ended, and
writes what differs to FOLDER/report.json.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from transformers import TrainerCallback

from helpers.runs import logged
from hf_plr import PLRTrainer, PLRTrainingArguments
from hf_plr.data.example_data import digits
from hf_plr.data.loading import draw_rows
from hf_plr.models.vision import small_vit, small_vit_processor
from hf_plr.trainer.callbacks import TrainingStopped
from hf_plr.trainer.checkpoints.finding import last_complete_checkpoint

# 203 samples in batches of 2 x 16: the last batch is 11 samples, 6 and 5.
SETTINGS: list[tuple[int, dict[str, Any]]] = [
    (7, {}),
    (10, {"dataloader_num_workers": 2, "ema_decay": 0.9}),
    (6, {"gradient_accumulation_steps": 2, "refinement": "joint"}),
    (9, {"label_shards": 2, "feature_source": "epoch", "per_device_eval_batch_size": 32}),
]


class TerminateOne(TrainerCallback):
    """SIGTERM reaches one process, in the step that ends at `step`."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def make(out: Path, callbacks: list[TrainerCallback], **settings: Any) -> PLRTrainer:
    """A trainer of a tiny ViT on 203 digits."""
    transformers.set_seed(0)
    args = PLRTrainingArguments(
        str(out),
        num_train_epochs=3,
        per_device_train_batch_size=16,
        num_clusters=12,
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    data = digits()
    return PLRTrainer(
        small_vit(16, 8, hidden_size=32, num_hidden_layers=1),
        args,
        data.select(draw_rows(len(data), 203, seed=0)),
        processing_class=small_vit_processor(16),
        callbacks=callbacks,
    )


def differences(one: PLRTrainer, other: PLRTrainer) -> list[str]:
    """Names of what is not the same bits in two finished runs, on any process."""
    found = [] if logged(one) == logged(other) else ["log"]
    for name, value in (one.model.state_dict() | _optimizer(one)).items():
        if not torch.equal(value, (other.model.state_dict() | _optimizer(other))[name]):
            found.append(name)
    for name, array in one.run_state().items():
        if not np.array_equal(array, other.run_state()[name]):
            found.append(name)
    return sorted(set(gather_object(found)))


def _optimizer(trainer: PLRTrainer) -> dict[str, torch.Tensor]:
    states = trainer.optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": value for index, state in states.items() for name, value in state.items()}


def main(folder: Path) -> None:
    """Train and compare."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    report = []
    for number, (step, settings) in enumerate(SETTINGS):
        whole = make(folder / f"{number}-whole", [], **settings)
        whole.train()
        out = folder / f"{number}-part"
        stopped = 0
        try:
            make(out, [TerminateOne(step)], **settings).train()
        except TrainingStopped as error:
            stopped = error.code
        checkpoint, _ = last_complete_checkpoint(out)
        resumed = make(out, [], **settings)
        resumed.train(resume_from_checkpoint=True)
        report.append(
            {
                "stopped": gather_object([stopped]),
                "checkpoint": None if checkpoint is None else checkpoint.name,
                "steps": resumed.state.global_step,
                "differences": differences(whole, resumed),
            }
        )
    if whole.is_world_process_zero():
        (folder / "report.json").write_text(json.dumps(report))
    whole.accelerator.wait_for_everyone()
    whole.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    gc.collect()  # as `run_recipe` does: gloo's threads abort if what holds them goes as the interpreter shuts down
