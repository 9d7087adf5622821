"""Trains every family of backbones for an epoch under `accelerate launch`; writes what failed, as JSON by family."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from helpers.families import FAMILIES, make_data, make_trainer
from helpers.runs import weights


def main(output: str) -> None:
    state = PartialState(cpu=True)
    found: dict[str, str] = {}
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                settings = {"num_train_epochs": 1, "save_strategy": "no", "gradient_checkpointing": True}
                trainer = make_trainer(name, Path(folder), make_data(name))
                if trainer.model.supports_gradient_checkpointing:
                    trainer = make_trainer(name, Path(folder), make_data(name), **settings)
                trainer.train()
                trainer.extract_features()  # shares running statistics, as every stage does
                sums = gather_object([[float(value.double().sum()) for value in weights(trainer).values()]])
                found[name] = "" if sums[0] == sums[-1] else "the processes have different weights"
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    if state.is_main_process:
        Path(output).write_text(json.dumps(found))
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
