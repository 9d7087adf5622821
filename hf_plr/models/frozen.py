"""What a trainer does to a model and a later one takes back: frozen weights, those of the user apart, and precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MARK = "_is_frozen_by_hf_plr"  # attribute of a parameter


def freeze(parameter: nn.Parameter) -> None:
    """Freeze a parameter until `thaw`; one that is frozen already stays so after it."""
    if parameter.requires_grad:
        parameter.requires_grad_(False)
        setattr(parameter, MARK, True)


def thaw(model: nn.Module) -> None:
    """Train again what `freeze` froze, for the arguments of an earlier trainer."""
    for parameter in model.parameters():
        if getattr(parameter, MARK, False):
            parameter.requires_grad_(True)
            setattr(parameter, MARK, False)


def take_back_precision(model: nn.Module) -> None:
    """Let modules that accelerate prepared, maybe several times, compute again as their class does."""
    for module in model.modules():
        before = vars(module).pop("_original_forward", None)
        if before is None:
            continue
        forward = getattr(module.forward, "__func__", module.forward)
        while forward is not type(module).forward and hasattr(forward, "__wrapped__"):
            forward = forward.__wrapped__
        if forward is type(module).forward:
            vars(module).pop("forward", None)
        else:
            module.forward = before


def hold_frozen(module: nn.Module) -> None:
    """Keep a module in evaluation mode while all its weights are frozen: no dropout, no masks, the same statistics."""
    module.register_forward_pre_hook(_evaluate_if_all_frozen)


def hold_frozen_statistics(model: nn.Module) -> None:
    """Keep batch norms in evaluation mode while their weights are frozen: their running statistics stay as they are."""
    for module in model.modules():
        has_statistics = isinstance(getattr(module, "running_mean", None), torch.Tensor)
        is_held = _evaluate_if_frozen in module._forward_pre_hooks.values()
        if has_statistics and not is_held and _is_frozen(module):
            module.register_forward_pre_hook(_evaluate_if_frozen)


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _evaluate_if_frozen(module: nn.Module, _: Any) -> None:
    if module.training and _is_frozen(module):
        module.training = False


def _evaluate_if_all_frozen(module: nn.Module, _: Any) -> None:
    if module.training and not any(parameter.requires_grad for parameter in module.parameters()):
        module.eval()
