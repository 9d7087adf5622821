"""Which backbones transformers has a classifier on."""

from __future__ import annotations

import transformers
from transformers import PreTrainedConfig


def has_classifier(config: PreTrainedConfig, auto_class: str) -> bool:
    """Return True if `auto_class`, such as AutoModelForImageClassification, takes a backbone of this configuration."""
    return type(config) in getattr(transformers, auto_class)._model_mapping


def check_classifier(config: PreTrainedConfig, auto_class: str, name: str) -> None:
    """Check that `auto_class` takes a backbone.

    Args:
        config: the backbone's configuration.
        auto_class: such as AutoModelForImageClassification.
        name: name or path of the backbone, for the message.

    Raises:
        ValueError: if it does not.
    """
    if not has_classifier(config, auto_class):
        raise ValueError(
            f"model_name_or_path={name!r}: {auto_class} of transformers has no classifier for {config.model_type}. "
            "Write the features with hf-plr embed, and train a linear classifier on them"
        )
