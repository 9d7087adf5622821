"""Arrays and results of several processes; weights that FSDP2 shards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch.distributed.fsdp import FSDPModule


def is_single_process(accelerator: Accelerator | None) -> bool:
    """True if no other process takes part."""
    return accelerator is None or accelerator.num_processes == 1


def sum_all(accelerator: Accelerator | None, values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor of one shape over all processes, on every process."""
    if accelerator is None or is_single_process(accelerator):
        return values
    total: torch.Tensor = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return total.to(values.device)


def max_all(accelerator: Accelerator | None, value: float) -> float:
    """Take the largest of the processes' numbers, on every process."""
    return max(gather_objects(accelerator, value))


def gather_objects(accelerator: Accelerator | None, item: Any) -> list[Any]:
    """Gather a small object of each process, in process order, on every process."""
    return [item] if is_single_process(accelerator) else gather_object([item])


def gather_rows(accelerator: Accelerator | None, rows: torch.Tensor) -> torch.Tensor:
    """Gather the rows (n, ...) of all processes, in process order, on every process; n may differ."""
    if accelerator is None or is_single_process(accelerator):
        return rows
    lengths = gather_objects(accelerator, len(rows))
    gathered = rows.new_empty((sum(lengths), *rows.shape[1:]), device=accelerator.device)
    parts = gathered.split(lengths)
    parts[accelerator.process_index].copy_(rows)
    for source, part in enumerate(parts):  # in place: gathering would need memory for all rows twice
        if len(part):
            part.copy_(broadcast(part, from_process=source))
    return gathered.to(rows.device)


def locate_rows(accelerator: Accelerator | None, n_rows: int) -> tuple[int, int]:
    """Locate this process's rows among those of all, in process order; returns their start, and the total."""
    lengths = gather_objects(accelerator, n_rows)
    index = 0 if accelerator is None else accelerator.process_index
    return sum(lengths[:index]), sum(lengths)


def run_on_main(accelerator: Accelerator | None, work: Callable[[], Any]) -> Any:
    """Run `work` on the main process; returns its result on every process.

    Raises:
        Exception: on the main process, the exception of `work`.
        RuntimeError: on the others, if `work` failed: they do not wait.
    """
    if accelerator is None or is_single_process(accelerator):
        return work()
    result: Any = None
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            result = work()
        except Exception as error:  # the others wait: tell them before raising
            failure = error
    message = [result, None if failure is None else str(failure)]
    broadcast_object_list(message)
    if failure is not None:
        raise failure
    if message[1] is not None:
        raise RuntimeError(f"failed on the main process: {message[1]}")
    return message[0]


def check_sharding(accelerator: Accelerator, backbone: Any) -> None:
    """Reject unsupported ways to shard weights, and prepare a backbone for FSDP2.

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
    # accelerate shards input embeddings once more, and fails for a model without them.
    backbone.get_input_embeddings = _return_none


def find_sharded_modules(model: torch.nn.Module) -> list[FSDPModule]:
    """Find the modules whose weights are sharded; empty without FSDP2."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def gather_weights(model: torch.nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Gather all weights on every process while the context lasts; every process enters it.

    Processes have different numbers of batches, so that they cannot gather weights batch by batch.
    """
    parts = find_sharded_modules(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            reshards = part is not model and bool(accelerator.state.fsdp_plugin.reshard_after_forward)
            part.set_reshard_after_forward(reshards, recurse=False)


def _return_none() -> None:
    return None
