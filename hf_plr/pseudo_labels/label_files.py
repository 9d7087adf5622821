"""Files with one cluster label per sample: .npy, .csv and .parquet."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_plr.pseudo_labels.data_record import DataRecord, read_record
from hf_plr.refinement import NOISE, CellRefinement
from hf_plr.refinement.cooccurrence import iterate_blocks
from hf_plr.utils.csv_text import choose_delimiter, describe_csv_error
from hf_plr.utils.files import check_parent, replacing
from hf_plr.utils.run_files import refuse_run_files
from hf_plr.utils.tables import writing_table

PSEUDO_LABELS_FILE = "pseudo_labels.parquet"  # the labels in a run's output folder
LABEL_COLUMN = "label"
INDEX_COLUMN = "index"
FILE_COLUMN = "file"
DIGEST_COLUMN = "digest"
SPAN_COLUMNS = ("start", "end")
CELL_COLUMN = "cell"
FIRST_ROW_LINE = 2  # of a .csv file, below its header
EXACT_FLOATS = 1 << 53  # below it, a float64 holds every integer
BLOCK_ROWS = 1 << 18  # rows that are written together


def level_column(n_clusters: int) -> str:
    """Name of the column with the clusters of a level of so many."""
    return f"level_{n_clusters}"


def find_level(column: str) -> int | None:
    """Number of clusters of the level that a column is of; None for another column."""
    found = re.fullmatch(r"level_(\d+)", column)
    return None if found is None else int(found[1])


def _read_parquet(path: str, column: str | None, others: Sequence[str]) -> pd.DataFrame:
    """Read the columns that are needed, and all of them where the labels have no known name."""
    names = pq.read_schema(path).names
    labels = LABEL_COLUMN if column is None else column
    if labels not in names:
        return pd.read_parquet(path)
    return pd.read_parquet(path, columns=[n for n in names if n in (INDEX_COLUMN, *SPAN_COLUMNS, labels, *others)])


def _read_csv(path: str) -> pd.DataFrame:
    """Read all rows, empty ones between others too, since a row's position may say which sample it is of."""
    content = Path(path).read_bytes().rstrip(b"\r\n ")
    delimiter = choose_delimiter(content.partition(b"\n")[0].decode("utf-8", "replace"))
    types = {DIGEST_COLUMN: str}  # where all are of digits they would be numbers
    frame = pd.read_csv(io.BytesIO(content), sep=delimiter, skip_blank_lines=False, dtype=types)
    last = frame.notna().any(axis=1).to_numpy().nonzero()[0]
    return frame.iloc[: last[-1] + 1] if len(last) else frame.iloc[:0]  # tables may end with nothing but separators


READERS: dict[str, Callable[[str, str | None, Sequence[str]], Any]] = {  # of a path, the labels' column, and others
    ".npy": lambda path, *_: np.lib.format.open_memmap(path, mode="r"),  # np.load would open archives and pickles too
    ".csv": lambda path, *_: _read_csv(path),
    ".parquet": _read_parquet,
}


