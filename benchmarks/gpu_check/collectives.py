"""Every collective that the package uses, with its types of numbers; run under torchrun by a check.

`collectives.py nccl` prints a JSON object: what was tried, and the error or an empty text.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from hf_plr.utils.distributed import get_patient_group

DTYPES = (torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool)
SUMMED = (torch.float32, torch.float64, torch.int64)


@dataclass(frozen=True)
class Group:
    """A group of processes and where its tensors are.

    Attributes:
        name: for the output.
        group: the group; None for the default one.
        device: device of the tensors.
    """

    name: str
    group: Any
    device: torch.device

    def tries(self) -> dict[str, Callable[[], Any]]:
        """What is tried, by name."""
        found: dict[str, Callable[[], Any]] = {}
        for dtype in DTYPES:
            found[f"broadcast {dtype}"] = partial(self.broadcast, dtype)
        for dtype in SUMMED:
            found[f"all_reduce {dtype}"] = partial(self.reduce, dtype)
        others = (self.maximum, self.asynchronous, self.gather, self.gather_objects, self.broadcast_objects, self.wait)
        found |= {each.__name__: each for each in others}
        return {f"{self.name} {name}": collective for name, collective in found.items()}

    def rows(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.ones(5, 3, device=self.device).to(dtype)

    def broadcast(self, dtype: torch.dtype) -> None:
        dist.broadcast(self.rows(dtype), 0, group=self.group)

    def reduce(self, dtype: torch.dtype) -> None:
        total = self.rows(dtype)
        dist.all_reduce(total, group=self.group)
        if not (total == dist.get_world_size()).all():
            raise ArithmeticError(f"a sum of ones is {total.flatten()[0]}")

    def maximum(self) -> None:
        dist.all_reduce(self.rows(torch.int64), dist.ReduceOp.MAX, group=self.group)

    def asynchronous(self) -> None:
        dist.all_reduce(self.rows(torch.int64), group=self.group, async_op=True).wait()

    def gather(self) -> None:
        parts = [self.rows(torch.float32) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, self.rows(torch.float32), group=self.group)

    def gather_objects(self) -> None:
        dist.all_gather_object([None] * dist.get_world_size(), "x", group=self.group)

    def broadcast_objects(self) -> None:
        dist.broadcast_object_list([{"a": 1}], src=0, group=self.group, device=self.device)

    def wait(self) -> None:
        dist.barrier(self.group)


def main(backend: str) -> None:
    """Try each, and print what became of it."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    groups = [Group("default", None, device), Group("patient", get_patient_group(), torch.device("cpu"))]
    found: dict[str, str] = {}
    for group in groups:
        for name, collective in group.tries().items():
            try:
                collective()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                found[name] = ""
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
