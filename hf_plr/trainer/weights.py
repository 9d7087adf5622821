"""Weights of a backbone in a checkpoint: all of them, or those of its adapters."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from hf_plr.models.adapter_files import fill_adapter, read_adapter
from hf_plr.models.loading import describe_load_error
from hf_plr.models.lora import adapter_state, has_adapters
from hf_plr.trainer.checkpoints.run_state import STATE_FILE
from hf_plr.utils.serialization import name_file_in_errors, validate_array

STUDENT_PREFIX = "student."


def find_weights_epoch(trainer: Trainer) -> float | None:
    """Find the epoch of a trainer's weights where `load_best_model_at_end` has loaded earlier ones than the last."""
    state = trainer.state
    if trainer.is_in_train or not trainer.args.load_best_model_at_end or state.best_model_checkpoint is None:
        return None
    step = int(os.path.basename(state.best_model_checkpoint).rpartition("-")[2])  # not of a better one without weights
    return None if step == state.global_step else (state.epoch or 0.0) * step / state.global_step


def load_weights(backbone: Any, checkpoint: str) -> None:
    """Load the saved model of a checkpoint into a backbone.

    `save_pretrained` writes ViT's weights under the names that older releases had, `from_pretrained` knows both, but
    Trainer's own loading goes by name alone and leaves such weights as they are, with only a warning.

    Of a backbone with adapters, a checkpoint holds the adapters alone.

    Raises:
        ValueError: if the checkpoint holds no such model, or no such adapters.
    """
    if has_adapters(backbone):
        with name_file_in_errors(checkpoint):
            fill_adapter(backbone, read_adapter(checkpoint))
        return
    try:
        saved = type(backbone).from_pretrained(checkpoint, dtype=torch.float32)
    except Exception as error:  # of transformers, safetensors or the file system
        raise ValueError(describe_load_error(checkpoint, error)) from error
    backbone.load_state_dict(saved.state_dict())


def _trained_state(student: torch.nn.Module) -> dict[str, torch.Tensor]:
    return adapter_state(student) if has_adapters(student) else student.state_dict()


def student_state(student: torch.nn.Module) -> dict[str, np.ndarray]:
    """The trained weights as arrays by name, for a run whose saved model is the EMA teacher."""
    return {f"{STUDENT_PREFIX}{name}": value.cpu().numpy() for name, value in _trained_state(student).items()}


def load_student(student: torch.nn.Module, state: dict[str, np.ndarray], checkpoint: str) -> None:
    """Restore what `student_state` returned.

    Raises:
        ValueError: if an array is missing or does not fit, naming it and the checkpoint's file.
    """
    weights = {}
    with name_file_in_errors(os.path.join(checkpoint, STATE_FILE)):
        for name, value in _trained_state(student).items():
            kind = "floats" if value.is_floating_point() else "integers"
            array = validate_array(state, f"{STUDENT_PREFIX}{name}", kind, tuple(value.shape))
            weights[name] = torch.from_numpy(array)
    if has_adapters(student):
        fill_adapter(student, weights)
    else:
        student.load_state_dict(weights)
