"""Arrays and results of several processes; weights that FSDP2 shards."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch.distributed.fsdp import FSDPModule

from hf_plr.utils.mapped_arrays import allocate_array
from hf_plr.utils.progress import LINE_SECONDS, describe_time

CPU = torch.device("cpu")
SENT_ROWS = 1 << 20  # that travel at once
PATIENCE = timedelta(days=7)  # the default groups of GPUs wait for half an hour


def is_single_process(accelerator: Accelerator | PartialState | None) -> bool:
    """True if no other process takes part."""
    return accelerator is None or accelerator.num_processes == 1


def sum_all(accelerator: Accelerator | None, values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor of one shape over all processes, on every process and on the tensor's device."""
    if accelerator is None or is_single_process(accelerator):
        return values
    total = values.clone()
    dist.all_reduce(total, group=_group_of(total))
    return total


def max_all(accelerator: Accelerator | None, value: float) -> float:
    """Take the largest of the processes' numbers, on every process."""
    return max(gather_objects(accelerator, value))


def gather_objects(accelerator: Accelerator | PartialState | None, item: Any) -> list[Any]:
    """Gather a small object of each process, in process order, on every process."""
    if accelerator is None or is_single_process(accelerator):
        return [item]
    items = [None] * accelerator.num_processes
    dist.all_gather_object(items, item, group=get_patient_group())
    return items


def gather_results(accelerator: Accelerator | PartialState | None, item: Any, failure: Exception | None) -> list[Any]:
    """Gather as `gather_objects` what each process's own work has given, unless it failed on one: none waits then.

    Raises:
        Exception: `failure`, where there is one.
        ValueError, RuntimeError: on the other processes, with its message; the first for a ValueError.
    """
    told = None if failure is None else (isinstance(failure, ValueError), str(failure) or type(failure).__name__)
    parts = gather_objects(accelerator, (item, told))
    if failure is not None:
        raise failure
    for _, other in parts:
        if other is not None:
            raise (ValueError if other[0] else RuntimeError)(other[1])
    return [result for result, _ in parts]


def gather_rows(accelerator: Accelerator | None, rows: torch.Tensor) -> torch.Tensor:
    """Gather the rows (n, ...) of all processes, in process order, on every process and on their device; n may differ.

    Rows on a CPU never pass through the memory of a GPU.
    """
    if accelerator is None or is_single_process(accelerator):
        return rows
    lengths = gather_objects(accelerator, len(rows))
    gathered = rows.new_empty((sum(lengths), *rows.shape[1:]))
    parts = gathered.split(lengths)
    parts[accelerator.process_index].copy_(rows)
    for source, part in enumerate(parts):  # in place: gathering would need memory for all rows twice
        if len(part):
            dist.broadcast(part, src=source, group=_group_of(part))
    return gathered


def locate_rows(accelerator: Accelerator | None, n_rows: int) -> tuple[int, int]:
    """Locate this process's rows among those of all, in process order; returns their start, and the total."""
    lengths = gather_objects(accelerator, n_rows)
    index = 0 if accelerator is None else accelerator.process_index
    return sum(lengths[:index]), sum(lengths)


def collect_on_main(
    accelerator: Accelerator | None,
    rows: np.ndarray,
    start: int,
    total: int,
    folder: str | os.PathLike[str] | None = None,
) -> np.ndarray | None:
    """Collect the rows of all processes on the main one, process by process and part by part.

    Args:
        accelerator: connects the processes; called on all of them.
        rows: this process's rows, shape (n, ...), of one type on every process; n may be 0.
        start: number of the first of them.
        total: number of all.
        folder: folder of the file; None takes the system's temporary folder.

    Returns:
        On the main process rows of all, (total, ...), in a memory-mapped file without a name; None on the others.
    """
    if accelerator is None or is_single_process(accelerator):
        return rows
    parts = gather_objects(accelerator, (start, len(rows)))
    group = get_patient_group()
    rows = np.ascontiguousarray(rows)
    if not accelerator.is_main_process:
        for span in _iterate_parts(len(rows)):
            dist.send(torch.from_numpy(rows[span].view(np.uint8)), dst=0, group=group)
        return None
    collected = allocate_array((total, *rows.shape[1:]), rows.dtype, folder)
    collected[start : start + len(rows)] = rows
    for source, (first, length) in enumerate(parts):
        for span in _iterate_parts(length if source > 0 else 0):
            part = np.empty((span.stop - span.start, *rows.shape[1:]), rows.dtype)
            dist.recv(torch.from_numpy(part.view(np.uint8)), src=source, group=group)
            collected[first + span.start : first + span.stop] = part
    return collected