@dataclass(frozen=True)
class LabelFile:
    """Labels from a file.

    Attributes:
        path: the file.
        labels: integers, -1 = noise, shape (N,); memory-mapped if the file is a .npy.
        index: column "index" if it exists: row of the data set per sample, shape (N,).
        spans: columns "start" and "end" if they exist beside "index": seconds of segments, float64 (N, 2).
        record: what a .parquet file tells of the data set of its samples, if it does.
        others: further columns that were asked for, as far as they exist, as they are; None in a .npy file.
    """

    path: str
    labels: np.ndarray
    index: np.ndarray | None
    spans: np.ndarray | None = None
    record: DataRecord | None = None
    others: pd.DataFrame | None = None

    @classmethod
    def open(
        cls,
        path: str,
        column: str | None = None,
        option: str | None = None,
        may_be_empty: bool = False,
        others: Sequence[str] = (),
    ) -> LabelFile:
        """Open a file of labels.

        Args:
            path: a .npy with an array (N,), or a .csv or .parquet with one row per sample.
            column: column of the labels; by default "label", or the only column of integers beside "index".
            option: option that the caller has for the column, such as "--column", for messages; None for none.
            may_be_empty: True to take a file without labels, a shard that has no samples.
            others: further columns to read where they exist.

        Raises:
            FileNotFoundError: if the file does not exist.
            TypeError: if the labels are not integers.
            ValueError: if the file cannot be read, its kind is unknown, the column is ambiguous or has empty values,
                or labels are missing or below -1. The messages name the file.
        """
        kind = _validate_kind(path)
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist")
        record = None
        try:
            content: Any = READERS[kind](path, column, others)
            if kind == ".parquet":
                record = read_record(pq.read_schema(path))
        except Exception as error:  # numpy, pandas and pyarrow raise a dozen kinds for damaged files
            raise ValueError(f"{path} cannot be read as {kind[1:]}: {describe_csv_error(error)}") from error
        if kind == ".npy":
            return cls(path, _validate_labels(path, "it", content, may_be_empty), None)
        frame: pd.DataFrame = content
        frame.columns = frame.columns.map(str)
        if kind == ".csv" and column is None and all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in frame.columns):
            choice = "" if option is None else f", or name the column with {option} if it is one"
            raise ValueError(f"{path}: the first line holds numbers: put a header there, such as 'label'{choice}")
        name = _find_label_column(path, frame, column, option)
        if frame[name].isna().any():
            row = int(frame[name].isna().to_numpy().argmax())
            where = f"line {row + FIRST_ROW_LINE}" if kind == ".csv" else f"row {row}"
            raise ValueError(f"{path}: column {name!r} is empty in {where}; noise is written as -1")
        labels = _validate_labels(path, f"column {name!r}", take_whole(frame[name].to_numpy()), may_be_empty)
        has_index = INDEX_COLUMN in frame.columns and name != INDEX_COLUMN
        index = take_whole(frame[INDEX_COLUMN].to_numpy()) if has_index else None
        spans = None if index is None else _find_spans(frame)
        return cls(path, labels, index, spans, record, frame[[each for each in others if each in frame.columns]])


def _validate_kind(path: str) -> str:
    kind = Path(path).suffix.lower()
    if kind not in READERS:
        raise ValueError(f"{path}: label files are {', '.join(READERS)}, not {kind or 'without an ending'}")
    return kind


def take_whole(labels: np.ndarray) -> np.ndarray:
    """Take floats that are whole, which tools write for integers where there were gaps, as integers."""
    is_whole = labels.dtype.kind == "f" and bool(((np.abs(labels) < EXACT_FLOATS) & (labels == np.rint(labels))).all())
    return labels.astype(np.int64) if is_whole else labels


def _validate_labels(path: str, subject: str, labels: np.ndarray, may_be_empty: bool) -> np.ndarray:
    """Validate labels, and return them."""
    if labels.ndim != 1:
        raise ValueError(f"{path}: {subject} has shape {labels.shape}, but labels have shape (N,)")
    if len(labels) == 0:
        if may_be_empty:
            return np.empty(0, np.int64)  # an empty column of a .csv has no type
        raise ValueError(f"{path}: {subject} holds no labels")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{path}: {subject} holds {labels.dtype}, but labels are integers")
    lowest, highest = labels.min(), labels.max()
    if lowest < NOISE:
        raise ValueError(f"{path}: labels must be {NOISE} (noise) or above, but {lowest} is among them")
    if highest > np.iinfo(np.int64).max:
        raise ValueError(f"{path}: label {highest} is above {np.iinfo(np.int64).max}, the largest that is possible")
    return labels


def _find_spans(frame: pd.DataFrame) -> np.ndarray | None:
    """Find the seconds at which segments start and end; None if the columns are not there or hold no numbers."""
    if not all(name in frame.columns and pd.api.types.is_numeric_dtype(frame[name]) for name in SPAN_COLUMNS):
        return None
    spans: np.ndarray = frame[list(SPAN_COLUMNS)].to_numpy(np.float64)
    return spans


