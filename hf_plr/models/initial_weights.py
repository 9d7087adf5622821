"""Whether a model has ever been trained."""

from __future__ import annotations

from torch import nn


def is_untrained(model: nn.Module) -> bool:
    """Tell whether a model has random weights, by its normalisations: they begin with one value for all channels.

    Args:
        model: the model, not sharded; one without normalisations counts as trained.
    """
    normalisations = [module for module in model.modules() if "Norm" in type(module).__name__]
    values = [parameter.detach() for module in normalisations for parameter in module.parameters(recurse=False)]
    return bool(values) and all(bool((value == value.flatten()[0]).all()) for value in values)
