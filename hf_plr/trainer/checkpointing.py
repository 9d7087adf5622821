"""Checkpoints: complete or recognised as incomplete, with the state and the settings of the run beside the weights."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from transformers import Trainer, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from hf_plr.utils.distributed import wait_for_all
from hf_plr.utils.files import replacing
from hf_plr.utils.serialization import name_file_in_errors, read_tensors, validate_array

logger = logging.getLogger(__name__)

ASIDE = "_unfinished"  # names that begin with _ are not pushed to the Hub
FILE_LIST = "plr_files.json"
STATE_FILE = "plr_state.safetensors"
FORMAT = "hf-plr-state-2"
SETTINGS = "settings"
PARTS = "parts"


class CheckpointError(Exception):
    """A checkpoint could not be written, or there is none to resume from.

    It is no RuntimeError: accelerate would take one that tells of memory for a training batch that is too large.
    """


# ---- writing ---------------------------------------------------------------------------------------------------------


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


# ---- finding ---------------------------------------------------------------------------------------------------------


def find_checkpoint(chosen: str | bool, output_dir: str | os.PathLike[str]) -> str:
    """Find the checkpoint to resume from.

    Args:
        chosen: its folder, or True for the last complete one in `output_dir`; incomplete ones are warned of.
        output_dir: folder of the run.

    Raises:
        CheckpointError: if the checkpoint is incomplete, or there is none.
    """
    if chosen is not True:
        defect = find_defect(Path(str(chosen))) if os.path.isdir(str(chosen)) else None
        if defect is not None:
            raise CheckpointError(f"the checkpoint {chosen} is incomplete: {defect}")
        return str(chosen)
    checkpoint, incomplete = last_complete_checkpoint(output_dir)
    for path, defect in incomplete.items():
        logger.warning("The checkpoint %s is incomplete and passed over: %s", path, defect)
    if checkpoint is None:
        raise CheckpointError(f"{output_dir} holds no complete checkpoint")
    return str(checkpoint)


def find_best_beside(checkpoint: str, output_dir: str | os.PathLike[str]) -> str | None:
    """Find the best checkpoint of a run beside one that is resumed, whose state may name it by a folder of before.

    Another run may have taken that folder since; so it is not looked at.

    Args:
        checkpoint: the one that is resumed.
        output_dir: folder of the run; a checkpoint in it is named by it, as those that follow are.

    Returns:
        None if the state names none, or, with a warning, if it is no longer there.
    """
    state_file = Path(checkpoint) / TRAINER_STATE_NAME
    if not state_file.is_file():
        return None
    named = TrainerState.load_from_json(str(state_file)).best_model_checkpoint
    if named is None:
        return None
    folder = Path(checkpoint).parent
    if os.path.realpath(folder) == os.path.realpath(output_dir):
        folder = Path(output_dir)
    best = folder / re.split(r"[/\\]", named)[-1]
    defect = find_defect(best) if best.is_dir() else "it is not there"
    if defect is not None:
        logger.warning("The best checkpoint so far, %s, cannot be kept for the end: %s", best, defect)
        return None
    return str(best)


def warn_of_earlier_checkpoints(output_dir: str | os.PathLike[str]) -> None:
    """Warn that a run that begins anew leaves those of an earlier one beside its own."""
    checkpoints = list_checkpoints(output_dir)
    if checkpoints:
        logger.warning(
            "%s holds %s%s of an earlier run, which this one leaves there: resume_from_checkpoint=True takes the last "
            "by number of steps, of whichever run. Remove what is not needed, or give another output_dir.",
            output_dir,
            checkpoints[0].name,
            f" and {len(checkpoints) - 1} more" if len(checkpoints) > 1 else "",
        )


def warn_of_later_checkpoints(checkpoint: str) -> None:
    """Warn where one of fewer steps was written after the last one by number of steps, as by a run that began anew."""
    checkpoints = list_checkpoints(Path(checkpoint).parent)
    written = {path: path.stat().st_mtime for path in checkpoints[checkpoints.index(Path(checkpoint)) :]}
    latest = max(written, key=lambda path: written[path])
    if written[latest] - written[Path(checkpoint)] >= 1.0:  # as in `remove_old`
        logger.warning(
            "%s is resumed, as the last by number of steps, but %s was written after it, as by a run that began anew "
            "in this folder: name the checkpoint to resume from if that is the one.",
            checkpoint,
            latest.name,
        )


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> tuple[Path | None, dict[Path, str]]:
    """The last complete checkpoint of a run, and the incomplete ones after it with their defects."""
    incomplete: dict[Path, str] = {}
    for checkpoint in list_checkpoints(output_dir):
        defect = find_defect(checkpoint)
        if defect is None:
            return checkpoint, incomplete
        incomplete[checkpoint] = defect
    return None, incomplete


def list_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run, complete or not, last one first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    checkpoints = [
        path
        for path in Path(output_dir).glob(f"{prefix}*")
        if path.is_dir() and path.name.removeprefix(prefix).isdecimal()
    ]
    return sorted(checkpoints, key=lambda path: int(path.name.removeprefix(prefix)), reverse=True)


def find_defect(checkpoint: Path) -> str | None:
    """Describe what is wrong with a checkpoint; None if all its files are there in full."""
    try:
        sizes = json.loads((checkpoint / FILE_LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {FILE_LIST}, which is written last"
    except (OSError, ValueError) as error:
        return f"its {FILE_LIST} cannot be read ({error})"
    if not isinstance(sizes, dict):
        return f"its {FILE_LIST} is not a list of files"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def refuse_without_optimizer(checkpoint: str) -> None:
    """Refuse to resume from a checkpoint whose weights alone were saved: optimizer and rates would begin anew.

    Raises:
        CheckpointError: if the files of the optimizer and the scheduler are not there.
    """
    for name in (OPTIMIZER_NAME, SCHEDULER_NAME):
        if not os.path.isfile(os.path.join(checkpoint, name)):
            raise CheckpointError(
                f"{checkpoint} has no {name}, as one that was written by save_only_model=True: start a new run with it "
                "as the model"
            )


def resume_hint(run_dir: Path) -> str:
    """Tell how to resume a run that has failed, in a sentence."""
    checkpoint, _ = last_complete_checkpoint(run_dir)
    if checkpoint is None:
        return "There is no earlier checkpoint"
    return f"{checkpoint} is complete: --resume_from_checkpoint (resume_from_checkpoint=True) resumes from it"


# ---- the state of a run ----------------------------------------------------------------------------------------------


def name_part(process: int, processes: int) -> str:
    """Name of the file with the state of a process's own samples, beside `STATE_FILE` with what all share."""
    stem, ending = os.path.splitext(STATE_FILE)
    return f"{stem}-{process + 1:05d}-of-{processes:05d}{ending}"


