"""A slow copy of the model that is trained: the mean of its weights over the last steps."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMATeacher:
    """An exponential moving average of a model's weights (the mean teacher of Tarvainen and Valpola, 2017).

    It shares the weights that are frozen, which are most of a backbone with adapters.

    Args:
        model: the model that is trained; the copy starts as it is.
        decay: share of the copy's weights that stays at a step, in (0, 1).

    Attributes:
        model: the copy, in evaluation mode and without gradients.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        shared: dict[int, Any] = {id(each): each for each in model.parameters() if not each.requires_grad}
        self.model = copy.deepcopy(model, shared).eval().requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Move towards the model's weights; buffers are taken as they are."""
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        own, trained = zip(*((own, other) for own, other in pairs if own is not other), strict=True)
        self._average(list(own), list(trained), 0)
        for buffer, other in zip(self.model.buffers(), model.buffers(), strict=True):
            buffer.copy_(other)
