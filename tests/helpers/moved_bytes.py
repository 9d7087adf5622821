"""Bytes that operations read and write: what a GPU spends its time on where arrays are large."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MovedBytes(TorchDispatchMode):
    """Sums the bytes of arguments and results of torch's operations while entered; views move nothing.

    Args:
        at_least: bytes below which a tensor is not counted.

    Attributes:
        total: the sum.
    """

    def __init__(self, at_least: int):
        super().__init__()
        self.at_least = at_least
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(tensor.nbytes for tensor in tensors if tensor.nbytes >= self.at_least)
        return result
