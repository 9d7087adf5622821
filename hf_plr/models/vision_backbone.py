"""The feature of an image by a vision backbone."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_plr.models.frozen import freeze
from hf_plr.models.pooling import pool
from hf_plr.models.reached import find_reached
from hf_plr.models.vision_trial import Trial, UnsuitableImages, find_layout, select_hidden, try_backbone

logger = logging.getLogger(__name__)

NOT_LOADED = "_parameters_without_weights"  # attribute of a model: names that its checkpoint had no weights for
INTERPOLATE = "interpolate_pos_encoding"


class VisionBackbone:
    """Features of normalised images by a vision backbone.

    One trial forward finds which tokens are class tokens and which are patches, the size of a feature, and what it
    depends on.

    Example:
        >>> from hf_plr.models.vision import small_vit
        >>> backbone = VisionBackbone(small_vit(32, 8), None, (32, 32))
        >>> backbone.pooling, backbone.feature_size, backbone.feature_expression()
        ('cls', 128, 'tokens[:, 0]')

    Args:
        model: a bare backbone, the output of `load_backbone`.
        pooling: "cls", "mean", "cls+mean" or "pooler"; None takes "cls" where there is a class token, otherwise the
            model's own pooler where it has a trained one, otherwise "mean".
        image_size: height and width of its images.
        layer: tokens that are pooled: None = the model's last, 0 = the input of its first layer, n = the output of the
            n-th.

    Attributes:
        pooling: the pooling.
        poolings: those that this model has.
        feature_size: size D of a feature.
        layout: which tokens are class tokens, and which are patches.
        unused: names of the parameters that no feature depends on and that are not frozen yet.

    Raises:
        ValueError: if the model does not take such images or returns no features, or has no such pooling or layer.
    """

    def __init__(
        self, model: PreTrainedModel, pooling: str | None, image_size: tuple[int, int], layer: int | None = None
    ):
        self.layer = layer
        self.forward_arguments: dict[str, bool] = {}
        if _read_image_size(model) not in (None, image_size) and INTERPOLATE in _forward_parameters(model):
            self.forward_arguments[INTERPOLATE] = True
        if layer is not None:
            self.forward_arguments["output_hidden_states"] = True
        shape = count_channels(model), *image_size
        try:
            trial = try_backbone(model, shape, self.forward_arguments, layer)
        except UnsuitableImages as error:
            made_for = _read_image_size(model)
            if made_for in (None, image_size):
                raise
            raise UnsuitableImages(f"{error}. It was made for {made_for[0]} x {made_for[1]}: resize to that") from error
        self.layout = find_layout(trial)
        self.poolings = self._list_poolings(trial)
        self.pooling = self._choose_pooling(model, pooling, has_trained_pooler(model, trial))
        feature = self._pool(trial.hidden, trial.pooled)
        self.feature_size = feature.shape[1]
        reached = find_reached(feature)
        trainable = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
        self.unused = [name for name, parameter in trainable if parameter not in reached]

    def features(self, model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute pooled features of normalised images (B, C, H, W): float32 tensor of shape (B, D).

        `model` is the backbone or its wrapper (DistributedDataParallel, a compiled module).
        """
        output = model(pixel_values=pixel_values, **self.forward_arguments)
        return self._pool(select_hidden(output, self.layer), getattr(output, "pooler_output", None))

    def freeze_unused(self, model: PreTrainedModel) -> None:
        """Freeze the parameters that no feature depends on, such as mask tokens and a pooler that is not used.

        Several processes would wait for their gradients.
        """
        frozen = [name for name in self.unused if model.get_parameter(name).requires_grad]
        for name in frozen:
            freeze(model.get_parameter(name))
        if frozen:
            modules = dict.fromkeys(name.rpartition(".")[0] or name for name in frozen)
            logger.info("Not trained, since no feature depends on them: %s", ", ".join(modules))

    def freeze_positions(self, model: nn.Module) -> None:
        """Freeze position embeddings that are interpolated: on GPUs, their gradient has other bits each time."""
        if INTERPOLATE in self.forward_arguments:
            for name, parameter in model.named_parameters():
                if "position_embedding" in name:
                    freeze(parameter)

    def forward_expression(self) -> str:
        """Write the model's arguments beside the processor's output as Python code."""
        return "".join(f", {name}={value}" for name, value in self.forward_arguments.items())

    def feature_expression(self) -> str:
        """Write Python code that computes the same feature from `output`, the model's, and its `tokens`."""
        if self.pooling == "pooler":
            return "output.pooler_output.flatten(1)"
        return self.layout.expression(self.pooling, "tokens")

    def tokens_expression(self) -> str:
        """Write Python code that takes the tokens from `output`."""
        return "output.last_hidden_state" if self.layer is None else f"output.hidden_states[{self.layer}]"

    def _pool(self, hidden: torch.Tensor, pooled: torch.Tensor | None) -> torch.Tensor:
        if self.pooling != "pooler":
            return pool(hidden, self.pooling, self.layout)
        assert pooled is not None
        return pooled.flatten(1).float()

    def _list_poolings(self, trial: Trial) -> tuple[str, ...]:
        names = ["cls", "mean", "cls+mean"] if self.layout.n_class else ["mean"]
        return (*names, "pooler") if trial.pooled is not None and self.layer is None else tuple(names)

    def _choose_pooling(self, model: PreTrainedModel, pooling: str | None, is_trained: bool) -> str:
        name = type(model).__name__
        if pooling is None:
            if self.layout.n_class:
                return "cls"
            return "pooler" if "pooler" in self.poolings and is_trained else "mean"
        known = " or ".join(map(repr, self.poolings))
        if pooling not in self.poolings:
            lack = "class token" if pooling != "pooler" else "pooler" if self.layer is None else "pooler of a layer"
            raise ValueError(f"pooling={pooling!r} but {name} has no {lack}: use pooling={known}")
        if pooling == "pooler" and not is_trained:
            raise ValueError(f"pooling='pooler' but the checkpoint of {name} has no weights for its pooler")
        return pooling


def has_trained_pooler(model: PreTrainedModel, trial: Trial) -> bool:
    """True if a model has a pooler, and its checkpoint had weights for all of it."""
    if trial.pooled is None:
        return False
    not_loaded = {model.get_parameter(name) for name in getattr(model, NOT_LOADED, ())}
    return not (find_reached(trial.pooled) - find_reached(trial.hidden)) & not_loaded


def count_channels(model: nn.Module) -> int:
    """Count the channels of a model's images: as its configuration says, or its first convolution."""
    config: Any = model.config
    if isinstance(getattr(config, "num_channels", None), int):
        return int(config.num_channels)
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    return 3 if first is None else first.in_channels


def _read_image_size(model: PreTrainedModel) -> tuple[int, int] | None:
    """Height and width that a model was made for; None if it does not say."""
    size: Any = getattr(model.config, "image_size", None)
    if size is None:
        return None
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _forward_parameters(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
