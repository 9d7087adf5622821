"""Tables of a level, or of several: the rows of `pseudo_labels.parquet` with the clusters of cuts through the tree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_plr.pseudo_labels.data_record import keep_record
from hf_plr.pseudo_labels.label_files import (
    DIGEST_COLUMN,
    FILE_COLUMN,
    INDEX_COLUMN,
    LABEL_COLUMN,
    PSEUDO_LABELS_FILE,
    SPAN_COLUMNS,
    level_column,
)
from hf_plr.refinement.cluster_tree import Level
from hf_plr.utils.files import check_parent
from hf_plr.utils.run_files import refuse_run_files
from hf_plr.utils.tables import check_ending, writing_table

CLUSTER_COLUMN = "cluster"  # the run's own label, beside that of a level
NAME_COLUMN = "name"
CONTENT = "clusters"  # in messages
SAMPLE_COLUMNS = (INDEX_COLUMN, FILE_COLUMN, *SPAN_COLUMNS, DIGEST_COLUMN)
BATCH_ROWS = 1 << 18  # that are in memory at once


def write_level(
    folder: str | os.PathLike[str], output: str | os.PathLike[str], level: Level, names: Mapping[int, str]
) -> int:
    """Write the labels of a level, as a file of labels that training and other commands take.

    Its columns are those that tell samples apart (index, file, start, end and digest, as far as the run has them),
    label (cluster of the level, -1 = none), cluster (the run's own label) and, with names, name.

    Args:
        folder: the run's output folder.
        output: the .csv or .parquet file to write, atomically.
        level: the level.
        names: name by cluster of the run; without any there is no column of names.

    Returns:
        Number of samples.

    Raises:
        FileNotFoundError: if the run has no labels, or the folder of the output does not exist.
        ValueError: if they cannot be read, or the tree does not have all of their clusters.
    """
    return _write(folder, output, {LABEL_COLUMN: level}, names, {LABEL_COLUMN: NAME_COLUMN}, CLUSTER_COLUMN)


def write_levels(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    levels: Mapping[int, Level],
    names: Mapping[int, str],
) -> int:
    """Write the run's labels with a column level_N for each of several levels, which may be none.

    Clusters with names give a column name of the run's own, and a column name_N for each level.

    Args:
        folder: as for `write_level`.
        output: as for `write_level`.
        levels: level by its number of clusters N.
        names: as for `write_level`.

    Returns, Raises: as `write_level`.
    """
    columns = {level_column(n): level for n, level in levels.items()}
    return _write(folder, output, columns, names, {level_column(n): f"{NAME_COLUMN}_{n}" for n in levels}, LABEL_COLUMN)


def _write(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    levels: Mapping[str, Level],
    names: Mapping[int, str],
    name_columns: Mapping[str, str],
    own_column: str,
) -> int:
    """Write a table with one column per level; `own_column` has the labels of the run."""
    source = Path(folder) / PSEUDO_LABELS_FILE
    check_output(folder, output, overwrite=True)
    n_samples, has_names = 0, bool(names) or any(level.own_names for level in levels.values())
    with _open(source) as file:
        kept = [name for name in SAMPLE_COLUMNS if name in file.schema_arrow.names]
        own_names = names if own_column == LABEL_COLUMN else {}
        schema = _schema(
            file.schema_arrow, kept, levels, name_columns if has_names else {}, own_column, bool(own_names)
        )
        level_names = {column: level.names(names) for column, level in levels.items()} if has_names else {}
        with writing_table(output, schema, CONTENT) as write:
            for batch in file.iter_batches(BATCH_ROWS, columns=[*kept, LABEL_COLUMN]):
                arrays = _extend(batch, kept, levels, level_names, own_names, source)
                write(pa.Table.from_arrays(arrays, schema=schema))
                n_samples += len(batch)
    return n_samples


def check_output(folder: str | os.PathLike[str], output: str | os.PathLike[str], overwrite: bool) -> None:
    """Check that the run has labels, and that a table may be written there.

    Raises:
        FileNotFoundError: if the run has no labels.
        ValueError: if the output is neither .csv nor .parquet, is the run's own, or exists and may not be replaced.
    """
    source, output = Path(folder) / PSEUDO_LABELS_FILE, Path(output)
    check_ending(output, CONTENT)
    if not source.is_file():
        raise FileNotFoundError(f"{folder} holds no {PSEUDO_LABELS_FILE}")
    if output.exists() and output.samefile(source):
        raise ValueError(f"{output} holds the run's own labels: name another file")
    refuse_run_files([output], folder)
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists already: give --overwrite to replace it")
    check_parent(output)


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    labels = file.schema_arrow.names.count(LABEL_COLUMN) and file.schema_arrow.field(LABEL_COLUMN).type
    if not labels or not pa.types.is_integer(labels):
        raise ValueError(f"{path} has no column {LABEL_COLUMN!r} of integers")
    return file


def _schema(
    source: pa.Schema,
    kept: list[str],
    levels: Mapping[str, Level],
    name_columns: Mapping[str, str],
    own_column: str,
    has_own_names: bool,
) -> pa.Schema:
    fields = [source.field(name) for name in kept]
    own = [pa.field(own_column, pa.int64()), *([pa.field(NAME_COLUMN, pa.string())] if has_own_names else [])]
    of_levels = [pa.field(column, pa.int64()) for column in levels]
    of_names = [pa.field(name_columns[column], pa.string()) for column in levels if column in name_columns]
    numbers = of_levels + own if own_column == CLUSTER_COLUMN else own + of_levels
    return pa.schema([*fields, *numbers, *of_names], keep_record(source))


def _extend(
    batch: pa.RecordBatch,
    kept: list[str],
    levels: Mapping[str, Level],
    level_names: Mapping[str, Mapping[int, str]],
    own_names: Mapping[int, str],
    source: Path,
) -> list[pa.Array]:
    """Columns of a batch in the order of the schema."""
    labels = batch.column(LABEL_COLUMN)
    if labels.null_count:
        raise ValueError(f"{source}: column {LABEL_COLUMN!r} is empty in some rows")
    own = labels.to_numpy(zero_copy_only=False).astype(np.int64)
    try:
        numbers = {column: level.apply(own) for column, level in levels.items()}
    except ValueError as error:
        raise ValueError(f"{source} is not of this tree: {error}") from error
    names = [name_samples(numbers[column], of_level) for column, of_level in level_names.items()]
    arrays = [pa.array(numbers[column]) for column in levels]
    of_run = [pa.array(own), *([name_samples(own, own_names)] if own_names else [])]
    arrays = [*arrays, *of_run] if LABEL_COLUMN in levels else [*of_run, *arrays]
    return [*(batch.column(name) for name in kept), *arrays, *names]


def name_samples(numbers: np.ndarray, names: Mapping[int, str]) -> pa.Array:
    """Names of samples by their cluster, int64 (n,); empty (null) where it has none."""
    clusters = np.array(sorted(names), np.int64)
    place = np.searchsorted(clusters, numbers)
    is_named = np.isin(numbers, clusters)
    indices = pa.array(np.where(is_named, place, 0), mask=~is_named)
    return pa.array([names[int(cluster)] for cluster in clusters], pa.string()).take(indices)
