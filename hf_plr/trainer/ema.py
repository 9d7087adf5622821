"""A slow copy of the model that is trained: the mean of its weights over the last steps."""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMATeacher:
    """An exponential moving average of a model's weights (the mean teacher of Tarvainen and Valpola, 2017).

    Args:
        model: the model that is trained; the copy starts as it is.
        decay: share of the copy's weights that stays at a step, in (0, 1).

    Attributes:
        model: the copy, in evaluation mode and without gradients.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Move towards the model's weights; buffers are taken as they are."""
        self._average(list(self.model.parameters()), list(model.parameters()), 0)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)
