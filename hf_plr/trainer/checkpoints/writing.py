"""Writing checkpoints aside, and renaming each once all of it is on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from hf_plr.trainer.checkpoints.finding import FILE_LIST, CheckpointError, list_checkpoints, resume_hint
from hf_plr.trainer.checkpoints.run_state import check_parts
from hf_plr.utils.distributed import wait_for_all

ASIDE = "_unfinished"  # names that begin with _ are not pushed to the Hub


class CheckpointWriter:
    """Writes the checkpoints of a trainer aside, and renames each once all of it is on the disk.

    Args:
        trainer: its processes write together; the one that saves renames.

    Attributes:
        is_writing: True while a checkpoint is written.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.is_writing = False

    def place(self, run_dir: str) -> str:
        """Folder for checkpoints now: that of the run, or one below it while a checkpoint is written."""
        return os.path.join(run_dir, ASIDE) if self.is_writing else run_dir

    @contextlib.contextmanager
    def writing_aside(self, run_dir: Path) -> Iterator[Path]:
        """Let Trainer write a checkpoint inside; called on every process.

        Yields:
            Where the checkpoint will be.

        Raises:
            CheckpointError: if it could not be written, naming the last complete one.
        """
        accelerator, should_save = self.trainer.accelerator, self.trainer.args.should_save
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.trainer.state.global_step}"
        written, checkpoint = run_dir / ASIDE / name, run_dir / name
        if should_save:
            shutil.rmtree(written.parent, ignore_errors=True)  # of a run that was killed
        wait_for_all(accelerator, "writing a checkpoint")
        self.is_writing = True
        try:
            yield checkpoint
            wait_for_all(accelerator, "writing a checkpoint")  # each process writes its random state
            self._name_best_checkpoint(written, checkpoint)
            if should_save:
                if not self.trainer.args.save_on_each_node:
                    check_parts(written)
                _write_file_list(written)
                _move_into_place(written, checkpoint)
                shutil.rmtree(written.parent, ignore_errors=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(written.parent, ignore_errors=True)
            raise CheckpointError(f"{checkpoint} could not be written: {error}. {resume_hint(run_dir)}") from error
        finally:
            self.is_writing = False
        wait_for_all(accelerator, "writing a checkpoint")

    def remove_old(self, run_dir: Path) -> None:
        """Remove checkpoints beyond `save_total_limit`, the oldest first, but neither the last nor the best one."""
        if self.trainer.args.should_save:
            written = [checkpoint.stat().st_mtime for checkpoint in list_checkpoints(run_dir)]
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.trainer.args.save_total_limit,
                best_model_checkpoint=self.trainer.state.best_model_checkpoint,
                use_mtime=max(written) - min(written) >= 1.0,  # in the same second, steps tell the order
            )

    def _name_best_checkpoint(self, written: Path, checkpoint: Path) -> None:
        """Where the best checkpoint is this one, name it as it will be named: on every process, which all load it."""
        state = self.trainer.state
        if state.best_model_checkpoint != str(written):
            return
        state.best_model_checkpoint = str(checkpoint)
        if self.trainer.args.should_save:
            state.save_to_json(str(written / "trainer_state.json"))


def _write_file_list(checkpoint: Path) -> None:
    """Get all files of a checkpoint onto the disk, and last of all a list of them and their sizes."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    file_list = checkpoint / FILE_LIST
    file_list.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    for path in (*files, file_list, checkpoint):
        _flush(path)


def _move_into_place(written: Path, checkpoint: Path) -> None:
    """Rename a complete checkpoint to where it is looked for, in place of one of the same name."""
    old = written.with_name(f"{written.name}-old")
    if checkpoint.exists():
        checkpoint.rename(old)
    written.rename(checkpoint)
    _flush(checkpoint.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_nan_weights(model: torch.nn.Module, step: int, run_dir: Path) -> None:
    """Refuse to save weights that are NaN: their checkpoint would push a good one out.

    Raises:
        ValueError: naming the step and the last complete checkpoint.
    """
    if all(bool(torch.isfinite(weights).all()) for weights in model.parameters()):
        return
    raise ValueError(
        f"step {step}: weights are NaN or infinite, and not saved: lower the learning rate. {resume_hint(run_dir)}"
    )
