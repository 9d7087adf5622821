"""A trial of a model, which leaves no trace: what it returns tells what it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from hf_plr.utils.rng import isolate_rng


@contextlib.contextmanager
def trial_of(model: torch.nn.Module) -> Iterator[None]:
    """Try a model inside the context: in evaluation mode and with gradients, global generators stay as they were."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with isolate_rng(0), torch.enable_grad():
            yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def describe_output(output: Any) -> str:
    """Describe what a model returned, by names and shapes."""
    items = output.items() if hasattr(output, "items") else enumerate(output if isinstance(output, tuple) else [output])
    return ", ".join(f"{name} {tuple(getattr(value, 'shape', ()))}" for name, value in items) or "nothing"
