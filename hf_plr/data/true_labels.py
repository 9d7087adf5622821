"""True labels of a data set as integers, for scoring alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset


def encode_labels(dataset: Dataset, label_column: str, names: dict[str, int] | None = None) -> np.ndarray:
    """Encode true labels as integers.

    Args:
        dataset: the data set.
        label_column: column of class labels, integers, whole numbers among floats, truth values or text.
        names: numbers of class names so far. New names are added, so that a class has the same number in every split
            that is encoded with the same dictionary.

    Returns:
        int64 array of shape (N,); -1 where a label is missing.

    Raises:
        ValueError: if a label is a fraction, or of another kind such as a list.
    """
    names = {} if names is None else names
    values = dataset.with_format(None).select_columns([label_column])[:][label_column]
    feature = dataset.features[label_column]
    if isinstance(feature, ClassLabel):
        values = [None if value is None or value < 0 else feature.names[value] for value in values]
        new_names = feature.names
    else:
        new_names = sorted({value for value in values if isinstance(value, str)})
    for name in new_names:
        names.setdefault(name, len(names))
    labels = np.full(len(values), -1, dtype=np.int64)
    for i, value in enumerate(values):
        if isinstance(value, str):
            labels[i] = names[value]
        elif value is not None and value == value:  # not NaN, which stands for a missing number
            labels[i] = _to_class(value, label_column)
    return labels


def describe_few_classes(labels: np.ndarray, label_column: str) -> str | None:
    """Describe why scores by true labels are missing or say nothing; None where there are enough of them.

    Args:
        labels: as `encode_labels` gives them, shape (N,).
        label_column: their column.
    """
    classes, sizes = np.unique(labels[labels != -1], return_counts=True)
    what = f"label_column={label_column!r}"
    if not len(classes):
        return f"{what} is empty in all {len(labels):,} rows: no features are scored by it"
    if len(classes) == 1:
        return f"{what} holds one class only: no features are scored by it"
    if len(classes) == sizes.sum():
        return f"{what} holds as many classes as labelled samples, {len(classes):,}: scores by it say nothing"
    if (sizes > 1).sum() < 2:
        return f"{what} has a single class with 2 labelled samples or more: scores by it say little"
    return None


def _to_class(value: Any, label_column: str) -> int:
    if not isinstance(value, (bool, int, float)) or not float(value).is_integer():
        raise ValueError(
            f"label_column={label_column!r} holds {str(value)[:40]!r}: classes are whole numbers or text, one a sample"
        )
    return int(value)
