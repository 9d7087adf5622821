"""The labels and prototypes of a run, as one safetensors file beside each checkpoint's weights."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hf_plr.stored_arrays import checked, read_from
from hf_plr.tensor_files import read_tensors

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
