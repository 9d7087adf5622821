"""The labels and prototypes of a run, as one safetensors file beside each checkpoint's weights."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hf_plr.tensor_files import read_tensors

STATE_FILE = "plr_state.safetensors"
FORMAT = "hf-plr-state-2"


def save_state(directory: str | os.PathLike[str], state: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
    """Write arrays by name, and the settings of the run, to a file that is complete or not there at all."""
    path = os.path.join(directory, STATE_FILE)
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    save_file(arrays, path + ".tmp", metadata={"format": FORMAT, "settings": json.dumps(settings)})
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
    arrays, metadata = read_tensors(path, FORMAT)
    try:
        settings = json.loads(metadata.get("settings", "null"))
    except ValueError as error:
        raise ValueError(f"{path}: its settings are no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings of a run")
    return arrays, settings
