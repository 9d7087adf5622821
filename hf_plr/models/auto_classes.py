"""Which class an Auto class of transformers loads a configuration as."""

from __future__ import annotations

from typing import Any

from transformers import (
    CONFIG_MAPPING,
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


def find_owner(config: Any, auto_class: str) -> Any:
    """Find the configuration class of the whole model whose classifier takes a tower for images.

    Args:
        config: configuration of a backbone.
        auto_class: "AutoModelForImageClassification" or "AutoModelForAudioClassification".

    Returns:
        Such as `CLIPConfig` for a `CLIPVisionConfig`; None for a backbone with a classifier of its own, or without any.
    """
    name = config.model_type.removesuffix("_vision_model")
    if name == config.model_type or name not in CONFIG_MAPPING or type(config) in MAPPINGS[auto_class]:
        return None
    owner = CONFIG_MAPPING[name]
    return owner if owner in MAPPINGS[auto_class] else None


def check_classifier(config: Any, name: str, auto_class: str) -> None:
    """Check that transformers has a classifier of a backbone.

    Args:
        config: the backbone's configuration.
        name: its name or path.
        auto_class: "AutoModelForImageClassification" or "AutoModelForAudioClassification".

    Raises:
        ValueError: if there is none.
    """
    if type(config) not in MAPPINGS[auto_class] and find_owner(config, auto_class) is None:
        raise ValueError(
            f"{auto_class} has no classifier for {name!r} (model_type={config.model_type!r}): train one on the "
            "features that `hf-plr embed` writes"
        )
