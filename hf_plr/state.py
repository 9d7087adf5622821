"""The labels and prototypes of a run, as one safetensors file beside each checkpoint's weights."""

from __future__ import annotations

import os

import numpy as np
from safetensors.numpy import save_file

from hf_plr.tensor_files import read_tensors

STATE_FILE = "plr_state.safetensors"
FORMAT = "hf-plr-state-1"


def save_state(directory: str | os.PathLike[str], state: dict[str, np.ndarray]) -> None:
    """Write arrays by name, to a file that is complete or not there at all."""
    path = os.path.join(directory, STATE_FILE)
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    save_file(arrays, path + ".tmp", metadata={"format": FORMAT})
    os.replace(path + ".tmp", path)


def load_state(directory: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read what `save_state` wrote.

    Raises:
        ValueError: if the file is missing, damaged or of another format, naming it.
    """
    path = os.path.join(directory, STATE_FILE)
    if not os.path.isdir(directory):
        raise ValueError(f"the checkpoint {directory} does not exist")
    if not os.path.isfile(path):
        raise ValueError(f"{directory} has no {STATE_FILE}: it is no checkpoint of PLRTrainer or UnitTrainer")
    return read_tensors(path, FORMAT)
