"""What happens at the events of `transformers.Trainer`: the stage, the EMA teacher, scores, the log, SIGTERM."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils.memory import should_reduce_batch_size
from transformers import TrainerCallback

from hf_plr.report.run_history import remove_earlier_run
from hf_plr.report.summary import SCORE_PREFIX
from hf_plr.trainer.checkpoints.finding import find_best_beside, last_complete_checkpoint
from hf_plr.trainer.progress_display import ProgressDisplay
from hf_plr.utils.distributed import gather_objects, get_patient_group

if TYPE_CHECKING:
    from hf_plr.trainer.base_trainer import BaseTrainer
    from hf_plr.training_args import BaseTrainingArguments

logger = logging.getLogger(__name__)

LOSS_SUMS = "trainer.loss_sums"
LAST_LOGGED = "trainer.last_logged"


@contextlib.contextmanager
def lacking_memory_apart_from_steps(args: BaseTrainingArguments) -> Iterator[None]:
    """Let a lack of memory inside end a run with `auto_find_batch_size`, which would begin it anew.

    Raises:
        RuntimeError: which accelerate does not take for a training batch that is too large.
    """
    try:
        yield
    except RuntimeError as error:
        if args.auto_find_batch_size and should_reduce_batch_size(error):
            raise RuntimeError(
                "Features of samples, or clusters of them, hit an out-of-memory error. auto_find_batch_size=True finds "
                f"the batch of training alone: reduce per_device_eval_batch_size={args.per_device_eval_batch_size}"
            ) from error
        raise


class StageCallback(TrainerCallback):
    """Runs the stage where Trainer lets labels change: after the model is prepared, before the loader is opened.

    Args:
        trainer: its `prepare_epoch` is called.
    """

    def __init__(self, trainer: BaseTrainer):
        self.trainer = trainer
        self.epoch = 0
        self._is_under_way = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove what an earlier training left, and forget what of it was to be pushed.

        A training that begins again with a smaller batch forgets the labels of its first attempt, too.
        """
        self.epoch = int(state.epoch or 0)
        if self.trainer.resumed_from is not None:
            state.best_model_checkpoint = find_best_beside(self.trainer.resumed_from, args.output_dir)
        if state.global_step == 0 and self._is_under_way:
            self.trainer.begin_labels()
        self._is_under_way = True
        if state.global_step == 0 and state.is_world_process_zero:
            remove_earlier_run(args.output_dir)
        self.trainer.publisher.begin_training()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note that this training needs no other attempt."""
        self._is_under_way = False

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare the epoch: a stage, where one is due, and the report of it."""
        # Counted, since a callback that stops an epoch early leaves state.epoch behind.
        with lacking_memory_apart_from_steps(args):
            self.trainer.prepare_epoch(self.epoch)
        if state.is_world_process_zero:
            self.trainer.reporter.write_stage(self.trainer.summary(), state.log_history)
        self.epoch += 1


