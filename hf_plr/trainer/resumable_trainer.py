"""`ResumableTrainer`: a `transformers.Trainer` whose runs go on exactly where they ended, however they ended."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from hf_plr.trainer.checkpointing import (
    ASIDE,
    CheckpointError,
    check_same,
    flaw,
    last_whole,
    load_state,
    put_in_place,
    save_state,
    seal,
)
from hf_plr.trainer.stop_signal import StopSignal, TrainingStopped
from hf_plr.utils.distributed import gather_all

logger = logging.getLogger(__name__)

LOSS_SUMS = "trainer.loss_sums"
LAST_LOGGED = "trainer.last_logged"


class ResumableTrainer(Trainer, ABC):
    """What makes a resumed run equal to one that was never interrupted.

    * A checkpoint is written aside and renamed once all of it is on the disk. One that is torn all the same is
      recognised by its list of files, and the one before is taken.
    * The state of the run (labels, prototypes, ...) and its settings lie in the checkpoint. A run with other settings
      does not go on from it.
    * Losses that were added up for the next entry of the log go on being added up, and the end of an epoch is logged
      and evaluated before it is saved.
    * SIGTERM saves at the next step and ends training, and the process unless `TrainingStopped` is caught.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.enable_jit_checkpoint:
            raise ValueError("enable_jit_checkpoint=True is not needed: SIGTERM saves a checkpoint as it is")
        self._resumed = False
        self._writes_aside = False
        self._loss_state: dict[str, np.ndarray] = {}
        self._stop_signal = StopSignal()
        self.add_callback(self._stop_signal)
        self.add_callback(_LogGoesOn(self))

    # ---- what a run adds -----------------------------------------------------------------------------------------

    @abstractmethod
    def run_state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs beside weights and optimizer, as arrays by name; empty before the first epoch."""

    @abstractmethod
    def load_run_state(self, state: dict[str, np.ndarray], checkpoint: str) -> None:
        """Restore what `run_state` gave; the checkpoint is for messages."""

    @abstractmethod
    def run_settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with its checkpoint, as JSON can hold it."""

    # ---- going on ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does; a resumed run takes up labels, prototypes and sums of losses too.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the last whole one in `output_dir`.
            *args, **kwargs: as in `Trainer`.

        Raises:
            CheckpointError: if the checkpoint is torn or there is none, or one cannot be written.
            ValueError: if the checkpoint was written with other settings or for other data.
            TrainingStopped: after SIGTERM.
        """
        checkpoint = self._checkpoint_of(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint is not None:
            state, settings = load_state(checkpoint)
            check_same(checkpoint, settings, self._all_settings())
            self._loss_state = {name: state.pop(name) for name in (LOSS_SUMS, LAST_LOGGED) if name in state}
            self.load_run_state(state, checkpoint)
        self._resumed = checkpoint is not None
        with self._stop_signal.watched():
            result = super().train(checkpoint, *args, **kwargs)
        if self._stop_signal.stopped:
            raise TrainingStopped(self.state.global_step, self.state.max_steps)
        return result

    def _checkpoint_of(self, wanted: str | bool) -> str:
        if wanted is not True:
            found = flaw(Path(str(wanted))) if os.path.isdir(str(wanted)) else None
            if found is not None:
                raise CheckpointError(f"the checkpoint {wanted} is torn: {found}")
            return str(wanted)
        checkpoint, torn = last_whole(str(self.args.output_dir))
        for path, found in torn.items():
            logger.warning("The checkpoint %s is torn and passed over: %s", path, found)
        if checkpoint is None:
            raise CheckpointError(f"{self.args.output_dir} holds no whole checkpoint")
        return str(checkpoint)

    def _all_settings(self) -> dict[str, Any]:
        trainer = {"trainer": type(self).__name__, "processes": self.accelerator.num_processes}
        return trainer | self.run_settings()

    # ---- saving --------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does, with the state of the run beside the weights."""
        directory = self.args.output_dir if output_dir is None else output_dir
        state = self.run_state() if self.args.should_save else {}
        if state:
            os.makedirs(str(directory), exist_ok=True)
            save_state(str(directory), state | self._loss_state, self._all_settings())
        super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_dir = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._refuse_nan_weights(run_dir)
        self._loss_state = self._loss_state_now()
        with self._written_aside(run_dir, name):
            super()._save_checkpoint(model, trial)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run_dir / name))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    @contextlib.contextmanager
    def _written_aside(self, run_dir: Path, name: str) -> Iterator[None]:
        """Write a checkpoint below `run_dir / ASIDE`, and rename it to `run_dir / name` when it is whole."""
        written = run_dir / ASIDE / name
        if self.args.should_save:
            shutil.rmtree(written.parent, ignore_errors=True)  # of a run that was killed
        self.accelerator.wait_for_everyone()
        self._writes_aside = True
        try:
            yield
            self.accelerator.wait_for_everyone()  # each process writes its random state
            if self.args.should_save:
                self._name_best_checkpoint(written, run_dir / name)
                seal(written)
                put_in_place(written, run_dir / name)
                shutil.rmtree(written.parent, ignore_errors=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(written.parent, ignore_errors=True)
            raise CheckpointError(f"{run_dir / name} could not be written: {error}. {_where_to(run_dir)}") from error
        finally:
            self._writes_aside = False
            self._loss_state = {}
        self.accelerator.wait_for_everyone()

    def _name_best_checkpoint(self, written: Path, checkpoint: Path) -> None:
        """Where the best checkpoint is this one, say so by the name that it will have."""
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(checkpoint)
            self.state.save_to_json(str(written / "trainer_state.json"))

    def _get_output_dir(self, trial: Any) -> str:
        run_dir = super()._get_output_dir(trial)
        return os.path.join(run_dir, ASIDE) if self._writes_aside else run_dir

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._writes_aside:  # the Hub's client reads the files later on: from where they stay
            super()._push_from_checkpoint(checkpoint_folder)

    def _refuse_nan_weights(self, run_dir: Path) -> None:
        """A checkpoint of weights that are NaN would push a good one out."""
        if all(bool(torch.isfinite(weights).all()) for weights in self.model.parameters()):
            return
        raise ValueError(
            f"step {self.state.global_step}: weights are NaN or infinite, and not saved: lower the learning rate. "
            f"{_where_to(run_dir)}"
        )

    def _loss_state_now(self) -> dict[str, np.ndarray]:
        """Losses since the last entry of the log, summed up by each process; and the step of that entry."""
        sums = gather_all(self.accelerator, float(self._tr_loss))
        return {LOSS_SUMS: np.array(sums, np.float32), LAST_LOGGED: np.array([self._globalstep_last_logged])}

    def _restore_losses(self) -> None:
        if self._loss_state:
            self._tr_loss += float(self._loss_state[LOSS_SUMS][self.accelerator.process_index])
            self._globalstep_last_logged = int(self._loss_state[LAST_LOGGED][0])
            self._loss_state = {}


class _LogGoesOn(TrainerCallback):
    """Makes a resumed run log what an uninterrupted one does."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer
        self.saves_at_end = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._restore_losses()  # Trainer has just set them to zero

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save what is to be saved at the last step of an epoch when the epoch has been logged and evaluated."""
        self.saves_at_end = control.should_save and state.epoch % 1 == 0
        control.should_save = control.should_save and not self.saves_at_end

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or self.saves_at_end
        self.saves_at_end = False


def _where_to(run_dir: Path) -> str:
    checkpoint, _ = last_whole(run_dir)
    if checkpoint is None:
        return "There is no earlier checkpoint"
    return f"{checkpoint} is whole: --resume_from_checkpoint (resume_from_checkpoint=True) goes on from it"
