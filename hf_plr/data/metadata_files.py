"""Tables beside images or recordings that name their files: metadata.csv and the like."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
LOOKED_AT = 16  # rows of another table that tell whether a column names files


@dataclass(frozen=True)
class Metadata:
    """What a table says of files.

    Attributes:
        name: the table's name below the folder.
        rows: its row of each file that it names, by the file's name below the folder.
        table: its other columns.
        n_missing: rows that name no file that is there.
    """

    name: str
    rows: dict[str, int]
    table: pa.Table
    n_missing: int

    def column(self, name: str, files: Sequence[str]) -> pa.Array:
        """A column's value for each file, by its name below the folder; null for files that the table does not name."""
        if name not in self.table.column_names:
            return pa.nulls(len(files))
        indices = pa.array([self.rows.get(file) for file in files], pa.int64())
        return self.table[name].combine_chunks().take(indices)


def read_table(path: str) -> pa.Table:
    """Read a table of csv, tsv, jsonl or parquet.

    Raises:
        ValueError: if it cannot be read.
    """
    suffix = os.path.splitext(path)[1].lower()
    try:
        if suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        if suffix == ".jsonl":
            return pyarrow.json.read_json(path)
        table = _read_csv(path, "utf8")
        is_utf8 = not any(pa.types.is_binary(kind) for kind in table.schema.types)  # what is none becomes bytes
        return table if is_utf8 else _read_csv(path, "latin-1")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def _read_csv(path: str, encoding: str) -> pa.Table:
    """Read a table of values that are separated by what the first line has most of: commas, semicolons or tabs."""
    with open(path, encoding="latin-1") as file:
        first = file.readline()
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(encoding=encoding),
        parse_options=pyarrow.csv.ParseOptions(delimiter=max(",;\t", key=first.count), newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True),
    )


def read_metadata(path: str, name: str, files: Sequence[str]) -> Metadata | None:
    """Read what a table says of the files of a folder; None if no column of it names them.

    Files are named relative to the table. Beside metadata.csv, .jsonl and .parquet with a column "file_name", any
    table will do whose column names files in its first rows, also by the last part of their paths.

    Args:
        path: the table.
        name: its name below the folder, with "/".
        files: names of all files of the folder, likewise.

    Raises:
        ValueError: if a table with the name of metadata cannot be read, or has no column that names files.
    """
    is_metadata = os.path.basename(name).lower() in METADATA_NAMES
    try:
        table = read_table(path)
    except ValueError:
        if is_metadata:
            raise
        return None
    folder = os.path.dirname(name)
    key = _find_key(table, folder, set(files))
    if key is None:
        if is_metadata:
            raise ValueError(f"{path} has no column file_name: its columns are {', '.join(table.column_names)}")
        return None
    by_base = _unique_by_base(files)
    known = set(files)
    rows: dict[str, int] = {}
    n_missing = 0
    for row, value in enumerate(table[key].to_pylist()):
        file = _resolve(value, folder, known, by_base)
        if file is None:
            n_missing += 1
        else:
            rows.setdefault(file, row)
    return Metadata(name, rows, table.drop_columns([key]), n_missing)


def _find_key(table: pa.Table, folder: str, known: set[str]) -> str | None:
    """The column that names files."""
    for name in table.column_names:
        if name == "file_name" or name.endswith("_file_name"):
            return str(name)
    names = [name for name, kind in zip(table.column_names, table.schema.types, strict=True) if _is_text(kind)]
    by_base = _unique_by_base(known)
    for name in names:
        values = [value for value in table[name].slice(0, LOOKED_AT).to_pylist() if value]
        if values and all(_resolve(value, folder, known, by_base) is not None for value in values):
            return str(name)
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _resolve(value: Any, folder: str, known: set[str], by_base: dict[str, str]) -> str | None:
    """The file that a value names, relative to the table's folder or, if it is the only one, by its last part."""
    if not value:
        return None
    value = str(value).replace("\\", "/")
    name = os.path.normpath(os.path.join(folder, value)).replace(os.sep, "/")
    return name if name in known else by_base.get(value.rsplit("/", 1)[-1])


def _unique_by_base(files: Sequence[str] | set[str]) -> dict[str, str]:
    """Names by their last part, where only one file has it."""
    found: dict[str, str | None] = {}
    for file in files:
        base = file.rsplit("/", 1)[-1]
        found[base] = None if base in found else file
    return {base: file for base, file in found.items() if file is not None}
