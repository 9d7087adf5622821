"""Load a vision backbone, or make a small ViT."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    PreTrainedModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_plr.models.adapter_files import find_base_model, load_adapter_of
from hf_plr.models.loading import convert_to_float32, describe_load_error, extract_backbone, load_processor
from hf_plr.models.vision_backbone import NOT_LOADED

logger = logging.getLogger(__name__)


def load_backbone(model: PreTrainedModel | str | os.PathLike[str]) -> PreTrainedModel:
    """Load a vision backbone in float32, from a name, a path, or a model in memory.

    Of a model with a head, or with a tower for text, the vision backbone is taken: the very module, so that whoever
    holds the model sees it trained. Weights in half precision are trained in float32 (use `bf16=True` for fast
    arithmetic). A ViT's pooler without weights passes the class token through, and a model without a pooler that
    AutoModel makes with one gets such a pooler.

    Raises:
        ValueError: if the model is missing or damaged, or has no vision backbone.
    """
    loaded: Any = model
    missing: list[str] = []
    if isinstance(model, (str, os.PathLike)):
        name = find_base_model(os.fspath(model))
        try:
            loaded, report = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        except Exception as error:  # besides OSError, a dozen kinds for damaged weights and configurations
            raise ValueError(describe_load_error(name, error)) from error
        missing = sorted(report["missing_keys"])
    backbone = convert_to_float32(extract_backbone(loaded, "pixel_values"))
    if hasattr(backbone.config, "mask_ratio"):
        backbone = convert_masked_autoencoder(backbone) or backbone
    backbone.name_or_path = backbone.name_or_path or loaded.name_or_path
    complete_pooler(backbone, missing)
    load_adapter_of(model, backbone)
    return backbone


def load_image_processor(model: PreTrainedModel) -> Any:
    """Load the image processor saved with the backbone's checkpoint.

    Raises:
        ValueError: if it is missing, naming the argument that takes one.
    """
    return load_processor(AutoImageProcessor, "image processor", model)


def small_vit(image_size: int, patch_size: int, hidden_size: int = 128, num_hidden_layers: int = 3) -> PreTrainedModel:
    """Make a small ViT with random weights, for square colour images of `image_size` pixels per side."""
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=hidden_size // 32,
        intermediate_size=4 * hidden_size,
        num_channels=3,
        initializer_range=hidden_size**-0.5,  # the usual 0.02 passes on too little of the image to cluster by
    )
    model = ViTModel(config)
    pass_class_token_through_pooler(model)
    return model


def small_vit_processor(image_size: int) -> ViTImageProcessorPil:
    """Make the image processor for `small_vit`: resize to a square, three channels, values in [-1, 1]."""
    return ViTImageProcessorPil(
        size={"height": image_size, "width": image_size},
        do_convert_rgb=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def choose_vit_size(heights: list[int], widths: list[int], image_size: int | None = None) -> tuple[int, int]:
    """Choose image and patch size of a small ViT: 32 to 96 pixels per side, or those asked for; 4 x 4 to 8 x 8 patches.

    Args:
        heights: of the images, in pixels.
        widths: of the images, in pixels.
        image_size: pixels per side, if they are given.
    """
    sides = sorted(max(height, width) for height, width in zip(heights, widths, strict=True))
    median = sides[len(sides) // 2]
    image_size = min(max(32, -(-median // 16) * 16), 96) if image_size is None else image_size
    return image_size, max(8, image_size // 8)


def complete_pooler(model: PreTrainedModel, not_loaded: list[str]) -> None:
    """Give a model the pooler that `AutoModel` makes it with, and let one without weights pass the class token through.

    What else has no weights is noted with the model, so that no feature is taken from it.

    Args:
        model: a backbone; it is changed in place.
        not_loaded: names of the parameters that its checkpoint has no weights for.
    """
    module: Any = model
    if getattr(module, "pooler", module) is None:  # as in a model with a head
        with torch.device("meta"):  # its weights are set below
            pooler: Any = type(model)(model.config).pooler
        if pooler is not None:
            module.pooler = pooler.to_empty(device=model.device)
            not_loaded = [f"pooler.{name}" for name, _ in pooler.named_parameters()]
    if any(name.startswith("pooler.dense.") for name in not_loaded):
        pass_class_token_through_pooler(model)
        not_loaded = [name for name in not_loaded if not name.startswith("pooler.dense.")]
    setattr(model, NOT_LOADED, frozenset(name for name, _ in model.named_parameters() if name in not_loaded))


@torch.no_grad()
def pass_class_token_through_pooler(model: PreTrainedModel) -> None:
    """Make an untrained pooler the identity, so that `pooler_output` is the class token and not random.

    Raises:
        ValueError: if the pooler changes the feature's size.
    """
    pooler: Any = model.pooler
    dense = pooler.dense
    if dense.weight.shape[0] != dense.weight.shape[1]:
        raise ValueError(f"the pooler of {type(model).__name__} maps to another size: load the model with its weights")
    dense.weight.copy_(torch.eye(len(dense.weight)))
    dense.bias.zero_()
    pooler.activation = torch.nn.Identity()
    model.config.pooler_act = "linear"


def convert_masked_autoencoder(model: PreTrainedModel) -> PreTrainedModel | None:
    """Convert the encoder of a masked autoencoder to a ViT with the very same weights; None if they are not a ViT's.

    The encoder hides patches at random and shuffles them, in evaluation too; a ViT has the same layers and does not.
    """
    known = ViTConfig().to_dict()
    values = {name: value for name, value in model.config.to_dict().items() if name in known and name != "model_type"}
    with torch.device("meta"):  # only its structure is of use
        vit = ViTModel(ViTConfig(**values), add_pooling_layer=False)
    weights = model.state_dict(keep_vars=True)
    if {name: value.shape for name, value in vit.state_dict().items()} != {
        name: value.shape for name, value in weights.items()
    }:
        return None
    vit.load_state_dict(weights, assign=True)
    vit.train(model.training)
    vit.name_or_path = model.name_or_path
    logger.warning("Training %s as a ViTModel of the same weights: it hides patches at random.", type(model).__name__)
    return vit
