"""Small data sets that need no files: handwritten digits, and recordings made by arithmetic."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import soundfile
from datasets import Audio, ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from sklearn.datasets import load_digits


def digits() -> Dataset:
    """Make a data set of scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, with labels; nothing is downloaded."""
    data = load_digits()
    images = [PILImage.fromarray((image * 255 / 16).astype(np.uint8)) for image in data.images]
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return Dataset.from_dict({"image": images, "label": data.target.tolist()}, features=features)


SYNTHETIC_RATE = 8000
SYNTHETIC_VOWELS = {"ah": (730, 1090, 2440), "ee": (270, 2290, 3010), "oo": (300, 870, 2240)}


def make_synthetic_recordings(n_per_class: int = 100, seed: int = 0) -> Dataset:
    """Make synthetic recordings of eight classes by arithmetic: no file is needed.

    The classes are chirps up and down, three vowel-like stacks of harmonics, bursts of noise, trains of clicks and a
    tremolo. Each recording has its own pitch, length (0.3 to 1 s), loudness and noise. They are for first trials, not
    for evidence.

    Args:
        n_per_class: recordings of each class.
        seed: the same seed makes the same recordings.

    Returns:
        8 x `n_per_class` rows with the columns "audio" (wav, 16 bits, 8,000 Hz) and "label".
    """
    rng = np.random.default_rng(seed)
    classes = _make_synthetic_classes()
    files, labels = [], []
    for _ in range(n_per_class):
        for label, make_sound in enumerate(classes.values()):
            time = np.arange(int(SYNTHETIC_RATE * rng.uniform(0.3, 1.0))) / SYNTHETIC_RATE
            sound = make_sound(time, rng)
            fade = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.02)
            sound = sound / np.abs(sound).max() * fade + rng.normal(0.0, rng.uniform(0.005, 0.05), len(time))
            buffer = io.BytesIO()
            loudness = rng.uniform(0.1, 0.8)
            soundfile.write(buffer, np.clip(loudness * sound, -1.0, 1.0), SYNTHETIC_RATE, "PCM_16", format="WAV")
            files.append({"bytes": buffer.getvalue(), "path": None})
            labels.append(label)
    file_feature = {
        "bytes": Value("binary"),
        "path": Value("string"),
    }  # datasets would ask for torchcodec to encode Audio
    features = Features({"audio": file_feature, "label": ClassLabel(names=list(classes))})
    return Dataset.from_dict({"audio": files, "label": labels}, features=features).cast_column("audio", Audio())


Sound = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # of the time in seconds (T,)


def _make_synthetic_classes() -> dict[str, Sound]:
    def chirp(start: float, end: float) -> Sound:
        def make(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            scale = rng.uniform(0.8, 1.25)
            slope = (end - start) / time[-1]
            return np.sin(2 * np.pi * scale * (start * time + slope * time**2 / 2))

        return make

    def vowel(formants: tuple[int, ...]) -> Sound:
        def make(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            pitch = rng.uniform(90.0, 250.0)
            harmonics = pitch * np.arange(1, int(3500 / pitch))
            tract = rng.uniform(0.9, 1.1)  # a longer vocal tract has lower formants
            distance = (harmonics[:, None] - tract * np.asarray(formants)) / 120.0
            amplitudes = (np.asarray([1.0, 0.6, 0.3]) / (1.0 + distance**2)).sum(axis=1)
            vibrato = time + 0.0005 * np.sin(2 * np.pi * rng.uniform(3.0, 6.0) * time)
            return amplitudes @ np.sin(2 * np.pi * harmonics[:, None] * vibrato)

        return make

    def burst(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.normal(size=len(time)) * np.exp(-time / rng.uniform(0.05, 0.3))

    def clicks(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        since_click = time % rng.uniform(0.04, 0.12)
        return np.exp(-since_click / 0.003) * np.sin(2 * np.pi * rng.uniform(800.0, 2500.0) * since_click)

    def tremolo(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        envelope = 1.0 + 0.9 * np.sin(2 * np.pi * rng.uniform(6.0, 14.0) * time)
        return envelope * np.sin(2 * np.pi * rng.uniform(300.0, 1200.0) * time)

    vowels = {f"vowel {name}": vowel(formants) for name, formants in SYNTHETIC_VOWELS.items()}
    chirps = {"chirp up": chirp(400.0, 2400.0), "chirp down": chirp(2400.0, 400.0)}
    return chirps | vowels | {"noise burst": burst, "clicks": clicks, "tremolo": tremolo}
