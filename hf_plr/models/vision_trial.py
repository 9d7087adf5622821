"""One trial forward of a vision backbone: what it returns for images, and which of its tokens are patches."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_plr.models.pooling import Layout
from hf_plr.models.trial import describe_output, trial_of


class Trial(NamedTuple):
    """What a backbone returned for two images, with gradients.

    Attributes:
        hidden: tokens (2, T, D), or a map (2, C, H, W) or (2, H, W, C), that features are pooled from.
        pooled: output of the model's own pooler (2, D), or None.
        inner: every tensor that went into one of its modules or came out of one, in the order of execution.
        map_channels: dimension of the channels of a map, 1 or 3; None for tokens.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None
    inner: list[torch.Tensor]
    map_channels: int | None


class UnsuitableImages(ValueError):
    """A model fails on images of this size."""


def try_backbone(
    model: PreTrainedModel, shape: tuple[int, int, int], arguments: dict[str, Any], layer: int | None = None
) -> Trial:
    """Run two random images through a backbone in evaluation mode; leaves no trace but what is returned.

    Args:
        model: the backbone.
        shape: channels, height and width of an image.
        arguments: further arguments of its forward.
        layer: hidden states to take, as in `VisionBackbone`.

    Raises:
        UnsuitableImages: if the model fails.
        ValueError: if it needs other inputs, or returns something else than features, or other features each time, or
            nothing tells which dimension of a layer's map has the channels.
    """
    name = type(model).__name__
    others = _list_required(model) - {"pixel_values", *arguments}
    if others:
        raise ValueError(f"{name} needs {' and '.join(sorted(others))} beside images of one size: use another backbone")
    if layer is not None and not _takes(model, "output_hidden_states"):
        raise ValueError(f"layer={layer}, but {name} returns no hidden states: leave it out")
    images = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0)).to(model.device)
    try:
        with trial_of(model):
            with _recorded(model) as inner:
                output = model(pixel_values=images, **arguments)
            with torch.no_grad():
                again = model(pixel_values=images, **arguments)
    except Exception as error:  # any kind, of any model's code
        raise UnsuitableImages(
            f"{name} takes no images of {shape[1]} x {shape[2]} pixels and {shape[0]} channels: {error}"
        ) from error
    hidden = select_hidden(output, layer)
    if not isinstance(hidden, torch.Tensor) or hidden.dim() not in (3, 4) or len(hidden) != 2:
        raise ValueError(f"{name} is no backbone of images: it returns {describe_output(output)}")
    if not torch.allclose(hidden, select_hidden(again, layer), rtol=1e-2, atol=1e-3, equal_nan=True):
        raise ValueError(f"{name} returns other features each time, even in evaluation: such cannot be clustered")
    pooled = getattr(output, "pooler_output", None)
    pooled = None if pooled is None else pooled.flatten(1)
    map_channels = None
    if hidden.dim() == 4:
        map_channels = _find_map_channels(model, hidden, pooled, arguments, images, layer)
    return Trial(hidden, pooled, inner, map_channels)


def select_hidden(output: Any, layer: int | None) -> Any:
    """Select what is pooled of a model's output: the last hidden state, or that of a layer.

    Raises:
        ValueError: if there is no such layer.
    """
    if layer is None:
        return getattr(output, "last_hidden_state", None)
    states = getattr(output, "hidden_states", None)
    if not states:
        raise ValueError(f"layer={layer}, but the model returns no hidden states: leave it out")
    if not 0 <= layer < len(states):
        raise ValueError(f"layer={layer} but the model has {len(states) - 1} layers: use 0 to {len(states) - 1}")
    return states[layer]


def find_layout(trial: Trial) -> Layout:
    """Find which tokens are patches: those that differ between two images where all tokens first come together.

    Later each token has attended to all others. A class token is the first that is no patch; where the model's own
    pooler returns the mean of several leading tokens, these are it.

    Raises:
        ValueError: if no token depends on the image, or the patches are not in a row.
    """
    hidden, pooled = trial.hidden.detach(), trial.pooled
    if trial.map_channels is not None:
        return Layout(0, 0, map_channels=trial.map_channels)
    n_tokens = hidden.shape[1]
    differs = next(
        (
            rows
            for tokens in (*trial.inner, hidden)
            if tokens.dim() == 3 and tokens.shape[:2] == (2, n_tokens)
            for rows in [(tokens[0] != tokens[1]).any(dim=-1)]
            if rows.any()
        ),
        torch.zeros(n_tokens, dtype=torch.bool),
    )
    patches = differs.nonzero().squeeze(1).tolist()
    if not patches or patches[-1] - patches[0] + 1 != len(patches):
        raise ValueError(f"of {n_tokens} tokens, those that depend on the image are not in a row: {patches[:10]}")
    first, n_after = patches[0], n_tokens - patches[-1] - 1
    n_class = 1 if first else 0
    if pooled is not None and pooled.shape[1] == hidden.shape[2]:
        for n in range(1, max(first, 1) + 1):
            if torch.allclose(pooled, hidden[:, :n].mean(dim=1), rtol=1e-4, atol=1e-6):
                n_class = n
                break
    return Layout(n_class, max(first, n_class), n_after)


def _find_map_channels(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    pooled: torch.Tensor | None,
    arguments: dict[str, Any],
    images: torch.Tensor,
    layer: int | None,
) -> int:
    """Find the dimension of the channels of a map: (B, C, H, W) or (B, H, W, C).

    They are as many as what is pooled of the last map, or stay where images have another size, or are as many as the
    configuration says of a model's layers. The last map is otherwise taken for one with the channels first.

    Raises:
        ValueError: if nothing tells it of a layer.
    """
    shape = tuple(hidden.shape)
    if layer is None and pooled is not None and (shape[1] == pooled.shape[1]) != (shape[3] == pooled.shape[1]):
        return 1 if shape[1] == pooled.shape[1] else 3
    for scale in (0.5, 2.0):  # smaller ones cost less, but a map of one place stays as it is
        with contextlib.suppress(Exception), trial_of(model), torch.no_grad():  # a model may take one size alone
            resized = torch.nn.functional.interpolate(images[:1], scale_factor=scale)
            found = select_hidden(model(pixel_values=resized, **arguments), layer).shape
            if (found[1] == shape[1]) != (found[3] == shape[3]):
                return 1 if found[1] == shape[1] else 3
    if layer is None:
        return 1
    width = getattr(model.config, "hidden_size", None)
    if (shape[1] == width) != (shape[3] == width):
        return 1 if shape[1] == width else 3
    raise ValueError(
        f"layer={layer} of {type(model).__name__} is a map of shape {shape[1:]}, and nothing tells which of its "
        "dimensions are channels: use another layer, or leave it out"
    )


def _list_required(model: nn.Module) -> set[str]:
    """Names of the inputs that a model's forward cannot do without."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {each.name for each in parameters if each.kind in kinds and each.default is inspect.Parameter.empty}


def _takes(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())


@contextlib.contextmanager
def _recorded(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Record every tensor that goes into a module or comes out of one, detached."""
    tensors: list[torch.Tensor] = []

    def note(values: Any) -> None:
        if isinstance(values, torch.Tensor):
            tensors.append(values.detach())
        elif isinstance(values, dict):
            note(tuple(values.values()))
        elif isinstance(values, (tuple, list)):
            for value in values:
                note(value)

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(lambda _, args, kwargs: note((args, kwargs)), with_kwargs=True))
        handles.append(module.register_forward_hook(lambda _, args, output: note(output)))
    try:
        yield tensors
    finally:
        for handle in handles:
            handle.remove()
