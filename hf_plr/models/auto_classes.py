"""Which class an Auto class of transformers loads a configuration as."""

from __future__ import annotations

from typing import Any

from transformers import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    PreTrainedModel,
)

MAPPINGS: dict[str, Any] = {
    "AutoModel": MODEL_MAPPING,
    "AutoModelForImageClassification": MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    "AutoModelForAudioClassification": MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
}


def find_auto_class(model: PreTrainedModel, auto_class: str = "AutoModel") -> type[PreTrainedModel] | None:
    """Find the class that an Auto class loads a model's saved configuration as; None if it does not know it."""
    loadable: Any = MAPPINGS[auto_class].get(type(model.config), None)
    return loadable[0] if isinstance(loadable, tuple) else loadable


def check_classifier(config: Any, name: str, auto_class: str) -> None:
    """Check that transformers has a classifier of a backbone.

    Args:
        config: the backbone's configuration.
        name: its name or path.
        auto_class: "AutoModelForImageClassification" or "AutoModelForAudioClassification".

    Raises:
        ValueError: if there is none.
    """
    if MAPPINGS[auto_class].get(type(config), None) is None:
        raise ValueError(
            f"{auto_class} has no classifier for {name!r} (model_type={config.model_type!r}): train one on the "
            "features that `hf-plr embed` writes"
        )
