"""A run of several processes that ends with its best checkpoint; run by the tests under `accelerate launch`.

`best_in_processes.py FOLDER` writes to FOLDER/found.json what each process takes for the best checkpoint, and whether
its weights are those of that one.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import AutoModel

from helpers import tiny
from hf_plr.data.example_data import digits


def main(folder: Path) -> None:
    """Train, and compare."""
    torch.set_num_threads(1)
    data = digits()
    trainer = tiny.image_trainer(
        folder / "out",
        data.select(range(64)),
        {"eval_dataset": data.select(range(64, 96))},
        per_device_train_batch_size=16,
        eval_strategy="epoch",
        load_best_model_at_end=True,
        report="no",
    )
    trainer.train()
    best = str(trainer.state.best_model_checkpoint)
    saved, weights = AutoModel.from_pretrained(best).state_dict(), trainer.student.state_dict()
    found = gather_object([(best, all(torch.equal(weights[name], value) for name, value in saved.items()))])
    if trainer.is_world_process_zero():
        (folder / "found.json").write_text(json.dumps(found))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    gc.collect()  # gloo's threads abort if what holds them goes as the interpreter shuts down
