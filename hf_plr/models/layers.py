"""Depth of every parameter of a backbone: the embeddings, the layers from the first to the last, and what is above."""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_plr.models.frozen import freeze

EMBEDDINGS = 0


def find_depths(model: nn.Module) -> dict[str, int]:
    """Find the depth of every parameter by its name, from the module tree.

    The layers are the items of an outermost `nn.ModuleList`: of one as long as `config.num_hidden_layers` if there is
    one, and among several of the one with the most parameters. Of a model with a decoder (Whisper) they are those of
    the encoder. An item that is a stage, as in Swin or ConvNeXt, stands for its blocks. What is registered before the
    layers is below them, what is registered after them is above.

    Example:
        >>> from transformers import ViTConfig, ViTModel
        >>> model = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
        >>> depths = find_depths(model)
        >>> depths["embeddings.cls_token"], depths["layers.0.layernorm_before.bias"], depths["layernorm.bias"]
        (0, 1, 2)

    Args:
        model: a bare backbone of transformers, not sharded.

    Returns:
        0 for the embeddings (patches, positions, class token, convolutions of a feature extractor), n for the n-th
        layer, and the depth of the last layer for what is above it.

    Raises:
        ValueError: if the model has no list of layers.
    """
    prefix, layers = _find_layers(model)
    depths: dict[str, int] = {}
    n_layers = 0
    for name, item in layers.named_children():
        blocks = _find_blocks(item)
        if blocks is None:
            n_layers += 1
            depths |= {f"{prefix}.{name}.{own}": n_layers for own, _ in item.named_parameters()}
            continue
        block_prefix, n_blocks = blocks
        depth = n_layers + 1
        for own, _ in item.named_parameters():
            if own.startswith(f"{block_prefix}."):
                depth = n_layers + 1 + int(own.removeprefix(f"{block_prefix}.").split(".")[0])
            depths[f"{prefix}.{name}.{own}"] = depth
        n_layers += n_blocks
    final_norm = _name_final_norm(model, prefix)
    depth, found = EMBEDDINGS, {}
    for name, _ in model.named_parameters():
        if name in depths:
            depth = n_layers  # of all that follows the layers
            found[name] = depths[name]
        else:
            found[name] = n_layers if final_norm is not None and name.startswith(final_norm) else depth
    return found


def freeze_first_layers(model: nn.Module, n: int) -> None:
    """Freeze the embeddings and the first `n` layers.

    Args:
        model: a bare backbone; what is above the feature is frozen already.
        n: number of layers, at least 0 and less than the feature depends on; 0 freezes nothing.

    Raises:
        ValueError: if no layer would be left to train.
    """
    if n == 0:
        return
    depths = find_depths(model)
    parameters = dict(model.named_parameters())
    highest = max((depths[name] for name, parameter in parameters.items() if parameter.requires_grad), default=0)
    if n >= highest:
        raise ValueError(f"freeze_layers={n} leaves nothing to train: {highest} layers are trained, freeze fewer")
    for name, parameter in parameters.items():
        if depths[name] <= n:
            freeze(parameter)


def _count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the layers, or of the stages."""
    config: Any = getattr(model, "config", None)
    whole: Any = model
    # A decoder may have as many layers and more parameters, but no feature depends on it.
    searched: nn.Module = whole.get_encoder() if getattr(config, "is_encoder_decoder", False) else model
    candidates = set(searched.modules())
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in lists)
        is_list = isinstance(module, nn.ModuleList) and module in candidates
        if is_list and not is_inside and _count_parameters(module):
            lists[name] = module
    if not lists:
        raise ValueError(
            f"{type(model).__name__} has no list of layers: use layer_decay=1 and freeze_layers=0, which need none"
        )
    n_layers = getattr(config, "num_hidden_layers", None)
    named = {name: module for name, module in lists.items() if len(module) == n_layers} or lists
    return max(named.items(), key=lambda item: _count_parameters(item[1]))


def _find_blocks(item: nn.Module) -> tuple[str, int] | None:
    """Name and length of the list of blocks that most of a stage consists of; None for a layer."""
    for name, child in item.named_children():
        is_list = isinstance(child, (nn.ModuleList, nn.Sequential)) and len({type(block) for block in child}) == 1
        if is_list and 2 * _count_parameters(child) > _count_parameters(item):
            return name, len(child)  # type: ignore[arg-type]
    return None


def _name_final_norm(model: nn.Module, layers: str) -> str | None:
    """Prefix of the normalisation that wav2vec 2.0 and its kin register before the layers and apply after them."""
    if not getattr(getattr(model, "config", None), "do_stable_layer_norm", False):
        return None
    return f"{layers.rpartition('.')[0]}.layer_norm."
