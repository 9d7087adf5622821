"""What tests of interrupted runs share."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from hf_plr.trainer.base_trainer import BaseTrainer
from hf_plr.trainer.checkpoints.finding import last_complete_checkpoint

MEASURED = ("seconds", "runtime", "per_second")  # parts of the names of what a clock measures


class StopAt(TrainerCallback):
    """Stops after a step, as a machine that is taken away."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and state.epoch != int(state.epoch):
            control.should_save = control.should_log = False  # the epoch did not end: its machine is gone


def weights(trainer: BaseTrainer) -> dict[str, torch.Tensor]:
    """A copy of what is trained."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """All weights are the same bits."""
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


def logged(trainer: BaseTrainer) -> list[dict[str, Any]]:
    """The log without what a clock measures and without the summary of the last call of train()."""
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in MEASURED)}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]


def assert_same_run(whole: BaseTrainer, resumed: BaseTrainer) -> None:
    """Weights, optimizer, labels, prototypes and log of two finished runs are the same bits."""
    for one, other in (
        (whole.model.state_dict(), resumed.model.state_dict()),
        (whole.run_state(), resumed.run_state()),
        (_optimizer(whole), _optimizer(resumed)),
    ):
        assert one.keys() == other.keys()
        different = [name for name in one if not np.array_equal(np.asarray(one[name]), np.asarray(other[name]))]
        assert different == []
    assert logged(whole) == logged(resumed)


def _optimizer(trainer: BaseTrainer) -> dict[str, torch.Tensor]:
    checkpoint, _ = last_complete_checkpoint(trainer.args.output_dir)
    assert checkpoint is not None
    state = torch.load(os.path.join(checkpoint, "optimizer.pt"), weights_only=True)["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


class FallingScore:
    """Metrics for `compute_metrics` of which the first is the best."""

    def __init__(self) -> None:
        self.score = 0.0

    def __call__(self, prediction: Any) -> dict[str, float]:
        self.score -= 1.0
        return {"score": self.score}
