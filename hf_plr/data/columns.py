"""Find the columns of a data set that hold the images and the labels."""

from __future__ import annotations

from datasets import ClassLabel, Dataset, Features, Image, Value

LABEL_NAMES = ("label", "labels", "class", "target", "category", "digit", "fine_label", "coarse_label")


class AmbiguousLabelColumns(ValueError):
    """More than one column could hold the labels."""


def find_image_column(dataset: Dataset, wanted: str | None = None) -> str:
    """Name of the column with the images.

    Args:
        dataset: the data set.
        wanted: the column that the user named; None looks for the only column of type `datasets.Image`.

    Raises:
        ValueError: if the named column is missing, or none or several hold images.
    """
    if wanted is not None:
        check_present(dataset, "image_column", wanted)
        return wanted
    found = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    if len(found) == 1:
        return found[0]
    columns = ", ".join(f"{name} ({_describe(feature)})" for name, feature in dataset.features.items()) or "none"
    if not found:
        raise ValueError(f"no column holds images (of type datasets.Image); the columns are: {columns}")
    raise ValueError(f"{len(found)} columns hold images ({', '.join(found)}): choose one with image_column")


def find_label_column(dataset: Dataset, wanted: str | None = None) -> str | None:
    """Name of the column with the true labels, which only score; None if there is none.

    Looks for the only column of type `datasets.ClassLabel`, otherwise for the only integer or text column with a
    usual name such as "label".

    Raises:
        ValueError: if the named column is missing.
        AmbiguousLabelColumns: if several columns could be meant.
    """
    if wanted is not None:
        check_present(dataset, "label_column", wanted)
        return wanted
    features: Features = dataset.features
    found = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if not found:
        found = [n for n, feature in features.items() if n in LABEL_NAMES and _is_plain_label(feature)]
    if len(found) > 1:
        raise AmbiguousLabelColumns(f"{len(found)} columns could hold the labels ({', '.join(found)})")
    return found[0] if found else None


def _is_plain_label(feature: object) -> bool:
    return isinstance(feature, Value) and (
        feature.dtype.startswith(("int", "uint")) or feature.dtype in ("string", "large_string")
    )


def _describe(feature: object) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def check_present(dataset: Dataset, argument: str, name: str) -> None:
    if name not in dataset.column_names:
        raise ValueError(
            f"{argument}={name!r} is not in the data set; the columns are: {', '.join(dataset.column_names)}"
        )
