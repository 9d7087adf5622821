"""Feature files of shards, read block by block: parquet as `hf-plr embed` writes it, or .npy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_plr.pseudo_labels.data_record import DataRecord, merge_records, read_record
from hf_plr.pseudo_labels.label_files import INDEX_COLUMN, SPAN_COLUMNS

ENDINGS = (".parquet", ".npy")
FEATURE_COLUMN = "feature"
REMEDY = 'in Python, np.save("features.npy", array) writes an array (N, D) of floats'
BLOCK_BYTES = 1 << 26  # of features that are in memory together


class FeatureFile:
    """Features (N, D) in a file.

    Args:
        path: a parquet file with a column of lists of D numbers, or a .npy file with an array (N, D).
        column: column of the features in a parquet file; by default "feature", or the only one of lists of numbers.

    Attributes:
        n_rows: rows N.
        width: columns D.
        identity: columns of a parquet file that tell which samples the rows are: index, and of segments start and end.
        record: what the file tells of the data set that it is a part of; None where it tells nothing.

    Raises:
        ValueError: if the file cannot be read or holds no features, naming it.
    """

    def __init__(self, path: str, column: str | None = None):
        self.path = path
        self.is_parquet = Path(path).suffix.lower() == ".parquet"
        self._column = column or FEATURE_COLUMN
        self.identity = pa.schema([])
        self.record: DataRecord | None = None
        try:
            if Path(path).suffix.lower() not in ENDINGS:
                raise ValueError(f"features are read from {' or '.join(ENDINGS)}: {REMEDY}")
            if self.is_parquet:
                self.n_rows, self.width, self.record = self._read_shape(column)
            elif column is not None:
                raise ValueError(f"a .npy file has no column {column!r}: leave out --column")
            else:
                array = np.lib.format.open_memmap(path, mode="r")
                if array.ndim != 2 or array.dtype.kind != "f":
                    raise ValueError(f"it holds {array.dtype} of shape {array.shape}, but features are floats (N, D)")
                self.n_rows, self.width = array.shape
        except (ValueError, OSError, pa.ArrowException) as error:
            raise ValueError(f"{path} cannot be read as features: {error}") from error
        if self.n_rows and self.width == 0:
            raise ValueError(f"{path} cannot be read as features: they have no columns")

    def _read_shape(self, column: str | None) -> tuple[int, int, DataRecord | None]:
        with pq.ParquetFile(self.path, memory_map=True) as file:
            schema = file.schema_arrow
            self._column = _find_column(schema, column)
            kind = schema.field(self._column).type
            if pa.types.is_fixed_size_list(kind):
                width = kind.list_size
            else:
                first = next(file.iter_batches(1, columns=[self._column]), None)
                if first is not None and first.column(0).null_count:
                    raise ValueError("features are missing in some rows")
                width = 0 if first is None else len(first.column(0)[0])
            self.identity = pa.schema([field for field in schema if field.name in (INDEX_COLUMN, *SPAN_COLUMNS)])
            return file.metadata.num_rows, width, read_record(schema)

    @property
    def height(self) -> int:
        """Rows of a block."""
        return max(1, BLOCK_BYTES // (4 * max(self.width, 1)))

    def blocks(self, chosen: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over blocks: the position of the first row, and float32 of shape (n, D).

        Args:
            chosen: ascending positions; parts of the file without any of them are passed over. None reads all.
        """
        if self.is_parquet:
            for start, batch in self._batches([self._column], chosen):
                yield start, self._to_array(batch.column(self._column))
            return
        array = np.lib.format.open_memmap(self.path, mode="r")
        for start in range(0, self.n_rows, self.height):
            if _has_any(chosen, start, start + self.height):
                yield start, np.array(array[start : start + self.height], np.float32)

    def blocks_with_identity(self) -> Iterator[tuple[list[pa.Array], np.ndarray]]:
        """Iterate over blocks of a parquet file: its columns of `identity`, and the features."""
        names = self.identity.names
        for _, batch in self._batches([*names, self._column]):
            yield [batch.column(name) for name in names], self._to_array(batch.column(self._column))

    def _batches(self, columns: list[str], chosen: np.ndarray | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        with pq.ParquetFile(self.path, memory_map=True) as file:
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                if _has_any(chosen, start, stop):
                    position = start
                    for batch in file.iter_batches(self.height, row_groups=[group], columns=columns):
                        yield position, batch
                        position += len(batch)
                start = stop

    def _to_array(self, column: pa.Array) -> np.ndarray:
        if column.null_count:
            raise ValueError(f"{self.path}: features are missing in some rows")
        values = column.flatten()
        if len(values) != len(column) * self.width:
            raise ValueError(f"{self.path}: features differ in length, the first has {self.width} numbers")
        array: np.ndarray = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        return array.reshape(len(column), self.width)


class FeatureFiles:
    """Features (N, D) in several files, in the order of these.

    Args:
        paths: files as `FeatureFile` takes them.
        column: as for `FeatureFile`.

    Raises:
        ValueError: if they are not of one width or of different data sets, or if there are no rows.
    """

    def __init__(self, paths: Sequence[str], column: str | None = None):
        self.files = [FeatureFile(path, column) for path in paths]
        filled = [file for file in self.files if file.n_rows]
        if not filled:
            raise ValueError(f"there are no features in {', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}")
        for file in filled:
            if file.width != filled[0].width:
                raise ValueError(
                    f"{file.path} has features of {file.width} numbers and {filled[0].path} of {filled[0].width}: "
                    "they must be of one backbone"
                )
        self.width = filled[0].width
        merge_records({file.path: file.record for file in self.files})  # raises if they are of different data

    def __len__(self) -> int:
        return sum(file.n_rows for file in self.files)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Iterate over blocks, float32 of shape (n, D)."""
        for file in self.files:
            for _, block in file.blocks():
                yield block

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Read the rows at ascending positions among all: float32 of shape (m, D)."""
        taken, first = np.empty((len(positions), self.width), np.float32), 0
        for file in self.files:
            begin, end = np.searchsorted(positions, [first, first + file.n_rows])
            own = positions[begin:end] - first
            for start, block in file.blocks(own) if len(own) else ():
                low, high = np.searchsorted(own, [start, start + len(block)])
                taken[begin + low : begin + high] = block[own[low:high] - start]
            first += file.n_rows
        return taken


def _find_column(schema: pa.Schema, column: str | None) -> str:
    """Find the column of the features.

    Raises:
        ValueError: if it is not there, holds something else, or might be one of several.
    """
    name = FEATURE_COLUMN if column is None else column
    if name in schema.names:
        if not _has_numbers(schema.field(name).type):
            raise ValueError(f"its column {name!r} holds {schema.field(name).type}, not lists of numbers: {REMEDY}")
        return name
    candidates = [field.name for field in schema if _has_numbers(field.type)]
    if column is None and len(candidates) == 1:
        return candidates[0]
    remedy = f"name one of {', '.join(map(repr, candidates))} with --column" if candidates else REMEDY
    raise ValueError(f"it has no column {name!r}, but {', '.join(map(repr, schema.names))}: {remedy}")


def _has_numbers(kind: pa.DataType) -> bool:
    """True for lists of numbers."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _has_any(chosen: np.ndarray | None, start: int, stop: int) -> bool:
    return chosen is None or bool(np.searchsorted(chosen, start) < np.searchsorted(chosen, stop))
