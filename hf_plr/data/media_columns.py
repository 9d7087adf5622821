"""Columns of tables that hold images or recordings but do not say so: paths, bytes, nested columns."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa
from datasets import Audio, Dataset, Image, Value

from hf_plr.data.media_kinds import HEAD_BYTES, Kind, identify_head, identify_name

LOOKED_AT = 16  # values of a column that tell whether all are paths or files
FEATURES = {"image": Image, "audio": Audio}
TEXT, BINARY = ("string", "large_string"), ("binary", "large_binary")


def expose_media(dataset: Dataset, folder: str) -> Dataset:
    """Give the types `Image` or `Audio` to columns that hold paths or bytes of images or recordings.

    Args:
        dataset: a split; nested columns are flattened, see `flatten_nested`.
        folder: where relative paths begin.
    """
    for name, feature in list(dataset.features.items()):
        values = dataset.with_format("arrow")[:LOOKED_AT][name].to_pylist()
        found = _find_type(feature, values, folder)
        if found is feature:
            continue
        if isinstance(feature, Value) and feature.dtype in TEXT:
            dataset = _make_absolute(dataset, name, folder)
        dataset = dataset.cast_column(name, found)
    return flatten_nested(dataset)


def flatten_nested(dataset: Dataset) -> Dataset:
    """Make columns "a.b" of a column "a" with fields; a data set without such columns is returned as it is."""
    is_nested = any(isinstance(feature, dict) and not _is_file(feature) for feature in dataset.features.values())
    if is_nested and dataset.format["type"] != "custom":  # a transform is refused elsewhere
        return dataset.flatten().with_format(None)  # a format would still name the columns from before
    return dataset


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type holds files, as `datasets` stores them: bytes and paths, also in other columns."""
    if not pa.types.is_struct(kind):
        return False
    names = {field.name for field in kind}
    return {"bytes", "path"} <= names or any(holds_bytes(field.type) for field in kind)


def _is_file(feature: dict[str, Any]) -> bool:
    return set(feature) == {"bytes", "path"}


def _find_type(feature: Any, values: list[Any], folder: str) -> Any:
    """Type of a column by its first values: `Image` or `Audio` if all of them are such files, else its own."""
    if isinstance(feature, dict) and not _is_file(feature):
        fields = {name: [value[name] for value in values if value is not None] for name in feature}
        types = {name: _find_type(feature[name], fields[name], folder) for name in feature}
        return feature if all(types[name] is feature[name] for name in feature) else types
    if not isinstance(feature, dict) and not (isinstance(feature, Value) and feature.dtype in TEXT + BINARY):
        return feature
    kinds = {_kind_of_value(value, folder) for value in values if value is not None}
    kind = kinds.pop() if len(kinds) == 1 else None
    return feature if kind is None or kind not in FEATURES else FEATURES[kind]()


def _kind_of_value(value: Any, folder: str) -> Kind | None:
    stored = value if isinstance(value, dict) else {"bytes": value if isinstance(value, bytes) else None, "path": value}
    if stored["bytes"] is not None:
        media = identify_head(stored["bytes"][:HEAD_BYTES])
    else:
        path = str(stored["path"])
        media = identify_name(os.path.splitext(path)[1].lower())
        if "://" not in path and not os.path.exists(os.path.join(folder, path)):
            return None
    return None if media is None else media.kind


def _make_absolute(dataset: Dataset, name: str, folder: str) -> Dataset:
    """Let relative paths begin in the folder."""
    values = dataset.with_format("arrow")[:][name].to_pylist()
    paths = [value if value is None or "://" in value else os.path.join(folder, value) for value in values]
    with_paths = dataset.add_column(
        f"{name} ", paths, feature=Value("string")
    )  # beside it: the last column has the rows
    return with_paths.remove_columns(name).rename_column(f"{name} ", name)
