"""Learning rates by layer, and by the schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_plr.models.layers import find_depths


def decay_rates(optimizer: Any, backbone: nn.Module, layer_decay: float) -> None:
    """Split the groups of a new optimizer so that each layer's rate is `layer_decay` times that of the one above it.

    The highest layer that is trained, what is above it and what is not of the backbone keep the rate. Groups of the
    highest rate come first: the rate of the first group is the one that is logged.

    Args:
        optimizer: an optimizer that has made no step; everything else in its groups stays.
        backbone: the bare backbone.
        layer_decay: factor from each layer to the one below it, in (0, 1].

    Raises:
        ValueError: if the optimizer has no learning rate of its own in each group.
    """
    if any(not isinstance(group.get("lr"), (int, float)) for group in optimizer.param_groups):
        raise ValueError(
            f"layer_decay={layer_decay} needs an optimizer with a learning rate, such as optim='adamw_torch'"
        )
    depths = find_depths(backbone)
    depth_by_id = {id(parameter): depths[name] for name, parameter in backbone.named_parameters()}
    highest = max(
        (depth_by_id[id(parameter)] for parameter in backbone.parameters() if parameter.requires_grad), default=0
    )
    groups: list[tuple[int, dict[str, Any]]] = []
    for group in optimizer.param_groups:
        by_distance: dict[int, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            distance = highest - depth_by_id.get(id(parameter), highest)
            by_distance.setdefault(distance, []).append(parameter)
        groups += [
            (distance, {**group, "params": parameters, "lr": group["lr"] * layer_decay**distance})
            for distance, parameters in by_distance.items()
        ]
    groups.sort(key=lambda item: item[0])
    optimizer.param_groups[:] = [group for _, group in groups]


def fraction_of_peak(optimizer: Any) -> float:
    """Learning rate of an optimizer's first group as a fraction of its peak, in [0, 1]; 1 where the peak is 0.

    The peak is what a scheduler notes that rises from a low rate (`OneCycleLR`), or else the rate that the optimizer
    began with: as a scheduler notes it, or as it was made.
    """
    group, defaults = optimizer.param_groups[0], getattr(optimizer, "defaults", {})
    peak = group.get("max_lr", group.get("initial_lr", defaults.get("lr", group["lr"])))
    return float(min(1.0, group["lr"] / peak)) if peak else 1.0
