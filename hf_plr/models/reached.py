"""Which parameters a feature depends on: the others get no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_plr.models.frozen import freeze


def find_reached(output: torch.Tensor) -> set[nn.Parameter]:
    """Find the parameters that an output depends on, by its graph and without a backward pass.

    Args:
        output: any shape, computed with gradients and without gradient checkpointing.
    """
    reached: set[nn.Parameter] = set()
    seen: set[Any] = set()
    left: list[Any] = [output.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # at the leaves alone
        if isinstance(variable, nn.Parameter):
            reached.add(variable)
        left.extend(following for following, _ in node.next_functions)
    return reached


def freeze_unreached(model: nn.Module, output: torch.Tensor) -> list[str]:
    """Freeze the parameters that an output does not depend on: several processes would wait for their gradients.

    Args:
        model: the model that computed `output`.
        output: as for `find_reached`.

    Returns:
        Names of the parameters that are frozen by this.
    """
    reached = find_reached(output)
    unreached = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter not in reached
    ]
    for name in unreached:
        freeze(model.get_parameter(name))
    return unreached
