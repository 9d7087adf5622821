"""The state of a run in a checkpoint: arrays by name, and the settings of the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hf_plr.utils.files import replacing
from hf_plr.utils.serialization import name_file_in_errors, read_tensors, validate_array

STATE_FILE = "plr_state.safetensors"
FORMAT = "hf-plr-state-2"
SETTINGS = "settings"
PARTS = "parts"


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