def _find_label_column(path: str, frame: pd.DataFrame, column: str | None, option: str | None) -> str:
    if column is not None:
        if column not in frame.columns:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(map(repr, frame.columns))}")
        return column
    if LABEL_COLUMN in frame.columns:
        return LABEL_COLUMN
    others = [str(name) for name in frame.columns if name != INDEX_COLUMN]
    candidates = [name for name in others if pd.api.types.is_integer_dtype(frame[name])]
    candidates = candidates or [name for name in others if take_whole(frame[name].to_numpy()).dtype.kind == "i"]
    if len(candidates) != 1:
        found = f"{len(candidates)} columns of integers" if candidates else "no column of integers"
        remedy = "give the one with the labels this name" if option is None else f"name one with {option}"
        raise ValueError(f"{path} has no column 'label' and {found} ({', '.join(map(repr, frame.columns))}): {remedy}")
    return candidates[0]


def check_output(path: str, overwrite: bool = False) -> None:
    """Reject a path that `write_labels` could not write.

    Raises:
        FileExistsError: if it exists and overwrite is False.
        FileNotFoundError: if its folder does not exist.
        ValueError: if the kind of file is unknown, or the file is a run's own.
    """
    _validate_kind(path)
    refuse_run_files([path])
    if os.path.exists(path) and not overwrite:
        raise FileExistsError(f"{path} exists already: give --overwrite to replace it")
    check_parent(path)


def write_labels(
    path: str,
    files: list[LabelFile],
    cells: CellRefinement,
    overwrite: bool = False,
    first_row: int | None = None,
    has_cells: bool = False,
) -> None:
    """Write refined labels, a block of samples at a time.

    A .npy gets the labels; a .csv or .parquet the columns index, start and end (if the input has them), label,
    previous_label, current_label and confidence. The file is written atomically.

    Args:
        path: path of the new file.
        files: labels before refinement, oldest first.
        cells: refinement of their cells.
        overwrite: True to replace an existing file.
        first_row: row of the first sample in the data set, for the column index where the input has none; None leaves
            it out then.
        has_cells: True for a column cell, the position of each sample's cell in `cells`.

    Raises:
        OSError, ValueError: as `check_output`.
    """
    check_output(path, overwrite)
    kind = _validate_kind(path)

    def build(rows: slice) -> pd.DataFrame:
        return _build_frame(files, cells, rows, first_row, has_cells)

    if kind == ".npy":
        with replacing(path) as temporary:
            _write_npy(temporary, files, cells)
        return
    schema = pa.Schema.from_pandas(build(slice(0, 0)), preserve_index=False)
    if files[-1].index is not None:  # empty rows do not show its type
        schema = schema.set(0, pa.field(INDEX_COLUMN, pa.array(files[-1].index, from_pandas=True).type))
    if files[-1].record is not None:
        schema = schema.with_metadata({**(schema.metadata or {}), **files[-1].record.metadata()})
    with writing_table(path, schema) as write:
        for rows in iterate_blocks(len(files[-1].labels), BLOCK_ROWS):
            write(pa.Table.from_pandas(build(rows), schema=schema, preserve_index=False))


def _write_npy(path: Path, files: list[LabelFile], cells: CellRefinement) -> None:
    shape = files[-1].labels.shape
    output = np.lib.format.open_memmap(path, "w+", np.int64, shape)
    for rows in iterate_blocks(shape[0], BLOCK_ROWS):
        output[rows] = cells.labels[cells.table.locate(*(file.labels[rows] for file in files))]
    output.flush()


def _build_frame(
    files: list[LabelFile], cells: CellRefinement, rows: slice, first_row: int | None, has_cells: bool
) -> pd.DataFrame:
    cell = cells.table.locate(*(file.labels[rows] for file in files))
    index, columns = files[-1].index, {}
    if index is not None:
        columns[INDEX_COLUMN] = index[rows]
    elif first_row is not None:
        columns[INDEX_COLUMN] = np.arange(first_row + rows.start, first_row + rows.stop)
    if files[-1].spans is not None:
        columns |= dict(zip(SPAN_COLUMNS, files[-1].spans[rows].T, strict=True))
    return pd.DataFrame(
        {
            **columns,
            LABEL_COLUMN: cells.labels[cell],
            "previous_label": np.asarray(files[-2].labels[rows]).astype(np.int64),
            "current_label": np.asarray(files[-1].labels[rows]).astype(np.int64),
            "confidence": cells.confidence[cell].astype(np.float32),
            **({CELL_COLUMN: cell.astype(np.int32)} if has_cells else {}),
        }
    )
