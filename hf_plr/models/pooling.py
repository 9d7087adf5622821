"""Pooling of a backbone's tokens, or of its map, to one feature per sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch

POOLINGS = ("cls", "mean", "cls+mean", "pooler")


@dataclass(frozen=True)
class Layout:
    """Layout of a backbone's output: which of its tokens are class tokens, and which are patches.

    Attributes:
        n_class: leading tokens whose mean is the class token; 0 if there is none.
        first_patch: number of tokens before the patches: class and distillation tokens, registers.
        n_after: number of tokens after the patches, such as detection tokens.
        map_channels: dimension of the channels where the output is a map (B, C, H, W) or (B, H, W, C); None for tokens.
    """

    n_class: int
    first_patch: int
    n_after: int = 0
    map_channels: int | None = None

    def expression(self, pooling: str, tokens: str) -> str:
        """Write Python code for the feature.

        Args:
            pooling: "cls", "mean" or "cls+mean".
            tokens: expression of the tokens or the map.
        """
        if self.map_channels is not None:
            return f"{tokens}.mean(dim={(2, 3) if self.map_channels == 1 else (1, 2)})"
        stop = f"-{self.n_after}" if self.n_after else ""
        chosen = f"[:, {self.first_patch or ''}:{stop}]" if self.first_patch or self.n_after else ""
        patches = f"{tokens}{chosen}.mean(dim=1)"
        cls = f"{tokens}[:, 0]" if self.n_class == 1 else f"{tokens}[:, :{self.n_class}].mean(dim=1)"
        return {"cls": cls, "mean": patches, "cls+mean": f"torch.cat([{cls}, {patches}], dim=1)"}[pooling]


def pool(hidden: torch.Tensor, pooling: str, layout: Layout) -> torch.Tensor:
    """Pool tokens or a map to one vector per sample, float32.

    Args:
        hidden: tokens of shape (B, T, D), or a map as `layout` says.
        pooling: "cls" takes the class token, "mean" the mean over the patches or over the map, "cls+mean" both.
        layout: which tokens are which; with a class token for "cls" and "cls+mean".

    Returns:
        Tensor of shape (B, D), for "cls+mean" (B, 2 D): the class token first.
    """
    hidden = hidden.float()
    if layout.map_channels is not None:
        return hidden.mean(dim=(2, 3) if layout.map_channels == 1 else (1, 2))
    parts = []
    if pooling != "mean":
        parts.append(hidden[:, 0] if layout.n_class == 1 else hidden[:, : layout.n_class].mean(dim=1))
    if pooling != "cls":
        parts.append(hidden[:, layout.first_patch : hidden.shape[1] - layout.n_after].mean(dim=1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
