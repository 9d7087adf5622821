"""Finding the checkpoint to resume from, among complete and incomplete ones."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

FILE_LIST = "plr_files.json"  # written last


class CheckpointError(Exception):
    """A checkpoint could not be written, or there is none to resume from.

    It is no RuntimeError: accelerate would take one that tells of memory for a training batch that is too large.
    """


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
