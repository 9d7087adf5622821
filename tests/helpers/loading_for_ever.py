"""Extracts features with two workers again and again, after it has printed their numbers: `loading_for_ever.py OUT`."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from pathlib import Path

import torch

from helpers import tiny
from hf_plr.data.example_data import digits


def main(out: Path) -> None:
    """Extract until a signal ends it."""
    arguments = {"dataloader_num_workers": 2, "image_cache_gib": 0.0, "per_device_eval_batch_size": 1}
    trainer = tiny.image_trainer(out, digits().select(range(200)), report_to="none", **arguments)
    positions = torch.arange(len(trainer.train_dataset))
    while True:
        for number, _ in enumerate(trainer.extractor.batches(trainer.train_dataset, positions)):
            if number == 3:
                print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    main(Path(sys.argv[1]))
