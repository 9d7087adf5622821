"""Pooling of a backbone's hidden states to one feature per sample."""

from __future__ import annotations

import torch

POOLINGS = ("cls", "mean", "cls+mean", "pooler")


def pool(last_hidden_state: torch.Tensor, pooling: str, n_prefix_tokens: int) -> torch.Tensor:
    """Pool token features to one vector per sample, float32.

    Args:
        last_hidden_state: shape (B, T, D); the prefix tokens (class, distillation, registers) come first.
        pooling: "cls" takes the class token, "mean" the mean over the patch tokens.
        n_prefix_tokens: number of tokens before the patches, at least 1 for "cls".

    Returns:
        Tensor of shape (B, D).
    """
    tokens = last_hidden_state.float()
    if pooling == "cls":
        return tokens[:, 0]
    return tokens[:, n_prefix_tokens:].mean(dim=1)
