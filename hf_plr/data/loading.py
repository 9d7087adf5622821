"""Load a data set of images by name."""

from __future__ import annotations

import os

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetNotFoundError
from PIL import Image as PILImage
from sklearn.datasets import load_digits

TEST_SPLITS = ("test", "validation", "val", "valid")


def load_images(
    name: str, config_name: str | None = None, train_split: str = "train"
) -> tuple[Dataset, Dataset | None]:
    """Load the training images and, if there is one, the test split.

    Args:
        name: a Hub id, a folder of images (with or without a subfolder for each class), or a folder with parquet files
            such as `train.parquet` and `test.parquet`.
        config_name: configuration of a Hub data set.
        train_split: name of the split to train on.

    Raises:
        ValueError: if there is no such data set or split, saying what was looked for.
    """
    splits = load_splits(name, config_name)
    train = choose_split(splits, name, train_split)
    test = next((splits[split] for split in TEST_SPLITS if split in splits and split != train_split), None)
    return train, test


def load_splits(name: str, config_name: str | None = None) -> DatasetDict:
    """Load all splits of a data set; the arguments are those of `load_images`.

    Raises:
        ValueError: if there is no such data set.
    """
    try:
        return load_dataset(name, config_name)
    except EmptyDatasetError as error:
        raise ValueError(f"dataset_name={name!r}: the folder holds no images and no parquet files") from error
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        if os.path.exists(name):
            raise ValueError(f"dataset_name={name!r} cannot be loaded: {error}") from error
        raise ValueError(f"dataset_name={name!r} is neither a folder here nor a data set on the Hub") from error


def choose_split(splits: DatasetDict, name: str, split: str) -> Dataset:
    """The split of that name.

    Raises:
        ValueError: if there is none, naming those that there are.
    """
    if not isinstance(splits, DatasetDict) or split not in splits:
        raise ValueError(f"dataset_name={name!r} has no split {split!r}; its splits are: {', '.join(splits)}")
    return splits[split]


def draw_rows(n_rows: int, max_samples: int | None, seed: int) -> np.ndarray:
    """At most `max_samples` of `n_rows` rows, drawn at random by the seed, ascending.

    Raises:
        ValueError: if `max_samples` is below 1.
    """
    if max_samples is None or max_samples >= n_rows:
        return np.arange(n_rows)
    if max_samples < 1:
        raise ValueError(f"max_samples={max_samples} must be at least 1")
    return np.sort(np.random.default_rng(seed).choice(n_rows, max_samples, replace=False))


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, as images with a label column; nothing is downloaded."""
    data = load_digits()
    images = [PILImage.fromarray((image * 255 / 16).astype(np.uint8)) for image in data.images]
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return Dataset.from_dict({"image": images, "label": data.target.tolist()}, features=features)
