"""Arrays and results shared among processes; weights that FSDP2 shares out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from torch.distributed.fsdp import FSDPModule


def is_single_process(accelerator: Accelerator | None) -> bool:
    """Whether there is nobody to talk to."""
    return accelerator is None or accelerator.num_processes == 1


def sum_all(accelerator: Accelerator | None, values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor of one shape over all processes, on every process."""
    if accelerator is None or is_single_process(accelerator):
        return values
    total: torch.Tensor = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return total.to(values.device)


def max_all(accelerator: Accelerator | None, value: float) -> float:
    """Largest of the processes' numbers, on every process."""
    return max(gather_objects(accelerator, value))


def gather_objects(accelerator: Accelerator | None, item: Any) -> list[Any]:
    """A small object of each process, in process order, on every process."""
    return [item] if is_single_process(accelerator) else gather_object([item])


def gather_rows(accelerator: Accelerator | None, rows: torch.Tensor) -> torch.Tensor:
    """Rows (n, ...) of all processes one after the other, in process order, on every process; n may differ."""
    if accelerator is None or is_single_process(accelerator):
        return rows
    lengths = gather_objects(accelerator, len(rows))
    everything = rows.new_empty((sum(lengths), *rows.shape[1:]), device=accelerator.device)
    parts = everything.split(lengths)
    parts[accelerator.process_index].copy_(rows)
    for source, part in enumerate(parts):  # straight into their place: gathering needs room for all rows once more
        if len(part):
            part.copy_(broadcast(part, from_process=source))
    return everything.to(rows.device)


def locate_rows(accelerator: Accelerator | None, n_rows: int) -> tuple[int, int]:
    """Where this process's rows begin among those of all, in process order, and how many there are in all."""
    lengths = gather_objects(accelerator, n_rows)
    index = 0 if accelerator is None else accelerator.process_index
    return sum(lengths[:index]), sum(lengths)


def run_on_main(accelerator: Accelerator | None, work: Callable[[], Any]) -> Any:
    """What `work` gives on the main process, on every process.

    Raises:
        Exception: on the main process, what `work` raised.
        RuntimeError: on the others, if it failed there: they do not wait for what will not come.
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
    box = [result, None if failure is None else str(failure)]
    broadcast_object_list(box)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise RuntimeError(f"failed on the main process: {box[1]}")
    return box[0]


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


def find_sharded_modules(model: torch.nn.Module) -> list[FSDPModule]:
    """The modules whose weights are shared out; empty without FSDP2."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def gather_weights(model: torch.nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """All weights on every process for as long as this lasts; every process calls it.

    Processes have different numbers of batches, so none can wait for the others' weights at each of its own.
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
            again = part is not model and bool(accelerator.state.fsdp_plugin.reshard_after_forward)
            part.set_reshard_after_forward(again, recurse=False)


def _nothing() -> None:
    return None
