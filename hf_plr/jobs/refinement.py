"""Refine labels in shard files: tables of shards add up, and each sample's label depends on its cell alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from hf_plr.pseudo_labels.cell_targets import CELL_TARGETS_FILE, write_cell_targets
from hf_plr.pseudo_labels.data_record import merge_records
from hf_plr.pseudo_labels.label_files import DIGEST_COLUMN, FILE_COLUMN, LabelFile, check_output, write_labels
from hf_plr.refinement import CellRefinement, CooccurrenceTable, PseudoLabelRefiner, cooccurrence
from hf_plr.utils.files import check_folder
from hf_plr.utils.media_names import may_be_one_file
from hf_plr.utils.shards import list_files, name_by_file

ENDINGS = (".npy", ".csv", ".parquet")
NAMING_COLUMNS = (DIGEST_COLUMN, FILE_COLUMN)  # columns that tell which sample a row is of, the surest first
ASIDE = "unfinished.tmp"  # folder of files that are being written, below that of the output


class LabelShards:
    """Labels of two or more epochs in shard files, of which one shard is in memory at a time.

    Args:
        epochs: a folder of shard files, or one file, per epoch, oldest first. The shards of all epochs label the same
            samples in the same order, one by one in the order of their names.
        column, option: column with the labels, and the option for it, see `LabelFile.open`.

    Attributes:
        paths: the files of each shard, oldest epoch first.
        folders: the epochs that are folders.

    Raises:
        ValueError, FileNotFoundError: if epochs differ in the number of their shards, or have none.
    """

    def __init__(self, epochs: Sequence[str], column: str | None = None, option: str | None = None):
        files = [list_files([epoch], ENDINGS, "labels") for epoch in epochs]
        for epoch, of_epoch in zip(epochs[:-1], files[:-1], strict=True):
            if len(of_epoch) != len(files[-1]):
                raise ValueError(
                    f"{epoch} has {len(of_epoch)} files of labels and {epochs[-1]} has {len(files[-1])}: shards must "
                    "label the same samples, one by one"
                )
        self.paths = list(zip(*files, strict=True))
        self.folders = [epoch for epoch in epochs if os.path.isdir(epoch)]
        self._column, self._option = column, option

    def __iter__(self) -> Iterator[tuple[int, list[LabelFile]]]:
        """Iterate over shards: the number of samples before it, and its labels, oldest epoch first.

        Raises:
            ValueError, TypeError, OSError: if files do not fit, or at the end if all shards are empty.
        """
        first = 0
        for paths in self.paths:
            files = [
                LabelFile.open(path, self._column, self._option, may_be_empty=True, others=NAMING_COLUMNS)
                for path in paths
            ]
            check_same_samples(files)
            merge_records({file.path: file.record for file in files})
            yield first, files
            first += len(files[-1].labels)
        if first == 0:
            raise ValueError(f"{' and '.join(self.folders)}: none of the files holds labels")


def refine_shards(
    shards: LabelShards, refiner: PseudoLabelRefiner, folder: str, overwrite: bool = False
) -> CellRefinement:
    """Refine the labels of all shards together, and write a .parquet file per shard.

    The files have the columns of `write_labels`, always with an index. Where targets are soft (assignment "soft"), they
    have the column cell too, and the file of `write_cell_targets` is beside them.

    Args:
        shards: labels before refinement.
        refiner: the refinement.
        folder: folder of the output, which is made; its files are named as those of the current epoch.
        overwrite: True to replace files.

    Raises:
        ValueError, TypeError, OSError: if files do not fit, naming them.
    """
    outputs = name_by_file([paths[-1] for paths in shards.paths], folder, ".parquet")
    check_folder(folder, "labels in folders")
    _check_adds_no_shards(shards, folder, outputs)
    os.makedirs(folder, exist_ok=True)
    for output in outputs:
        check_output(output, overwrite)
    tables = (cooccurrence(*(file.labels for file in files), offset=first) for first, files in shards)
    cells = refiner.refine_cells(sum_tables(tables))
    is_soft = refiner.assignment == "soft"
    aside = os.path.join(folder, ASIDE)
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    os.mkdir(aside)
    try:
        for output, (first, files) in zip(outputs, shards, strict=True):
            written = os.path.join(aside, os.path.basename(output))
            write_labels(written, files, cells, first_row=first, has_cells=is_soft)
        if is_soft:
            write_cell_targets(aside, cells)
        _move_into_place(aside, folder, outputs)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return cells


def _check_adds_no_shards(shards: LabelShards, folder: str, outputs: list[str]) -> None:
    """Reject a folder of labels that would keep its own shards beside the refined ones: nothing reads such a folder."""
    names = {os.path.basename(output) for output in outputs}
    for epoch in shards.folders:
        if os.path.isdir(folder) and os.path.samefile(epoch, folder):
            files = list_files([epoch], ENDINGS, "labels")
            if any(os.path.basename(file) not in names for file in files):
                raise ValueError(
                    f"--output {folder} is a folder of labels before refinement, whose files have other names than the "
                    "refined ones: name another folder"
                )


def _move_into_place(aside: str, folder: str, outputs: list[str]) -> None:
    """Move files into a folder in place of others, so that whoever is interrupted never leaves old beside new ones.

    A folder without some of its shards is refused by `list_files`, and labels of cells without `CELL_TARGETS_FILE` by
    `GivenLabels`.
    """
    targets = os.path.join(folder, CELL_TARGETS_FILE)
    for output in (targets, *outputs):
        if os.path.exists(output):
            os.remove(output)
    for output in (*outputs, targets):
        written = os.path.join(aside, os.path.basename(output))
        if os.path.exists(written):
            os.replace(written, output)


def sum_tables(tables: Iterator[CooccurrenceTable]) -> CooccurrenceTable:
    """Sum the tables of shards in pairs of about equal size, so that a cell is not sorted once for each shard."""
    pending: list[tuple[int, CooccurrenceTable]] = []  # number of shards in each sum, descending
    for table in tables:
        size = 1
        while pending and pending[-1][0] == size:
            table = pending.pop()[1] + table
            size *= 2
        pending.append((size, table))
    total = pending.pop()[1]
    while pending:
        total = pending.pop()[1] + total
    return total


def check_same_samples(files: list[LabelFile]) -> None:
    """Reject files of labels that are of other samples, or in another order.

    Raises:
        ValueError: naming two files and what differs.
    """
    current = files[-1]
    for file in files[:-1]:
        if len(file.labels) != len(current.labels):
            raise ValueError(
                f"{file.path} has {len(file.labels):,} labels but {current.path} has {len(current.labels):,}: "
                "they must label the same samples in the same order"
            )
        if file.index is not None and current.index is not None and not np.array_equal(file.index, current.index):
            row = int(np.argmax(file.index != current.index))
            raise ValueError(
                f"{file.path} and {current.path} are not in the same order: in row {row} their index is "
                f"{file.index[row]} and {current.index[row]}"
            )
        if file.spans is not None and current.spans is not None and not np.array_equal(file.spans, current.spans):
            row = int(np.argmax((file.spans != current.spans).any(axis=1)))
            raise ValueError(
                f"{file.path} and {current.path} label other segments: in row {row} they start at "
                f"{file.spans[row, 0]:g} and {current.spans[row, 0]:g} s, and end at {file.spans[row, 1]:g} and "
                f"{current.spans[row, 1]:g} s"
            )
        _check_same_names(file, current)


def _check_same_names(file: LabelFile, current: LabelFile) -> None:
    """Reject labels whose rows are of other samples by the column digest, or where a table has none, by file.

    Rows without a value are passed over; files are told apart by `may_be_one_file`.
    """
    if file.others is None or current.others is None:
        return
    for column in NAMING_COLUMNS:
        if column in file.others and column in current.others:
            break
    else:
        return
    first, second = file.others[column], current.others[column]
    if not (pd.api.types.is_string_dtype(first) and pd.api.types.is_string_dtype(second)):
        return
    differs = (first.notna() & second.notna() & (first != second)).to_numpy(bool)
    for row in np.flatnonzero(differs).tolist():
        one, other = str(first.iloc[row]), str(second.iloc[row])
        if column == FILE_COLUMN and may_be_one_file(one, other):
            continue
        raise ValueError(
            f"{file.path} and {current.path} are not of the same samples in the same order: in row {row} their "
            f"{column} is {one} and {other}; sort them alike, or leave samples out that only one of them has"
        )
