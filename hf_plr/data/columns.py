"""Find the columns of a data set that hold the images or recordings and the labels."""

from __future__ import annotations

import logging
from typing import Literal

import pyarrow.compute as pc
from datasets import Audio, ClassLabel, Dataset, Features, Image, Value

from hf_plr.data.media_columns import flatten_nested, holds_waveforms

logger = logging.getLogger(__name__)

LABEL_NAMES = ("label", "labels", "class", "target", "category", "digit", "fine_label", "coarse_label")

ModalityName = Literal["image", "audio"]
COLUMN_TYPES = {"image": (Image, "images"), "audio": (Audio, "recordings")}


class AmbiguousLabelColumns(ValueError):
    """More than one column could hold the labels."""


def find_image_column(dataset: Dataset, column: str | None = None) -> str:
    """Find the column with the images.

    Args:
        dataset: the data set.
        column: the column that the user named; None looks for the only column of type `datasets.Image`.

    Raises:
        ValueError: if the named column is missing, or none or several hold images.
    """
    return _find_column(dataset, "image", column)


def find_audio_column(dataset: Dataset, column: str | None = None) -> str:
    """Find the column with the recordings.

    Args:
        dataset: the data set.
        column: the column that the user named; None looks for the only column of type `datasets.Audio`, or of
            waveforms with their sampling rates.

    Raises:
        ValueError: if the named column is missing, or none or several hold recordings.
    """
    return _find_column(dataset, "audio", column)


def find_modality_column(
    dataset: Dataset, image_column: str | None, audio_column: str | None
) -> tuple[ModalityName, str]:
    """Find the modality of a data set, "image" or "audio", and the column that holds its samples.

    Args:
        dataset: the data set.
        image_column: the column of images that the user named, which decides.
        audio_column: the column of recordings that the user named, which decides.

    Raises:
        ValueError: if both are named, the named column is missing, or it is not clear which column is meant.
    """
    if image_column is not None and audio_column is not None:
        raise ValueError(f"image_column={image_column!r} and audio_column={audio_column!r} are both given: choose one")
    if image_column is not None:
        return "image", find_image_column(dataset, image_column)
    if audio_column is not None:
        return "audio", find_audio_column(dataset, audio_column)
    images, recordings = _list_columns(dataset, "image"), _list_columns(dataset, "audio")
    if images and recordings:
        raise ValueError(
            f"both images ({', '.join(images)}) and recordings ({', '.join(recordings)}) are in the data set: choose "
            "with image_column or audio_column"
        )
    if not images and not recordings:
        raise ValueError(
            "no column holds images or recordings (of type datasets.Image or datasets.Audio); the columns are: "
            f"{_describe_columns(dataset)}. If one of them does, name it with image_column or audio_column"
        )
    return ("image", find_image_column(dataset)) if images else ("audio", find_audio_column(dataset))


def check_kind(dataset: Dataset, modality: ModalityName, column: str | None, name: str | None) -> None:
    """Refuse a data set that holds samples of the other modality alone, before a model of this one is loaded.

    Args:
        dataset: the data set.
        modality: what the recipe trains on.
        column: the column that the user named, which decides.
        name: name of the data set, for the message; None for an example.

    Raises:
        ValueError: naming the data set, and the recipe for what it holds.
    """
    other: ModalityName = "audio" if modality == "image" else "image"
    if column is None and not _list_columns(dataset, modality) and _list_columns(dataset, other):
        raise ValueError(f"{name} holds {COLUMN_TYPES[other][1]}: use hf-plr train {other}")


def find_label_column(dataset: Dataset, column: str | None = None) -> str | None:
    """Find the column with the true labels, which are for scoring only; returns None without one.

    Looks for the only column of type `datasets.ClassLabel`, otherwise for the only column with a usual name such as
    "label" that holds text, truth values or whole numbers, also where gaps have made floats of these.

    Raises:
        ValueError: if the named column is missing.
        AmbiguousLabelColumns: if several columns could be meant.
    """
    if column is not None:
        check_column(dataset, "label_column", column)
        return column
    features: Features = dataset.features
    candidates = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if not candidates:
        candidates = [name for name in features if _has_label_name(name) and _holds_classes(dataset, name)]
    if len(candidates) > 1:
        raise AmbiguousLabelColumns(f"{len(candidates)} columns could hold the labels ({', '.join(candidates)})")
    return candidates[0] if candidates else None


