"""SIGTERM ends training at the next step, with a checkpoint: machines that are taken away announce it so."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class TrainingStopped(SystemExit):
    """SIGTERM ended training, after a checkpoint; unless it is caught the process ends, with status 143."""

    def __init__(self, step: int, max_steps: int):
        super().__init__(128 + signal.SIGTERM)
        self.step = step
        self.max_steps = max_steps

    def __str__(self) -> str:
        return (
            f"Stopped by SIGTERM at step {self.step} of {self.max_steps}: --resume_from_checkpoint goes on from there."
        )


class StopSignal(TrainerCallback):
    """Saves and stops all processes once any of them was asked to by SIGTERM.

    Attributes:
        stopped: whether training was ended by it.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._group: dist.ProcessGroup | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take SIGTERM as a request to stop, while inside; only a main thread can."""
        self.stopped = self._asked = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1 and self._group is None:
            # Of the CPU, so that asking each other does not wait for a GPU.
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._anyone_asked():
            self.stopped = True
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True
            logger.warning("SIGTERM: training stops at step %d, and saves.", state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped and state.epoch % 1:  # what was saved goes on in the middle of the epoch: this is not its end
            control.should_log = control.should_evaluate = control.should_save = False

    def _anyone_asked(self) -> bool:
        if self._group is None:
            return self._asked
        asked = torch.tensor(int(self._asked))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        return bool(asked.item())
