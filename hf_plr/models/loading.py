"""What loading has in common for all backbones: the backbone in a model, float32, its processor, errors in one line."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from hf_plr.models.adapter_files import find_processor
from hf_plr.models.auto_classes import check_classifier, find_auto_class
from hf_plr.models.frozen import take_back_precision, thaw
from hf_plr.models.lora import claim_adapters, get_adapted_model, has_adapters

logger = logging.getLogger(__name__)

SHOWN_FOLDERS = 3


def extract_backbone(model: PreTrainedModel, *main_inputs: str) -> PreTrainedModel:
    """Extract the backbone of a model: itself if `AutoModel` loads it as what it is, otherwise the first such in it.

    What an earlier trainer of the same model froze is trained again, in the precision of the new one.

    Args:
        model: the model.
        *main_inputs: names that the backbone's main input may have.

    Raises:
        ValueError: if no part of it takes such an input, or its adapters cannot be merged into that part.
    """
    thaw(model)
    take_back_precision(model)
    if has_adapters(model):
        whole = get_adapted_model(model)
        backbone = _find_backbone(whole, main_inputs)
        claim_adapters(model, whole, backbone)
        return backbone
    return _find_backbone(model, main_inputs)


def _find_backbone(model: PreTrainedModel, main_inputs: tuple[str, ...]) -> PreTrainedModel:
    candidates = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        and module.main_input_name in main_inputs
        and not hasattr(module.config, "vision_config")  # of several towers
    ]
    backbone = next((module for module in candidates if isinstance(module, find_auto_class(module) or ())), None)
    if backbone is None:
        backbone = next((whole for module in candidates if (whole := _complete(module)) is not None), None)
    if backbone is None and model in candidates:
        logger.warning("AutoModel does not know %s: the output loads by that class alone.", type(model).__name__)
        return model
    if backbone is None:
        raise ValueError(
            f"{type(model).__name__} (model_type={model.config.model_type!r}) takes {model.main_input_name}, and "
            f"nothing in it is a backbone that takes {' or '.join(main_inputs)}: use one that AutoModel loads"
        )
    if backbone is not model:
        is_tower = type(backbone.config) is not type(model.config)
        words = "Training %s, the backbone in the %s"
        logger.log(logging.WARNING if is_tower else logging.INFO, words, type(backbone).__name__, type(model).__name__)
    return backbone


def _complete(part: PreTrainedModel) -> PreTrainedModel | None:
    """Put a part into the model that `AutoModel` loads it in, such as SAM's encoder into a SamVisionModel."""
    loadable = find_auto_class(part)
    if loadable is None:
        return None
    with torch.device("meta"):  # only its structure is of use
        whole = loadable(part.config)
    name = next((name for name, child in whole.named_children() if type(child) is type(part)), None)
    if name is None or any(child is not getattr(whole, name) for child in whole.children() if list(child.parameters())):
        return None
    setattr(whole, name, part)
    return whole


def convert_to_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Convert a model's weights to float32, in which they are trained."""
    half_dtypes = {parameter.dtype for parameter in model.parameters()} & {torch.float16, torch.bfloat16}
    if half_dtypes:
        logger.info("Weights in %s are trained in float32", ", ".join(sorted(map(str, half_dtypes))))
        model = model.float()
    model.config.dtype = torch.float32
    return model


def load_classifier_config(name: str, auto_class: str) -> Any:
    """Load the configuration of a backbone that transformers has a classifier for.

    Args:
        name: a Hub id or a folder.
        auto_class: "AutoModelForImageClassification" or "AutoModelForAudioClassification".

    Raises:
        ValueError: if it is missing or damaged, or there is no classifier.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except Exception as error:  # besides OSError, a dozen kinds for damaged configurations
        raise ValueError(describe_load_error(name, error)) from error
    check_classifier(config, name, auto_class)
    return config


def describe_load_error(name: str, error: Exception) -> str:
    """Describe why a model does not load."""
    inside = sorted(path.parent for path in Path(name).glob(f"*/{CONFIG_NAME}"))
    if inside and not (Path(name) / CONFIG_NAME).exists():
        return f"the folder {name!r} is no model; there are models in {', '.join(map(str, inside[:SHOWN_FOLDERS]))}"
    if os.path.isdir(name):
        return f"the model in {name!r} cannot be loaded: {error}"
    if name.count("/") > 1 or name.startswith((".", "/")):
        return f"the model {name!r} is neither a folder here nor the name of a model on the Hub"
    return f"the model {name!r} is not a folder here, and from the Hub it cannot be loaded: {error}"


def load_processor(auto_class: Any, noun: str, model: PreTrainedModel) -> Any:
    """Load a processor saved with the model's checkpoint, by an Auto class.

    Raises:
        ValueError: if it is missing, naming the argument that takes one.
    """
    try:
        return auto_class.from_pretrained(find_processor(model))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no {noun} is saved with {model.name_or_path or type(model).__name__!r}: put its preprocessor_config.json "
            f"there, or pass processing_class={auto_class.__name__}.from_pretrained(...)"
        ) from error