def find_scoring_column(dataset: Dataset, column: str | None = None) -> str | None:
    """Find the column with the true labels; returns None without one.

    It warns if several could be meant, or if one with a usual name holds nothing, or fractions, which are no classes.

    Raises:
        ValueError: if the named column is missing.
    """
    try:
        found = find_label_column(dataset, column)
    except AmbiguousLabelColumns as error:
        logger.warning("%s: nothing is scored; choose one with --label_column (label_column=...).", error)
        return None
    for name in dataset.features if found is None else ():
        if _has_label_name(name) and _has_dtype(dataset, name, ("float", "null")):
            content = "fractions, which are no classes" if _has_dtype(dataset, name, ("float",)) else "nothing"
            logger.warning("Column %r holds %s: nothing is scored by it.", name, content)
    return found


def check_dataset(dataset: object) -> Dataset:
    """Refuse anything but a `datasets.Dataset`, and give nested columns names with a dot, see `flatten_nested`.

    Raises:
        TypeError: naming its type.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(
            "train_dataset must be a datasets.Dataset with a column of images or recordings, not "
            f"{type(dataset).__name__}"
        )
    return flatten_nested(dataset)


def _find_column(dataset: Dataset, modality: ModalityName, column: str | None) -> str:
    """Find the named column, or the only one of the modality."""
    feature, plural = COLUMN_TYPES[modality]
    if column is not None:
        check_column(dataset, f"{modality}_column", column)
        return column
    candidates = _list_columns(dataset, modality)
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ValueError(
            f"no column holds {plural} (of type datasets.{feature.__name__}); the columns are: "
            f"{_describe_columns(dataset)}"
        )
    raise ValueError(
        f"{len(candidates)} columns hold {plural} ({', '.join(candidates)}): choose one with {modality}_column"
    )


def _list_columns(dataset: Dataset, modality: ModalityName) -> list[str]:
    return [
        name
        for name, feature in dataset.features.items()
        if isinstance(feature, COLUMN_TYPES[modality][0]) or (modality == "audio" and holds_waveforms(feature))
    ]


def _has_label_name(name: str) -> bool:
    return name.rsplit(".")[-1] in LABEL_NAMES


def _has_dtype(dataset: Dataset, name: str, starts: tuple[str, ...]) -> bool:
    feature = dataset.features[name]
    return isinstance(feature, Value) and feature.dtype.startswith(starts)


def _holds_classes(dataset: Dataset, name: str) -> bool:
    """Whether a column holds text, truth values or whole numbers, with gaps or without."""
    feature = dataset.features[name]
    if not isinstance(feature, Value):
        return False
    if _has_dtype(dataset, name, ("float",)):
        column = dataset.with_format("arrow")[:][name].drop_null()
        is_whole = pc.and_(pc.is_finite(column), pc.equal(pc.floor(column), column))
        return bool(pc.all(pc.or_(pc.is_nan(column), is_whole)).as_py())
    return feature.dtype.startswith(("int", "uint")) or feature.dtype in ("bool", "string", "large_string")


def _describe_columns(dataset: Dataset) -> str:
    return ", ".join(f"{name} ({_describe(feature)})" for name, feature in dataset.features.items()) or "none"


def _describe(feature: object) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def check_column(dataset: Dataset, argument: str, name: str) -> None:
    """Raise a ValueError that lists the columns, if a data set lacks the one that an argument names."""
    if name not in dataset.column_names:
        raise ValueError(
            f"{argument}={name!r} is not in the data set; the columns are: {', '.join(dataset.column_names)}"
        )