class EMACallback(TrainerCallback):
    """Lets the EMA teacher follow the trained weights at every optimizer step.

    Args:
        trainer: has an `ema_teacher`.
    """

    def __init__(self, trainer: BaseTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the slow copy of the weights after each step."""
        assert self.trainer.ema_teacher is not None
        self.trainer.ema_teacher.update(self.trainer.student)


class ScoreCallback(TrainerCallback):
    """Logs `score/...` every few epochs: what `trainer.assess` returns, and the bounds of its intervals.

    Weights, labels, optimizer, random generators and the mode of every module are those of a run that is not scored.

    Args:
        trainer: all its processes extract features, the main one scores them.
        every: epochs from one scoring to the next, at least 1.
    """

    def __init__(self, trainer: BaseTrainer, every: int):
        self.trainer = trainer
        self.every = every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn if there is nothing to score by."""
        if self.trainer.evaluator is None:
            logger.warning("score_every=%d, but there is no label column to score by: nothing is scored.", self.every)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the features, at the end of every so many epochs."""
        has_ended = state.epoch % 1 == 0  # not where a signal or a number of steps stopped it
        if self.trainer.evaluator is None or not has_ended or int(state.epoch) % self.every:
            return
        with lacking_memory_apart_from_steps(args):
            scores = self.trainer.assess()
        logged = dict(scores.values)
        for name, (low, high) in scores.intervals.items():
            logged |= {f"{name}_low": low, f"{name}_high": high}
        should_log = control.should_log
        self.trainer.record({f"{SCORE_PREFIX}{name}": value for name, value in logged.items()})
        control.should_log = should_log  # logging resets it, and the epoch's loss is still to come


class LogContinuation(TrainerCallback):
    """Makes a resumed run log what an uninterrupted one does.

    Losses that were summed up for the next entry of the log are stored with a checkpoint, by process. An epoch is saved
    after it has been logged and evaluated.

    Args:
        trainer: its sums of losses are stored and restored.
    """

    def __init__(self, trainer: BaseTrainer):
        self.trainer = trainer
        self.saves_at_epoch_end = False
        self.losses: dict[str, np.ndarray] = {}
        self._restored: dict[str, np.ndarray] = {}

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Hold the losses since the last entry of the log in `losses`, by process, and the step of that entry."""
        sums = gather_objects(self.trainer.accelerator, float(self.trainer._tr_loss))
        self.losses = {
            LOSS_SUMS: np.array(sums, np.float32),
            LAST_LOGGED: np.array([self.trainer._globalstep_last_logged]),
        }
        try:
            yield
        finally:
            self.losses = {}

    def take(self, state: dict[str, np.ndarray]) -> None:
        """Take the losses out of the state of a checkpoint, to restore them when training begins."""
        self._restored = {name: state.pop(name) for name in (LOSS_SUMS, LAST_LOGGED) if name in state}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put back the sums of the loss that a checkpoint had."""
        if self._restored:  # Trainer has just set them to zero
            sums = self._restored[LOSS_SUMS]
            self.trainer._tr_loss += float(sums[self.trainer.accelerator.process_index])
            self.trainer._total_loss_scalar -= float(sums.mean())  # its mean at the end is of the steps from here on
            self.trainer._globalstep_last_logged = int(self._restored[LAST_LOGGED][0])
            self._restored = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put a checkpoint off that is due at the last step of an epoch."""
        self.saves_at_epoch_end = control.should_save and state.epoch % 1 == 0
        control.should_save = control.should_save and not self.saves_at_epoch_end

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save what was put off, when the epoch has ended."""
        control.should_save = control.should_save or self.saves_at_epoch_end
        self.saves_at_epoch_end = False


class TrainingStopped(SystemExit):
    """SIGTERM ended training; unless it is caught the process ends, with status 143.

    Args:
        step: the last step.
        max_steps: steps of the whole run.
        output_dir: folder of the run; the message names the checkpoint in it, or says that there is none.
    """

    def __init__(self, step: int, max_steps: int, output_dir: str):
        super().__init__(128 + signal.SIGTERM)
        self.step = step
        self.max_steps = max_steps
        self.output_dir = output_dir

    def __str__(self) -> str:
        checkpoint, _ = last_complete_checkpoint(self.output_dir)
        stopped = f"Stopped by SIGTERM at step {self.step} of {self.max_steps}"
        if checkpoint is None:
            return f"{stopped}, without a checkpoint: save_strategy (--save_strategy) decides when one is written."
        return f"{stopped}: --resume_from_checkpoint resumes from {checkpoint}."


class StopSignal(TrainerCallback):
    """Saves and stops all processes at the same step once any of them got SIGTERM.

    Several processes ask each other at every step and read the answer at the next one, so that no step waits for it.

    Attributes:
        stopped: True if training was ended by it.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._received = False
        self._asked: tuple[dist.Work, torch.Tensor] | None = None  # at the last step

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Take SIGTERM as a request to stop, while inside; only a main thread can."""
        self.stopped = self._received = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _receive(self, number: int, frame: Any) -> None:
        self._received = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin without an open question to the other processes."""
        self._asked = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, if any process has received the signal."""
        if self._received if args.world_size == 1 else self._received_by_any():
            self.stopped = True
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True
            if state.is_world_process_zero:
                saves = (
                    "and saves" if control.should_save else f"and save_strategy={args.save_strategy.value!r} saves none"
                )
                logger.warning("SIGTERM: training stops at step %d, %s.", state.global_step, saves)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the open question to the other processes."""
        if self._asked is not None:
            self._asked[0].wait()
        self._asked = None

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do nothing that belongs to the end of an epoch, if the signal came in its middle."""
        if self.stopped and state.epoch % 1:  # what was saved resumes in the middle of the epoch: this is not its end
            control.should_log = control.should_evaluate = control.should_save = False

    def _received_by_any(self) -> bool:
        """True if any process had received the signal at the step before."""
        answer = False
        if self._asked is not None:
            work, received = self._asked
            work.wait()
            answer = bool(received.item())
        received = torch.tensor(int(self._received))
        work = dist.all_reduce(received, op=dist.ReduceOp.MAX, group=get_patient_group(), async_op=True)
        self._asked = work, received
        return answer


def make_callbacks(trainer: BaseTrainer) -> list[TrainerCallback]:
    """The callbacks of a run that a trainer does not hold itself, in the order of their calls."""
    callbacks: list[TrainerCallback] = [
        ProgressDisplay(trainer, bar=not trainer.args.disable_tqdm),
        StageCallback(trainer),
    ]
    if trainer.ema_teacher is not None:
        callbacks.append(EMACallback(trainer))
    if trainer.args.score_every:
        callbacks.append(ScoreCallback(trainer, trainer.args.score_every))
    return callbacks
