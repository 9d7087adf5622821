"""FSDP2: what is needed where every process holds only a part of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule


def check_sharding(accelerator: Accelerator, backbone: Any) -> None:
    """Refuse what shares out weights in a way that does not work here, and make a backbone fit for FSDP2.

    Raises:
        ValueError: with FSDP1 or ZeRO-3, whose weights cannot be gathered for a pass over the samples.
    """
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError("DeepSpeed's zero_stage=3 is not supported: use 2, or FSDP")
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is None:
        return
    if fsdp.fsdp_version != 2:
        raise ValueError(f"fsdp_version={fsdp.fsdp_version} is not supported: use 2")
    # accelerate shards these once more by themselves, where a model has them, and fails where it has none.
    backbone.get_input_embeddings = _nothing


def sharded_parts(model: torch.nn.Module) -> list[FSDPModule]:
    """The modules whose weights are shared out; empty without FSDP2."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def whole_weights(model: torch.nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """All weights on every process for as long as this lasts; every process calls it.

    Processes have different numbers of batches, so none can wait for the others' weights at each of its own.
    """
    parts = sharded_parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            again = part is not model and bool(accelerator.state.fsdp_plugin.reshard_after_forward)
            part.set_reshard_after_forward(again, recurse=False)


def _nothing() -> None:
    return None
