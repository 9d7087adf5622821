"""A recipe that is watched: `watched_recipe.py WATCH RECIPE ...` with a JSON object of `Watch`'s arguments.

It runs under `accelerate launch` like the recipe itself, whose code stays as it is.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_plr.trainer.base_trainer import BaseTrainer

STARTED = time.perf_counter()


class Watch:
    """What happens beside a recipe.

    Args:
        notes: a JSON file of times in seconds: "steps", when each began and the last one ended; and how long all of
            "read" (up to the trainer), "score", "stage" and "train" (stages included) took; "graphs" is the number of
            graphs that were compiled. The main process writes it.
        kill_at: kill this process when so many steps are done.
        shard_on_cpu: let accelerate take the CPU for a device, whose weights it can then share out.
    """

    def __init__(self, notes: str | None = None, kill_at: int | None = None, shard_on_cpu: bool = False):
        self.notes = notes
        self.kill_at = kill_at
        self.shard_on_cpu = shard_on_cpu
        self._steps: list[float] = []
        self._seconds: dict[str, float] = {}

    def install(self) -> None:
        """Wrap what is watched."""
        if self.shard_on_cpu:
            take_cpu_for_a_device()
        trainer: Any = BaseTrainer
        for name, method in {"score": "score", "stage": "prepare_epoch", "train": "train"}.items():
            setattr(trainer, method, self._timed(name, getattr(trainer, method)))
        begin, step = trainer.__init__, trainer.training_step

        def watched_begin(*args: Any, **kwargs: Any) -> None:
            begin(*args, **kwargs)
            self._seconds["read"] = time.perf_counter() - STARTED

        def watched_step(this: Any, *args: Any, **kwargs: Any) -> Any:
            if self.kill_at is not None and this.state.global_step >= self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self._steps.append(time.perf_counter())
            return step(this, *args, **kwargs)

        trainer.__init__, trainer.training_step = watched_begin, watched_step

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(this: Any, *args: Any, **kwargs: Any) -> Any:
            wait_for_device()
            started = time.perf_counter()
            result = method(this, *args, **kwargs)
            wait_for_device()
            ended = time.perf_counter()
            self._seconds[name] = self._seconds.get(name, 0.0) + ended - started
            if name == "train":
                self._steps.append(ended)
            if self.notes is not None and this.is_world_process_zero():
                notes = {**self._seconds, "steps": self._steps, "graphs": count_graphs()}
                Path(self.notes).write_text(json.dumps(notes))
            return result

        return timed


def count_graphs() -> int:
    """Graphs that torch.compile has made."""
    if "torch._dynamo" not in sys.modules:
        return 0
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def wait_for_device() -> None:
    """Wait until a GPU has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def take_cpu_for_a_device() -> None:
    """Let accelerate shard weights on a CPU, which it does on devices only."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    torch.accelerator.is_available = lambda: True
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)


if __name__ == "__main__":
    Watch(**json.loads(sys.argv[1])).install()
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
