"""Folders of small images and recordings, as people bring them."""

from __future__ import annotations

import numpy as np
import soundfile
from PIL import Image as PILImage


def draw(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (4, 4), (len(str(name)), 0, 0)).save(path, format="PNG")
    return folder


def record(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        soundfile.write(folder / name, np.zeros(800), 8000, format="WAV")
    return folder


def labels(dataset):
    names = dataset.features["label"].names
    return [None if label is None else names[label] for label in dataset["label"]]
