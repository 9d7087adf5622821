"""Checkpoints: complete or recognised as incomplete, with the state and the settings of the run beside the weights."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_plr.utils.serialization import checked, read_from, read_tensors

ASIDE = "_unfinished"  # names that begin with _ are not pushed to the Hub
FILE_LIST = "plr_files.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or there is none to go on from."""


def seal(checkpoint: Path) -> None:
    """Get all files of a checkpoint onto the disk, and last of all a list of them and their sizes."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    listed = checkpoint / FILE_LIST
    listed.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    for path in (*files, listed, checkpoint):
        _flush(path)


def put_in_place(written: Path, checkpoint: Path) -> None:
    """Rename a sealed checkpoint to where it is looked for; one of the same name goes."""
    old = written.with_name(f"{written.name}-old")
    if checkpoint.exists():
        checkpoint.rename(old)
    written.rename(checkpoint)
    _flush(checkpoint.parent)
    shutil.rmtree(old, ignore_errors=True)


def flaw(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if all its files are there in full."""
    try:
        sizes = json.loads((checkpoint / FILE_LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"it has no {FILE_LIST}, which is written last"
    except (OSError, ValueError) as error:
        return f"its {FILE_LIST} cannot be read ({error})"
    if not isinstance(sizes, dict):
        return f"its {FILE_LIST} is no list of files"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
    return None


def checkpoints_in(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run, whole or torn, last one first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = [
        path
        for path in Path(output_dir).glob(f"{prefix}*")
        if path.is_dir() and path.name.removeprefix(prefix).isdecimal()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)), reverse=True)


def last_whole(output_dir: str | os.PathLike[str]) -> tuple[Path | None, dict[Path, str]]:
    """The last whole checkpoint of a run, and the torn ones after it with their flaws."""
    torn: dict[Path, str] = {}
    for checkpoint in checkpoints_in(output_dir):
        found = flaw(checkpoint)
        if found is None:
            return checkpoint, torn
        torn[checkpoint] = found
    return None, torn


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


STATE_FILE = "plr_state.safetensors"
FORMAT = "hf-plr-state-2"
SETTINGS = "settings"


def save_state(directory: str | os.PathLike[str], state: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
    """Write arrays by name, and the settings of the run, to a file that is complete or not there at all."""
    path = os.path.join(directory, STATE_FILE)
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    arrays[SETTINGS] = np.frombuffer(json.dumps(settings).encode(), np.uint8)  # metadata would lie in any order
    save_file(arrays, path + ".tmp", metadata={"format": FORMAT})
    os.replace(path + ".tmp", path)


def load_state(directory: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save_state` wrote.

    Raises:
        ValueError: if the file is missing, damaged or of another format, naming it.
    """
    path = os.path.join(directory, STATE_FILE)
    if not os.path.isdir(directory):
        raise ValueError(f"the checkpoint {directory} does not exist")
    if not os.path.isfile(path):
        raise ValueError(f"{directory} has no {STATE_FILE}: it is no checkpoint of PLRTrainer or UnitTrainer")
    arrays = read_tensors(path, FORMAT)
    with read_from(path):
        text = checked(arrays, SETTINGS, "integers", (None,), 0, 255).astype(np.uint8).tobytes()
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ValueError(f"{SETTINGS!r} holds no settings by name")
    return {name: array for name, array in arrays.items() if name != SETTINGS}, settings


logger = logging.getLogger(__name__)

SHARED = (
    "seed",
    "data_seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "dataloader_drop_last",
    "optim",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "warmup_steps",
    "bf16",
    "fp16",
)
LENGTHS = ("num_train_epochs", "max_steps")
FREE = (  # where data lie, how they are scored and kept in memory, what happens at faults
    "image_column",
    "audio_column",
    "label_column",
    "score_every",
    "image_cache_gib",
    "image_cache_dir",
    "sound_cache_gib",
    "feature_dir",
    "skip_unreadable",
    "on_nan",
    "report",
)
SHOWN = 6


def settings_of(args: TrainingArguments, arguments_class: type[TrainingArguments]) -> dict[str, Any]:
    """The arguments that decide what a run learns: our own, and those of `TrainingArguments` that do."""
    of_trainer = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [field.name for field in dataclasses.fields(arguments_class) if field.name not in of_trainer]
    names = [name for name in own if name not in FREE] + [*SHARED, *LENGTHS]
    return as_stored({name: getattr(args, name) for name in names})


def estimator_settings(estimator: Any) -> dict[str, Any]:
    """Class and parameters of an object that follows scikit-learn, as far as they decide what it finds."""
    parameters = estimator.get_params(deep=False) if hasattr(estimator, "get_params") else {}
    quiet = {name: value for name, value in parameters.items() if name not in ("verbose", "n_jobs", "copy")}
    return {"class": type(estimator).__name__, **quiet}


def as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are when they have been to a file and back."""
    stored: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return stored


def check_same(checkpoint: str, stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint with settings other than its own.

    Args:
        checkpoint: its folder, for the message.
        stored: settings that it was written with.
        now: settings of this run.

    Raises:
        ValueError: naming each setting that differs; another length of the run is only warned of.
    """
    differing = [name for name in {**now, **stored} if stored.get(name) != now.get(name)]
    lengths = [name for name in differing if name in LENGTHS]
    refused = [name for name in differing if name not in LENGTHS]
    if lengths:
        logger.warning(
            "%s: %s. The run goes on, but not as one that had this length from the start: its learning rate was "
            "planned for the other.",
            checkpoint,
            _told(lengths, stored, now),
        )
    if refused:
        raise ValueError(
            f"{checkpoint} was written with other settings: {_told(refused, stored, now)}. Resume with the settings "
            "that the run was started with, or start a new run with this checkpoint as its model"
        )


def _told(names: list[str], stored: dict[str, Any], now: dict[str, Any]) -> str:
    told = [f"{name} was {stored.get(name)!r} and is {now.get(name)!r}" for name in names[:SHOWN]]
    return "; ".join(told) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
