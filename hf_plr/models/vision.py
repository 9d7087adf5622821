"""Load, check and describe a vision transformer."""

from __future__ import annotations

import inspect
import logging
import os
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel, ViTConfig, ViTImageProcessorPil, ViTModel

from hf_plr.models.adapter_files import find_base_model, find_processor, load_adapter_of
from hf_plr.models.lora import extract_adapted, has_adapters
from hf_plr.models.pooling import pool

logger = logging.getLogger(__name__)


class VisionBackbone:
    """Features of normalised images by a vision transformer.

    Example:
        >>> backbone = VisionBackbone(small_vit(32, 8), "cls", (32, 32))
        >>> backbone.feature_expression()
        'tokens[:, 0]'

    Args:
        model: a bare backbone whose output has `last_hidden_state` of shape (B, T, D).
        pooling: "cls" or "mean".
        image_size: height and width of its images.

    Raises:
        ValueError: if pooling is "cls" and the model has no class token.
    """

    def __init__(self, model: PreTrainedModel, pooling: str, image_size: tuple[int, int]):
        self.pooling = pooling
        config: Any = model.config
        self.feature_size: int = config.hidden_size
        token_names = [name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()]
        if pooling == "cls" and "cls_token" not in token_names:
            raise ValueError(f"pooling='cls' but {type(model).__name__} has no class token: use pooling='mean'")
        # The tokens before the patches: class, DeiT's distillation, DINOv2's registers.
        n_registers = getattr(config, "num_register_tokens", 0)
        self.n_prefix_tokens = ("cls_token" in token_names) + ("distillation_token" in token_names) + n_registers
        self.forward_arguments: dict[str, bool] = {}
        trained_size = config.image_size if not isinstance(config.image_size, int) else (config.image_size,) * 2
        if tuple(trained_size) != image_size and "interpolate_pos_encoding" in _list_forward_parameters(model):
            self.forward_arguments["interpolate_pos_encoding"] = True

    def features(self, model: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute pooled features of normalised images (B, C, H, W): float32 tensor of shape (B, D).

        `model` is the backbone or its wrapper (DistributedDataParallel, a compiled module).
        """
        output = model(pixel_values=pixel_values, **self.forward_arguments)
        return pool(output.last_hidden_state, self.pooling, self.n_prefix_tokens)

    def freeze_positions(self, model: torch.nn.Module) -> None:
        """Freeze position embeddings that are interpolated: on GPUs, their gradient has other bits each time."""
        if self.forward_arguments:
            for name, parameter in model.named_parameters():
                if "position_embedding" in name:
                    parameter.requires_grad_(False)

    def feature_expression(self) -> str:
        """Write Python code that computes the same feature from `tokens`, the last hidden state."""
        return "tokens[:, 0]" if self.pooling == "cls" else f"tokens[:, {self.n_prefix_tokens}:].mean(dim=1)"


def load_backbone(model: PreTrainedModel | str | os.PathLike[str]) -> PreTrainedModel:
    """Load a vision backbone in float32, from a name, a path, or a model in memory.

    A model with a head is reduced to its backbone. Weights in half precision are trained in float32 (use `bf16=True`
    for fast arithmetic). A pooler without weights passes the class token through.

    Raises:
        ValueError: if the model is missing or damaged, or is not a vision transformer.
    """
    loaded: Any = model
    if isinstance(model, (str, os.PathLike)):
        name = find_base_model(os.fspath(model))
        try:
            loaded, report = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        except Exception as error:  # besides OSError, a dozen kinds for damaged weights and configurations
            raise ValueError(describe_load_error(name, error)) from error
        if any(key.startswith("pooler.dense.") for key in report["missing_keys"]):
            pass_class_token_through_pooler(loaded)
    backbone = extract_backbone(loaded)
    _check_vision(backbone)
    if getattr(backbone, "pooler", backbone) is None:  # a model with a head has none, but AutoModel expects its weights
        backbone = _add_pooler(backbone)
    load_adapter_of(model, backbone)
    for name, parameter in backbone.named_parameters():
        if name.startswith("pooler.") or name.endswith("mask_token"):
            parameter.requires_grad_(False)  # not in any feature: several processes would wait for its gradient
    return convert_to_float32(backbone)


def extract_backbone(model: PreTrainedModel) -> PreTrainedModel:
    """Extract the backbone of a model with a head; a model without one is returned as it is."""
    if has_adapters(model):
        return extract_adapted(model)
    backbone: Any = model.base_model
    if backbone is not model:
        logger.info("Training %s, the backbone of the %s", type(backbone).__name__, type(model).__name__)
    return backbone


def convert_to_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Convert a model's weights to float32, in which they are trained."""
    half_dtypes = {parameter.dtype for parameter in model.parameters()} & {torch.float16, torch.bfloat16}
    if half_dtypes:
        logger.info("Weights in %s are trained in float32", ", ".join(sorted(map(str, half_dtypes))))
        model = model.float()
    model.config.dtype = torch.float32
    return model


def describe_load_error(name: str, error: Exception) -> str:
    """Describe why a model does not load."""
    if os.path.isdir(name):
        return f"the model in {name!r} cannot be loaded: {error}"
    if name.count("/") > 1 or name.startswith((".", "/")):
        return f"the model {name!r} is neither a folder here nor the name of a model on the Hub"
    return f"the model {name!r} is not a folder here, and from the Hub it cannot be loaded: {error}"


def load_image_processor(model: PreTrainedModel) -> Any:
    """Load the image processor saved with the backbone's checkpoint.

    Raises:
        ValueError: if it is missing, naming the argument that takes one.
    """
    return load_processor(AutoImageProcessor, "image processor", model)


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


def choose_vit_size(heights: list[int], widths: list[int]) -> tuple[int, int]:
    """Choose image and patch size of a small ViT: 32 to 96 pixels per side, 4 x 4 to 8 x 8 patches."""
    sides = sorted(max(height, width) for height, width in zip(heights, widths, strict=True))
    median = sides[len(sides) // 2]
    image_size = min(max(32, -(-median // 16) * 16), 96)
    return image_size, max(8, image_size // 8)


def _add_pooler(model: PreTrainedModel) -> PreTrainedModel:
    adapted: Any = model
    pooler = getattr(type(model)(model.config), "pooler", None)
    if pooler is None:
        raise ValueError(f"{type(model).__name__} cannot be rebuilt with a pooler: load it by AutoModel")
    adapted.pooler = pooler.to(model.device, model.dtype)
    pass_class_token_through_pooler(model)
    return model


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


def _check_vision(model: PreTrainedModel) -> None:
    config = model.config
    if hasattr(config, "mask_ratio"):
        raise ValueError(
            f"{type(model).__name__} hides patches at random even in evaluation, so its features are random too: "
            "load the checkpoint as a ViTModel"
        )
    has_patches = hasattr(config, "patch_size") and hasattr(config, "image_size")
    # A list in Swin, missing in ConvNeXt.
    has_one_resolution = isinstance(getattr(config, "num_attention_heads", None), int)
    if model.main_input_name != "pixel_values" or not (has_patches and has_one_resolution):
        raise ValueError(
            f"{type(model).__name__} (model_type={config.model_type!r}) is not a vision transformer backbone: "
            "use a ViT, DeiT, DINOv2 or one like them that AutoModel loads"
        )


def _list_forward_parameters(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
