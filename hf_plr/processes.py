"""What several processes tell each other; with one process, or none named, nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object


def is_alone(accelerator: Accelerator | None) -> bool:
    """Whether there is nobody to talk to."""
    return accelerator is None or accelerator.num_processes == 1


def sum_over(accelerator: Accelerator | None, values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor of one shape over all processes, on every process."""
    if accelerator is None or is_alone(accelerator):
        return values
    total: torch.Tensor = accelerator.reduce(values.to(accelerator.device), reduction="sum")
    return total.to(values.device)


def max_over(accelerator: Accelerator | None, value: float) -> float:
    """Largest of the processes' numbers, on every process."""
    return max(gather_all(accelerator, value))


def gather_all(accelerator: Accelerator | None, item: Any) -> list[Any]:
    """A small object of each process, in process order, on every process."""
    return [item] if is_alone(accelerator) else gather_object([item])


def gather_rows(accelerator: Accelerator | None, rows: torch.Tensor) -> torch.Tensor:
    """Rows (n, ...) of all processes one after the other, in process order, on every process; n may differ."""
    if accelerator is None or is_alone(accelerator):
        return rows
    lengths = gather_all(accelerator, len(rows))
    everything = rows.new_empty((sum(lengths), *rows.shape[1:]), device=accelerator.device)
    parts = everything.split(lengths)
    parts[accelerator.process_index].copy_(rows)
    for source, part in enumerate(parts):  # straight into their place: gathering needs room for all rows once more
        if len(part):
            part.copy_(broadcast(part, from_process=source))
    return everything.to(rows.device)


def place_of(accelerator: Accelerator | None, n_rows: int) -> tuple[int, int]:
    """Where this process's rows begin among those of all, in process order, and how many there are in all."""
    lengths = gather_all(accelerator, n_rows)
    index = 0 if accelerator is None else accelerator.process_index
    return sum(lengths[:index]), sum(lengths)


def on_main(accelerator: Accelerator | None, work: Callable[[], Any]) -> Any:
    """What `work` gives on the main process, on every process.

    Raises:
        Exception: on the main process, what `work` raised.
        RuntimeError: on the others, if it failed there: they do not wait for what will not come.
    """
    if accelerator is None or is_alone(accelerator):
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
