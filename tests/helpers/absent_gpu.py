"""A GPU that is not there: torch's "meta" device, whose tensors have shapes but no values.

What would make the host wait for a real GPU raises: reading a value (`item`, `tolist`, `bool`), and shapes that depend
on values (`unique`, `nonzero`, selection by a mask). Copies between it and the host are counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("meta")
MAKERS = ("tensor", "as_tensor", "scalar_tensor", "new_tensor")  # of values that the host has


class CountedCopies(TorchFunctionMode):
    """Counts copies from and to the GPU while entered.

    Attributes:
        names: names of the functions that copied.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            name = getattr(function, "__name__", str(function))
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            is_moved = any(tensor.device != result.device for tensor in given)
            if is_moved or (name in MAKERS and result.device == GPU):
                self.names.append(name)
        return result


class CountedWaits(TorchDispatchMode):
    """Counts operations, on any device, for whose result the host would wait on a GPU.

    Attributes:
        names: names of these operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
        is_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if is_mask or name in ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))
