"""Columns of tables that hold images or recordings but do not say so: paths, bytes, nested columns."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pyarrow as pa
from datasets import Audio, Dataset, Image, Value, concatenate_datasets
from datasets.features.features import generate_from_arrow_type

from hf_plr.data.media_kinds import HEAD_BYTES, Kind, identify_head, identify_name

LOOKED_AT = 16  # values of a column that tell whether all are paths or files
FEATURES = {"image": Image, "audio": Audio}
WAVEFORM = {"array", "sampling_rate"}
TEXT, BINARY = ("string", "large_string"), ("binary", "large_binary")


def expose_media(dataset: Dataset, folder: str) -> Dataset:
    """Give the types `Image` or `Audio` to columns that hold paths or bytes of images or recordings.

    Args:
        dataset: a split; nested columns are flattened, see `flatten_nested`.
        folder: where relative paths begin.
    """
    dataset = flatten_nested(dataset)
    for name, feature in list(dataset.features.items()):
        values = dataset.with_format("arrow")[:LOOKED_AT][name].to_pylist()
        found = _find_type(feature, values, folder)
        if found is feature:
            continue
        holds_paths = isinstance(feature, Value) and feature.dtype in TEXT
        if holds_paths or _names_files(feature, values):
            dataset = _make_absolute(dataset, name, folder)
        dataset = dataset.cast_column(name, found)
    return dataset


def flatten_nested(dataset: Dataset) -> Dataset:
    """Make columns "a.b" of a column "a" with fields, but not of one whose fields are a file or a waveform.

    A data set without such columns is returned as it is.
    """
    if dataset.format["type"] == "custom":  # a transform is refused elsewhere
        return dataset
    while any(map(_is_nested, dataset.features.values())):
        dataset = _flatten_once(dataset)
    return dataset


def holds_waveforms(feature: Any) -> bool:
    """Whether a column holds `{"array": samples, "sampling_rate": samples per second}`, with a path or without."""
    return isinstance(feature, dict) and WAVEFORM <= set(feature) <= {*WAVEFORM, "path"}


def holds_media(column: pa.ChunkedArray, folder: str, root: str) -> bool:
    """Whether a column's first values are images or recordings, or name such files outside of a folder.

    Args:
        column: the column, of any type.
        folder: where relative paths begin.
        root: the folder outside of which the files are, as an absolute path.
    """
    feature = generate_from_arrow_type(column.type)
    values = column.slice(0, LOOKED_AT).to_pylist()
    found = _find_type(feature, values, folder)
    if found is feature:
        return False
    is_text = isinstance(feature, Value) and feature.dtype in TEXT
    return not is_text or not all(
        os.path.abspath(os.path.join(folder, value)).startswith(f"{root}{os.sep}") for value in values if value
    )


def _flatten_once(dataset: Dataset) -> Dataset:
    """Flatten nested columns by one level."""
    kept = [name for name, feature in dataset.features.items() if _stays_whole(feature)]
    if not kept or len(dataset.data) == 0:
        return dataset.flatten(max_depth=2).with_format(None)  # a format would still name the columns from before
    flat = dataset.select_columns([name for name in dataset.column_names if name not in kept])
    flat = flat.flatten(max_depth=2).with_format(None)
    whole = dataset.select_columns(kept).with_format(None)
    # Both choose the same rows of their tables; columns of whole tables are joined without a copy.
    rows, flat._indices, whole._indices = flat._indices, None, None
    joined = concatenate_datasets([flat, whole], split=dataset.split, axis=1)
    joined._indices = rows
    return joined


def _stays_whole(feature: Any) -> bool:
    """Whether `Dataset.flatten` takes a column apart that is a sample, or fails by one, as by decoded recordings."""
    return isinstance(feature, Audio) or (isinstance(feature, dict) and not _is_nested(feature))


def _is_nested(feature: Any) -> bool:
    return isinstance(feature, dict) and not _is_file(feature) and not holds_waveforms(feature)


def _is_file(feature: dict[str, Any]) -> bool:
    return set(feature) == {"bytes", "path"}


def _names_files(feature: Any, values: list[Any]) -> bool:
    """Whether a column of bytes and paths has paths alone."""
    is_file = isinstance(feature, dict) and _is_file(feature)
    return is_file and all(value is None or value["bytes"] is None for value in values)


def _find_type(feature: Any, values: list[Any], folder: str) -> Any:
    """Type of a column by its first values: `Image` or `Audio` if all are such files and any is there, else its own."""
    if _is_nested(feature):
        fields = {name: [value[name] for value in values if value is not None] for name in feature}
        types = {name: _find_type(feature[name], fields[name], folder) for name in feature}
        return feature if all(types[name] is feature[name] for name in feature) else types
    is_file = isinstance(feature, dict) and _is_file(feature)
    if not is_file and not (isinstance(feature, Value) and feature.dtype in TEXT + BINARY):
        return feature
    stored = [_to_stored(value) for value in values]
    stored = [value for value in stored if value["bytes"] or value["path"]]
    kinds = {_kind_of_value(value) for value in stored}
    kind = kinds.pop() if len(kinds) == 1 and any(_is_there(value, folder) for value in stored) else None
    return feature if kind is None or kind not in FEATURES else FEATURES[kind]()


def _to_stored(value: Any) -> dict[str, Any]:
    """Bytes and path of a value that is missing, one of the two, or both."""
    if isinstance(value, dict):
        return value
    return {"bytes": value, "path": None} if isinstance(value, bytes) else {"bytes": None, "path": value}


def _kind_of_value(stored: dict[str, Any]) -> Kind | None:
    """What the bytes hold, or without any the file of that name; it need not be there."""
    if stored["bytes"]:
        media = identify_head(stored["bytes"][:HEAD_BYTES])
    else:
        path = str(stored["path"]).replace("\\", "/")
        media = identify_name(os.path.splitext(path.split("::")[0])[1].lower())
    return None if media is None else media.kind


def _is_there(stored: dict[str, Any], folder: str) -> bool:
    path = str(stored["path"]).replace("\\", "/")
    return bool(stored["bytes"]) or "://" in path or os.path.exists(os.path.join(folder, path))


def _make_absolute(dataset: Dataset, name: str, folder: str) -> Dataset:
    """Let relative paths begin in the folder, also those beside bytes; files that change give another fingerprint."""
    column = dataset.with_format("arrow")[:][name].combine_chunks()
    is_struct = pa.types.is_struct(column.type)
    stored = (column.field("path") if is_struct else column).to_pylist()
    paths = [_resolve(path, folder) for path in stored]
    digest = hashlib.sha256(dataset._fingerprint.encode())
    for path in paths:
        digest.update(_stamp(path).encode())
    values: Any = paths
    if is_struct:
        values = [
            None if value is None else {"bytes": value["bytes"], "path": path}
            for value, path in zip(column.to_pylist(), paths, strict=True)
        ]
    feature = dataset.features[name]
    # Beside the old one at first: a data set without any column has no rows.
    changed = dataset.add_column(f"{name} ", values, feature=feature if is_struct else Value("string"))
    changed = changed.remove_columns(name).rename_column(f"{name} ", name)
    changed._fingerprint = digest.hexdigest()[:16]
    return changed


def _resolve(path: str | None, folder: str) -> str | None:
    """A path or address whose last part, the file of this machine, begins in the folder."""
    if not path:
        return None
    *inner, last = path.replace("\\", "/").split("::")
    return "::".join([*inner, last if "://" in last else os.path.join(folder, last)])


def _stamp(path: str | None) -> str:
    """Size and time of change of the file that a path or address names; empty where there is none."""
    try:
        status = os.stat(str(path).split("::")[-1])
    except OSError:
        return ""
    return f"{path}|{status.st_size}|{status.st_mtime_ns};"
