"""Runs of several processes that evaluate before they train; run by the tests under `accelerate launch`.

`evaluate_in_processes.py FOLDER` writes to FOLDER/found.json, by run, for each process whether its model was shared
with the others, and its weights as a number.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from helpers import tiny
from hf_plr.data.example_data import digits, make_synthetic_recordings
from hf_plr.trainer.base_trainer import BaseTrainer

ARGUMENTS = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "report": "no"}


def train_twice(trainer: BaseTrainer, look: Callable[[BaseTrainer], Any]) -> list[tuple[bool, float]]:
    """Train after a look at the features, go on from the checkpoint after another one, and say what each left."""
    found = []
    for resumes in (False, True):
        look(trainer)
        if resumes:
            trainer.args.num_train_epochs = 2
        trainer.train(resume_from_checkpoint=resumes)
        is_shared = isinstance(trainer.model_wrapped, torch.nn.parallel.DistributedDataParallel)
        weights = sum(float(value.double().abs().sum()) for value in trainer.student.parameters())
        found += gather_object([(is_shared, weights)])
    return found


def main(folder: Path) -> None:
    """Train each kind of trainer."""
    torch.set_num_threads(1)
    images, sounds = digits(), make_synthetic_recordings(n_per_class=3)
    data = {"eval_dataset": images.select(range(64, 96))}
    image = tiny.image_trainer(folder / "evaluate", images.select(range(64)), data, **ARGUMENTS)
    anew = {"auto_find_batch_size": True, "pair_weight": 0.0}  # each training wraps the model anew
    again = tiny.image_trainer(folder / "predict", images.select(range(64)), **anew, **ARGUMENTS)
    frames = tiny.sound_trainer(folder / "frames", sounds, trainer={"eval_dataset": sounds}, **ARGUMENTS)
    found = {
        "evaluate": train_twice(image, lambda trainer: trainer.evaluate()),
        "predict": train_twice(again, lambda trainer: trainer.predict(data["eval_dataset"])),
        "frames": train_twice(frames, lambda trainer: trainer.evaluate()),
    }
    if image.is_world_process_zero():
        (folder / "found.json").write_text(json.dumps(found))
    image.accelerator.wait_for_everyone()
    image.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    gc.collect()  # gloo's threads abort if what holds them goes as the interpreter shuts down