def _iterate_parts(n_rows: int) -> Iterator[slice]:
    for start in range(0, n_rows, SENT_ROWS):
        yield slice(start, min(start + SENT_ROWS, n_rows))


class MainProcessError(RuntimeError):
    """What the main process did for all has failed there, which tells of it."""


def run_on_main(accelerator: Accelerator | PartialState | None, work: Callable[[], Any], description: str) -> Any:
    """Run `work` on the main process; returns its result on every process.

    The others wait for days if need be, and the second process says every 30 s what for.

    Args:
        accelerator: connects the processes; None for one alone.
        work: called on the main process alone.
        description: what it does, such as "scoring the features".

    Raises:
        Exception: on the main process, the exception of `work`.
        MainProcessError: on the others, if `work` failed: they do not wait.
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
    with _announce_wait(description, accelerator.process_index == 1):
        dist.broadcast_object_list(message, src=0, group=get_patient_group(), device=CPU)
    if failure is not None:
        raise failure
    if message[1] is not None:
        raise MainProcessError(f"failed on the main process: {message[1]}")
    return message[0]


@contextlib.contextmanager
def run_main_first(state: Accelerator | PartialState, description: str) -> Iterator[None]:
    """Let the main process of each machine go through the context before the others, which wait for days if need be.

    Args:
        state: connects the processes.
        description: what the main process does, such as "reading the data set".
    """
    if not state.is_local_main_process:
        wait_for_all(state, description)
    try:
        yield
    finally:
        if state.is_local_main_process:
            wait_for_all(state, description)


def wait_for_all(state: Accelerator | PartialState, description: str) -> None:
    """Wait, for days if need be, until all processes are here; `description` is what the main process may still do."""
    if state.num_processes > 1:
        with _announce_wait(description, state.process_index == 1):
            dist.barrier(get_patient_group())


def get_patient_group() -> dist.ProcessGroup:
    """Get the group of all processes for waits of any length: on CPUs, by gloo, with a timeout of days.

    The default group of GPUs ends a run whose processes wait for more than half an hour.

    Raises:
        ValueError: if gloo finds no network between the processes, with the variable to set.
    """
    return _make_patient_group(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _make_patient_group(world: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Make the group once for the processes that `world` connects."""
    atexit.register(_make_patient_group.cache_clear)  # gloo's threads abort a process whose interpreter is gone
    try:
        return dist.new_group(backend="gloo", timeout=PATIENCE)
    except RuntimeError as error:
        raise ValueError(
            f"the processes cannot reach each other by gloo ({error}): set GLOO_SOCKET_IFNAME to the network "
            "interface that connects the machines, such as eth0"
        ) from error


def _group_of(tensor: torch.Tensor) -> dist.ProcessGroup | None:
    """Group for collectives on a tensor: the default one is that of the processes' devices."""
    return get_patient_group() if tensor.device.type == "cpu" else None


@contextlib.contextmanager
def _announce_wait(description: str, is_announcer: bool) -> Iterator[None]:
    """Print what is waited for, every 30 s while the context lasts."""
    if not is_announcer:
        yield
        return
    is_over = threading.Event()
    started = time.monotonic()

    def announce() -> None:
        while not is_over.wait(LINE_SECONDS):
            waited = describe_time(time.monotonic() - started)
            print(f"Waiting for the main process: {description} ({waited})", flush=True)

    thread = threading.Thread(target=announce, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def check_sharding(accelerator: Accelerator, backbone: Any) -> None:
    """Reject unsupported ways to shard weights, and prepare a backbone for FSDP2.

    Raises:
        ValueError: with FSDP1 or ZeRO-3, whose weights cannot be gathered for a pass over the samples, or with a
            state dict in shards, of which `Trainer` saves no backbone.
    """
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError("DeepSpeed's zero_stage=3 is not supported: use 2, or FSDP")
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp is None:
        return
    if fsdp.fsdp_version != 2:
        raise ValueError(f"fsdp_version={fsdp.fsdp_version} is not supported: use 2")
    kind = getattr(fsdp.state_dict_type, "name", fsdp.state_dict_type)
    if kind != "FULL_STATE_DICT":
        raise ValueError(
            f"fsdp_state_dict_type={kind}, accelerate's default, would leave no backbone in output_dir: use "
            "FULL_STATE_DICT (in the launcher's fsdp_config)"
        )
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


@torch.no_grad()
def share_running_statistics(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Give every process the main one's running statistics of batch norms; every process calls it.

    In training each follows its own batches, and DistributedDataParallel shares them at the next step alone.
    """
    if accelerator.num_processes == 1:
        return
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            for _, statistics in module.named_buffers(recurse=False):
                broadcast(statistics)


def _return_none() -> None:
    return None