def save_part(directory: str | os.PathLike[str], state: dict[str, np.ndarray], process: int, processes: int) -> None:
    """Write arrays of a process's own samples, to a file that is complete or not there at all."""
    _write_arrays(os.path.join(directory, name_part(process, processes)), state)


def save_state(
    directory: str | os.PathLike[str], state: dict[str, np.ndarray], settings: dict[str, Any], parts: int = 1
) -> None:
    """Write arrays by name, and the settings of the run, to a file that is complete or not there at all.

    Args:
        directory: where to.
        state: what all processes share.
        settings: settings of the run.
        parts: number of files of `save_part` beside it; 1 for none.
    """
    arrays = state | ({PARTS: np.array([parts])} if parts > 1 else {})
    arrays[SETTINGS] = np.frombuffer(json.dumps(settings).encode(), np.uint8)  # metadata would lie in any order
    _write_arrays(os.path.join(directory, STATE_FILE), arrays)


def check_parts(directory: str | os.PathLike[str]) -> None:
    """Check that the parts of all processes are there, where there are parts.

    Raises:
        FileNotFoundError: naming one that is missing, as where machines write to disks of their own.
    """
    for path in Path(directory).glob(name_part(0, 1).replace("00001", "*")):
        processes = int(path.stem.rpartition("-")[2])
        names = [name_part(process, processes) for process in range(processes)]
        for process, name in enumerate(names):
            if not (path.parent / name).is_file():
                raise FileNotFoundError(
                    f"{name} is missing, which process {process} has written elsewhere: output_dir must be a folder "
                    "that all machines share"
                )


def _write_arrays(path: str, arrays: dict[str, np.ndarray]) -> None:
    contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata={"format": FORMAT})


def load_state(
    directory: str | os.PathLike[str], process: int = 0, processes: int = 1
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_state` wrote, and this process's part where there are as many as processes.

    Raises:
        ValueError: if a file is missing, damaged or of another format, naming it.
    """
    path = os.path.join(directory, STATE_FILE)
    if not os.path.isdir(directory):
        raise ValueError(f"the checkpoint {directory} does not exist")
    if not os.path.isfile(path):
        raise ValueError(f"{directory} has no {STATE_FILE}: it is not a checkpoint of PLRTrainer or UnitTrainer")
    arrays = read_tensors(path, FORMAT)
    with name_file_in_errors(path):
        text = validate_array(arrays, SETTINGS, "integers", (None,), 0, 255).astype(np.uint8).tobytes()
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ValueError(f"{SETTINGS!r} holds no settings by name")
        parts = int(validate_array(arrays, PARTS, "integers", (1,), 2)[0]) if PARTS in arrays else 1
    state = {name: array for name, array in arrays.items() if name not in (SETTINGS, PARTS)}
    if parts == processes > 1:  # with other processes the settings do not fit, which is told next
        state |= _load_part(directory, process, processes)
    return state, settings


def _load_part(directory: str | os.PathLike[str], process: int, processes: int) -> dict[str, np.ndarray]:
    path = os.path.join(directory, name_part(process, processes))
    if not os.path.isfile(path):
        raise ValueError(
            f"{directory} has no {name_part(process, processes)}, with the labels of one of the {processes} processes"
        )
    return read_tensors(path, FORMAT)
