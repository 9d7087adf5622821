"""Tables beside images or recordings that name their files: metadata.csv and the like."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from hf_plr.utils.csv_text import choose_delimiter
from hf_plr.utils.files import compose_accents

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
LOOKED_AT = 16  # rows of another table that tell whether a column names files


class FileIndex:
    """Files of a folder by the ways in which a table may name them.

    Args:
        root: the folder, as an absolute path.
        files: names of its files below it, with "/".
    """

    def __init__(self, root: str, files: Sequence[str]):
        self.root = root
        self.files = set(files)
        composed = list(map(compose_accents, files))
        parts = [file.rsplit("/", 1)[-1] for file in composed]
        self._by_name = _unique(composed, files)
        self._by_part = _unique(parts, files)
        self._by_stem = _unique((part.rsplit(".", 1)[0] for part in parts), files)

    def find(self, value: Any, folder: str, also_by_part: bool) -> str | None:
        """Find the file that a table's value names; None if there is none.

        Args:
            value: a path, absolute or relative to the table; an empty one is none.
            folder: the table's folder below the root.
            also_by_part: take the last part of a path, with its ending or without, where one file alone has it.
        """
        if value is None or value == "":
            return None
        path = str(value).replace("\\", "/")
        name = os.path.relpath(path, self.root) if os.path.isabs(path) else os.path.normpath(os.path.join(folder, path))
        name = name.replace(os.sep, "/")
        if name in self.files:
            return name
        if (file := self._by_name.get(compose_accents(name))) is not None:
            return file
        part = compose_accents(path.rsplit("/", 1)[-1])
        return (self._by_part.get(part) or self._by_stem.get(part)) if also_by_part else None


@dataclass(frozen=True)
class Metadata:
    """What a table says of files.

    Attributes:
        rows: its row of each file that it names, by the file's name below the folder.
        table: its other columns.
        n_missing: rows that name no file that is there.
        n_repeated: rows that name a file of an earlier row.
    """

    rows: dict[str, int]
    table: pa.Table
    n_missing: int
    n_repeated: int


def is_metadata(name: str) -> bool:
    """Whether a table has the name that says that it names files."""
    return os.path.basename(name).lower() in METADATA_NAMES


def read_table(path: str) -> pa.Table:
    """Read a table of csv, tsv, jsonl or parquet; columns without a name, or with that of another, are left out.

    Raises:
        ValueError: if it cannot be read.
    """
    suffix = os.path.splitext(path)[1].lower()
    try:
        if suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        elif suffix == ".jsonl":
            table = pyarrow.json.read_json(path)
        else:
            table = _read_csv(path, "utf8")
            if any(pa.types.is_binary(kind) for kind in table.schema.types):  # what is no UTF-8 becomes bytes
                table = _read_csv(path, "latin-1")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    names = Counter(table.column_names)
    return table.select([i for i, name in enumerate(table.column_names) if name and names[name] == 1])


def find_delimiter(path: str) -> str:
    """What separates the values of a table of text: comma, semicolon or tab, which its first line has most of."""
    with open(path, encoding="latin-1") as file:
        first = file.readline()
    return choose_delimiter(first)


def _read_csv(path: str, encoding: str) -> pa.Table:
    """Read values that are separated by `find_delimiter`; empty texts are missing, "NA" is a text."""
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(encoding=encoding),
        parse_options=pyarrow.csv.ParseOptions(delimiter=find_delimiter(path), newlines_in_values=True),
    )
    for i, column in enumerate(table.columns):
        if _is_text(column.type):
            filled = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
            table = table.set_column(i, table.column_names[i], filled)
    return table


def read_metadata(path: str, name: str, index: FileIndex) -> Metadata | None:
    """Read what a table says of the files of a folder; None if no column of it names them.

    metadata.csv, .jsonl and .parquet have a column "file_name" with paths relative to the table. Any other table will
    do if a column names files in most of its first rows, also by the last part of their paths.

    Args:
        path: the table.
        name: its name below the folder, with "/".
        index: the files that it may name.

    Raises:
        ValueError: if it cannot be read, or has the name of metadata and no column that names files.
    """
    table = read_table(path)
    folder = os.path.dirname(name)
    also_by_part = not is_metadata(name)
    key = _find_key(table, folder, index, also_by_part)
    if key is None:
        if is_metadata(name):
            raise ValueError(f"{path} has no column file_name: its columns are {', '.join(table.column_names)}")
        return None
    rows: dict[str, int] = {}
    n_missing = n_repeated = 0
    for row, value in enumerate(table[key].to_pylist()):
        file = index.find(value, folder, also_by_part)
        n_missing += file is None
        n_repeated += file in rows
        if file is not None:
            rows.setdefault(file, row)
    return Metadata(rows, table.drop_columns([key]), n_missing, n_repeated)


def join_tables(tables: Sequence[Metadata], files: Sequence[str]) -> dict[str, pa.Array]:
    """Columns of several tables for each file; null where none names it. The first table that names a file tells of it.

    Columns of different types become text.
    """
    if not tables:
        return {}
    try:
        joined = pa.concat_tables([metadata.table for metadata in tables], promote_options="permissive")
    except pa.ArrowException:
        joined = pa.concat_tables([_to_text(metadata.table) for metadata in tables], promote_options="permissive")
    rows: dict[str, int] = {}
    start = 0
    for metadata in tables:
        for file, row in metadata.rows.items():
            rows.setdefault(file, start + row)
        start += metadata.table.num_rows
    indices = pa.array([rows.get(file) for file in files], pa.int64())
    return {name: joined[name].combine_chunks().take(indices) for name in joined.column_names}


def _to_text(table: pa.Table) -> pa.Table:
    columns = {
        name: pa.array([None if value is None else str(value) for value in table[name].to_pylist()], pa.string())
        for name in table.column_names
    }
    return pa.table(columns)


def _find_key(table: pa.Table, folder: str, index: FileIndex, also_by_part: bool) -> str | None:
    """The column that names files."""
    names: list[str] = table.column_names
    if "file_name" in names:
        return "file_name"
    for name in sorted(names, key=lambda name: not name.endswith("_file_name")):
        if not _is_text(table.schema.field(name).type):
            continue
        values = [value for value in table[name].slice(0, LOOKED_AT).to_pylist() if value]
        found = sum(index.find(value, folder, also_by_part) is not None for value in values)
        if found > len(values) / 2:
            return name
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _unique(keys: Iterable[str], files: Sequence[str]) -> dict[str, str]:
    """Files by their key, where only one file has it."""
    found: dict[str, str | None] = {}
    for key, file in zip(keys, files, strict=True):
        found[key] = None if key in found else file
    return {key: file for key, file in found.items() if file is not None}
